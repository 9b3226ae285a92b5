// linear with int8 operands on the tile unit; what the operands stand for: linear/int8_groups.h. A group of 64 numbers
// of K is one row of a tile, so one tdpbssd makes the sums of a group for 16 rows and 16 columns.
//
// Each element is the same chain as in linear/int8.h, the fp32 side first and then fma(sum, scale_x scale_w) for each
// group in turn, and so has the same bits as there. The vector units therefore work for each group too: of 2 x 2 tiles
// 64 vectors, each converted, multiplied with the product of its scales and added, three instructions on two ports, 96
// cycles where the tile unit needs 64. That is why the sums of two groups are stored before vectors touch them (an fp32
// sum is loaded and stored once for both), and why there are two buffers: while the unit fills one, the vectors empty
// the other, in program order half of it behind each group's tiles. By this count the tile unit is busy two thirds
// of the time, less the side: K / 96 numbers of fp32, a fifth as much vector work again. Estimated, not measured: see
// tests/amx/README.md.
//
// Packed: the front, [panel][wide channel][column] in fp32, [panel][group][column] scales, tiles.
// Operands: [row][wide channel], [row][group] scales, tiles.
// Included after a Vec of 16 floats and a TileUnit. Reference: linear/ref_int8.h.
#pragma once

#include "cpu/linear/amx_tiles.h"
#include "cpu/linear/int8_groups.h"

namespace distilfast {
namespace {

// Of `tile_int8_pack` and of the groups.
constexpr PackedLayout tile_int8_layout{"int8/g64/tiles", 2};

struct TileInt8Packed : Int8Front {
  Tiles tiles;

  TileInt8Packed(Index n, Index k) : Int8Front(k), tiles(column_tiles(n, k, group)) {}

  Index panels() const { return tiles.count / panel_tiles; }
  Index side(Index panel) const { return Int8Front::size() + panel * wide * tile_panel; }
  Index scales(Index panel) const { return side(panels()) + panel * groups * tile_panel; }
  Index tiles_at() const { return scales(panels()); }
  Index size() const { return tiles_at() + tiles.floats(); }
};

struct TileInt8Operands : Int8Front {
  Index rows;
  Tiles tiles;

  TileInt8Operands(Index rows, Index k) : Int8Front(k), rows(rows), tiles(row_tiles(rows, k, group)) {}

  Index side(Index row) const { return row * wide; }
  Index scales(Index row) const { return rows * wide + row * groups; }
  Index tiles_at() const { return round_up(scales(rows), 16); }
  Index size() const { return tiles_at() + tiles.floats(); }
};

inline Index tile_int8_packed_size(Index n, Index k) { return TileInt8Packed(n, k).size(); }

inline Index tile_int8_operands_size(Index rows, Index k) { return TileInt8Operands(rows, k).size(); }

inline void tile_int8_pack(const LinearSource& source, Range panels, float* packed) {
  const TileInt8Packed at(source.n, source.k);
  if (panels.begin == 0) pack_front(source, at, packed);
  for (Index column = panels.begin * tile_panel; column < panels.end * tile_panel; ++column) {
    const Index panel = column / tile_panel, j = column % tile_panel;
    float *side = packed + at.side(panel) + j, *scales = packed + at.scales(panel) + j;
    const auto take = [&](Index g, Steps made, const float* slots) {
      float* to = packed + at.tiles_at() + at.tiles.at(g, column / tile_side) + column % tile_side;
      for (Index slot = 0; slot < group_slots; ++slot) to[slot * tile_side] = slots[slot];
      scales[g * tile_panel] = made.scale;
    };
    round_column(source, at, column, take, [&](Index i, float w) { side[i * tile_panel] = w; });
  }
}

inline void tile_int8_make_operands(const Linear& op, Range rows) {
  const TileInt8Operands at(op.rows, op.packed.k);
  float* tiles = op.operands + at.tiles_at();
  for (Index row = rows.begin; row < rows.end; ++row) {
    float *side = op.operands + at.side(row), *scales = op.operands + at.scales(row);
    const auto place = [&](Index g) { return tiles + at.tiles.row_at(g, row); };
    const auto take = [&](Index g, Steps made) { scales[g] = made.scale; };
    round_row(op, at, row, place, take, [&](Index i, float x) { side[i] = x; });
  }
  for (Index row = rows.end; row < end_with_padding(op, rows); ++row)
    for (Index g = 0; g < at.groups; ++g) Vec::zero().store(tiles + at.tiles.row_at(g, row));
}

constexpr Index batch_groups = 2;
constexpr int scaled_rows = 8;  // 8 x 2 vectors of sums, in registers

// One panel of some rows: what the sums of their groups are added to.
struct Int8Target {
  Index row, panel;
  Window out;
};

// The int32 sums of a few groups on their way into fp32.
struct Batch {
  Int8Target target;
  Range groups;
  bool opens, closes;  // the first, the last of this run over K or of its block
  const float* sums;   // [group][tile_part_step][tile_panel]
  Index row = 0;       // done so far
};

class TileInt8Linear {
 public:
  explicit TileInt8Linear(const Linear& op) : op_(op), w_(op.packed.n, op.packed.k), x_(op.rows, op.packed.k) {}
  ~TileInt8Linear() { scale_rest(); }

