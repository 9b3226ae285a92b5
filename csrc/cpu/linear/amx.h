// linear on the tile unit: out = act(x Wt + b), [T, K] . [N, K] -> [T, N], by bf16 products accumulated in fp32.
//
// Each value is a sum of bf16 terms: one for bf16, two for bf16x3, three for fp32, which hold its 24 bits. Of the
// products of terms those are computed that are not negligible in that precision: one, three, six. Each is one pass
// over the whole of K; the smallest come first, so that only the last pass adds to accumulators of full size. That is
// K / 32 roundings for each element, where a chain of fused multiply-adds has K. The bits depend on the order of tiles
// along K alone, hence on K: neither how many tiles of out are computed at a time matters, nor whether the accumulators
// are kept in `out` between k-blocks.
//
// Packed A and packed W consist of tiles of 1 KB, 16 rows of x or 16 columns of W by 32 of K, zero-padded past their
// ends: rows of a plain matrix, 1,536 or 3,072 bytes apart, would collide in a few sets of L1. For each term: k-blocks
// of 16 tiles along K, in each block row or column tiles.
//
// With many rows, 2 x 2 tiles of out are computed at a time for one k-block: the block's 32 KB of a panel stay in L1,
// and x streams past them from L2. With at most 32 rows the loop is output-stationary: the accumulators of 2 x 2 or
// 1 x 4 tiles stay in the unit along all of K, so W streams from memory once, and the later passes find the panel in
// L2. A value of W takes 6 bytes in fp32, 4 in bf16x3 and 2 in bf16.
//
// Values from 3.39e38 on, which bf16 cannot represent, become infinite or NaN.
// Included after a Vec of 16 floats and a TileUnit. Reference: linear/ref.h.
#pragma once

#include "cpu/linear/amx_tiles.h"
#include "cpu/linear/bf16.h"

namespace distilfast {
namespace {

constexpr Index bf16_tile_k = 32;  // values of K in a tile

struct TermProduct {
  int x, w;  // which term of each; 0 is the largest
};

struct OneBf16 {
  static constexpr PackedLayout layout{"bf16/tiles", 1};
  using Gelu = CoarseGelu;
  static constexpr int terms = 1;
  static constexpr TermProduct products[] = {{0, 0}};
};
struct TwoBf16 {
  static constexpr PackedLayout layout{"2xbf16/tiles", 1};
  using Gelu = ExactGelu;
  static constexpr int terms = 2;
  static constexpr TermProduct products[] = {{1, 0}, {0, 1}, {0, 0}};
};
struct ThreeBf16 {
  static constexpr PackedLayout layout{"3xbf16/tiles", 1};
  using Gelu = ExactGelu;
  static constexpr int terms = 3;
  static constexpr TermProduct products[] = {{2, 0}, {0, 2}, {1, 1}, {1, 0}, {0, 1}, {0, 0}};
};

template <class Split>
Index tile_packed_size(Index n, Index k) {
  return Split::terms * column_tiles(n, k, bf16_tile_k).bytes();
}

// The next bf16 term of each of two values, as a k-pack; subtracts the terms from the values.
inline KPack take_terms(float (&pair)[2]) {
  KPack k_pack = 0;
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t term = bf16_bits(pair[i]);
    pair[i] -= __builtin_bit_cast(float, term << 16);
    k_pack |= term << 16 * i;
  }
  return k_pack;
}

template <class Split>
void tile_pack(const LinearSource& source, Range panels, std::byte* packed) {
  const Tiles tiles = column_tiles(source.n, source.k, bf16_tile_k);
  for (Index column = panels.begin * tile_panel; column < panels.end * tile_panel; ++column)
    for (Index k = 0; k < tiles.k_tiles * bf16_tile_k; k += 2) {
      const auto weight = [&](Index at) {
        return column < source.n && at < source.k ? source.weight[column * source.k + at] : 0.0f;
      };
      float pair[2] = {weight(k), weight(k + 1)};
      std::byte* to = packed + tiles.at(k / bf16_tile_k, column / tile_side);
      const Index k_pack = k % bf16_tile_k / 2 * tile_side + column % tile_side;
      for (int term = 0; term < Split::terms; ++term)
        *view<KPack>(to + term * tiles.bytes(), k_pack) = take_terms(pair);
    }
}

template <class Split>
Index tile_packed_a_size(Index rows, Index k) {
  return Split::terms * row_tiles(rows, k, bf16_tile_k).bytes();
}

template <class Split>
void tile_pack_a(const Linear& op, Range rows) {
  const Index k_total = op.packed.k;
  const Tiles tiles = row_tiles(op.rows, k_total, bf16_tile_k);
  for (Index row = rows.begin; row < end_with_padding(op, rows); ++row)
    for (Index k = 0; k < tiles.k_tiles * bf16_tile_k; k += Vec::width) {
      const Index inside = row < op.rows ? clamped(k_total - k, Vec::width) : 0;
      Vec x = inside > 0 ? Vec::load(op.x + row * op.x_stride + k, inside) : Vec::zero();
      std::byte* to = op.packed_a + tiles.row_at(k / bf16_tile_k, row) + k % bf16_tile_k * 2;
      for (int term = 0; term < Split::terms; ++term) {
        const __m256i bf16 = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + term * tiles.bytes()), bf16);
        x = x - Vec{_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16))};
      }
    }
}

