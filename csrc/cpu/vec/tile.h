// The matrix product that `linear` and `attention` rest on: C [rows, columns] = A [rows, depth] B [depth, columns] for
// a few rows and a panel of columns, with the sums in registers.
//
// Each element is one chain of fused multiply-adds, k = 0, 1, 2 …, whatever the number of rows: that is what makes the
// answers independent of the batch. A is read row-major, one broadcast a row; B is a packed panel [depth][columns] of
// 4-byte slots. What a slot holds, and how it is multiplied, is the Operands' affair: one fp32 number here, two bf16
// numbers in linear/bf16.h.
#pragma once

#include "cpu/kernels.h"

namespace distilfast {
namespace {

struct Fp32 {
  using Sum = Vec;
  static constexpr int steps = 1;  // products of a slot, one after the other
  static Vec column(const float* slot, int) { return Vec::load(slot); }
  static Vec row(const float* a, Index slot, int) { return Vec::all(a[slot]); }
  static Vec multiply_add(Vec row, Vec column, Vec sum) { return fma(row, column, sum); }
};

template <int Vectors>
inline void fetch_vectors(const float* p) {
#pragma GCC unroll 4
  for (int j = 0; j < Vectors; ++j) __builtin_prefetch(p + j * Vec::width, 0, 2);
}

template <int Rows, int Vectors, class Operands = Fp32>
struct Tile {
  static constexpr int columns = Vectors * Vec::width;
  typename Operands::Sum sum[Rows][Vectors];

  // sum = A B, `depth` in slots. On the way `Fetched` vectors of each row are fetched of a panel that will be wanted.
  template <int Fetched = 0>
  inline __attribute__((always_inline)) void multiply(const float* a, Index a_stride, const float* b, Index depth,
                                                      const float* wanted = nullptr) {
    clear();
    for (Index k = 0; k < depth; ++k, b += columns) {
      if constexpr (Fetched > 0) fetch_vectors<Fetched>(wanted + k * columns);
      add_slot(a, a_stride, k, b);
    }
  }

  inline __attribute__((always_inline)) void clear() {
    each([](int, int, auto& element) { element = Operands::Sum::zero(); });
  }

  // sum += column `slot` of A times the row `b` of B.
  inline __attribute__((always_inline)) void add_slot(const float* a, Index a_stride, Index slot, const float* b) {
#pragma GCC unroll 2
    for (int step = 0; step < Operands::steps; ++step) {
      Vec column[Vectors];
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) column[j] = Operands::column(b + j * Vec::width, step);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i) {
        const Vec x = Operands::row(a + i * a_stride, slot, step);
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) sum[i][j] = Operands::multiply_add(x, column[j], sum[i][j]);
      }
    }
  }

  // Calls part(row, vector, sum), unrolled, so that the sums stay in registers.
  template <class Part>
  inline __attribute__((always_inline)) void each(Part part) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) part(i, j, sum[i][j]);
  }
};

template <int Rows, class Part>
inline void one_row_tile(Index rows, Index row, Part& part) {
  if constexpr (Rows > 0) {
    if (rows == Rows)
      part.template operator()<Rows>(row);
    else
      one_row_tile<Rows - 1>(rows, row, part);
  }
}

// Calls part<count>(first row) over `rows` rows, at most `Most` at a time and as evenly as can be: nine rows are five
// and four, since a tile of one row waits for its own sums.
template <int Most, class Part>
inline void in_row_tiles(Range rows, Part part) {
  const Index count = rows.end - rows.begin, tiles = (count + Most - 1) / Most;
  for (Index tile = 0; tile < tiles; ++tile) {
    const Index begin = rows.begin + count * tile / tiles, end = rows.begin + count * (tile + 1) / tiles;
    one_row_tile<Most>(end - begin, begin, part);
  }
}

inline Index round_up(Index n, Index multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace
}  // namespace distilfast
