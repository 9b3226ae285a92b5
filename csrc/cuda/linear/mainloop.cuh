// The main loop of `linear`: x Wt of one CTA tile, in the registers of its warps.
//
// A software pipeline over K: asynchronous copies fill the stages ahead (the prologue fills all but one) while the
// warps multiply the oldest. Operands of T (fp32 as three tf32 products, see tile.cuh); fp32 accumulators. The order of
// summation is fixed by CTA tile and split-K, that is by the device and the bucket of rows: a row's result is the same
// in every run and in every batch of the bucket. x is row-major in device memory and swizzled in shared memory.
#pragma once

#include <type_traits>

#include "cuda/linear/w8a16.cuh"

namespace distilfast::cuda {
namespace {

// ---- global to shared memory

// A stage of x: the rows from `row0`, the k-tiles from `k_tile0`; zero-padded past the last row and past K.
template <class T, class Tile>
__device__ inline void copy_x(const Linear& op, int row0, int rows, int k_tile0, char* shared) {
  constexpr int chunk_depth = chunk_bytes / static_cast<int>(sizeof(T));
  const Index stride = row_stride(op.packed.k);
  for (int i = static_cast<int>(threadIdx.x); i < Tile::rows * Tile::row_chunks; i += Tile::threads) {
    const int row = i / Tile::row_chunks, chunk = i % Tile::row_chunks;
    const int k = k_tile0 * k_tile_depth<T> + chunk * chunk_depth;
    const bool in_bounds = row0 + row < rows && k < op.packed.k;
    const int left = op.packed.k - k < chunk_depth ? op.packed.k - k : chunk_depth;
    const T* from = static_cast<const T*>(op.x);
    if (in_bounds) from += (op.gather ? load(op.gather + row0 + row) : row0 + row) * stride + k;
    copy_async(shared + x_offset<Tile>(row, chunk), from, in_bounds ? left * static_cast<int>(sizeof(T)) : 0);
  }
}

// The same k-tiles of the CTA tile's columns of W; zero-padded past the last column and past k_tile_end.
template <class W, class Tile>
__device__ inline void copy_w(const Linear& op, int k_tiles, int column0, int k_tile0, int k_tile_end, char* shared) {
  using P = Packing<W>;
  constexpr int block_chunks = P::bytes / chunk_bytes, n_tile_chunks = StageSizes<W, Tile>::n_tile_bytes / chunk_bytes;
  const int n_tiles = divide_up(op.packed.n, mma_columns);
  for (int i = static_cast<int>(threadIdx.x); i < Tile::columns / mma_columns * n_tile_chunks; i += Tile::threads) {
    const int n_tile = column0 / mma_columns + i / n_tile_chunks;
    const int k_tile = k_tile0 + i % n_tile_chunks / block_chunks * P::k_tiles;
    const bool in_bounds = n_tile < n_tiles && k_tile < k_tile_end;
    const char* from = static_cast<const char*>(op.packed.weight);
    if (in_bounds)
      from +=
          (static_cast<Index>(n_tile) * k_tiles + k_tile0) / P::k_tiles * P::bytes + i % n_tile_chunks * chunk_bytes;
    copy_async(shared + i * chunk_bytes, from, in_bounds ? chunk_bytes : 0);
  }
}

// ---- matrix instructions

// The offset of a k-tile of 8 columns in a stage's W, for a packing whose k-tiles have 512 bytes.
template <class W, class Tile>
__device__ inline int k_tile_offset(int n_tile, int k_tile) {
  using P = Packing<W>;
  return (n_tile * (Tile::k_tiles / P::k_tiles) + k_tile / P::k_tiles) * P::bytes +
         k_tile % P::k_tiles * packed_k_tile_bytes;
}

// One k-tile of the warp tile: two matrix instructions deep, both operands of T, W in the blocks of Packing<W>.
template <class T, class W, class Tile>
__device__ inline void multiply_k_tile(const char* x, const char* w, const WarpCoord<Tile>& at, int k_tile,
                                       Accumulators<Tile>& accumulators) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Word4 packed[Tile::column_tiles];
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) {
    const int offset = k_tile_offset<W, Tile>(at.column / mma_columns + j, k_tile) + lane * chunk_bytes;
    packed[j] = load(reinterpret_cast<const Word4*>(w + offset));
  }
#pragma unroll
  for (int step = 0; step < k_tile_bytes / step_bytes; ++step) {
    Fragment<T, 2> b[Tile::column_tiles];
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j) {
      b[j].set(0, packed[j].word[2 * step]);
      b[j].set(1, packed[j].word[2 * step + 1]);
    }
#pragma unroll
    for (int i = 0; i < Tile::row_tiles; ++i) {
      const Fragment<T, 4> a = load_fragment_a<T>([&](int row, int chunk) {
        return x + x_offset<Tile>(at.row + 16 * i + row, (2 * k_tile + step) * 2 + chunk);
      });
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j) multiply_add(accumulators[i][j], a, b[j]);
    }
  }
}

template <class T, class W, class Tile>
__device__ inline void multiply_any_k_tile(const char* x, const char* w, const WarpCoord<Tile>& at, int k_tile,
                                           Accumulators<Tile>& accumulators) {
  if constexpr (std::is_same_v<W, W8A16>)
    multiply_w8a16_k_tile<Tile>(x, w, at, k_tile, accumulators);
  else
    multiply_k_tile<T, T, Tile>(x, w, at, k_tile, accumulators);
}

// The main loop over one split of K.
template <class T, class W, class Tile>
__device__ inline void main_loop(const Linear& op, int row0, int rows, int column0, int split,
                                 Accumulators<Tile>& accumulators) {
  const int k_tiles = k_tiles_in<T, W>(op.packed.k), split_k_tiles = k_tiles_per_split<Tile>(k_tiles, op.split_k);
  const int k_tile0 = split * split_k_tiles,
            k_tile_end = k_tile0 + split_k_tiles < k_tiles ? k_tile0 + split_k_tiles : k_tiles;
  char* shared = shared_memory();
  const WarpCoord<Tile> at;
  const int steps = divide_up(k_tile_end - k_tile0, Tile::k_tiles);
  const auto copy_stage = [&](int step) {
    char* stage = shared + step % Tile::stages * StageSizes<W, Tile>::stage_bytes;
    const int k_tile = k_tile0 + step * Tile::k_tiles;
    if (step < steps) {
      copy_x<T, Tile>(op, row0, rows, k_tile, stage);
      copy_w<W, Tile>(op, k_tiles, column0, k_tile, k_tile_end, stage + Tile::x_bytes);
    }
    commit_copies();  // an empty group past the last step keeps the number of pending groups constant
  };
  for (int step = 0; step < Tile::stages - 1; ++step) copy_stage(step);  // the prologue
  for (int step = 0; step < steps; ++step) {
    wait_copies<Tile::stages - 2>();
    sync_threads();  // this stage is complete, and all warps have read the one that is filled next
    copy_stage(step + Tile::stages - 1);
    const char* stage = shared + step % Tile::stages * StageSizes<W, Tile>::stage_bytes;
#pragma unroll 1  // unrolled, two k-tiles would need too many registers in the largest fp32 tile
    for (int k_tile = 0; k_tile < Tile::k_tiles / Tile::k_warps; ++k_tile)
      multiply_any_k_tile<T, W, Tile>(stage, stage + Tile::x_bytes, at, k_tile * Tile::k_warps + at.k_warp,
                                      accumulators);
  }
  wait_copies<0>();
  sync_threads();  // the epilogue reuses the stages
}

}  // namespace
}  // namespace distilfast::cuda
