// What the linears of the tile unit share: matrices stored in tiles, tiles of accumulators, and the place in out that
// these stand for.
#pragma once

#include "cpu/linear/vec.h"
#include "cpu/vec/tile_config.h"

namespace distilfast {
namespace {

constexpr Index tile_side = 16;  // rows of x, columns of W, rows and columns of accumulators
constexpr Index tile_row_bytes = 64;
constexpr Index tile_bytes = tile_side * tile_row_bytes;
constexpr Index tile_elements = tile_side * tile_side;  // of accumulators
constexpr Index panel_tiles = 2;
constexpr Index tile_panel = panel_tiles * tile_side;
constexpr Index block_k_tiles = 16;                // of a k-block: two column tiles of one fit L1
constexpr Index tile_mc_multiple = 2 * tile_side;  // ranges of rows begin at a multiple of it
constexpr Index tile_mc = 512;                     // rows for each pass over W: L3 gives a core only some 25 GB/s

// min(n, most), and 0 for a negative n.
inline Index clamped(Index n, Index most) { return n < 0 ? 0 : smaller(n, most); }

// A matrix stored in tiles: k-blocks; in each, rows (of x) or columns (of W) of 16; in each of these, tiles along K.
struct Tiles {
  Index k_tiles;  // tiles along K
  Index count;    // tiles along the rows of x or the columns of W

  Index in_block(Index k_tile) const {
    return smaller(k_tiles - k_tile / block_k_tiles * block_k_tiles, block_k_tiles);
  }
  // Offsets and sizes are in bytes.
  Index at(Index k_tile, Index tile) const {
    const Index first = k_tile / block_k_tiles * block_k_tiles;
    return (first * count + tile * in_block(k_tile) + k_tile - first) * tile_bytes;
  }
  Index row_at(Index k_tile, Index row) const { return at(k_tile, row / tile_side) + row % tile_side * tile_row_bytes; }
  Index bytes() const { return k_tiles * count * tile_bytes; }
};

// `tile_k`: values of K in a tile.
inline Tiles row_tiles(Index rows, Index k, Index tile_k) { return {divide_up(k, tile_k), divide_up(rows, tile_side)}; }
inline Tiles column_tiles(Index n, Index k, Index tile_k) {
  return {divide_up(k, tile_k), round_up(n, tile_panel) / tile_side};
}

// The end of the rows that `pack_a` writes: the last range also zero-pads the last tile.
inline Index end_with_padding(const Linear& op, Range rows) {
  return rows.end == op.rows ? round_up(rows.end, tile_side) : rows.end;
}

// The elements of out that some tiles of accumulators stand for; the tiles may reach past them.
struct OutTile {
  float* at;
  Index stride, rows, columns;
};

inline OutTile out_tile(const Linear& op, Index row, Index row_end, Index panel, Index max_rows, Index max_columns) {
  const Index column = panel * tile_panel;
  return {op.out + row * op.out_stride + column, op.out_stride, smaller(row_end - row, max_rows),
          smaller(op.packed.n - column, max_columns)};
}

// Configures the tiles for as long as it lives. That costs some 55 ns each time; a flag that remembers the
// configuration could not know what other libraries in this thread have done to it.
struct TileScope {
  TileScope() {
    static constexpr TileConfig config = full_tiles();
    TileUnit::configure(config);
  }
  ~TileScope() { TileUnit::release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// Calls body<0>(), body<1>() … body<Count - 1>().
template <int Count, int I = 0, class Body>
inline __attribute__((always_inline)) void for_each(Body body) {
  if constexpr (I < Count) {
    body.template operator()<I>();
    for_each<Count, I + 1>(body);
  }
}

struct Bf16Products {
  using Element = float;  // of accumulators
  template <int accumulators, int a, int b>
  static void add() {
    TileUnit::add_bf16_products<accumulators, a, b>();
  }
};
struct Int8Products {
  using Element = std::int32_t;
  template <int accumulators, int a, int b>
  static void add() {
    TileUnit::add_int8_products<accumulators, a, b>();
  }
};

// Rows x Columns tiles of accumulators, at most four: the unit's other four tiles are for operands.
template <int Rows, int Columns, class Products>
struct TileAccumulators {
  static_assert(Rows <= 2 && Rows * Columns <= 4);
  using Element = typename Products::Element;
  static constexpr int count = Rows * Columns;
  static constexpr Index max_rows = Rows * tile_side, max_columns = Columns * tile_side;

  static void zero() {
    for_each<count>([]<int tile>() { TileUnit::zero<tile>(); });
  }
  static void load(const Element* from, Index stride) {
    for_each<count>([&]<int tile>() {
      TileUnit::load<tile>(from + (tile / Columns * stride + tile % Columns) * tile_side, stride * 4);
    });
  }
  static void store(Element* to, Index stride) {
    for_each<count>([&]<int tile>() {
      TileUnit::store<tile>(to + (tile / Columns * stride + tile % Columns) * tile_side, stride * 4);
    });
  }
  static void load(OutTile from) {
    if (is_whole(from)) return load(from.at, from.stride);
    alignas(64) float edge[max_rows * max_columns] = {};
    copy(from.at, from.stride, from, edge, max_columns);
    load(edge, max_columns);
  }
  static void store(OutTile to) {
    if (is_whole(to)) return store(to.at, to.stride);
    alignas(64) float edge[max_rows * max_columns];
    store(edge, max_columns);
    copy(edge, max_columns, to, to.at, to.stride);
  }

  // Adds the products of one tile along K of each row and column, which are `stride` bytes apart.
  static inline __attribute__((always_inline)) void add_one(const std::byte* x, const std::byte* w, Index stride) {
    constexpr int x_tile = 4, w_tile = x_tile + Rows, w_tiles = 8 - w_tile;
    for_each<Rows>([&]<int i>() { TileUnit::load<x_tile + i>(x + i * stride, tile_row_bytes); });
    for_each<Columns>([&]<int j>() {
      constexpr int column = w_tile + j % w_tiles;
      TileUnit::load<column>(w + j * stride, tile_row_bytes);
      for_each<Rows>([&]<int i>() { Products::template add<i * Columns + j, x_tile + i, column>(); });
    });
  }
  // The same for all `k_tiles` of a k-block, with a call of between() after each.
  template <class Between>
  static inline __attribute__((always_inline)) void add(const std::byte* x, const std::byte* w, Index k_tiles,
                                                        Between between) {
    for (Index k_tile = 0; k_tile < k_tiles; ++k_tile) {
      add_one(x + k_tile * tile_bytes, w + k_tile * tile_bytes, k_tiles * tile_bytes);
      between();
    }
  }

 private:
  static bool is_whole(OutTile out) { return out.rows == max_rows && out.columns == max_columns; }
  static void copy(const float* from, Index from_stride, OutTile out, float* to, Index to_stride) {
    for (Index i = 0; i < out.rows; ++i)
      for (Index j = 0; j < out.columns; j += Vec::width) {
        const Index inside = clamped(out.columns - j, Vec::width);
        Vec::load(from + i * from_stride + j, inside).store(to + i * to_stride + j, inside);
      }
  }
};

}  // namespace
}  // namespace distilfast
