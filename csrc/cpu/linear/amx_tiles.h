// What the linears of the tile unit share: matrices in tiles, tiles of sums, the part of out that they stand for.
#pragma once

#include "cpu/linear/vec.h"
#include "cpu/vec/tile_config.h"

namespace distilfast {
namespace {

constexpr Index tile_side = 16;     // rows of x, columns of W, rows and columns of sums
constexpr Index tile_floats = 256;  // 16 rows of 64 bytes
constexpr Index panel_tiles = 2;
constexpr Index tile_panel = panel_tiles * tile_side;
constexpr Index block_steps = 16;                // tiles along K: two column tiles of a block fit L1
constexpr Index tile_part_step = 2 * tile_side;  // parts of the rows begin at its multiples
constexpr Index tile_part_rows = 512;            // a pass over W serves so many: L3 gives a core some 25 GB/s

// min(n, most), and 0 for a negative n.
inline Index within(Index n, Index most) { return n < 0 ? 0 : least(n, most); }

// A matrix in tiles: blocks of tiles along K, in each block rows or columns of 16, in each of these tiles along K.
struct Tiles {
  Index steps;  // tiles along K
  Index count;  // tiles along the rows of x or the columns of W

  Index in_block(Index step) const { return least(steps - step / block_steps * block_steps, block_steps); }
  // In floats; so is all else.
  Index at(Index step, Index tile) const {
    const Index first = step / block_steps * block_steps;
    return (first * count + tile * in_block(step) + step - first) * tile_floats;
  }
  Index row_at(Index step, Index row) const { return at(step, row / tile_side) + row % tile_side * tile_side; }
  Index floats() const { return steps * count * tile_floats; }
};

inline Tiles row_tiles(Index rows, Index k, Index step_depth) { return {slots(k, step_depth), slots(rows, tile_side)}; }
inline Tiles column_tiles(Index n, Index k, Index step_depth) {
  return {slots(k, step_depth), round_up(n, tile_panel) / tile_side};
}

// Whoever makes the last row makes the rows of zeros behind it.
inline Index end_with_padding(const Linear& op, Range rows) {
  return rows.end == op.rows ? round_up(rows.end, tile_side) : rows.end;
}

// A part of out. Sums of tiles may reach beyond it.
struct Window {
  float* at;
  Index stride, rows, columns;
};

inline Window window(const Linear& op, Index row, Index row_end, Index panel, Index most_rows, Index most_columns) {
  const Index column = panel * tile_panel;
  return {op.out + row * op.out_stride + column, op.out_stride, least(row_end - row, most_rows),
          least(op.packed.n - column, most_columns)};
}

// Tiles for as long as this lives. The shapes are set each time, for some 55 ns: a flag that remembers them would not
// know what other libraries do with the unit in this thread.
struct TileScope {
  TileScope() {
    static constexpr TileConfig config = full_tiles();
    TileUnit::configure(config);
  }
  ~TileScope() { TileUnit::release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// Calls part<0>(), part<1>() … part<Count - 1>().
template <int Count, int I = 0, class Part>
inline __attribute__((always_inline)) void for_each(Part part) {
  if constexpr (I < Count) {
    part.template operator()<I>();
    for_each<Count, I + 1>(part);
  }
}

struct Bf16Products {
  template <int sums, int a, int b>
  static void add() {
    TileUnit::add_bf16_products<sums, a, b>();
  }
};
struct Int8Products {
  template <int sums, int a, int b>
  static void add() {
    TileUnit::add_int8_products<sums, a, b>();
  }
};

// Rows x Columns tiles of sums, at most four: the unit's other four tiles are for operands.
template <int Rows, int Columns, class Products>
struct TileSums {
  static_assert(Rows <= 2 && Rows * Columns <= 4);
  static constexpr int count = Rows * Columns;
  static constexpr Index most_rows = Rows * tile_side, most_columns = Columns * tile_side;

  static void zero() {
    for_each<count>([]<int tile>() { TileUnit::zero<tile>(); });
  }
  static void load(const float* from, Index stride) {
    for_each<count>([&]<int tile>() {
      TileUnit::load<tile>(from + (tile / Columns * stride + tile % Columns) * tile_side, stride * 4);
    });
  }
  static void store(float* to, Index stride) {
    for_each<count>([&]<int tile>() {
      TileUnit::store<tile>(to + (tile / Columns * stride + tile % Columns) * tile_side, stride * 4);
    });
  }
  static void load(Window from) {
    if (whole(from)) return load(from.at, from.stride);
    alignas(64) float edge[most_rows * most_columns] = {};
    copy(from.at, from.stride, from, edge, most_columns);
    load(edge, most_columns);
  }
  static void store(Window to) {
    if (whole(to)) return store(to.at, to.stride);
    alignas(64) float edge[most_rows * most_columns];
    store(edge, most_columns);
    copy(edge, most_columns, to, to.at, to.stride);
  }

  // Adds the products of one tile of each row and column; the next row's or column's is `stride` floats behind.
  static inline __attribute__((always_inline)) void add_one(const float* x, const float* w, Index stride) {
    constexpr int x_tile = 4, w_tile = x_tile + Rows, w_tiles = 8 - w_tile;
    for_each<Rows>([&]<int i>() { TileUnit::load<x_tile + i>(x + i * stride, 64); });
    for_each<Columns>([&]<int j>() {
      constexpr int column = w_tile + j % w_tiles;
      TileUnit::load<column>(w + j * stride, 64);
      for_each<Rows>([&]<int i>() { Products::template add<i * Columns + j, x_tile + i, column>(); });
    });
  }
  // The same for all `steps` tiles of a block, with between() behind each.
  template <class Between>
  static inline __attribute__((always_inline)) void add(const float* x, const float* w, Index steps, Between between) {
    for (Index step = 0; step < steps; ++step) {
      add_one(x + step * tile_floats, w + step * tile_floats, steps * tile_floats);
      between();
    }
  }

 private:
  static bool whole(Window part) { return part.rows == most_rows && part.columns == most_columns; }
  static void copy(const float* from, Index from_stride, Window part, float* to, Index to_stride) {
    for (Index i = 0; i < part.rows; ++i)
      for (Index j = 0; j < part.columns; j += Vec::width) {
        const Index inside = within(part.columns - j, Vec::width);
        Vec::load(from + i * from_stride + j, inside).store(to + i * to_stride + j, inside);
      }
  }
};

}  // namespace
}  // namespace distilfast
