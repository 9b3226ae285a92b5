// LayerNorm of one row by one block, the last step of embed and add_layer_norm.
//
// A thread has every row_threads-th column. Up to 1,024 columns are kept in registers, and no store comes between two
// loads, so all of them are on their way at once: one after the other they would take most of the time. A wider row is
// kept in shared memory, which alone bounds its width. The variance takes a second pass, over deviations from the mean:
// E[y^2] - mean^2 would cancel where the mean is large. fp32; the order of summation is fixed by D.
#pragma once

#include <cmath>

#include "cuda/device.cuh"
#include "cuda/element.cuh"

namespace distilfast::cuda {

constexpr int row_threads = 128, row_warps = row_threads / warp_size;

// Of a thread's columns, those that fit its registers.
constexpr int register_columns = 8;

constexpr bool fits_registers(int width) { return width <= register_columns * row_threads; }

// The warps' partial sums of two reductions, and a row that does not fit registers.
inline std::size_t layer_norm_shared_bytes(int width) {
  return ((fits_registers(width) ? 0 : static_cast<std::size_t>(width)) + 2 * row_warps) * sizeof(float);
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

// A row y of up to 1,024 columns: `set` or `fill`, any number of `add`, then `normalize` below.
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

  __device__ int width() const { return width_; }
  __device__ float* warp_sums() const { return reinterpret_cast<float*>(shared_memory()); }
  __device__ float at(int i, int) const { return y_[i]; }
  // The thread's columns of a weight, all loaded at once.
  struct Columns {
    float value[register_columns];
    __device__ float at(int i, int) const { return value[i]; }
  };
  __device__ Columns columns(const float* from) const {
    Columns loaded;
    each([&](int i, int c) { loaded.value[i] = load(from + c); });
    return loaded;
  }
  // Calls body(i, c) for the thread's columns c.
  template <class Body>
  __device__ void each(Body body) const {
#pragma unroll
    for (int i = 0; i < register_columns; ++i) {
      const int c = static_cast<int>(threadIdx.x) + i * row_threads;
      if (c < width_) body(i, c);
    }
  }

 private:
  int width_;
  float y_[register_columns];
};

// The same for a row of any width.
class RowInSharedMemory {
 public:
  __device__ explicit RowInSharedMemory(int width) : width_(width), y_(reinterpret_cast<float*>(shared_memory())) {}

  __device__ void fill(float value) {
    each([&](int, int c) { cuda::store(y_ + c, value); });
  }
  __device__ void set(const float* from) {
    each([&](int, int c) { cuda::store(y_ + c, load(from + c)); });
  }
  __device__ void add(const float* from, float* before = nullptr) {
    if (before) store(before);
    each([&](int, int c) { cuda::store(y_ + c, load(y_ + c) + load(from + c)); });
  }
  __device__ void store(float* to) const {
    each([&](int, int c) { cuda::store(to + c, load(y_ + c)); });
  }

  __device__ int width() const { return width_; }
  __device__ float* warp_sums() const { return y_ + width_; }
  __device__ float at(int, int c) const { return load(y_ + c); }
  struct Columns {
    const float* from;
    __device__ float at(int, int c) const { return load(from + c); }
  };
  __device__ Columns columns(const float* from) const { return {from}; }
  template <class Body>
  __device__ void each(Body body) const {
    for (int c = static_cast<int>(threadIdx.x); c < width_; c += row_threads) body(0, c);
  }

 private:
  int width_;
  float* y_;
};

// out = out_cast = LN(y), by the whole block.
template <class T, class Row>
__device__ inline void normalize(const Row& y, const LayerNormWeights& norm, float* out, T* out_cast) {
  const auto weight = y.columns(norm.weight), bias = y.columns(norm.bias);  // before the first barrier
  const float width = static_cast<float>(y.width());
  float total = 0.0f, squares = 0.0f;
  y.each([&](int i, int c) { total += y.at(i, c); });
  const float mean = block_sum(total, y.warp_sums()) / width;
  y.each([&](int i, int c) {
    const float deviation = y.at(i, c) - mean;
    squares = fmaf(deviation, deviation, squares);
  });
  const float variance = block_sum(squares, y.warp_sums() + row_warps) / width;
  const float scale = 1.0f / sqrtf(variance + norm.eps);
  y.each([&](int i, int c) {
    const float normal = fmaf((y.at(i, c) - mean) * scale, weight.at(i, c), bias.at(i, c));
    store(out + c, normal);
    if (out_cast) store(out_cast + c, from_float<T>(normal));
  });
}

// Calls body(row) with a row of `width` columns: in registers if it fits.
template <class Body>
__device__ inline void with_row(int width, Body body) {
  if (fits_registers(width)) return body(RowInRegisters(width));
  body(RowInSharedMemory(width));
}

}  // namespace distilfast::cuda
