// The epilogue of `linear`: adds the bias, applies the activation and stores out, through shared memory.
//
// There the accumulators of sliced K are added in a fixed order, and rows are stored in accesses of 16 bytes. With
// split-K each split stores its accumulators alone: the operation that adds them up adds the bias.
#pragma once

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

__device__ inline float apply(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::relu:
      return x < 0.0f ? 0.0f : x;  // NaN stays NaN
    case Activation::tanh:
      return tanhf(x);
    case Activation::none:
      break;
  }
  return x;
}

// Stores the first `count` of eight values, 16 bytes at a time where that is all of them and `to` is aligned.
template <class T>
__device__ inline void store_row(T* to, const float (&values)[8], int count) {
  constexpr int vector = chunk_bytes / static_cast<int>(sizeof(T));
  struct alignas(chunk_bytes) Vector {
    T element[vector];
  };
  if (count >= 8 && reinterpret_cast<std::uintptr_t>(to) % chunk_bytes == 0) {
#pragma unroll
    for (int i = 0; i < 8; i += vector) {
      Vector all;
#pragma unroll
      for (int j = 0; j < vector; ++j) all.element[j] = from_float<T>(values[i + j]);
      store(reinterpret_cast<Vector*>(to + i), all);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) store(to + i, from_float<T>(values[i]));
}

// From shared memory to out.
template <class T, class Tile>
__device__ inline void epilogue(const Linear& op, int row0, int rows, int column0, int split) {
  const auto* shared = reinterpret_cast<const float*>(shared_memory());
  constexpr int row_vectors = Tile::columns / 8;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < Tile::rows * row_vectors; i += Tile::threads) {
    const int row = i / row_vectors, column = i % row_vectors * 8, left = op.packed.n - column0 - column;
    if (row0 + row >= rows || left <= 0) continue;
    float values[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float* sum = shared + row * Tile::accumulator_stride + column + j;
      values[j] = load(sum);
#pragma unroll
      for (int k_warp = 1; k_warp < Tile::k_warps; ++k_warp)
        values[j] += load(sum + k_warp * Tile::rows * Tile::accumulator_stride);
      if (op.split_k == 1 && j < left)
        values[j] = apply(op.activation, values[j] + load(op.packed.bias + column0 + column + j));
    }
    const Index at = row0 + row;
    if (op.out) store_row(op.out + split * op.split_stride + at * op.packed.n + column0 + column, values, left);
    if (op.out_cast)
      store_row(static_cast<T*>(op.out_cast) + at * row_stride(op.packed.n) + column0 + column, values, left);
  }
}

}  // namespace
}  // namespace distilfast::cuda
