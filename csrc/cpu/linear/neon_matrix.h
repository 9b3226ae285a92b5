// Operands of NEON's matrix instructions (smmla of int8, bfmmla of bf16), and their tile.
//
// An instruction multiplies two rows of A by two columns of B, eight bytes of K of each, and adds to a block of 2 x 2
// of C: twice the products of sdot or bfdot for as many bytes. So a k-pack has eight bytes here, eight int8 or four
// bf16, and a register of B has the k-packs of two neighbouring columns, which a panel has side by side. Those of two
// rows of A are put together as they are loaded. A row's last bits do not depend on the row beside it: each element of
// a block is a chain of its own.
//
// bfmmla takes denormals for zero. It adds the products of two neighbouring k, then that sum to the accumulator, and
// rounds both sums to odd: an error of a unit in the last place instead of half of one, far below that of the operands.
#pragma once

#include "cpu/linear/bf16.h"
#include "cpu/linear/int8.h"

namespace distilfast {
namespace {

// Eight bytes of K.
using MatrixKPack = std::uint64_t;

// Operands are `in_blocks`; their multiply_add takes two rows, two columns and a block.
template <int Rows, int Vectors, class Operands>
  requires(Operands::in_blocks)
struct Tile<Rows, Vectors, Operands> {
  using A = typename Operands::A;
  using B = typename Operands::B;
  using Accumulator = typename Operands::Accumulator;
  static constexpr int columns = Vectors * Vec::width;
  Accumulator blocks[(Rows + 1) / 2][2 * Vectors];

  // As in the other tiles.
  template <int Prefetched = 0>
  inline __attribute__((always_inline)) void multiply(const A* a, Index a_stride, const B* b, Index depth,
                                                      const B* next_panel = nullptr) {
    clear();
    for (Index k = 0; k < depth; ++k, b += columns) {
      if constexpr (Prefetched > 0) prefetch_vectors<Prefetched>(next_panel + k * columns);
      add_k_pack(a, a_stride, k, b);
    }
  }

  inline __attribute__((always_inline)) void clear() {
    for (auto& row : blocks)
      for (Accumulator& block : row) block = Accumulator::zero();
  }

  // Adds the product of the k-pack at element `k` of each row of A with the one of each column of B at `b`.
  inline __attribute__((always_inline)) void add_k_pack(const A* a, Index a_stride, Index k, const B* b) {
    IntVec rows[(Rows + 1) / 2];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; i += 2) {
      const A* first = a + i * a_stride + k;
      rows[i / 2] = IntVec::load_halves(first, i + 1 < Rows ? first + a_stride : first);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 2 * Vectors; ++j) {
      const IntVec two_columns = IntVec::load(reinterpret_cast<const MatrixKPack*>(b) + 2 * j);
#pragma GCC unroll 4
      for (int i = 0; i < (Rows + 1) / 2; ++i)
        blocks[i][j] = Operands::multiply_add(rows[i], two_columns, blocks[i][j]);
    }
  }

  // Calls body(row, vector, lanes of C), unrolled.
  template <class Body>
  inline __attribute__((always_inline)) void each(Body body) {
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) {
        const Accumulator &left = blocks[i / 2][2 * j], &right = blocks[i / 2][2 * j + 1];
        Accumulator lanes = i % 2 == 0 ? lower_halves(left, right) : upper_halves(left, right);
        body(i, j, lanes);
      }
  }
};

#if defined(__ARM_FEATURE_MATMUL_INT8)
struct Int8Matrix : Int8Operands {
  static constexpr bool in_blocks = true;
  static constexpr PackedLayout layout{"int8/rotated/signed/k8", 1};
  static constexpr int weight_zero_point = 0;
  static constexpr Index k_pack_words = 2;
  static Index place(Index k_pack, Index j) { return k_pack / 2 * 2 * panel + 2 * j + k_pack % 2; }
  static IntVec multiply_add(IntVec rows, IntVec columns, IntVec block) {
    return add_int8_matrix_products(rows, columns, block);
  }
};
#endif

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
struct Bf16Matrix {
  using A = MatrixKPack;
  using B = MatrixKPack;
  using Accumulator = Vec;
  using Gelu = CoarseGelu;
  static constexpr bool in_blocks = true;
  static constexpr int rows = 8;  // 4 x 6 blocks, four pairs of rows and one of columns fill 29 of 32 registers
  static constexpr Index k_block = 256;
  static constexpr PackedLayout layout{"bf16/k4", 1};
  static constexpr Index k_pack_size = 4;
  // The four values at w; zero-padded where fewer are `left`.
  static MatrixKPack k_pack(const float* w, Index left) {
    const MatrixKPack upper = left > 2 ? bf16_pair(w + 2, left - 2) : 0u;
    return upper << 32 | bf16_pair(w, left);
  }
  static constexpr Index packed_row_size(Index depth) { return (depth + 3) / 4; }
  static void pack_row(const float* x, Index depth, MatrixKPack* to) {
    Index k = 0;
    for (; k + 4 <= depth; k += 4) store_bf16(Vec::load(x + k), to + k / 4);
    if (k < depth) to[k / 4] = k_pack(x + k, depth - k);
  }
  static Vec multiply_add(IntVec rows, IntVec columns, Vec block) {
    return add_bf16_matrix_products(rows, columns, block);
  }
};
#endif

}  // namespace
}  // namespace distilfast
