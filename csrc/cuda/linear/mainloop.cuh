// The main loop of `linear`: x Wt of one CTA tile, in the registers of its warps.
//
// A software pipeline over K: asynchronous copies fill the stages ahead (the prologue fills all but one) while the
// warps multiply the oldest. W's share of the prologue comes first of all: at few rows a linear is bound by reading W,
// and x is known only once the kernel before has ended. Operands of T (fp32 as three tf32 products, see tile.cuh); fp32
// accumulators. The order of summation is fixed by CTA tile and split-K, that is by the device and the bucket of rows:
// a row's result is the same in every run and in every batch of the bucket. x is row-major in device memory and
// swizzled in shared memory.
#pragma once

#include <type_traits>

#include "cuda/linear/w8a16.cuh"

namespace distilfast::cuda {
namespace {

// ---- global to shared memory

// A thread copies the same chunks of every stage: its addresses and bounds are computed once, and a stage's lie at a
// constant distance from the last one's. Computed anew for each chunk they would take more instructions than the
// products do.

// One thread's copies of x: a chunk of every `pass_rows`-th row; zero-padded past the last row and past K.
template <class T, class Tile>
class CopiesOfX {
 public:
  // The rows from `row0`; stage 0 begins at `k_tile0`.
  __device__ CopiesOfX(const Linear& op, int row0, int rows, int k_tile0) {
    const int row = static_cast<int>(threadIdx.x) / Tile::row_chunks,
              chunk = static_cast<int>(threadIdx.x) % Tile::row_chunks;
    const int offset = k_tile0 * k_tile_bytes + chunk * chunk_bytes;
    const Index stride = Index{row_stride(op.packed.k)} * static_cast<int>(sizeof(T));
    to_ = x_offset<Tile>(row, chunk);
    left_ = op.packed.k * static_cast<int>(sizeof(T)) - offset;
#pragma unroll
    for (int i = 0; i < copies; ++i) {
      const int at = row0 + row + i * pass_rows, clamped = at < rows ? at : rows - 1;
      in_bounds_[i] = at < rows;
      from_[i] = static_cast<const char*>(op.x) + (op.gather ? load(op.gather + clamped) : clamped) * stride + offset;
    }
  }

  __device__ void issue(int step, char* stage) const {
    const int left = left_ - step * Tile::row_bytes, bytes = left < 0 ? 0 : left < chunk_bytes ? left : chunk_bytes;
#pragma unroll
    for (int i = 0; i < copies; ++i)
      copy_async(stage + to_ + i * pass_rows * Tile::row_bytes, from_[i] + step * Tile::row_bytes,
                 in_bounds_[i] ? bytes : 0);
  }

 private:
  static constexpr int pass_rows = Tile::threads / Tile::row_chunks, copies = Tile::rows / pass_rows;
  static_assert(copies * pass_rows == Tile::rows);
  static_assert(pass_rows % 8 == 0);  // so that all of a thread's rows have the same swizzle

  const char* from_[copies];
  bool in_bounds_[copies];
  int to_, left_;  // in the stage; bytes of K
};

// One thread's copies of W: the k-tiles from `k_tile0` of the CTA tile's columns; zero-padded past k_tile_end. Past the
// last column the last n-tile is copied again: its columns of out are not stored.
template <class W, class Tile>
class CopiesOfW {
 public:
  __device__ CopiesOfW(const void* weight, int n, int k_tiles, int column0, int k_tile0, int k_tile_end) {
    const int n_tiles = divide_up(n, mma_columns);
#pragma unroll
    for (int i = 0; i < copies; ++i) {
      const int chunk = chunk_at(i), at = column0 / mma_columns + chunk / n_tile_chunks;
      const Index n_tile = at < n_tiles ? at : n_tiles - 1;
      from_[i] = static_cast<const char*>(weight) + (n_tile * k_tiles + k_tile0) / P::k_tiles * P::bytes +
                 chunk % n_tile_chunks * chunk_bytes;
      left_[i] = k_tile_end - k_tile0 - chunk % n_tile_chunks / block_chunks * P::k_tiles;
    }
  }