  // Blocks outside, as in linear/amx.h; between two of them the sums rest in out.
  void many_rows(Range rows, Range panels) {
    for (Index g = 0; g < w_.groups; g += block_steps)
      for (Index panel = panels.begin; panel < panels.end; ++panel)
        for (Index row = rows.begin; row < rows.end; row += tile_part_step)
          add_groups(target(row, rows.end, panel), {g, g + w_.tiles.in_block(g)});
  }

  void few_rows(Range rows, Range panels) {
    for (Index panel = panels.begin; panel < panels.end; ++panel)
      add_groups(target(rows.begin, rows.end, panel), {0, w_.groups});
  }

 private:
  Int8Target target(Index row, Index row_end, Index panel) const {
    return {row, panel, window(op_, row, row_end, panel, tile_part_step, tile_panel)};
  }

  void add_groups(const Int8Target& target, Range groups) {
    if (target.out.rows > tile_side)
      add_groups<2>(target, groups);
    else
      add_groups<1>(target, groups);
  }

  template <int Rows>
  void add_groups(const Int8Target& target, Range groups) {
    for (Index g = groups.begin; g < groups.end; g += batch_groups) {
      const Index end = least(g + batch_groups, groups.end);
      float* sums = buffers_[buffer_ ^= 1];
      for (Index each = g; each < end; ++each) {
        multiply<Rows>(target, each, sums + (each - g) * 4 * tile_floats);
        for (int i = 0; i < 2; ++i)
          if (batch_.row < batch_.target.out.rows) scale_some();
      }
      scale_rest();
      batch_ = {target, {g, end}, g == groups.begin, end == groups.end, sums};
    }
  }

  template <int Rows>
  void multiply(const Int8Target& target, Index g, float* sums) {
    using Sums = TileSums<Rows, panel_tiles, Int8Products>;
    Sums::zero();
    // Tiles of one group: the next row or column of tiles is as far away as the block is deep.
    Sums::add_one(op_.operands + x_.tiles_at() + x_.tiles.at(g, target.row / tile_side),
                  op_.packed.weight + w_.tiles_at() + w_.tiles.at(g, target.panel * panel_tiles),
                  w_.tiles.in_block(g) * tile_floats);
    Sums::store(sums, tile_panel);
  }

  void scale_rest() {
    while (batch_.row < batch_.target.out.rows) scale_some();
  }

  // Not inlined, for the reason in linear/amx.h.
  __attribute__((noinline)) void scale_some() {
    const Index row = batch_.row, end = least(row + scaled_rows, batch_.target.out.rows);
    in_row_tiles<scaled_rows>({row, end}, [&]<int Rows>(Index first) { scale_rows<Rows>(first); });
    batch_.row = end;
  }

