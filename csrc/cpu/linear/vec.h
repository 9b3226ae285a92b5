// linear: out = act(x Wt + b), [T, K] . [N, K] -> [T, N]; sums and results are fp32.
//
// W lies in memory as it is read: blocks of `depth_block` rows of Wt, in each block panels of `panel` columns, in each
// panel [slot][column], where a slot is 4 bytes: one fp32 number of K or two bf16 ones. A panel of a block fits L1
// beside a few rows of x and serves all rows of the part; a part's x block and its out stay in L2. For few tokens the
// same loop is one pass along W, which is read once from front to back. Blocks are added in the order of k: a sum of
// short sums, more exact than one long chain, and fixed by K alone.
// fp32 rows of x are read where they are: a row's 16 consecutive floats share a line, and lines of different rows meet
// in a set only for few rows at a time. Other operands are made of them in scratch, a block of k at a time.
// Reference: linear/ref.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec/math.h"
#include "cpu/vec/tile.h"

extern "C" float tanhf(float);

namespace distilfast {
namespace {

constexpr int panel_vectors = 3;
constexpr int panel = panel_vectors * Vec::width;
// Sums, a row of W and a broadcast fill the registers: 8 x 3 + 3 + 1 of 32, 4 x 3 + 3 + 1 of 16.
constexpr int tile_rows = Vec::registers == 32 ? 8 : 4;
constexpr Index depth_block = 256;

// Raise this with every change of the bytes that `pack_linear` writes: packed weights outlive the program on disk, and
// what another version wrote is not read. tests/kernels/test_packing.py knows the bytes of each version.
constexpr int packing = 1;

// fp32 operands of `linear`.
struct Fp32Linear : Fp32 {
  static constexpr Index per_slot = 1;  // numbers of K
  static constexpr Index row_size(Index) { return 0; }
  static float slot(const float* w, Index) { return *w; }
  static void make_row(const float*, Index, float*) {}
};

inline Index slots(Index k, Index per_slot) { return (k + per_slot - 1) / per_slot; }

// Where block `k` of panel `p` begins in the packed W.
template <class Operands>
inline Index packed_offset(Index n, Index k_total, Index k, Index p) {
  const Index depth = k_total - k < depth_block ? k_total - k : depth_block;
  return slots(k, Operands::per_slot) * round_up(n, panel) + p * slots(depth, Operands::per_slot) * panel;
}

template <class Operands>
Index packed_size(Index n, Index k) {
  return slots(k, Operands::per_slot) * round_up(n, panel);
}

template <class Operands>
Index linear_scratch(Index most_rows, Index k) {
  return most_rows * Operands::row_size(k < depth_block ? k : depth_block);
}

template <class Operands>
void pack_linear(const float* weight, Index n, Index k_total, Range panels, float* packed) {
  for (Index k0 = 0; k0 < k_total; k0 += depth_block) {
    const Index depth = k_total - k0 < depth_block ? k_total - k0 : depth_block;
    for (Index p = panels.begin; p < panels.end; ++p) {
      float* to = packed + packed_offset<Operands>(n, k_total, k0, p);
      for (Index j = 0; j < panel; ++j) {
        const Index row = p * panel + j;
        const float* from = weight + row * k_total + k0;
        for (Index k = 0; k < depth; k += Operands::per_slot)
          to[k / Operands::per_slot * panel + j] = row < n ? Operands::slot(from + k, depth - k) : 0.0f;
      }
    }
  }
}

inline Vec apply(Activation activation, Vec x) {
  switch (activation) {
    case Activation::gelu:
      return gelu(x);
    case Activation::relu:
      return max(x, Vec::zero());
    case Activation::tanh: {  // only ever on a pooler's few rows
      float lanes[Vec::width];
      x.store(lanes);
      for (float& lane : lanes) lane = tanhf(lane);
      return Vec::load(lanes);
    }
    case Activation::none:
      break;
  }
  return x;
}

template <int Rows>
inline void finish_tile(float* c, Index c_stride, const float* bias, Activation activation) {
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < panel; j += Vec::width) {
      float* at = c + i * c_stride + j;
      apply(activation, Vec::load(at) + Vec::load(bias + j)).store(at);
    }
}

// One block of k for one tile: c = A B, or c += A B behind the first block.
template <class Operands, int Rows>
inline void block_tile(const float* x, Index x_stride, const float* w, Index depth, float* c, Index c_stride,
                       bool first) {
  Tile<Rows, panel_vectors, Operands> tile;
  tile.multiply(x, x_stride, w, depth);
#pragma GCC unroll 16
  for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < panel_vectors; ++j) {
      float* at = c + i * c_stride + j * Vec::width;
      const Vec sum = first ? tile.sum[i][j] : Vec::load(at) + tile.sum[i][j];
      sum.store(at);
    }
}

template <int Rows>
inline void copy_columns(const float* from, Index from_stride, float* to, Index to_stride, Index columns) {
  for (int i = 0; i < Rows; ++i)
    for (Index j = 0; j < columns; ++j) to[i * to_stride + j] = from[i * from_stride + j];
}

template <class Operands>
void linear(const Linear& op, Range rows, Range panels, float* scratch) {
  const Index n = op.packed.n, k_total = op.packed.k;
  for (Index k = 0; k < k_total; k += depth_block) {
    const Index depth = k_total - k < depth_block ? k_total - k : depth_block;
    const bool first = k == 0, last = k + depth == k_total;
    // The rows of this block: made in scratch, or where they are.
    const Index made = Operands::row_size(depth), stride = made ? made : op.x_stride;
    const float* block = made ? scratch : op.x + rows.begin * op.x_stride + k;
    for (Index row = rows.begin; made && row < rows.end; ++row)
      Operands::make_row(op.x + row * op.x_stride + k, depth, scratch + (row - rows.begin) * made);
    for (Index p = panels.begin; p < panels.end; ++p) {
      const float* w = op.packed.weight + packed_offset<Operands>(n, k_total, k, p);
      const float* bias = op.packed.bias + p * panel;
      const Index column = p * panel, columns = n - column < panel ? n - column : panel;
      in_row_tiles<tile_rows>(rows, [&]<int Rows>(Index row) {
        const float* x = block + (row - rows.begin) * stride;
        float* out = op.out + row * op.out_stride + column;
        float edge[Rows * panel];  // the last panel's columns may end before the panel does
        const bool whole = columns == panel;
        float* c = whole ? out : edge;
        const Index c_stride = whole ? op.out_stride : panel;
        if (!whole && !first) copy_columns<Rows>(out, op.out_stride, edge, panel, columns);
        block_tile<Operands, Rows>(x, stride, w, slots(depth, Operands::per_slot), c, c_stride, first);
        if (last) finish_tile<Rows>(c, c_stride, bias, op.activation);
        if (!whole) copy_columns<Rows>(edge, panel, out, op.out_stride, columns);
      });
    }
  }
}

template <class Operands>
constexpr LinearKernels linear_kernels(const char* arithmetic) {
  return {arithmetic,      packing, panel, packed_size<Operands>, linear_scratch<Operands>, pack_linear<Operands>,
          linear<Operands>};
}

}  // namespace
}  // namespace distilfast