  __device__ void issue(int step, char* to) const {
#pragma unroll
    for (int i = 0; i < copies; ++i)
      if (chunks % Tile::threads == 0 || chunk_at(i) < chunks)
        copy_async(to + chunk_at(i) * chunk_bytes, from_[i] + step * n_tile_bytes,
                   step * Tile::k_tiles < left_[i] ? chunk_bytes : 0);
  }

 private:
  using P = Packing<W>;
  static constexpr int n_tile_bytes = StageSizes<W, Tile>::n_tile_bytes, n_tile_chunks = n_tile_bytes / chunk_bytes;
  static constexpr int block_chunks = P::bytes / chunk_bytes;
  static constexpr int chunks = Tile::columns / mma_columns * n_tile_chunks, copies = divide_up(chunks, Tile::threads);

  static __device__ int chunk_at(int i) { return static_cast<int>(threadIdx.x) + i * Tile::threads; }

  const char* from_[copies];
  int left_[copies];  // k-tiles
};

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

// All of a linear's k-tiles, and those of one split.
struct KTiles {
  int all, first, end;
};
template <class T, class W, class Tile>
__device__ inline KTiles split_of(const Linear& op, int split) {
  const int all = k_tiles_in<T, W>(op.packed.k), per_split = k_tiles_per_split<Tile>(all, op.split_k);
  const int first = split * per_split, end = first + per_split;
  return {all, first, end < all ? end : all};
}

// The main loop over one split of K. A new one has copies of W on their way, in the order of the prologue; they depend
// on nothing that another kernel writes, and a block can begin with them before it knows its rows.
template <class T, class W, class Tile>
class MainLoop {
 public:
  __device__ MainLoop(const Linear& op, int column0, int split)
      : k_(split_of<T, W, Tile>(op, split)),
        steps_(divide_up(k_.end - k_.first, Tile::k_tiles)),
        w_(op.packed.weight, op.packed.n, k_.all, column0, k_.first, k_.end) {
    for (int step = 0; step < Tile::stages - 1; ++step)
      if (step < steps_) w_.issue(step, stage(step) + Tile::x_bytes);
  }

  __device__ void run(const Linear& op, int row0, int rows, Accumulators<Tile>& accumulators) const {
    const WarpCoord<Tile> at;
    const CopiesOfX<T, Tile> x(op, row0, rows, k_.first);
    for (int step = 0; step < Tile::stages - 1; ++step) {
      if (step < steps_) x.issue(step, stage(step));
      commit_copies();  // the first group has the prologue's W too
    }
    for (int step = 0; step < steps_; ++step) {
      wait_copies<Tile::stages - 2>();
      sync_threads();  // this stage is complete, and all warps have read the one that is filled next
      if (const int next = step + Tile::stages - 1; next < steps_) {
        x.issue(next, stage(next));
        w_.issue(next, stage(next) + Tile::x_bytes);
      }
      commit_copies();  // an empty group past the last step keeps the number of pending groups constant
#pragma unroll 1        // unrolled, two k-tiles would need too many registers in the largest fp32 tile
      for (int k_tile = 0; k_tile < Tile::k_tiles / Tile::k_warps; ++k_tile)
        multiply_any_k_tile<T, W, Tile>(stage(step), stage(step) + Tile::x_bytes, at,
                                        k_tile * Tile::k_warps + at.k_warp, accumulators);
    }
    wait_copies<0>();
    sync_threads();  // the epilogue reuses the stages
  }

 private:
  static __device__ char* stage(int step) {
    return shared_memory() + step % Tile::stages * StageSizes<W, Tile>::stage_bytes;
  }

  const KTiles k_;
  const int steps_;
  const CopiesOfW<W, Tile> w_;
};

// For a block without rows, whose copies of W would otherwise arrive when its shared memory has another use.
__device__ inline void drop_copies() {
  commit_copies();
  wait_copies<0>();
}

}  // namespace
}  // namespace distilfast::cuda
