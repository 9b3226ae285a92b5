// linear with int8 operands on the tile unit; what they stand for: linear/int8_format.h. A row of a tile has 64 values
// of K, so four steps of tdpbssd, or one, compute the int32 sums of a group for 16 rows and 16 columns.
//
// Each element is the same chain as in linear/int8.h and has the same bits: the outlier product, where there is one,
// then for each group fma(sum, scale_x scale_w).
//
// The vector units dequantise every group: for 2 x 2 tiles 64 vectors, each converted, multiplied by the product of its
// scales and accumulated, three instructions on two ports, and an fp32 accumulator loaded and stored; some 100 to 130
// cycles, where the tile unit takes 256 for a group of 256. The int32 sums are double-buffered: while the tile unit
// fills one buffer, the vector units dequantise the other, in program order some rows of it after each step along K.
// Measured so far: whole models, `amx` in benchmarks/results/, with groups of 64; not the kernel alone.
//
// Packed W: the header; [panel][outlier channel][column] in fp32; [panel][group][column] scales; tiles.
// Packed A: [row][outlier channel] in fp32; [row][group] scales; tiles.
// Included after a Vec of 16 floats and a TileUnit. Reference: linear/ref_int8.h.
#pragma once

#include "cpu/linear/amx_tiles.h"
#include "cpu/linear/int8_groups.h"

namespace distilfast {
namespace {

// Raise the version also when linear/int8_groups.h writes other bytes.
constexpr PackedLayout tile_int8_layout{"int8/rotated/tiles", 2};

constexpr Index int8_tile_k = 64;                       // values of K in a tile
constexpr Index tile_row_k_packs = tile_row_bytes / 4;  // of a row of x, or of a column of W, in a tile

// Offsets of fp32 values are in elements, those of tiles and sizes in bytes.
struct TileInt8Packed : Int8Header {
  Tiles tiles;

  TileInt8Packed(Index n, Index k) : Int8Header(k), tiles(column_tiles(n, depth(), int8_tile_k)) {}

  Index panels() const { return tiles.count / panel_tiles; }
  Index group_tiles() const { return group / int8_tile_k; }
  Index outlier_weights(Index panel) const { return Int8Header::size() + panel * outliers * tile_panel; }
  Index scales(Index panel) const { return outlier_weights(panels()) + panel * groups * tile_panel; }
  Index tiles_at() const { return scales(panels()) * Index{sizeof(float)}; }
  Index size() const { return tiles_at() + tiles.bytes(); }
};

struct TileInt8PackedA : Int8Header {
  Index rows;
  Tiles tiles;

  TileInt8PackedA(Index rows, Index k) : Int8Header(k), rows(rows), tiles(row_tiles(rows, depth(), int8_tile_k)) {}

