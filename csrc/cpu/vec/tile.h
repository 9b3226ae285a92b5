// The micro-kernel of `linear` and `attention`: C [rows, columns] = A [rows, depth] B [depth, columns] for a few rows
// and one panel of columns, with the accumulators in registers.
//
// Each element is one chain of fused multiply-adds, k = 0, 1, 2 …, whatever the number of rows: that makes the answers
// independent of the batch. A is row-major and each of its elements is broadcast; B is a packed panel [depth][columns].
// Both consist of k-packs, 4 bytes with the values of one, two or four consecutive k; depth counts k-packs. The
// template parameter Operands has the types A and B of their elements and multiplies them: fp32 here, pairs of bf16 in
// linear/bf16.h, four int8 in linear/int8.h.
//
// Where a product can take one lane of a register as its factor (`by_lane`, NEON), a vector of each row of A is loaded
// at a time instead of a broadcast for each k-pack. The chain is the same, and so are its bits.
#pragma once

#include "cpu/kernels.h"

namespace distilfast {
namespace {

// Two bf16, four int8 or two int16 values; an fp32 value is a float.
using KPack = std::uint32_t;

struct Fp32 {
  using A = float;
  using B = float;
  using Accumulator = Vec;
  static constexpr int products = 1;  // multiply-adds for one k-pack, one after the other
  static constexpr bool by_lane = Vec::multiplies_by_lane;
  static Vec column(const float* k_pack, int) { return Vec::load(k_pack); }
  static Vec row(const float* a, Index k_pack, int) { return Vec::all(a[k_pack]); }
  static Vec multiply_add(Vec row, Vec column, Vec accumulator) { return fma(row, column, accumulator); }
  // By lane: Vec::width elements of a row of A, and the product of one of them.
  static Vec row_lanes(const float* a) { return Vec::load(a); }
  template <int lane, class V>
  static V multiply_add_lane(V row, V column, V accumulator) {
    return fma_lane<lane>(row, column, accumulator);
  }
};

template <int Vectors, class B>
inline void prefetch_vectors(const B* p) {
#pragma GCC unroll 4
  for (int j = 0; j < Vectors; ++j) __builtin_prefetch(p + j * Vec::width, 0, 2);
}

template <int Rows, int Vectors, class Operands = Fp32>
struct Tile {
  using A = typename Operands::A;
  using B = typename Operands::B;
  static constexpr int columns = Vectors * Vec::width;
  static constexpr int lane_k_packs = Vec::width / Operands::products;  // of which a vector of A has the elements
  typename Operands::Accumulator accumulators[Rows][Vectors];

  // accumulators = A B. The main loop also prefetches the first `Prefetched` vectors of each row of `next_panel`.
  template <int Prefetched = 0>
  inline __attribute__((always_inline)) void multiply(const A* a, Index a_stride, const B* b, Index depth,
                                                      const B* next_panel = nullptr) {
    clear();
    Index k = 0;
    if constexpr (Operands::by_lane)
      for (; k + lane_k_packs <= depth; k += lane_k_packs, b += lane_k_packs * columns) {
        if constexpr (Prefetched > 0)
          for (int i = 0; i < lane_k_packs; ++i) prefetch_vectors<Prefetched>(next_panel + (k + i) * columns);
        add_lanes(a, a_stride, k, b);
      }
    for (; k < depth; ++k, b += columns) {
      if constexpr (Prefetched > 0) prefetch_vectors<Prefetched>(next_panel + k * columns);
      add_k_pack(a, a_stride, k, b);
    }
  }

  inline __attribute__((always_inline)) void clear() {
    each([](int, int, auto& accumulator) { accumulator = Operands::Accumulator::zero(); });
  }

  // accumulators += column `k_pack` of A times the row `b` of B.
  inline __attribute__((always_inline)) void add_k_pack(const A* a, Index a_stride, Index k_pack, const B* b) {
#pragma GCC unroll 2
    for (int product = 0; product < Operands::products; ++product) {
      decltype(Operands::column(b, product)) column[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) column[j] = Operands::column(b + j * Vec::width, product);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const auto x = Operands::row(a + i * a_stride, k_pack, product);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) accumulators[i][j] = Operands::multiply_add(x, column[j], accumulators[i][j]);
      }
    }
  }

  // accumulators += columns k_pack .. k_pack + lane_k_packs - 1 of A times as many rows of B, from `b` on.
  inline __attribute__((always_inline)) void add_lanes(const A* a, Index a_stride, Index k_pack, const B* b) {
    decltype(Operands::row_lanes(a)) rows[Rows];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) rows[i] = Operands::row_lanes(a + i * a_stride + k_pack * Operands::products);
    add_lane<0>(rows, b);
  }

  // Calls body(row, vector, accumulator), unrolled, so that the accumulators stay in registers.
  template <class Body>
  inline __attribute__((always_inline)) void each(Body body) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) body(i, j, accumulators[i][j]);
  }

 private:
  // The products of one lane, then those of the next ones.
  template <int lane, class RowVector>
  inline __attribute__((always_inline)) void add_lane(const RowVector (&rows)[Rows], const B* b) {
    const B* k_pack = b + lane / Operands::products * columns;
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) {
      const auto column = Operands::column(k_pack + j * Vec::width, lane % Operands::products);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
        accumulators[i][j] = Operands::template multiply_add_lane<lane>(rows[i], column, accumulators[i][j]);
    }
    if constexpr (lane + 1 < Vec::width) add_lane<lane + 1>(rows, b);
  }
};

template <int Rows, class Body>
inline void one_row_tile(Index rows, Index row, Body& body) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      body.template operator()<Rows>(row);
    else
      one_row_tile<Rows - 1>(rows, row, body);
  }
}

// Calls body<count>(first row) for tiles of at most `Max` rows, split as evenly as possible: nine rows become five and
// four, since a tile of one row has too few independent accumulators to hide the latency of a multiply-add.
template <int Max, class Body>
inline void in_row_tiles(Range rows, Body body) {
  if (rows.end <= rows.begin) return;
  // One division of 32 bits for all tiles: two of 64 for each were 5 % of int8's time on Cascade Lake.
  const auto count = static_cast<std::uint32_t>(rows.end - rows.begin), tiles = (count + Max - 1) / Max;
  const std::uint32_t least = count / tiles, larger = count - least * tiles;
  Index row = rows.begin;
  for (std::uint32_t tile = 0; tile < tiles; ++tile) {
    const Index size = least + (tile < larger ? 1 : 0);
    one_row_tile<Max>(size, row, body);
    row += size;
  }
}

inline Index divide_up(Index n, Index by) { return (n + by - 1) / by; }
inline Index round_up(Index n, Index multiple) { return divide_up(n, multiple) * multiple; }

}  // namespace
}  // namespace distilfast
