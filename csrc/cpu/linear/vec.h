// linear: out = act(x Wt + b), [T, K] . [N, K] -> [T, N]; sums and results are fp32.
//
// W lies in memory as it is read: blocks of rows of Wt, in each block panels of `panel` columns, in each panel
// [slot][column], where a slot is 4 bytes: one fp32 number of K, two bf16 ones, four int8 ones. A panel of a block fits
// L1 beside a few rows of x and serves all rows of the part; a part's x block and its out stay in L2. For few tokens
// the same loop is one pass along W, which is read once from front to back; the next panel is fetched to L2 while one
// is multiplied. Blocks are added in the order of k: a sum of short sums, more exact than one long chain, and fixed by
// K alone. fp32 rows of x are read where they are: a row's 16 consecutive floats share a line, and lines of different
// rows meet in a set only for few rows at a time. Other operands are made of x once, [block][row], for all panels to
// read. Reference: linear/ref.h; int8 has its own panels in linear/int8.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec/math.h"
#include "cpu/vec/tile.h"

extern "C" float tanhf(float) noexcept;

namespace distilfast {
namespace {

constexpr int panel_vectors = 3;
constexpr int panel = panel_vectors * Vec::width;
// Sums, a row of W and a broadcast fill the registers: 8 x 3 + 3 + 1 of 32, 4 x 3 + 3 + 1 of 16.
constexpr int tile_rows = Vec::registers == 32 ? 8 : 4;

// A part of the rows may begin anywhere; its rows of x and out stay in L2 beside the streamed panels.
constexpr Index part_step = 1;
constexpr Index part_rows = 256;

// fp32 operands of `linear`.
struct Fp32Linear : Fp32 {
  using Gelu = ExactGelu;
  // Raise a layout's version with every change of its bytes: packed weights outlive the program on disk, and what
  // another version wrote is not read.
  static constexpr PackedLayout layout{"f32", 1};
  static constexpr Index per_slot = 1;  // numbers of K
  static constexpr Index row_size(Index) { return 0; }
  static float slot(const float* w, Index) { return *w; }
  static void make_row(const float*, Index, float*) {}
};

constexpr Index depth_block = 256;

inline Index least(Index a, Index b) { return a < b ? a : b; }
inline Index slots(Index k, Index per_slot) { return (k + per_slot - 1) / per_slot; }

// Where block `k` of panel `p` begins in the packed W.
template <class Operands>
inline Index packed_offset(Index n, Index k_total, Index k, Index p) {
  const Index depth = least(k_total - k, depth_block);
  return slots(k, Operands::per_slot) * round_up(n, panel) + p * slots(depth, Operands::per_slot) * panel;
}

template <class Operands>
Index packed_size(Index n, Index k) {
  return slots(k, Operands::per_slot) * round_up(n, panel);
}

// Where `row` of block `k` begins in the operands.
template <class Operands>
inline Index operand_offset(Index rows, Index k_total, Index k, Index row) {
  return rows * Operands::row_size(k) + row * Operands::row_size(least(k_total - k, depth_block));
}

template <class Operands>
Index operands_size(Index rows, Index k) {
  return rows * Operands::row_size(k);
}

template <class Operands>
void pack_linear(const LinearSource& source, Range panels, float* packed) {
  const Index n = source.n, k_total = source.k;
  for (Index k0 = 0; k0 < k_total; k0 += depth_block) {
    const Index depth = least(k_total - k0, depth_block);
    for (Index p = panels.begin; p < panels.end; ++p) {
      float* to = packed + packed_offset<Operands>(n, k_total, k0, p);
      for (Index j = 0; j < panel; ++j) {
        const Index row = p * panel + j;
        const float* from = source.weight + row * k_total + k0;
        for (Index k = 0; k < depth; k += Operands::per_slot)
          to[k / Operands::per_slot * panel + j] = row < n ? Operands::slot(from + k, depth - k) : 0.0f;
      }
    }
  }
}

template <class Operands>
void make_operands(const Linear& op, Range rows) {
  const Index k_total = op.packed.k;
  for (Index row = rows.begin; row < rows.end; ++row)
    for (Index k = 0; k < k_total; k += depth_block)
      Operands::make_row(op.x + row * op.x_stride + k, least(k_total - k, depth_block),
                         op.operands + operand_offset<Operands>(op.rows, k_total, k, row));
}

template <class Gelu>
inline Vec apply(Activation activation, Vec x) {
  switch (activation) {
    case Activation::gelu:
      return Gelu::of(x);
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

template <class Gelu, int Rows>
inline void activate(float* c, Index c_stride, Activation activation) {
  if (activation == Activation::none) return;
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < panel; j += Vec::width)
      apply<Gelu>(activation, Vec::load(c + i * c_stride + j)).store(c + i * c_stride + j);
}

// What a tile fetches while it multiplies: of the panel that comes next, `vectors` vectors of each row of Wt, from
// vector `first` on.
struct Fetch {
  int vectors, first;
  const float* of(const float* panel_of_w) const { return panel_of_w + first * Vec::width; }
};

// A panel is fetched once, by the first tiles of those that use the one before it, and not by one of them alone where
// there are more: it could not be had in the time of one, and the memory would rest in that of the others.
inline Fetch share_of(Index tile, Index tiles) {
  if (tiles == 1) return {panel_vectors, 0};
  if (tiles == 2) return tile == 0 ? Fetch{panel_vectors - 1, 0} : Fetch{1, panel_vectors - 1};
  return tile < panel_vectors ? Fetch{1, static_cast<int>(tile)} : Fetch{0, 0};
}

template <int Most = panel_vectors, class Part>
inline void for_count(int count, Part part) {
  if (count == Most) return part.template operator()<Most>();
  if constexpr (Most > 0) for_count<Most - 1>(count, part);
}

// One block of k for one tile: c = A B, or c += A B behind the first block; then, where there is a bias, + bias.
template <class Operands, int Rows, int Fetched>
inline void block_tile(const float* x, Index x_stride, const float* w, Index depth, const float* wanted, float* c,
                       Index c_stride, bool first, const float* bias) {
  Tile<Rows, panel_vectors, Operands> tile;
  tile.template multiply<Fetched>(x, x_stride, w, depth, wanted);
  tile.each([&](int i, int j, Vec& sum) {
    float* at = c + i * c_stride + j * Vec::width;
    if (!first) sum = Vec::load(at) + sum;
    if (bias) sum = sum + Vec::load(bias + j * Vec::width);
    sum.store(at);
  });
}

template <int Rows>
inline void copy_columns(const float* from, Index from_stride, float* to, Index to_stride, Index columns) {
  for (int i = 0; i < Rows; ++i)
    for (Index j = 0; j < columns; ++j) to[i * to_stride + j] = from[i * from_stride + j];
}

// Calls part<count>(first row, c, stride of c, fetch) for the tiles of panel `p`: c is their part of out, with what is
// there already unless this is the `first` time. The last panel may end behind out: c is then a copy of what there is.
template <int Most = tile_rows, class Part>
inline void in_tiles(const Linear& op, Range rows, Index p, bool first, Part part) {
  const Index column = p * panel, columns = least(op.packed.n - column, panel),
              tiles = slots(rows.end - rows.begin, Most);
  Index tile = 0;
  in_row_tiles<Most>(rows, [&]<int Rows>(Index row) {
    const Fetch fetch = share_of(tile++, tiles);
    float* out = op.out + row * op.out_stride + column;
    if (columns == panel) return part.template operator()<Rows>(row, out, op.out_stride, fetch);
    float edge[Rows * panel];
    if (!first) copy_columns<Rows>(out, op.out_stride, edge, panel, columns);
    part.template operator()<Rows>(row, edge, panel, fetch);
    copy_columns<Rows>(edge, panel, out, op.out_stride, columns);
  });
}

// What is read behind panel `p` of the block at `k`: the next panel; behind the last one the first of the next block;
// behind the last block the first of the part that the same thread will most likely be given next (stages.cpp). Behind
// the whole of W there is nothing, and that is `p` again.
struct Place {
  Index k, p;
};
inline Place behind(const Linear& op, Range panels, Index k, Index p, Index next_k) {
  if (p + 1 < panels.end) return {k, p + 1};
  if (next_k < op.packed.k) return {next_k, panels.begin};
  return (p + 1) * panel < op.packed.n ? Place{0, p + 1} : Place{k, p};
}

template <class Operands>
void linear(const Linear& op, Range rows, Range panels) {
  const Index n = op.packed.n, k_total = op.packed.k;
  for (Index k = 0; k < k_total; k += depth_block) {
    const Index depth = least(k_total - k, depth_block), made = Operands::row_size(depth);
    const bool first = k == 0, last = k + depth == k_total;
    const float* block = made ? op.operands + operand_offset<Operands>(op.rows, k_total, k, 0) : op.x + k;
    const Index stride = made ? made : op.x_stride;
    for (Index p = panels.begin; p < panels.end; ++p) {
      const Place next = behind(op, panels, k, p, k + depth);
      const float* w = op.packed.weight + packed_offset<Operands>(n, k_total, k, p);
      const float* wanted = op.packed.weight + packed_offset<Operands>(n, k_total, next.k, next.p);
      const float* bias = last ? op.packed.bias + p * panel : nullptr;
      in_tiles(op, rows, p, first, [&]<int Rows>(Index row, float* c, Index c_stride, Fetch fetch) {
        for_count(fetch.vectors, [&]<int Fetched>() {
          block_tile<Operands, Rows, Fetched>(block + row * stride, stride, w, slots(depth, Operands::per_slot),
                                              fetch.of(wanted), c, c_stride, first, bias);
        });
        if (last) activate<typename Operands::Gelu, Rows>(c, c_stride, op.activation);
      });
    }
  }
}

template <class Operands>
constexpr LinearKernels linear_kernels(const char* arithmetic) {
  return {arithmetic,
          Operands::layout,
          panel,
          part_step,
          part_rows,
          packed_size<Operands>,
          pack_linear<Operands>,
          operands_size<Operands>,
          make_operands<Operands>,
          linear<Operands>};
}

}  // namespace
}  // namespace distilfast
