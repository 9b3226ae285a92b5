// How W [N, K] is packed for `linear`: in the order of the matrix instruction's fragments of B.
//
// A k-tile is 64 bytes of K, an n-tile 8 columns of out (rows of W). Packed, a k-tile of an n-tile is 512 contiguous
// bytes, 16 for each lane: its fragments of B for two matrix instructions. So a warp's loads are coalesced from device
// memory and free of bank conflicts in shared memory. The k-tiles of an n-tile follow each other.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"
#include "cuda/tile.cuh"

namespace distilfast::cuda {
namespace {

// mma_columns: the n of a matrix instruction.
constexpr int mma_columns = 8, k_tile_bytes = 64, packed_k_tile_bytes = mma_columns * k_tile_bytes;

constexpr int divide_up(int n, int by) { return (n + by - 1) / by; }

// A block of packed W: `k_tiles` k-tiles of an n-tile, in `bytes`. W: the type of W's elements, or the tag of a format
// that has its own block.
template <class W>
struct Packing {
  static constexpr int k_tiles = 1, bytes = packed_k_tile_bytes;
};

// Elements of x in a k-tile.
template <class T>
constexpr int k_tile_depth = k_tile_bytes / static_cast<int>(sizeof(T));
// k-tiles of a depth K, rounded up to whole blocks of packed W.
template <class T, class W>
constexpr int k_tiles_in(int k) {
  return divide_up(k, k_tile_depth<T> * Packing<W>::k_tiles) * Packing<W>::k_tiles;
}
template <class T, class W>
constexpr Index packed_bytes(int n, int k) {
  return Index{divide_up(n, mma_columns)} * (k_tiles_in<T, W>(k) / Packing<W>::k_tiles) * Packing<W>::bytes;
}

}  // namespace
}  // namespace distilfast::cuda
