// linear on the tile unit: out = act(x Wt + b), [T, K] . [N, K] -> [T, N], by products of bf16 numbers summed in fp32.
//
// A number is a sum of bf16 numbers: one in bf16, two in bf16x3, three in fp32, which hold its 24 bits. Of their
// products those are added that fp32 can tell from nothing: one, three, six. They are added one after the other over
// the whole of K, the small ones first, so that only the last pass adds to sums of full size: K / 32 roundings for each
// element where a chain of fused multiply-adds has K. All that counts for the bits is the order of tiles along K, fixed
// by K alone; how many tiles are worked on at a time, and whether their sums rest in `out` in between, changes nothing.
//
// x (by make_operands) and W (by pack) lie in tiles of 1 KB, 16 rows of x or 16 columns of W by 32 of K, zeros behind
// their ends: rows of a matrix, 1,536 or 3,072 bytes apart, fall into the same sets of L1. For each part of the split:
// blocks of 16 tiles of K, in each block row or column tiles. 2 x 2 tiles at a time: the 32 KB of a panel's block stay
// in L1 and the blocks of x stream from L2 past them. At most 32 rows: 2 x 2 or 1 x 4 tiles, whose sums stay in the
// unit along all of K, so that W streams from memory once; what several passes read again of a panel is in L2. fp32
// costs 6 bytes for each number of W this way, bf16x3 4 and bf16 2.
//
// Not measured: see tests/amx/README.md. Numbers from 3.39e38 on, which no bf16 can hold, become infinite or NaN.
// Included after a Vec of 16 floats and a TileUnit. Reference: linear/ref.h.
#pragma once

#include "cpu/linear/amx_tiles.h"
#include "cpu/linear/bf16.h"

namespace distilfast {
namespace {

constexpr Index step_depth = 32;  // of K, in a tile

struct PartProduct {
  int x, w;  // which part of each, the largest is 0
};

// Versions: see Fp32Linear in vec.h.
struct OneBf16 {
  static constexpr PackedLayout layout{"bf16/tiles", 1};
  using Gelu = CoarseGelu;
  static constexpr int parts = 1;
  static constexpr PartProduct products[] = {{0, 0}};
};
struct TwoBf16 {
  static constexpr PackedLayout layout{"2xbf16/tiles", 1};
  using Gelu = ExactGelu;
  static constexpr int parts = 2;
  static constexpr PartProduct products[] = {{1, 0}, {0, 1}, {0, 0}};
};
struct ThreeBf16 {
  static constexpr PackedLayout layout{"3xbf16/tiles", 1};
  using Gelu = ExactGelu;
  static constexpr int parts = 3;
  static constexpr PartProduct products[] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
};

template <class Split>
Index tile_packed_size(Index n, Index k) {
  return Split::parts * column_tiles(n, k, step_depth).floats();
}

// The next part of each of two numbers, which is taken off them.
inline std::uint32_t next_parts(float (&pair)[2]) {
  std::uint32_t slot = 0;
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t part = bf16_bits(pair[i]);
    pair[i] -= __builtin_bit_cast(float, part << 16);
    slot |= part << 16 * i;
  }
  return slot;
}

template <class Split>
void tile_pack(const LinearSource& source, Range panels, float* packed) {
  const Tiles tiles = column_tiles(source.n, source.k, step_depth);
  for (Index column = panels.begin * tile_panel; column < panels.end * tile_panel; ++column)
    for (Index k = 0; k < tiles.steps * step_depth; k += 2) {
      const auto number = [&](Index at) {
        return column < source.n && at < source.k ? source.weight[column * source.k + at] : 0.0f;
      };
      float pair[2] = {number(k), number(k + 1)};
      float* to =
          packed + tiles.at(k / step_depth, column / tile_side) + k % step_depth / 2 * tile_side + column % tile_side;
      for (int part = 0; part < Split::parts; ++part)
        to[part * tiles.floats()] = __builtin_bit_cast(float, next_parts(pair));
    }
}

template <class Split>
Index tile_operands_size(Index rows, Index k) {
  return Split::parts * row_tiles(rows, k, step_depth).floats();
}

template <class Split>
void tile_make_operands(const Linear& op, Range rows) {
  const Index k_total = op.packed.k;
  const Tiles tiles = row_tiles(op.rows, k_total, step_depth);
  for (Index row = rows.begin; row < end_with_padding(op, rows); ++row)
    for (Index k = 0; k < tiles.steps * step_depth; k += Vec::width) {
      const Index inside = row < op.rows ? within(k_total - k, Vec::width) : 0;
      Vec x = inside > 0 ? Vec::load(op.x + row * op.x_stride + k, inside) : Vec::zero();
      float* to = op.operands + tiles.row_at(k / step_depth, row) + k % step_depth / 2;
      for (int part = 0; part < Split::parts; ++part) {
        const __m256i bf16 = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + part * tiles.floats()), bf16);
        x = x - Vec{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16))};
      }
    }
}

// Sums on their way to out. A few rows are finished, with bias and activation, between two steps of the tiles that
// follow: 2 x 2 tiles of exact GELU take the vector units about as long as K = 512 takes the tile unit.
template <class Gelu>
class Finisher {
 public:
  void begin(const float* sums, Index stride, Window out, const float* bias, Activation activation) {
    sums_ = sums, stride_ = stride, out_ = out, bias_ = bias, activation_ = activation, row_ = 0;
  }
  void some() {
    if (row_ < out_.rows) finish_until(least(row_ + 2, out_.rows));
  }
  void rest() { finish_until(out_.rows); }

