// linear_add_layer_norm: out = LN(x Wt + b + residual), [T, K] . [D, K] -> [T, D].
//
// A cluster of blocks holds whole rows: each block runs the main loop for its own columns, adds bias and residual, and
// keeps its accumulators in registers; only row sums are exchanged, through distributed shared memory. This saves
// writing and reading [T, D] in fp32 between the linear and LayerNorm. Where one block holds a whole row it is its own
// cluster, which works on every device.
//
// Precision: as linear and add_layer_norm; two-pass variance. Row sums are reduced in a fixed order, the same in every
// block: the lane's columns, the lanes that share the row, the warps, the blocks by rank. Reference: the composition of
// the two.
//
// A block writes its partial sums to all blocks instead of reading theirs: a remote store does not wait for a round
// trip, and no barrier is needed before a block exits. `out` may be the residual where nothing is gathered: each
// element is read and written by the same lane, in this order.
#pragma once

#include <cmath>

#include "cuda/element.cuh"
#include "cuda/linear/mainloop.cuh"

namespace distilfast::cuda {
namespace {

// 96 and 192 columns divide 768. Which one runs: see linear_add_layer_norm.cu.
using CtaTile64x96 = Tile<64, 96, 2, 2, 1, 2, 4>;
using CtaTile128x192 = Tile<128, 192, 2, 4, 1, 2, 3>;

// In fp32 the split operands and so many accumulators would need more registers than a thread has.
template <class T>
constexpr bool has_large_tile = sizeof(T) == 2;

// The stages are followed by two sets of row sums, which other blocks write to: [2][blocks of the cluster][rows].
template <class T, class Tile>
constexpr int cluster_shared_bytes(int cluster) {
  static_assert(StageSizes<T, Tile>::all_bytes >=
                (Tile::column_warps + 1) * Tile::rows * static_cast<int>(sizeof(float)));
  return StageSizes<T, Tile>::all_bytes + 2 * cluster * Tile::rows * static_cast<int>(sizeof(float));
}

// The elements of out whose accumulators a lane holds: two rows (halves) of row tile i, two adjacent columns of column
// tile j.
template <class Tile>
struct LaneCoord {
  int tile_row, first_row, first_column, rows, width;

  __device__ LaneCoord(int row0, int column0, int rows, int width) : rows(rows), width(width) {
    const WarpCoord<Tile> at;
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    tile_row = at.row + lane / 4;
    first_row = row0 + tile_row;
    first_column = column0 + at.column + lane % 4 * 2;
  }
  __device__ int row(int i, int half) const { return first_row + 16 * i + 8 * half; }
  __device__ int column(int j) const { return first_column + mma_columns * j; }
  __device__ bool has_row(int i, int half) const { return row(i, half) < rows; }
  __device__ bool has_column(int j) const { return column(j) < width; }
  // Clamped; what is read out of range is not used. Without branches between them all loads are issued together.
  __device__ int read_row(int i, int half) const { return has_row(i, half) ? row(i, half) : rows - 1; }
  __device__ int read_column(int j) const { return has_column(j) ? column(j) : 0; }
};

// One value for each of the lane's rows.
template <class Tile>
using RowValues = float[Tile::row_tiles][2];

// Calls run(i, half), unrolled so that the arrays that it indexes stay in registers.
template <class Tile, class Run>
__device__ inline void for_each_row(Run run) {
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) run(i, half);
}

// results = finish(the sum of value(i, half, j) over all columns of the cluster); one thread finishes each row.
// `block_sums` [blocks][rows].
template <class Tile, class Value, class Finish>
__device__ inline void sum_rows(const LaneCoord<Tile>& coord, float* block_sums, Value value, Finish finish,
                                RowValues<Tile>& results) {
  auto* warps = reinterpret_cast<float*>(shared_memory());  // [column_warps][rows], over the stages
  float* finished = warps + Tile::column_warps * Tile::rows;
  const int thread = static_cast<int>(threadIdx.x), size = cluster_size();
  const int column_warp = thread / warp_size % Tile::column_warps;
  for_each_row<Tile>([&](int i, int half) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j)
      if (coord.has_column(j)) sum += value(i, half, j);
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (thread % 4 == 0) store(warps + column_warp * Tile::rows + coord.tile_row + 16 * i + 8 * half, sum);
  });
  sync_threads();
  static_assert(Tile::threads >= Tile::rows);
  if (thread < Tile::rows) {
    float sum = load(warps + thread);
#pragma unroll
    for (int warp = 1; warp < Tile::column_warps; ++warp) sum += load(warps + warp * Tile::rows + thread);
#pragma unroll 1
    for (int rank = 0; rank < size; ++rank)
      store_to_block(rank, block_sums + cluster_rank() * Tile::rows + thread, sum);
  }
  arrive_cluster();
  wait_cluster();
  if (thread < Tile::rows) {
    float sum = load(block_sums + thread);
    for (int rank = 1; rank < size; ++rank) sum += load(block_sums + rank * Tile::rows + thread);
    store(finished + thread, finish(sum));
  }
  sync_threads();
  for_each_row<Tile>([&](int i, int half) { results[i][half] = load(finished + coord.tile_row + 16 * i + 8 * half); });
}