  Index group_tiles() const { return group / int8_tile_k; }
  Index outlier_x(Index row) const { return row * outliers; }
  Index scales(Index row) const { return rows * outliers + row * groups; }
  Index tiles_at() const { return round_up(scales(rows) * Index{sizeof(float)}, tile_row_bytes); }
  Index size() const { return tiles_at() + tiles.bytes(); }
};

inline Index tile_int8_packed_size(Index n, Index k) { return TileInt8Packed(n, k).size(); }

inline Index tile_int8_packed_a_size(Index rows, Index k) { return TileInt8PackedA(rows, k).size(); }

inline void tile_int8_pack(const LinearSource& source, Range panels, std::byte* packed) {
  const TileInt8Packed at(source.n, source.k);
  if (panels.begin == 0) pack_header(source, at, packed);
  for (Index column = panels.begin * tile_panel; column < panels.end * tile_panel; ++column) {
    const Index panel = column / tile_panel, j = column % tile_panel;
    float* outlier_weights = view<float>(packed, at.outlier_weights(panel) + j);
    float* scales = view<float>(packed, at.scales(panel) + j);
    const auto take = [&](Index g, GroupQuant quant, const KPack* k_packs) {
      for (Index i = 0; i < at.k_packs(); ++i) {
        const Index k_tile = g * at.group_tiles() + i / tile_row_k_packs;
        KPack* tile = view<KPack>(packed + at.tiles_at() + at.tiles.at(k_tile, column / tile_side));
        tile[i % tile_row_k_packs * tile_side + column % tile_side] = k_packs[i];
      }
      scales[g * tile_panel] = quant.scale;
    };
    quantize_column(source, at, column, take, [&](Index i, float w) { outlier_weights[i * tile_panel] = w; });
  }
}

inline void tile_int8_pack_a(const Linear& op, Range rows) {
  const TileInt8PackedA at(op.rows, op.packed.k);
  std::byte* tiles = op.packed_a + at.tiles_at();
  for (Index row = rows.begin; row < rows.end; ++row) {
    float* outlier_x = view<float>(op.packed_a, at.outlier_x(row));
    float* scales = view<float>(op.packed_a, at.scales(row));
    const auto place = [&](Index g) {  // a group's tiles lie in one k-block, one after the other
      return [to = tiles + at.tiles.row_at(g * at.group_tiles(), row)](int k_pack) {
        return view<KPack>(to + k_pack / tile_row_k_packs * tile_bytes, k_pack % tile_row_k_packs);
      };
    };
    const auto take = [&](Index g, GroupQuant quant) { scales[g] = quant.scale; };
    quantize_row(op, at, row, place, take, [&](Index i, float x) { outlier_x[i] = x; });
  }
  for (Index row = rows.end; row < end_with_padding(op, rows); ++row)
    for (Index k_tile = 0; k_tile < at.tiles.k_tiles; ++k_tile)
      IntVec::zero().store(tiles + at.tiles.row_at(k_tile, row));
}

constexpr int dequantize_rows = 8;  // at a time: 8 x 2 vectors of accumulators, in registers
constexpr Index dequantize_steps = 2 * tile_side / dequantize_rows;  // for 2 x 2 tiles

// Rows of one panel: where the groups' dequantised sums are accumulated.
struct Int8Target {
  Index row, panel;
  OutTile out;
};

// The int32 sums of a group, which are yet to be dequantised.
struct PendingGroup {
  Int8Target target;
  Index group;
  bool first, last;          // of the target's groups in this run over K or over a k-block
  const std::int32_t* sums;  // [tile_mc_multiple][tile_panel]
  Index row = 0;             // rows already dequantised
};

class TileInt8Linear {
 public:
  explicit TileInt8Linear(const Linear& op) : op_(op), w_(op.packed.n, op.packed.k), x_(op.rows, op.packed.k) {}
  ~TileInt8Linear() { dequantize_pending(); }

  // As in linear/amx.h; between k-blocks the accumulators are kept in out.
  void run_k_blocked(Range rows, Range panels) {
    const Index block_groups = block_k_tiles / w_.group_tiles();
    for (Index g = 0; g < w_.groups; g += block_groups)
      for (Index panel = panels.begin; panel < panels.end; ++panel)
        for (Index row = rows.begin; row < rows.end; row += tile_mc_multiple)
          add_groups(target(row, rows.end, panel), {g, smaller(g + block_groups, w_.groups)});
  }

  void run_output_stationary(Range rows, Range panels) {
    for (Index panel = panels.begin; panel < panels.end; ++panel)
      add_groups(target(rows.begin, rows.end, panel), {0, w_.groups});
  }

 private:
  Int8Target target(Index row, Index row_end, Index panel) const {
    return {row, panel, out_tile(op_, row, row_end, panel, tile_mc_multiple, tile_panel)};
  }

  void add_groups(const Int8Target& target, Range groups) {
    if (target.out.rows > tile_side)
      add_groups<2>(target, groups);
    else
      add_groups<1>(target, groups);
  }

  template <int Rows>
  void add_groups(const Int8Target& target, Range groups) {
    for (Index g = groups.begin; g < groups.end; ++g) {
      std::int32_t* sums = buffers_[buffer_ ^= 1];
      multiply<Rows>(target, g, sums);
      dequantize_pending();
      pending_ = {target, g, g == groups.begin, g + 1 == groups.end, sums};
    }
  }

  // The sums of a group; meanwhile the pending one is dequantised.
  template <int Rows>
  void multiply(const Int8Target& target, Index g, std::int32_t* sums) {
    using Accumulators = TileAccumulators<Rows, panel_tiles, Int8Products>;
    const Index steps = w_.group_tiles();
    Accumulators::zero();
    for (Index k_tile = g * steps; k_tile < (g + 1) * steps; ++k_tile) {
      // One tile along K: the next row or column tile is a whole k-block away.
      Accumulators::add_one(op_.packed_a + x_.tiles_at() + x_.tiles.at(k_tile, target.row / tile_side),
                            op_.packed.weight + w_.tiles_at() + w_.tiles.at(k_tile, target.panel * panel_tiles),
                            w_.tiles.in_block(k_tile) * tile_bytes);
      for (Index i = 0; i < dequantize_steps / steps; ++i)
        if (pending_.row < pending_.target.out.rows) dequantize_next_rows();
    }
    Accumulators::store(sums, tile_panel);
  }

  void dequantize_pending() {
    while (pending_.row < pending_.target.out.rows) dequantize_next_rows();
  }

