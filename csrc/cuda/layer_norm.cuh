// LayerNorm of one row by one block, the last step of embed and add_layer_norm.
//
// A thread has every row_threads-th column. Up to 1,024 columns are kept in registers, and no store comes between two
// loads, so all of them are on their way at once: one after the other they would take most of the time. A wider row is
// kept in shared memory, which alone bounds its width. The variance takes a second pass, over deviations from the mean:
// E[y^2] - mean^2 would cancel where the mean is large. fp32; the order of summation is fixed by D.
#pragma once

#include "cuda/device.cuh"
#include "cuda/element.cuh"

namespace distilfast::cuda {

constexpr int row_threads = 128, row_warps = row_threads / warp_size;

// Of a thread's columns, those that fit its registers.
constexpr int register_columns = 8;

constexpr bool fits_registers(int width) { return width <= register_columns * row_threads; }

// The warps' partial sums of two reductions, and a row that does not fit registers or must not take them.
inline std::size_t layer_norm_shared_bytes(int width, bool in_registers = true) {
  const bool shared = !in_registers || !fits_registers(width);
  return ((shared ? static_cast<std::size_t>(width) : 0) + 2 * row_warps) * sizeof(float);
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

// A row y of up to 1,024 columns: `set` or `fill`, any number of `add`, then `normalize`.
class RowInRegisters {
 public:
  __device__ explicit RowInRegisters(int width) : width_(width) {}

  __device__ void fill(float value) {
    each([&](int i, int) { y_[i] = value; });
  }
  __device__ void set(const float* from) {
    each([&](int i, int c) { y_[i] = load(from + c); });
  }
  // Stores y as it was before, unless `before` is null.
  __device__ void add(const float* from, float* before = nullptr) {
    float loaded[register_columns];
    each([&](int i, int c) { loaded[i] = load(from + c); });
    if (before) store(before);
    each([&](int i, int) { y_[i] += loaded[i]; });
  }
  __device__ void store(float* to) const {
    each([&](int i, int c) { cuda::store(to + c, y_[i]); });
  }

  // out = out_cast = LN(y)
  template <class T>
  __device__ void normalize(const LayerNormWeights& norm, float* out, T* out_cast) {
    auto* warp_sums = reinterpret_cast<float*>(shared_memory());
    float weight[register_columns], bias[register_columns];  // loaded before the first barrier
    each([&](int i, int c) { weight[i] = load(norm.weight + c), bias[i] = load(norm.bias + c); });
    float total = 0.0f, squares = 0.0f;
    each([&](int i, int) { total += y_[i]; });
    const float mean = block_sum(total, warp_sums) / static_cast<float>(width_);
    each([&](int i, int) {
      const float deviation = y_[i] - mean;
      squares += deviation * deviation;
    });
    const float variance = block_sum(squares, warp_sums + row_warps) / static_cast<float>(width_);
    const float scale = 1.0f / sqrtf(variance + norm.eps);
    each([&](int i, int c) {
      const float y = (y_[i] - mean) * scale * weight[i] + bias[i];
      cuda::store(out + c, y);
      if (out_cast) cuda::store(out_cast + c, from_float<T>(y));
    });
  }

 private:
  // Calls body(i, c) for the thread's columns c.
  template <class Body>
  __device__ void each(Body body) const {
#pragma unroll
    for (int i = 0; i < register_columns; ++i) {
      const int c = static_cast<int>(threadIdx.x) + i * row_threads;
      if (c < width_) body(i, c);
    }
  }

  int width_;
  float y_[register_columns];
};

// The same for a row of any width.
class RowInSharedMemory {
 public:
  __device__ explicit RowInSharedMemory(int width) : width_(width), y_(reinterpret_cast<float*>(shared_memory())) {}

  __device__ void fill(float value) {
    each([&](int c) { cuda::store(y_ + c, value); });
  }
  __device__ void set(const float* from) {
    each([&](int c) { cuda::store(y_ + c, load(from + c)); });
  }
  __device__ void add(const float* from, float* before = nullptr) {
    if (before) store(before);
    each([&](int c) { cuda::store(y_ + c, load(y_ + c) + load(from + c)); });
  }
  __device__ void store(float* to) const {
    each([&](int c) { cuda::store(to + c, load(y_ + c)); });
  }

  template <class T>
  __device__ void normalize(const LayerNormWeights& norm, float* out, T* out_cast) {
    float* warp_sums = y_ + width_;
    float total = 0.0f, squares = 0.0f;
    each([&](int c) { total += load(y_ + c); });
    const float mean = block_sum(total, warp_sums) / static_cast<float>(width_);
    each([&](int c) {
      const float deviation = load(y_ + c) - mean;
      squares += deviation * deviation;
    });
    const float variance = block_sum(squares, warp_sums + row_warps) / static_cast<float>(width_);
    const float scale = 1.0f / sqrtf(variance + norm.eps);
    each([&](int c) {
      const float y = (load(y_ + c) - mean) * scale * load(norm.weight + c) + load(norm.bias + c);
      cuda::store(out + c, y);
      if (out_cast) cuda::store(out_cast + c, from_float<T>(y));
    });
  }

 private:
  template <class Body>
  __device__ void each(Body body) const {
    for (int c = static_cast<int>(threadIdx.x); c < width_; c += row_threads) body(c);
  }

  int width_;
  float* y_;
};

// Calls body(row) with a row of `width` columns: in registers if it fits and `in_registers` allows it.
template <bool in_registers, class Body>
__device__ inline void with_row(int width, Body body) {
  if constexpr (in_registers)
    if (fits_registers(width)) return body(RowInRegisters(width));
  body(RowInSharedMemory(width));
}

}  // namespace distilfast::cuda