// One value for each of the lane's columns, which come in adjacent pairs.
template <class Tile>
using ColumnPairs = Float2[Tile::column_tiles];

template <class Tile>
__device__ inline void load_columns(const LaneCoord<Tile>& coord, const float* row, ColumnPairs<Tile>& pairs) {
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j)
    pairs[j] = load(reinterpret_cast<const Float2*>(row + coord.read_column(j)));
}

template <class Tile>
__device__ inline Float2 pair_of(const Accumulators<Tile>& y, int i, int half, int j) {
  return {y[i][j][2 * half], y[i][j][2 * half + 1]};
}

// y += pairs, in one row.
template <class Tile>
__device__ inline void add_pairs(const ColumnPairs<Tile>& pairs, int i, int half, Accumulators<Tile>& y) {
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) y[i][j][2 * half] += pairs[j].x, y[i][j][2 * half + 1] += pairs[j].y;
}

template <class Tile>
__device__ inline void add_bias(const LaneCoord<Tile>& coord, const float* bias, Accumulators<Tile>& y) {
  ColumnPairs<Tile> pairs;
  load_columns<Tile>(coord, bias, pairs);
  for_each_row<Tile>([&](int i, int half) { add_pairs<Tile>(pairs, i, half, y); });
}

template <class Tile>
__device__ inline void add_residual(const LaneCoord<Tile>& coord, const AddLayerNorm& op, Accumulators<Tile>& y) {
  for_each_row<Tile>([&](int i, int half) {
    const int row = coord.read_row(i, half);
    const Index from = op.gather ? load(op.gather + row) : row;
    ColumnPairs<Tile> pairs;
    load_columns<Tile>(coord, op.residual + from * coord.width, pairs);
    add_pairs<Tile>(pairs, i, half, y);
  });
}

// Calls put(row, column, i, half, j) for the lane's pairs of columns inside [T, D].
template <class Tile, class Put>
__device__ inline void for_each_pair(const LaneCoord<Tile>& coord, Put put) {
  for_each_row<Tile>([&](int i, int half) {
    if (!coord.has_row(i, half)) return;
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j)
      if (coord.has_column(j)) put(Index{coord.row(i, half)}, coord.column(j), i, half, j);
  });
}

template <class Tile>
__device__ inline void store_accumulators(const LaneCoord<Tile>& coord, const Accumulators<Tile>& y, float* sum) {
  for_each_pair<Tile>(coord, [&](Index row, int column, int i, int half, int j) {
    store(reinterpret_cast<Float2*>(sum + row * coord.width + column), pair_of<Tile>(y, i, half, j));
  });
}