  // Not inlined, for the reason in linear/amx.h.
  __attribute__((noinline)) void dequantize_next_rows() {
    const Index row = pending_.row, end = smaller(row + dequantize_rows, pending_.target.out.rows);
    in_row_tiles<dequantize_rows>({row, end}, [&]<int Rows>(Index first) { dequantize<Rows>(first); });
    pending_.row = end;
  }

  template <int Rows>
  using Fp32Tile = Tile<Rows, panel_tiles>;

  // `Rows` rows of the pending target, from `row` on.
  template <int Rows>
  void dequantize(Index row) {
    const OutTile& out = pending_.target.out;
    Fp32Tile<Rows> tile;
    if (pending_.first && pending_.group == 0)
      tile.multiply(view<float>(op_.packed_a, x_.outlier_x(pending_.target.row + row)), x_.outliers,
                    view<float>(op_.packed.weight, w_.outlier_weights(pending_.target.panel)), x_.outliers);
    else if (pending_.first)
      in_out_tile<Rows>([&](int i, Index j, Index inside) {
        tile.accumulators[i][j / Vec::width] = Vec::load(out.at + (row + i) * out.stride + j, inside);
      });
    else
      in_panel<Rows>([&](int i, int j) {
        tile.accumulators[i][j] = Vec::load(accumulators_ + (row + i) * tile_panel + j * Vec::width);
      });
    add_dequantized<Rows>(tile, row);
    if (!pending_.last)
      return in_panel<Rows>([&](int i, int j) {
        tile.accumulators[i][j].store(accumulators_ + (row + i) * tile_panel + j * Vec::width);
      });
    const bool complete = pending_.group + 1 == w_.groups;
    const float* bias = op_.packed.bias + pending_.target.panel * tile_panel;
    in_out_tile<Rows>([&](int i, Index j, Index inside) {
      const Vec accumulator = tile.accumulators[i][j / Vec::width];
      const Vec value = complete ? apply<CoarseGelu>(op_.activation, accumulator + Vec::load(bias + j)) : accumulator;
      value.store(out.at + (row + i) * out.stride + j, inside);
    });
  }

  template <int Rows>
  void add_dequantized(Fp32Tile<Rows>& tile, Index row) const {
    const Index g = pending_.group;
    const std::int32_t* sums = pending_.sums + row * tile_panel;
    const float* column_scale = view<float>(op_.packed.weight, w_.scales(pending_.target.panel) + g * tile_panel);
    const float* row_scale = view<float>(op_.packed_a, x_.scales(pending_.target.row + row) + g);
    in_panel<Rows>([&](int i, int j) {
      const Vec scale = Vec::all(row_scale[i * x_.groups]) * Vec::load(column_scale + j * Vec::width);
      Vec& accumulator = tile.accumulators[i][j];
      accumulator = fma(from_int32(IntVec::load(sums + i * tile_panel + j * Vec::width)), scale, accumulator);
    });
  }

  // Calls body(row, vector) for all of `Rows` rows of a panel; unrolled, since the accumulators are in registers.
  template <int Rows, class Body>
  static inline __attribute__((always_inline)) void in_panel(Body body) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < panel_tiles; ++j) body(i, j);
  }

  // Calls body(row, column, columns inside out) for the same vectors.
  template <int Rows, class Body>
  inline __attribute__((always_inline)) void in_out_tile(Body body) const {
    in_panel<Rows>([&](int i, int j) {
      const Index column = j * Vec::width;
      body(i, column, clamped(pending_.target.out.columns - column, Vec::width));
    });
  }

  const Linear& op_;
  TileInt8Packed w_;
  TileInt8PackedA x_;
  PendingGroup pending_{};
  int buffer_ = 0;
  alignas(64) std::int32_t buffers_[2][4 * tile_elements];
  alignas(64) float accumulators_[4 * tile_elements];  // fp32, of the one target whose groups are being added
};

inline void tile_int8_linear(const Linear& op, Range rows, Range panels) {
  const TileScope tiles_are_configured;
  TileInt8Linear linear(op);
  if (rows.end - rows.begin <= tile_mc_multiple)
    linear.run_output_stationary(rows, panels);
  else
    linear.run_k_blocked(rows, panels);
}

constexpr LinearKernels tile_int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          tile_int8_layout,
          tile_panel,
          tile_mc_multiple,
          tile_mc,
          tile_int8_packed_size,
          tile_int8_pack,
          tile_int8_packed_a_size,
          tile_int8_pack_a,
          tile_int8_linear,
          outlier_channels_are_valid};
}

}  // namespace
}  // namespace distilfast
