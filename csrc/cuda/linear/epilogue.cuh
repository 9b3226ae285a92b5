// The epilogue of `linear`: adds the bias, applies the activation and stores out, through shared memory.
//
// There the accumulators of sliced K are added in a fixed order, by all warps, and rows are stored in accesses of up to
// 16 bytes. With split-K each split stores its accumulators alone: the operation that adds them up adds the bias, which
// otherwise is copied to shared memory before the main loop.
#pragma once

#include "cuda/element.cuh"
#include "cuda/linear/tiles.cuh"

namespace distilfast::cuda {
namespace {

// All warps' accumulators into shared memory, [k_warps][rows][accumulator_stride].
template <class Tile>
__device__ inline void stage_accumulators(const Accumulators<Tile>& accumulators) {
  const WarpCoord<Tile> at;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  auto* shared = reinterpret_cast<float*>(shared_memory()) + at.k_warp * Tile::rows * Tile::accumulator_stride;
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i)
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = at.row + 16 * i + 8 * half + lane / 4, column = at.column + 8 * j + lane % 4 * 2;
        store(reinterpret_cast<Float2*>(shared + row * Tile::accumulator_stride + column),
              Float2{accumulators[i][j][2 * half], accumulators[i][j][2 * half + 1]});
      }
  sync_threads();
}

// The bias of the CTA tile's columns, to shared memory; zero-padded past the last one.
template <class Tile>
__device__ inline void copy_bias(const Linear& op, int column0, float* shared) {
  constexpr int chunk_floats = chunk_bytes / static_cast<int>(sizeof(float)), chunks = Tile::columns / chunk_floats;
  static_assert(chunks <= Tile::threads);
  const int column = static_cast<int>(threadIdx.x) * chunk_floats, left = op.packed.n - column0 - column;
  if (op.split_k > 1 || column >= Tile::columns) return;
  const int count = left < 0 ? 0 : left < chunk_floats ? left : chunk_floats;
  copy_async(shared + column, op.packed.bias + (count ? column0 + column : 0), count * static_cast<int>(sizeof(float)));
}

// One switch for all values, so that their functions run side by side.
template <int Count>
__device__ inline void apply(Activation activation, float (&values)[Count]) {
  const auto each = [&](auto function) {
#pragma unroll
    for (float& x : values) x = function(x);
  };
  switch (activation) {
    case Activation::gelu:
      return each([](float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f)); });
    case Activation::relu:
      return each([](float x) { return x < 0.0f ? 0.0f : x; });  // NaN stays NaN
    case Activation::tanh:
      return each([](float x) { return tanhf(x); });
    case Activation::none:
      break;
  }
}

// values = `Count` floats of shared memory.
template <int Count>
__device__ inline void load_floats(const float* from, float (&values)[Count]) {
  constexpr int vector = Count < 4 ? Count : 4;
#pragma unroll
  for (int i = 0; i < Count; i += vector) {
    const auto some = load(reinterpret_cast<const Vector<float, vector>*>(from + i));
#pragma unroll
    for (int j = 0; j < vector; ++j) values[i + j] = some.element[j];
  }
}

// Stores the first `count` of the values; vectorised where that is all of them and `to` is aligned.
template <class T, int Count>
__device__ inline void store_row(T* to, const float (&values)[Count], int count) {
  constexpr int widest = chunk_bytes / static_cast<int>(sizeof(T)), vector = Count < widest ? Count : widest;
  if (count >= Count && reinterpret_cast<std::uintptr_t>(to) % sizeof(Vector<T, vector>) == 0) {
#pragma unroll
    for (int i = 0; i < Count; i += vector) {
      Vector<T, vector> some;
#pragma unroll
      for (int j = 0; j < vector; ++j) some.element[j] = from_float<T>(values[i + j]);
      store(reinterpret_cast<Vector<T, vector>*>(to + i), some);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < Count; ++i)
    if (i < count) store(to + i, from_float<T>(values[i]));
}

// From shared memory to out. A thread has the same columns of some rows: eight, fewer where not all threads would have
// any. `bias`: what copy_bias has copied.
template <class T, class Tile>
__device__ inline void epilogue(const Linear& op, int row0, int rows, int column0, int split, const float* bias) {
  constexpr int share = Tile::rows * Tile::columns / Tile::threads, count = share < 8 ? share : 8;
  constexpr int row_vectors = Tile::columns / count, pass_rows = Tile::threads / row_vectors;
  static_assert(pass_rows * row_vectors == Tile::threads);
  const int column = static_cast<int>(threadIdx.x) % row_vectors * count, left = op.packed.n - column0 - column;
  if (left <= 0) return;
  const float* shared = reinterpret_cast<const float*>(shared_memory()) + column;
  float column_bias[count] = {};
  if (op.split_k == 1) load_floats(bias + column, column_bias);
  const int end = rows - row0 < Tile::rows ? rows - row0 : Tile::rows;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / row_vectors; row < end; row += pass_rows) {
    float values[count];
    load_floats(shared + row * Tile::accumulator_stride, values);
#pragma unroll
    for (int k_warp = 1; k_warp < Tile::k_warps; ++k_warp) {
      float more[count];
      load_floats(shared + (k_warp * Tile::rows + row) * Tile::accumulator_stride, more);
#pragma unroll
      for (int j = 0; j < count; ++j) values[j] += more[j];
    }
    if (op.split_k == 1) {
#pragma unroll
      for (int j = 0; j < count; ++j) values[j] += column_bias[j];
      apply(op.activation, values);
    }
    const Index at = row0 + row;
    if (op.out) store_row(op.out + split * op.split_stride + at * op.packed.n + column0 + column, values, left);
    if (op.out_cast)
      store_row(static_cast<T*>(op.out_cast) + at * row_stride(op.packed.n) + column0 + column, values, left);
  }
}

}  // namespace
}  // namespace distilfast::cuda