 private:
  // A function of its own: between two steps of tiles the compiler would load GELU's constants before it looks whether
  // there is anything to finish.
  __attribute__((noinline)) void finish_until(Index end) {
    for (; row_ < end; ++row_)
      for (Index j = 0; j < out_.columns; j += Vec::width)
        apply<Gelu>(activation_, Vec::load(sums_ + row_ * stride_ + j) + Vec::load(bias_ + j))
            .store(out_.at + row_ * out_.stride + j, within(out_.columns - j, Vec::width));
  }

  const float* sums_ = nullptr;
  Index stride_ = 0;
  Window out_{};
  const float* bias_ = nullptr;
  Activation activation_ = Activation::none;
  Index row_ = 0;
};

template <class Split>
class TileLinear {
 public:
  explicit TileLinear(const Linear& op)
      : op_(op),
        x_(row_tiles(op.rows, op.packed.k, step_depth)),
        w_(column_tiles(op.packed.n, op.packed.k, step_depth)) {}
  ~TileLinear() { finisher_.rest(); }

  // Blocks outside: all panels and rows meet in a block before the next one is touched.
  void many_rows(Range rows, Range panels) {
    for (int pass = 0; pass < passes; ++pass)
      for (Index step = 0; step < x_.steps; step += block_steps)
        for (Index panel = panels.begin; panel < panels.end; ++panel)
          for (Index row = rows.begin; row < rows.end; row += 2 * tile_side)
            if (rows.end - row > tile_side)
              add_block<2>(pass, step, row, rows.end, panel);
            else
              add_block<1>(pass, step, row, rows.end, panel);
  }

  // Blocks inside: the sums of a panel stay in the unit; of two panels, where there is one row tile only.
  void few_rows(Range rows, Range panels) {
    const bool one_tile = rows.end - rows.begin <= tile_side;
    for (Index panel = panels.begin; panel < panels.end; ++panel)
      if (!one_tile)
        add_all<2, panel_tiles>(rows, panel);
      else if (panel + 1 < panels.end)
        add_all<1, 2 * panel_tiles>(rows, panel++);
      else
        add_all<1, panel_tiles>(rows, panel);
  }

 private:
  // One over the whole of K for each product of parts.
  static constexpr int passes = sizeof(Split::products) / sizeof(PartProduct);

  template <int Rows, int Columns>
  using Sums = TileSums<Rows, Columns, Bf16Products>;

  template <int Rows, int Columns>
  void add_products(int pass, Index step, Index row, Index panel) {
    const PartProduct& parts = Split::products[pass];
    Sums<Rows, Columns>::add(op_.operands + parts.x * x_.floats() + x_.at(step, row / tile_side),
                             op_.packed.weight + parts.w * w_.floats() + w_.at(step, panel * panel_tiles),
                             x_.in_block(step), [&] { finisher_.some(); });
  }

  template <int Rows>
  void add_block(int pass, Index step, Index row, Index row_end, Index panel) {
    const bool first = pass == 0 && step == 0, last = pass + 1 == passes && step + x_.in_block(step) == x_.steps;
    const Window out = window(op_, row, row_end, panel, Rows * tile_side, tile_panel);
    if (first)
      Sums<Rows, panel_tiles>::zero();
    else
      Sums<Rows, panel_tiles>::load(out);
    add_products<Rows, panel_tiles>(pass, step, row, panel);
    if (last)
      finish<Rows, panel_tiles>(out, panel);
    else
      Sums<Rows, panel_tiles>::store(out);
  }

  template <int Rows, int Columns>
  void add_all(Range rows, Index panel) {
    const Window out = window(op_, rows.begin, rows.end, panel, Rows * tile_side, Columns * tile_side);
    Sums<Rows, Columns>::zero();
    for (int pass = 0; pass < passes; ++pass)
      for (Index step = 0; step < x_.steps; step += block_steps)
        add_products<Rows, Columns>(pass, step, rows.begin, panel);
    finish<Rows, Columns>(out, panel);
  }

  // The sums before these were finished while the unit made these; the buffer is free by now, or nearly.
  template <int Rows, int Columns>
  void finish(Window out, Index panel) {
    finisher_.rest();
    Sums<Rows, Columns>::store(buffer_, Columns * tile_side);
    finisher_.begin(buffer_, Columns * tile_side, out, op_.packed.bias + panel * tile_panel, op_.activation);
  }

  const Linear& op_;
  Tiles x_, w_;
  alignas(64) float buffer_[4 * tile_floats];
  Finisher<typename Split::Gelu> finisher_;
};

template <class Split>
void tile_linear(const Linear& op, Range rows, Range panels) {
  const TileScope tiles_are_configured;
  TileLinear<Split> linear(op);
  if (rows.end - rows.begin <= tile_part_step)
    linear.few_rows(rows, panels);
  else
    linear.many_rows(rows, panels);
}

template <class Split>
constexpr LinearKernels tile_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          Split::layout,
          tile_panel,
          tile_part_step,
          tile_part_rows,
          tile_packed_size<Split>,
          tile_pack<Split>,
          tile_operands_size<Split>,
          tile_make_operands<Split>,
          tile_linear<Split>};
}

}  // namespace
}  // namespace distilfast
