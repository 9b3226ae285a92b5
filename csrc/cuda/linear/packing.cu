// Packs W in every format but W8A8; see packing.cuh and w8a16.cuh.
#include "cuda/linear/w8a16.cuh"

namespace distilfast::cuda {
namespace {

struct Pack {
  const float* weight;
  int n, k, k_tiles;
  void* packed;
};

// One thread writes one lane's 16 bytes of one k-tile.
template <class T>
__global__ void pack_kernel(Pack op) {
  constexpr int word_depth = 4 / static_cast<int>(sizeof(T)), step_depth = step_bytes / static_cast<int>(sizeof(T));
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int k_tile = static_cast<int>(blockIdx.x * (blockDim.x / warp_size) + threadIdx.x / warp_size);
  const int row = static_cast<int>(blockIdx.y) * mma_columns + lane / 4;
  if (k_tile >= op.k_tiles) return;
  struct alignas(chunk_bytes) Chunk {
    T element[4 * word_depth];
  } chunk;
#pragma unroll
  for (int word = 0; word < 4; ++word)
#pragma unroll
    for (int i = 0; i < word_depth; ++i) {
      const int k = k_tile * k_tile_depth<T> + word / 2 * step_depth + (word % 2 * 4 + lane % 4) * word_depth + i;
      const bool in_bounds = row < op.n && k < op.k;
      chunk.element[word * word_depth + i] =
          from_float<T>(in_bounds ? load(op.weight + static_cast<Index>(row) * op.k + k) : 0.0f);
    }
  const Index at = (static_cast<Index>(blockIdx.y) * op.k_tiles + k_tile) * warp_size + lane;
  store(static_cast<Chunk*>(op.packed) + at, chunk);
}

// One warp writes a block: each lane packs what it will read as its fragments of B.
__global__ void pack_w8a16_kernel(Pack op) {
  using P = Packing<W8A16>;
  constexpr int pair = 2, steps = k_tile_bytes / step_bytes, words = P::k_tiles * steps;
  const int lane = static_cast<int>(threadIdx.x) % warp_size;
  const int block = static_cast<int>(blockIdx.x * (blockDim.x / warp_size) + threadIdx.x / warp_size);
  const int row = static_cast<int>(blockIdx.y) * mma_columns + lane / 4;
  if (block >= op.k_tiles / P::k_tiles) return;
  float values[words][2 * pair];  // of a word's bytes 0, 2, 1 and 3
  float max_abs = 0.0f;
#pragma unroll
  for (int word = 0; word < words; ++word)
#pragma unroll
    for (int i = 0; i < 2 * pair; ++i) {
      const int k = (block * words + word) * 16 + i / pair * 8 + lane % 4 * pair + i % pair;
      const bool in_bounds = row < op.n && k < op.k;
      values[word][i] = in_bounds ? load(op.weight + static_cast<Index>(row) * op.k + k) : 0.0f;
      max_abs = fmaxf(max_abs, fabsf(values[word][i]));
    }
  max_abs = fmaxf(max_abs, shuffle_xor(max_abs, 1));
  max_abs = fmaxf(max_abs, shuffle_xor(max_abs, 2));
  const float inverse = max_abs > 0.0f ? 127.0f / max_abs : 0.0f;
  char* to = static_cast<char*>(op.packed) +
             (static_cast<Index>(blockIdx.y) * (op.k_tiles / P::k_tiles) + block) * static_cast<Index>(P::bytes);
#pragma unroll
  for (int k_tile = 0; k_tile < P::k_tiles; ++k_tile) {
    Word2 both{};
#pragma unroll
    for (int step = 0; step < steps; ++step)
#pragma unroll
      for (int i = 0; i < 2 * pair; ++i) {
        const auto integer = static_cast<int>(rintf(values[k_tile * steps + step][i] * inverse));
        both.word[step] |= (static_cast<std::uint32_t>(integer) & 0xffu) << (i % pair * 16 + i / pair * 8);
      }
    store(reinterpret_cast<Word2*>(to + k_tile * P::k_tile_size) + lane, both);
  }
  if (lane % 4 == 0) store(reinterpret_cast<float*>(to + P::scales) + lane / 4, max_abs / 127.0f);
}

int k_tiles_of(Precision precision, int k) {
  return with_types(precision, [&]<class T, class W>() { return k_tiles_in<T, W>(k); });
}

template <class T, class W>
constexpr auto packer() {
  if constexpr (std::is_same_v<W, W8A16>)
    return pack_w8a16_kernel;
  else
    return pack_kernel<T>;
}

}  // namespace

std::size_t packed_linear_bytes(Precision precision, int n, int k) {
  return with_types(precision, [&]<class T, class W>() { return static_cast<std::size_t>(packed_bytes<T, W>(n, k)); });
}

void pack_linear(Precision precision, const float* weight, int n, int k, void* packed, Stream& stream) {
  constexpr unsigned threads = 128;
  const int k_tiles = k_tiles_of(precision, k);
  const Grid grid{static_cast<unsigned>(divide_up(k_tiles, threads / warp_size)),
                  static_cast<unsigned>(divide_up(n, mma_columns))};
  const Pack op{weight, n, k, k_tiles, packed};
  with_types(precision,
             [&]<class T, class W>() { launch("pack_linear", packer<T, W>(), grid, threads, 0, stream, op); });
}

void load_pack_linear(Precision precision) {
  with_types(precision, [&]<class T, class W>() { load_kernel("pack_linear", packer<T, W>()); });
}

}  // namespace distilfast::cuda
