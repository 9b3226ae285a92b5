// linear_add_layer_norm: out = LN(x Wt + b + residual), [T, K] . [D, K] -> [T, D].
//
// A cluster of blocks has a tile of rows whole: each block multiplies its own columns as linear.cuh does, adds bias and
// residual, and keeps what it has in registers; only sums over rows travel, through the shared memory of the cluster.
// So [T, D] in fp32 is not written and read again between the linear and LayerNorm. Where one block is wide enough, it
// is a cluster of its own, which every device has.
//
// Precision: as linear and add_layer_norm; the variance is a second pass around the mean. A row's sum is added up in a
// fixed order: of a lane's columns, the lanes that share the row, the warps, and the blocks by their rank, in every
// block alike. Its reference is the composition of the two.
//
// A block writes its parts to all blocks, and does not read theirs, so that nobody waits for a far read and no barrier
// is needed before a block ends. `out` may be the residual where nothing is gathered: a lane reads what it writes.
#pragma once

#include "cuda/linear.cuh"

namespace distilfast::cuda {
namespace {

// Sizes are chosen so that 768 columns are whole blocks; see linear_add_layer_norm.cu for which runs.
using Narrow = Tile<64, 96, 2, 2, 1, 2, 4>;
using Wide = Tile<128, 192, 2, 4, 1, 2, 3>;

// The halves of fp32 operands and so many sums are more than the registers of a thread.
template <class T>
constexpr bool has_wide = sizeof(T) == 2;

// Behind the stages lie two sets of row sums, which other blocks write to: [2][blocks of the cluster][rows].
template <class T, class Tile>
constexpr int cluster_shared_bytes(int cluster) {
  static_assert(StageSizes<T, Tile>::all_bytes >= Tile::column_warps * Tile::rows * static_cast<int>(sizeof(float)));
  return StageSizes<T, Tile>::all_bytes + 2 * cluster * Tile::rows * static_cast<int>(sizeof(float));
}

// The rows and columns of out whose sums a lane holds: in its row tile i and half the row, in its column tile j two.
template <class Tile>
struct LanePlace {
  int tile_row, row0, column0, width;

  __device__ LanePlace(int first_row, int first_column, int width) : width(width) {
    const Place<Tile> at;
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
    tile_row = at.row + lane / 4;
    row0 = first_row + tile_row;
    column0 = first_column + at.column + lane % 4 * 2;
  }
  __device__ int row(int i, int half) const { return row0 + 16 * i + 8 * half; }
  __device__ int column(int j) const { return column0 + unit_columns * j; }
  __device__ bool has(int j) const { return column(j) < width; }
};

template <class Tile>
using RowSums = float[Tile::row_tiles][2];

// Calls run(i, half), the loops unrolled: what it indexes must stay in registers.
template <class Tile, class Run>
__device__ inline void for_each_row(Run run) {
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) run(i, half);
}

// The sums of value(i, half, j) over all columns of the cluster, in all its blocks. `parts` [blocks][rows].
template <class Tile, class Value>
__device__ inline void sum_rows(const LanePlace<Tile>& place, float* parts, Value value, RowSums<Tile>& sums) {
  auto* warps = reinterpret_cast<float*>(shared_memory());  // [column_warps][rows], over the stages
  const int thread = static_cast<int>(threadIdx.x), size = cluster_size();
  const int column_warp = thread / warp_size % Tile::column_warps;
  for_each_row<Tile>([&](int i, int half) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j)
      if (place.has(j)) sum += value(i, half, j);
    sum += shuffle_xor(sum, 1);
    sum += shuffle_xor(sum, 2);
    if (thread % 4 == 0) store(warps + column_warp * Tile::rows + place.tile_row + 16 * i + 8 * half, sum);
  });
  sync_threads();
  static_assert(Tile::threads >= Tile::rows);
  if (thread < Tile::rows) {
    float sum = load(warps + thread);
#pragma unroll
    for (int warp = 1; warp < Tile::column_warps; ++warp) sum += load(warps + warp * Tile::rows + thread);
    for (int rank = 0; rank < size; ++rank) store_to_block(rank, parts + cluster_rank() * Tile::rows + thread, sum);
  }
  arrive_cluster();
  wait_cluster();
  for_each_row<Tile>([&](int i, int half) { sums[i][half] = 0.0f; });