// y -= mean(y); nothing else uses these `block_sums`.
template <class Tile>
__device__ inline void subtract_mean(const LaneCoord<Tile>& coord, float* block_sums, Accumulators<Tile>& y) {
  const auto sum = [&](int i, int half, int j) {
    const Float2 pair = pair_of<Tile>(y, i, half, j);
    return pair.x + pair.y;
  };
  RowValues<Tile> means;
  sum_rows<Tile>(coord, block_sums, sum, [&](float all) { return all / static_cast<float>(coord.width); }, means);
  for_each_row<Tile>([&](int i, int half) {
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j)
      y[i][j][2 * half] -= means[i][half], y[i][j][2 * half + 1] -= means[i][half];
  });
}

// out = out_cast = y / sqrt(mean(y^2) + eps) * weight + bias, where the mean of y has been subtracted; nothing else
// uses these `block_sums`.
template <class T, class Tile>
__device__ inline void normalize(const LaneCoord<Tile>& coord, float* block_sums, const AddLayerNorm& op,
                                 const Accumulators<Tile>& y) {
  ColumnPairs<Tile> weight, bias;  // loaded while the squares are summed
  load_columns<Tile>(coord, op.norm.weight, weight);
  load_columns<Tile>(coord, op.norm.bias, bias);
  const auto squares = [&](int i, int half, int j) {
    const Float2 pair = pair_of<Tile>(y, i, half, j);
    return fmaf(pair.x, pair.x, pair.y * pair.y);
  };
  const auto inverse = [&](float all) { return 1.0f / sqrtf(all / static_cast<float>(coord.width) + op.norm.eps); };
  RowValues<Tile> scales;
  sum_rows<Tile>(coord, block_sums, squares, inverse, scales);
  for_each_pair<Tile>(coord, [&](Index row, int column, int i, int half, int j) {
    const Float2 pair = pair_of<Tile>(y, i, half, j);
    const Float2 out{fmaf(pair.x * scales[i][half], weight[j].x, bias[j].x),
                     fmaf(pair.y * scales[i][half], weight[j].y, bias[j].y)};
    store(reinterpret_cast<Float2*>(op.out + row * coord.width + column), out);
    store(reinterpret_cast<Vector<T, 2>*>(static_cast<T*>(op.out_cast) + row * row_stride(coord.width) + column),
          Vector<T, 2>{from_float<T>(out.x), from_float<T>(out.y)});
  });
}

// One tile of rows by the whole cluster, a CTA tile by each block.
template <class T, class Tile>
__device__ inline void linear_add_layer_norm_tile(const LinearAddLayerNorm& op, int row_tile) {
  static_assert(Tile::k_warps == 1);
  const int row0 = row_tile * Tile::rows, column0 = cluster_rank() * Tile::columns;
  const MainLoop<T, T, Tile> main_loop(op.linear, column0, 0);
  wait_for_predecessor();
  release_dependents();
  const int rows = load(op.linear.rows);
  if (row0 >= rows) return drop_copies();  // uniform over the cluster
  arrive_cluster();                        // the wait below precedes the first remote store
  Accumulators<Tile> y = {};
  main_loop.run(op.linear, row0, rows, y);
  const LaneCoord<Tile> coord(row0, column0, rows, op.linear.packed.n);
  add_bias<Tile>(coord, op.linear.packed.bias, y);
  if (op.add_layer_norm.sum) store_accumulators<Tile>(coord, y, op.add_layer_norm.sum);
  add_residual<Tile>(coord, op.add_layer_norm, y);
  auto* block_sums = reinterpret_cast<float*>(shared_memory() + StageSizes<T, Tile>::all_bytes);
  wait_cluster();
  subtract_mean<Tile>(coord, block_sums, y);
  normalize<T, Tile>(coord, block_sums + cluster_size() * Tile::rows, op.add_layer_norm, y);
}

}  // namespace
}  // namespace distilfast::cuda