// The epilogue, bias and activation, of tiles of out whose accumulators are complete. It is interleaved with the main
// loop of the tiles that follow, two rows at a time: exact GELU of 2 x 2 tiles takes the vector units about as long as
// the tile unit takes for K = 512.
template <class Gelu>
class InterleavedEpilogue {
 public:
  void begin(const float* accumulators, Index stride, OutTile out, const float* bias, Activation activation) {
    accumulators_ = accumulators, stride_ = stride, out_ = out, bias_ = bias, activation_ = activation, row_ = 0;
  }
  void step() {
    if (row_ < out_.rows) run_until(smaller(row_ + 2, out_.rows));
  }
  void finish() { run_until(out_.rows); }

 private:
  // Not inlined: in the main loop the compiler would load GELU's constants before it tests whether any row is left.
  __attribute__((noinline)) void run_until(Index end) {
    for (; row_ < end; ++row_)
      for (Index j = 0; j < out_.columns; j += Vec::width)
        apply<Gelu>(activation_, Vec::load(accumulators_ + row_ * stride_ + j) + Vec::load(bias_ + j))
            .store(out_.at + row_ * out_.stride + j, clamped(out_.columns - j, Vec::width));
  }

  const float* accumulators_ = nullptr;
  Index stride_ = 0;
  OutTile out_{};
  const float* bias_ = nullptr;
  Activation activation_ = Activation::none;
  Index row_ = 0;
};

template <class Split>
class TileLinear {
 public:
  explicit TileLinear(const Linear& op)
      : op_(op),
        x_(row_tiles(op.rows, op.packed.k, bf16_tile_k)),
        w_(column_tiles(op.packed.n, op.packed.k, bf16_tile_k)) {}
  ~TileLinear() { epilogue_.finish(); }

  // The loop over k-blocks is outermost: all panels and rows use a block before the next one is read.
  void run_k_blocked(Range rows, Range panels) {
    for (int pass = 0; pass < passes; ++pass)
      for (Index k_tile = 0; k_tile < x_.k_tiles; k_tile += block_k_tiles)
        for (Index panel = panels.begin; panel < panels.end; ++panel)
          for (Index row = rows.begin; row < rows.end; row += 2 * tile_side)
            if (rows.end - row > tile_side)
              add_block<2>(pass, k_tile, row, rows.end, panel);
            else
              add_block<1>(pass, k_tile, row, rows.end, panel);
  }

  // The loop over k-blocks is innermost: the accumulators of a panel stay in the unit, or of two panels where there is
  // one row tile only.
  void run_output_stationary(Range rows, Range panels) {
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
  // One over the whole of K for each product of terms.
  static constexpr int passes = sizeof(Split::products) / sizeof(TermProduct);

  template <int Rows, int Columns>
  using Accumulators = TileAccumulators<Rows, Columns, Bf16Products>;

  template <int Rows, int Columns>
  void add_products(int pass, Index k_tile, Index row, Index panel) {
    const TermProduct& terms = Split::products[pass];
    Accumulators<Rows, Columns>::add(op_.packed_a + terms.x * x_.bytes() + x_.at(k_tile, row / tile_side),
                                     op_.packed.weight + terms.w * w_.bytes() + w_.at(k_tile, panel * panel_tiles),
                                     x_.in_block(k_tile), [&] { epilogue_.step(); });
  }

  template <int Rows>
  void add_block(int pass, Index k_tile, Index row, Index row_end, Index panel) {
    const bool first = pass == 0 && k_tile == 0,
               last = pass + 1 == passes && k_tile + x_.in_block(k_tile) == x_.k_tiles;
    const OutTile out = out_tile(op_, row, row_end, panel, Rows * tile_side, tile_panel);
    if (first)
      Accumulators<Rows, panel_tiles>::zero();
    else
      Accumulators<Rows, panel_tiles>::load(out);
    add_products<Rows, panel_tiles>(pass, k_tile, row, panel);
    if (last)
      begin_epilogue<Rows, panel_tiles>(out, panel);
    else
      Accumulators<Rows, panel_tiles>::store(out);
  }

  template <int Rows, int Columns>
  void add_all(Range rows, Index panel) {
    const OutTile out = out_tile(op_, rows.begin, rows.end, panel, Rows * tile_side, Columns * tile_side);
    Accumulators<Rows, Columns>::zero();
    for (int pass = 0; pass < passes; ++pass)
      for (Index k_tile = 0; k_tile < x_.k_tiles; k_tile += block_k_tiles)
        add_products<Rows, Columns>(pass, k_tile, rows.begin, panel);
    begin_epilogue<Rows, Columns>(out, panel);
  }

  // The previous epilogue ran during the main loop of these tiles: little or nothing of it is left before its buffer is
  // free.
  template <int Rows, int Columns>
  void begin_epilogue(OutTile out, Index panel) {
    epilogue_.finish();
    Accumulators<Rows, Columns>::store(buffer_, Columns * tile_side);
    epilogue_.begin(buffer_, Columns * tile_side, out, op_.packed.bias + panel * tile_panel, op_.activation);
  }

  const Linear& op_;
  Tiles x_, w_;
  alignas(64) float buffer_[4 * tile_elements];
  InterleavedEpilogue<typename Split::Gelu> epilogue_;
};

template <class Split>
void tile_linear(const Linear& op, Range rows, Range panels) {
  const TileScope tiles_are_configured;
  TileLinear<Split> linear(op);
  if (rows.end - rows.begin <= tile_mc_multiple)
    linear.run_output_stationary(rows, panels);
  else
    linear.run_k_blocked(rows, panels);
}

template <class Split>
constexpr LinearKernels tile_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          Split::layout,
          tile_panel,
          tile_mc_multiple,
          tile_mc,
          tile_packed_size<Split>,
          tile_pack<Split>,
          tile_packed_a_size<Split>,
          tile_pack_a<Split>,
          tile_linear<Split>};
}

}  // namespace
}  // namespace distilfast
