// LayerNorm of one row by one block, the last step of embed and add_layer_norm.
//
// The row is kept in shared memory, which alone bounds its width. The variance takes a second pass, over deviations
// from the mean: E[y^2] - mean^2 would cancel where the mean is large. fp32; the order of summation is fixed by D.
#pragma once

#include "cuda/device.cuh"
#include "cuda/element.cuh"

namespace distilfast::cuda {

constexpr int row_threads = 128, row_warps = row_threads / warp_size;

// The row, and the warps' partial sums of two reductions.
inline std::size_t layer_norm_shared_bytes(int width) {
  return (static_cast<std::size_t>(width) + 2 * row_warps) * sizeof(float);
}

// The sum over the block, in every thread. `warp_sums`: row_warps floats of shared memory that nothing else uses.
__device__ inline float block_sum(float value, float* warp_sums) {
  for (int distance = warp_size / 2; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  if (threadIdx.x % warp_size == 0) store(warp_sums + threadIdx.x / warp_size, value);
  sync_threads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < row_warps; ++warp) sum += load(warp_sums + warp);
  return sum;
}

// out = out_cast = LN(value(0), ..., value(D - 1)), the block's row.
template <class T, class Value>
__device__ inline void layer_norm_row(const LayerNormWeights& norm, Value value, float* out, T* out_cast) {
  auto* row = reinterpret_cast<float*>(shared_memory());
  float* warp_sums = row + norm.width;
  const int first = static_cast<int>(threadIdx.x);
  float total = 0.0f, squares = 0.0f;
  for (int c = first; c < norm.width; c += row_threads) {
    const float y = value(c);
    store(row + c, y);
    total += y;
  }
  const float mean = block_sum(total, warp_sums) / static_cast<float>(norm.width);
  for (int c = first; c < norm.width; c += row_threads) {
    const float deviation = load(row + c) - mean;
    squares += deviation * deviation;
  }
  const float variance = block_sum(squares, warp_sums + row_warps) / static_cast<float>(norm.width);
  const float scale = 1.0f / sqrtf(variance + norm.eps);
  for (int c = first; c < norm.width; c += row_threads) {
    const float y = (load(row + c) - mean) * scale * load(norm.weight + c) + load(norm.bias + c);
    store(out + c, y);
    if (out_cast) store(out_cast + c, from_float<T>(y));
  }
}

}  // namespace distilfast::cuda
