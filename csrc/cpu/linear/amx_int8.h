// linear with int8 operands on the tile unit; what the operands stand for: linear/int8_groups.h. A group of 64 values
// of K is one row of a tile, so one tdpbssd computes the int32 sums of a group for 16 rows and 16 columns.
//
// Each element is the same chain as in linear/int8.h and has the same bits: the outlier product in fp32, then for each
// group fma(sum, scale_x scale_w). So the vector units have to dequantise every group: for 2 x 2 tiles 64 vectors,
// each converted, multiplied by the product of its scales and accumulated, three instructions on two ports, 96 cycles
// where the tile unit takes 64. Two measures against that: groups are dequantised in pairs, so that an fp32 accumulator
// is loaded and stored once for both; and the int32 sums are double-buffered: while the tile unit fills one buffer, the
// vector units dequantise the other, in program order one half of it after each group's tiles. By this count the tile
// unit is busy two thirds of the time, less the outlier product: K / 96 values in fp32, a fifth more vector work.
// Measured so far: whole models, `amx` in benchmarks/results/; not the kernel alone.
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
constexpr PackedLayout tile_int8_layout{"int8/g64/tiles", 2};

// Offsets of fp32 values are in elements, those of tiles and sizes in bytes.
struct TileInt8Packed : Int8Header {
  Tiles tiles;

  TileInt8Packed(Index n, Index k) : Int8Header(k), tiles(column_tiles(n, k, group)) {}

  Index panels() const { return tiles.count / panel_tiles; }
  Index outlier_weights(Index panel) const { return Int8Header::size() + panel * outliers * tile_panel; }
  Index scales(Index panel) const { return outlier_weights(panels()) + panel * groups * tile_panel; }
  Index tiles_at() const { return scales(panels()) * Index{sizeof(float)}; }
  Index size() const { return tiles_at() + tiles.bytes(); }
};

struct TileInt8PackedA : Int8Header {
  Index rows;
  Tiles tiles;

  TileInt8PackedA(Index rows, Index k) : Int8Header(k), rows(rows), tiles(row_tiles(rows, k, group)) {}

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
      KPack* to = view<KPack>(packed + at.tiles_at() + at.tiles.at(g, column / tile_side), column % tile_side);
      for (Index i = 0; i < group_k_packs; ++i) to[i * tile_side] = k_packs[i];
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
    const auto place = [&](Index g) { return view<KPack>(tiles + at.tiles.row_at(g, row)); };
    const auto take = [&](Index g, GroupQuant quant) { scales[g] = quant.scale; };
    quantize_row(op, at, row, place, take, [&](Index i, float x) { outlier_x[i] = x; });
  }
  for (Index row = rows.end; row < end_with_padding(op, rows); ++row)
    for (Index g = 0; g < at.groups; ++g) IntVec::zero().store(tiles + at.tiles.row_at(g, row));
}

constexpr Index buffer_groups = 2;  // groups whose int32 sums fill one of the two buffers
constexpr int dequantize_rows = 8;  // at a time: 8 x 2 vectors of accumulators, in registers

// Rows of one panel: where the groups' dequantised sums are accumulated.
struct Int8Target {
  Index row, panel;
  OutTile out;
};

// The int32 sums of one buffer, which are yet to be dequantised.
struct PendingGroups {
  Int8Target target;
  Range groups;
  bool first, last;          // of the target's groups in this run over K or over a k-block
  const std::int32_t* sums;  // [group][tile_mc_multiple][tile_panel]
  Index row = 0;             // rows already dequantised
};

class TileInt8Linear {
 public:
  explicit TileInt8Linear(const Linear& op) : op_(op), w_(op.packed.n, op.packed.k), x_(op.rows, op.packed.k) {}
  ~TileInt8Linear() { dequantize_pending(); }

  // As in linear/amx.h; between k-blocks the accumulators are kept in out.
  void run_k_blocked(Range rows, Range panels) {
    for (Index g = 0; g < w_.groups; g += block_k_tiles)
      for (Index panel = panels.begin; panel < panels.end; ++panel)
        for (Index row = rows.begin; row < rows.end; row += tile_mc_multiple)
          add_groups(target(row, rows.end, panel), {g, g + w_.tiles.in_block(g)});
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
    for (Index g = groups.begin; g < groups.end; g += buffer_groups) {
      const Index end = smaller(g + buffer_groups, groups.end);
      std::int32_t* sums = buffers_[buffer_ ^= 1];
      for (Index each = g; each < end; ++each) {
        multiply<Rows>(target, each, sums + (each - g) * 4 * tile_elements);
        for (int i = 0; i < 2; ++i)
          if (pending_.row < pending_.target.out.rows) dequantize_next_rows();
      }
      dequantize_pending();
      pending_ = {target, {g, end}, g == groups.begin, end == groups.end, sums};
    }
  }

  template <int Rows>
  void multiply(const Int8Target& target, Index g, std::int32_t* sums) {
    using Accumulators = TileAccumulators<Rows, panel_tiles, Int8Products>;
    Accumulators::zero();
    // One tile along K: the next row or column tile is a whole k-block away.
    Accumulators::add_one(op_.packed_a + x_.tiles_at() + x_.tiles.at(g, target.row / tile_side),
                          op_.packed.weight + w_.tiles_at() + w_.tiles.at(g, target.panel * panel_tiles),
                          w_.tiles.in_block(g) * tile_bytes);
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
    if (pending_.first && pending_.groups.begin == 0)
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
    const bool complete = pending_.groups.end == w_.groups;
    const float* bias = op_.packed.bias + pending_.target.panel * tile_panel;
    in_out_tile<Rows>([&](int i, Index j, Index inside) {
      const Vec accumulator = tile.accumulators[i][j / Vec::width];
      const Vec value = complete ? apply<CoarseGelu>(op_.activation, accumulator + Vec::load(bias + j)) : accumulator;
      value.store(out.at + (row + i) * out.stride + j, inside);
    });
  }

  template <int Rows>
  void add_dequantized(Fp32Tile<Rows>& tile, Index row) const {
    for (Index g = pending_.groups.begin; g < pending_.groups.end; ++g) {
      const std::int32_t* sums = pending_.sums + (g - pending_.groups.begin) * 4 * tile_elements + row * tile_panel;
      const float* column_scale = view<float>(op_.packed.weight, w_.scales(pending_.target.panel) + g * tile_panel);
      const float* row_scale = view<float>(op_.packed_a, x_.scales(pending_.target.row + row) + g);
      in_panel<Rows>([&](int i, int j) {
        const Vec scale = Vec::all(row_scale[i * x_.groups]) * Vec::load(column_scale + j * Vec::width);
        Vec& accumulator = tile.accumulators[i][j];
        accumulator = fma(from_int32(IntVec::load(sums + i * tile_panel + j * Vec::width)), scale, accumulator);
      });
    }
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
  PendingGroups pending_{};
  int buffer_ = 0;
  alignas(64) std::int32_t buffers_[2][buffer_groups * 4 * tile_elements];
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