  template <int Rows>
  using Sums32 = Tile<Rows, panel_tiles>;

  // Rows from `row` of the batch's target on.
  template <int Rows>
  void scale_rows(Index row) {
    const Window& out = batch_.target.out;
    Sums32<Rows> tile;
    if (batch_.opens && batch_.groups.begin == 0)
      tile.multiply(op_.operands + x_.side(batch_.target.row + row), x_.wide,
                    op_.packed.weight + w_.side(batch_.target.panel), x_.wide);
    else if (batch_.opens)
      in_window<Rows>([&](int i, Index j, Index inside) {
        tile.sum[i][j / Vec::width] = Vec::load(out.at + (row + i) * out.stride + j, inside);
      });
    else
      in_panel<Rows>(
          [&](int i, int j) { tile.sum[i][j] = Vec::load(sums_ + (row + i) * tile_panel + j * Vec::width); });
    add_scaled<Rows>(tile, row);
    if (!batch_.closes)
      return in_panel<Rows>(
          [&](int i, int j) { tile.sum[i][j].store(sums_ + (row + i) * tile_panel + j * Vec::width); });
    const bool last = batch_.groups.end == w_.groups;
    const float* bias = op_.packed.bias + batch_.target.panel * tile_panel;
    in_window<Rows>([&](int i, Index j, Index inside) {
      const Vec sum = tile.sum[i][j / Vec::width];
      const Vec value = last ? apply<CoarseGelu>(op_.activation, sum + Vec::load(bias + j)) : sum;
      value.store(out.at + (row + i) * out.stride + j, inside);
    });
  }

  template <int Rows>
  void add_scaled(Sums32<Rows>& tile, Index row) const {
    for (Index g = batch_.groups.begin; g < batch_.groups.end; ++g) {
      const float* sums = batch_.sums + (g - batch_.groups.begin) * 4 * tile_floats + row * tile_panel;
      const float* column_scale = op_.packed.weight + w_.scales(batch_.target.panel) + g * tile_panel;
      const float* row_scale = op_.operands + x_.scales(batch_.target.row + row) + g;
      in_panel<Rows>([&](int i, int j) {
        const Vec scale = Vec::all(row_scale[i * x_.groups]) * Vec::load(column_scale + j * Vec::width);
        tile.sum[i][j] = fma(from_int32(IntVec::load(sums + i * tile_panel + j * Vec::width)), scale, tile.sum[i][j]);
      });
    }
  }

  // Calls part(row, vector) for all of `Rows` rows of a panel; unrolled, since `part` has the sums in registers.
  template <int Rows, class Part>
  static inline __attribute__((always_inline)) void in_panel(Part part) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < panel_tiles; ++j) part(i, j);
  }

  // Calls part(row, column, columns inside) for the vectors that are in out.
  template <int Rows, class Part>
  inline __attribute__((always_inline)) void in_window(Part part) const {
    in_panel<Rows>([&](int i, int j) {
      const Index column = j * Vec::width;
      part(i, column, within(batch_.target.out.columns - column, Vec::width));
    });
  }

  const Linear& op_;
  TileInt8Packed w_;
  TileInt8Operands x_;
  Batch batch_{};
  int buffer_ = 0;
  alignas(64) float buffers_[2][batch_groups * 4 * tile_floats];
  alignas(64) float sums_[4 * tile_floats];  // in fp32, of the one target that is being added to
};

inline void tile_int8_linear(const Linear& op, Range rows, Range panels) {
  const TileScope tiles_are_configured;
  TileInt8Linear linear(op);
  if (rows.end - rows.begin <= tile_part_step)
    linear.few_rows(rows, panels);
  else
    linear.many_rows(rows, panels);
}

constexpr LinearKernels tile_int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,      tile_int8_layout,        tile_panel,
          tile_part_step,  tile_part_rows,          tile_int8_packed_size,
          tile_int8_pack,  tile_int8_operands_size, tile_int8_make_operands,
          tile_int8_linear};
}

}  // namespace
}  // namespace distilfast
