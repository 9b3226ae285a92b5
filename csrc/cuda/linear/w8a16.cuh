// W8A16: int8 for at most 64 rows, which are bound by reading W: only W is int8, with a scale for each 64 of K in each
// column (group-wise, symmetric); x and the operands of all products are bf16.
//
// A lane converts W to bf16, exactly, in registers before it multiplies. A k-tile's products (32 of K) have
// accumulators of their own, which are multiplied by the column's scale and added to the tile's in fp32.
#pragma once

#include <cmath>
#include <type_traits>

#include "cuda/element.cuh"
#include "cuda/linear/tiles.cuh"

namespace distilfast::cuda {
namespace {

struct W8A16 {};

// A lane has 8 bytes of each k-tile, a word for each matrix instruction: bytes 0 and 2 become its first word of B, 1
// and 3 its second. The eight columns' scales follow the two k-tiles. A k-tile is 64 bytes of x, and so 32 of K.
template <>
struct Packing<W8A16> {
  static constexpr int k_tiles = 2, k_tile_size = warp_size * static_cast<int>(sizeof(Word2)),
                       scales = k_tiles * k_tile_size;
  static constexpr int bytes = scales + mma_columns * static_cast<int>(sizeof(float));
};

// Magic-number int8 -> bf16, for bytes 0 and 2 of a word: the bf16 with the bits 0x4300 + n is 128 + n for n <= 128. An
// int8 with the lower seven bits n and the sign bit s (0 or 128) is n - s = (128 + n) - (128 + s).
__device__ inline std::uint32_t int8_pair_to_bf16(std::uint32_t bytes) {
  return subtract_pairs((bytes & 0x007f007fu) | 0x43004300u, (bytes & 0x00800080u) | 0x43004300u);
}

// One k-tile of the warp tile.
template <class Tile>
__device__ inline void multiply_w8a16_k_tile(const char* x, const char* w, const WarpCoord<Tile>& at, int k_tile,
                                             Accumulators<Tile>& accumulators) {
  using P = Packing<W8A16>;
  constexpr int steps = k_tile_bytes / step_bytes;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  Fragment<BFloat16, 2> b[Tile::column_tiles][steps];
  Float2 scales[Tile::column_tiles];  // of the lane's columns
#pragma unroll
  for (int j = 0; j < Tile::column_tiles; ++j) {
    const int n_tile = at.column / mma_columns + j;
    const char* block = w + n_tile * StageSizes<W8A16, Tile>::n_tile_bytes + k_tile / P::k_tiles * P::bytes;
    const auto bytes = load(reinterpret_cast<const Word2*>(block + k_tile % P::k_tiles * P::k_tile_size) + lane);
    scales[j] = load(reinterpret_cast<const Float2*>(block + P::scales) + lane % 4);
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      b[j][step].set(0, int8_pair_to_bf16(bytes.word[step]));
      b[j][step].set(1, int8_pair_to_bf16(bytes.word[step] >> 8));
    }
  }
#pragma unroll
  for (int i = 0; i < Tile::row_tiles; ++i) {
    float products[Tile::column_tiles][4] = {};
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const Fragment<BFloat16, 4> a = load_fragment_a<BFloat16>([&](int row, int chunk) {
        return x + x_offset<Tile>(at.row + 16 * i + row, (steps * k_tile + step) * 2 + chunk);
      });
#pragma unroll
      for (int j = 0; j < Tile::column_tiles; ++j) multiply_add(products[j], a, b[j][step]);
    }
#pragma unroll
    for (int j = 0; j < Tile::column_tiles; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c)
        accumulators[i][j][c] = fmaf(products[j][c], c % 2 ? scales[j].y : scales[j].x, accumulators[i][j][c]);
  }
}

// Calls run.operator()<T, W>() with the types of x and of packed W.
template <class Run>
auto with_types(Precision precision, Run run) {
  switch (precision) {
    case Precision::fp32:
      return run.template operator()<float, float>();
    case Precision::fp16:
      return run.template operator()<Half, Half>();
    case Precision::int8:
      return run.template operator()<BFloat16, W8A16>();
    case Precision::bf16x3:  // CPU only, see common/types.h
    case Precision::bf16:
      break;
  }
  return run.template operator()<BFloat16, BFloat16>();
}

}  // namespace
}  // namespace distilfast::cuda