#pragma unroll 1
  for (int rank = 0; rank < size; ++rank)
    for_each_row<Tile>([&](int i, int half) {
      sums[i][half] += load(parts + rank * Tile::rows + place.tile_row + 16 * i + 8 * half);
    });
}

// y += b + residual, and to `sum` what it is before the residual.
template <class Tile>
__device__ inline void add_bias_and_residual(const LinearAddLayerNorm& op, const LanePlace<Tile>& place, int rows,
                                             Sums<Tile>& y) {
  const AddLayerNorm& norm = op.add_layer_norm;
  for_each_row<Tile>([&](int i, int half) {
    const int row = place.row(i, half);
    if (row >= rows) return;
    const Index from = norm.gather ? load(norm.gather + row) : row;
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j) {
      if (!place.has(j)) continue;
      const int column = place.column(j);
      const auto bias = load(reinterpret_cast<const Float2*>(op.linear.packed.bias + column));
      const auto residual = load(reinterpret_cast<const Float2*>(norm.residual + from * place.width + column));
      float &x = y[i][j][2 * half], &next = y[i][j][2 * half + 1];
      x += bias.x, next += bias.y;
      if (norm.sum)
        store(reinterpret_cast<Float2*>(norm.sum + static_cast<Index>(row) * place.width + column), Float2{x, next});
      x += residual.x, next += residual.y;
    }
  });
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T x, y;
};

// out = out_low = (y - mean) * scale * weight + bias.
template <class T, class Tile>
__device__ inline void store_normalised(const AddLayerNorm& op, const LanePlace<Tile>& place, int rows,
                                        const Sums<Tile>& y, const RowSums<Tile>& means, const RowSums<Tile>& scales) {
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) {
    if (!place.has(j)) continue;
    const int column = place.column(j);
    const auto weight = load(reinterpret_cast<const Float2*>(op.norm.weight + column));
    const auto bias = load(reinterpret_cast<const Float2*>(op.norm.bias + column));
    for_each_row<Tile>([&](int i, int half) {
      const Index row = place.row(i, half);
      if (row >= rows) return;
      const float mean = means[i][half], scale = scales[i][half];
      const Float2 out{(y[i][j][2 * half] - mean) * scale * weight.x + bias.x,
                       (y[i][j][2 * half + 1] - mean) * scale * weight.y + bias.y};
      store(reinterpret_cast<Float2*>(op.out + row * place.width + column), out);
      if (op.out_low)
        store(reinterpret_cast<Pair<T>*>(static_cast<T*>(op.out_low) + row * row_stride(place.width) + column),
              Pair<T>{from_float<T>(out.x), from_float<T>(out.y)});
    });
  }
}

// One tile of rows by the whole cluster, a tile of columns by each block.
template <class T, class Tile>
__device__ inline void linear_add_layer_norm_tile(const LinearAddLayerNorm& op, int row_tile) {
  static_assert(Tile::depth_warps == 1);
  const int rows = load(op.linear.rows), row0 = row_tile * Tile::rows, column0 = cluster_rank() * Tile::columns;
  if (row0 >= rows) return;  // and so does the whole cluster
  arrive_cluster();          // waited for before the first block writes to another
  Sums<Tile> y = {};
  multiply<T, T, Tile>(op.linear, row0, rows, column0, 0, y);
  const LanePlace<Tile> place(row0, column0, op.linear.packed.n);
  add_bias_and_residual<Tile>(op, place, rows, y);
  auto* parts = reinterpret_cast<float*>(shared_memory() + StageSizes<T, Tile>::all_bytes);
  const float width = static_cast<float>(place.width);
  RowSums<Tile> means, scales;
  wait_cluster();
  sum_rows<Tile>(
      place, parts, [&](int i, int half, int j) { return y[i][j][2 * half] + y[i][j][2 * half + 1]; }, means);
  for_each_row<Tile>([&](int i, int half) { means[i][half] /= width; });
  const auto squares = [&](int i, int half, int j) {
    const float x = y[i][j][2 * half] - means[i][half], next = y[i][j][2 * half + 1] - means[i][half];
    return x * x + next * next;
  };
  sum_rows<Tile>(place, parts + cluster_size() * Tile::rows, squares, scales);
  for_each_row<Tile>(
      [&](int i, int half) { scales[i][half] = 1.0f / sqrtf(scales[i][half] / width + op.add_layer_norm.norm.eps); });
  store_normalised<T, Tile>(op.add_layer_norm, place, rows, y, means, scales);
}

}  // namespace
}  // namespace distilfast::cuda
