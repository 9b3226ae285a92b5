// The tiles of `linear`: of out for a thread block (CTA tile) and for a warp (warp tile), and the pipeline stages of K.
//
// For few rows a linear is bound by reading W: small CTA tiles spread W over all multiprocessors, the warps of a block
// take different k-tiles of the same CTA tile (sliced K), and K is split over blocks where multiprocessors would still
// idle (split-K). For many rows W is read once per 64 or 128 rows, and the warps of a block share both operands.
#pragma once

#include "cuda/linear/packing.cuh"

namespace distilfast::cuda {
namespace {

// A CTA tile: Rows x Columns of out, by RowWarps x ColumnWarps x KWarps warps; a pipeline stage has KTiles k-tiles.
template <int Rows, int Columns, int RowWarps, int ColumnWarps, int KWarps, int KTiles, int Stages>
struct Tile {
  static constexpr int rows = Rows, columns = Columns, k_tiles = KTiles, stages = Stages, k_warps = KWarps;
  static constexpr int column_warps = ColumnWarps, row_warps = RowWarps;
  static constexpr int threads = RowWarps * ColumnWarps * KWarps * warp_size;
  static constexpr int row_bytes = KTiles * k_tile_bytes, row_chunks = row_bytes / chunk_bytes;
  static constexpr int x_bytes = Rows * row_bytes;
  // The warp tile, in matrix instructions of 16 rows and 8 columns.
  static constexpr int row_tiles = Rows / RowWarps / 16, column_tiles = Columns / ColumnWarps / mma_columns;
  // Padded by eight floats, so that the four rows that half a warp writes lie in different banks of shared memory.
  static constexpr int accumulator_stride = Columns + 8;
  static constexpr int bias_bytes = Columns * static_cast<int>(sizeof(float));
  static constexpr int accumulator_bytes = KWarps * Rows * accumulator_stride * static_cast<int>(sizeof(float));
};

// Shared memory of a CTA tile: the stages, which the accumulators overwrite in the epilogue, and the columns' bias.
template <class W, class Tile>
struct StageSizes {
  static constexpr int n_tile_bytes = Tile::k_tiles / Packing<W>::k_tiles * Packing<W>::bytes;  // of W, for 8 columns
  static constexpr int stage_bytes = Tile::x_bytes + Tile::columns / mma_columns * n_tile_bytes;
  static constexpr int all_bytes = Tile::stages * stage_bytes;
  static constexpr int bias_at = all_bytes > Tile::accumulator_bytes ? all_bytes : Tile::accumulator_bytes;
  static constexpr int shared_bytes = bias_at + Tile::bias_bytes;
  // Resident blocks, for __launch_bounds__: as many as compute capability 8.0 has shared memory for, 163 KB with 1 KB
  // reserved for each block. Limiting registers to fit more of them would gain nothing.
  static constexpr int blocks = 163 * 1024 / (shared_bytes + 1024);
};

// None needs more than the 99 KB of shared memory that a block of compute capability 8.6 can have.
// 16 x 16 has stages for all of K = 768 in 16 bits, so that its whole share of W is on its way at once: by Little's law
// an H200 needs some 30 KB on their way to each multiprocessor, and three stages of such a block have 12 KB of W.
using CtaTile16x16 = Tile<16, 16, 1, 1, 4, 4, 8>;      // 1 to 16 tokens
using CtaTile64x32 = Tile<64, 32, 2, 1, 2, 2, 4>;      // 17 to 64
using CtaTile64x64 = Tile<64, 64, 2, 2, 1, 2, 4>;      // 65 to 256
using CtaTile128x128 = Tile<128, 128, 2, 4, 1, 2, 3>;  // more

// Calls run(tile) with the CTA tile for a bucket of rows: of at most 64 rows, and of more.
template <class Run>
auto with_small_tile(int bucket_rows, Run run) {
  return bucket_rows <= CtaTile16x16::rows ? run(CtaTile16x16{}) : run(CtaTile64x32{});
}
template <class Run>
auto with_large_tile(int bucket_rows, Run run) {
  return bucket_rows <= 4 * CtaTile64x64::rows ? run(CtaTile64x64{}) : run(CtaTile128x128{});
}

// The split-K with which the tiles of [bucket_rows, n], each `k_tiles` deep, fill the device.
template <class Tile>
int split_k_to_fill(int n, int k_tiles, int bucket_rows) {
  const int blocks = divide_up(n, Tile::columns) * divide_up(bucket_rows, Tile::rows);
  // Each split has a few steps: its prologue and its epilogue take as long as those.
  constexpr int min_steps = Tile::stages > 3 ? 3 : 2;
  const int max_split_k = k_tiles / (Tile::k_tiles * min_steps), to_fill = multiprocessors() / blocks;
  const int split_k = to_fill < max_split_k ? to_fill : max_split_k;
  return split_k < 1 ? 1 : split_k;
}

// Rounded up to whole pipeline stages.
template <class Tile>
constexpr int k_tiles_per_split(int k_tiles, int split_k) {
  return divide_up(divide_up(k_tiles, split_k), Tile::k_tiles) * Tile::k_tiles;
}

// Where the warp tile begins in the CTA tile; and the warp's index among those that slice K.
template <class Tile>
struct WarpCoord {
  int row, column, k_warp;

  __device__ WarpCoord() {
    const int warp = static_cast<int>(threadIdx.x) / warp_size;
    column = warp % Tile::column_warps * Tile::column_tiles * mma_columns;
    row = warp / Tile::column_warps % Tile::row_warps * Tile::row_tiles * 16;
    k_warp = warp / (Tile::column_warps * Tile::row_warps);
  }
};

// A lane's accumulators of the warp tile, four for each matrix instruction as in device.cuh.
template <class Tile>
using Accumulators = float[Tile::row_tiles][Tile::column_tiles][4];

// The offset in a stage of chunk `chunk` (16 bytes) of row `row` of x: swizzled, so that the eight rows of a matrix
// load lie in different banks.
template <class Tile>
__device__ inline int x_offset(int row, int chunk) {
  return row * Tile::row_bytes + (chunk ^ row % 8) * chunk_bytes;
}

}  // namespace
}  // namespace distilfast::cuda
