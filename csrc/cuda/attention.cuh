// attention: out = softmax(q kt / sqrt(d)) v inside each sequence, qkv [T, 3, H, d] -> [T, H, d].
//
// Precision: operands of T (fp32 as three tf32 products, see tile.cuh); scores, softmax and accumulators in fp32; the
// probabilities are rounded to T before the product with v. Reference: distilfast/reference.py, attention.
//
// Flash attention: a block takes up to 64 queries of one head of one sequence, a warp 16 of them, and loops over the
// keys 64 at a time with an online softmax, so that no score leaves the registers. Tiles are counted from the first
// token of their sequence, so a row's arithmetic depends on its own sequence alone. A block finds its tile in
// cu_seqlens, on the device. A head is zero-padded to 32, 64 or 128 columns.
//
// Rows in shared memory are padded by 16 bytes, so that the eight rows of a matrix load lie in different banks.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda/device.cuh"
#include "cuda/element.cuh"
#include "cuda/tile.cuh"

namespace distilfast::cuda {
namespace {

constexpr int attention_warps = 4, attention_threads = attention_warps * warp_size;
constexpr int tile_queries = attention_warps * 16, tile_keys = 64;

// Sizes for heads of up to `Columns` columns of T.
template <class T, int Columns>
struct HeadTraits {
  static constexpr int columns = Columns, row_bytes = Columns * static_cast<int>(sizeof(T));
  static constexpr int steps = row_bytes / step_bytes;  // over the head size, in q kt
  static constexpr int stride = row_bytes + chunk_bytes;
  static constexpr int tile_bytes = 64 * stride;
  static constexpr int shared_bytes = 3 * tile_bytes;  // q, k, v
};

// ---- tiles

// The queries from row `query` on of a sequence whose rows are `begin` to `end`.
struct QueryTile {
  int sequence, begin, end, query;
};

// Tile `number`, counted over all sequences; false past the last one. The warp searches 32 sequences at a time.
__device__ inline bool find_tile(const Attention& op, int number, QueryTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, sequences = load(op.sequences);
  for (int first = 0; first < sequences; first += warp_size) {
    const bool in_bounds = first + lane < sequences;
    const int begin = in_bounds ? load(op.cu_seqlens + first + lane) : 0;
    const int end = in_bounds ? load(op.cu_seqlens + first + lane + 1) : 0;
    int tiles = (end - begin + tile_queries - 1) / tile_queries;  // of this lane's sequence and those before it
    for (int distance = 1; distance < warp_size; distance *= 2) {
      const int before = shuffle_up(tiles, distance);
      if (lane >= distance) tiles += before;
    }
    if (const std::uint32_t reached = vote(number < tiles)) {
      const int owner = lowest_bit(reached), before = shuffle(tiles, owner > 0 ? owner - 1 : 0);
      tile = {first + owner, shuffle(begin, owner), shuffle(end, owner), 0};
      tile.query = tile.begin + (number - (owner > 0 ? before : 0)) * tile_queries;
      return true;
    }
    number -= shuffle(tiles, warp_size - 1);
  }
  return false;
}

// 64 rows from `row0` of one head's q, k or v; zero-padded past `end` and past the head's columns.
template <class T, class Head>
__device__ inline void copy_rows(const Attention& op, int qkv, int head, int row0, int end, char* shared) {
  constexpr int row_chunks = Head::row_bytes / chunk_bytes;
  const int width = op.heads * op.head_size, head_bytes = op.head_size * static_cast<int>(sizeof(T));
  const T* from = static_cast<const T*>(op.qkv) + qkv * width + head * op.head_size;
  for (int i = static_cast<int>(threadIdx.x); i < 64 * row_chunks; i += attention_threads) {
    const int row = i / row_chunks, offset = i % row_chunks * chunk_bytes;
    const bool in_bounds = row0 + row < end && offset < head_bytes;
    const char* at = reinterpret_cast<const char*>(from);
    if (in_bounds) at += static_cast<Index>(row0 + row) * row_stride(3 * width) * static_cast<int>(sizeof(T)) + offset;
    copy_async(shared + row * Head::stride + offset, at, in_bounds ? chunk_bytes : 0);
  }
}

// ---- products

// A lane's accumulators of the warp's 16 rows: for 64 keys, and for the head's columns.
using Scores = float[tile_keys / 8][4];
template <class Head>
using Context = float[Head::columns / 8][4];

// scores = q kt * scale, -inf past the last key; log2(e) is a factor of the scale, so that exp2 replaces exp.
template <class T, class Head>
__device__ inline void score(const char* queries, const char* keys, int left, float scale, Scores& scores) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, row0 = static_cast<int>(threadIdx.x) / warp_size * 16;
#pragma unroll
  for (int j = 0; j < tile_keys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[j][i] = 0.0f;
#pragma unroll
  for (int s = 0; s < Head::steps; ++s) {
    // Reloaded for each tile of keys: one matrix load in five, which saves the registers of all steps.
    const Fragment<T, 4> q = load_fragment_a<T>([&](int row, int chunk) {
      return queries + (row0 + row) * Head::stride + s * step_bytes + chunk * chunk_bytes;
    });
#pragma unroll
    for (int j = 0; j < tile_keys / 8; j += 2) {
      // The four matrices: keys 0-7 and 8-15, each with both chunks of the step.
      const int row = j * 8 + lane / 16 * 8 + lane % 8, chunk = lane / 8 % 2;
      std::uint32_t words[4];
      load_matrices(words, keys + row * Head::stride + s * step_bytes + chunk * chunk_bytes);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        Fragment<T, 2> k;
        k.set(0, words[2 * n]);
        k.set(1, words[2 * n + 1]);
        multiply_add(scores[j + n], q, k);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < tile_keys / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[j][i] = j * 8 + lane % 4 * 2 + i % 2 < left ? scores[j][i] * scale : -INFINITY;
}

// Packs two values into a word.
template <class T>
__device__ inline std::uint32_t pack_pair(float low, float high) {
  const T both[2] = {from_float<T>(low), from_float<T>(high)};
  std::uint32_t word;
  memcpy(&word, both, sizeof(word));
  return word;
}

// context += p v over the tile's 64 keys. A lane's accumulators of two neighbouring blocks of 8 scores are exactly its
// fragment of A for 16 keys.
template <class T, class Head>
struct ValueProduct {
  static __device__ void add(const Scores& p, const char* values, Context<Head>& context) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
    for (int j = 0; j < tile_keys / 8; j += 2) {
      Fragment<T, 4> a;
#pragma unroll
      for (int i = 0; i < 4; ++i) a.set(i, pack_pair<T>(p[j + i / 2][i % 2 * 2], p[j + i / 2][i % 2 * 2 + 1]));
#pragma unroll
      for (int n = 0; n < Head::columns / 8; n += 2) {
        // The four matrices: column blocks n and n + 1, each with keys 0-7 and 8-15.
        const char* row = values + (j * 8 + lane % 16) * Head::stride;
        std::uint32_t words[4];
        load_matrices_transposed(words, row + (n + lane / 16) * chunk_bytes);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Fragment<T, 2> b;
          b.set(0, words[2 * i]);
          b.set(1, words[2 * i + 1]);
          multiply_add(context[n + i], a, b);
        }
      }
    }
  }
};

// fp32: a step is 8 keys. Lane l of a row should hold keys l and l + 4 of A but has accumulated keys 2l and 2l + 1. A
// product does not depend on the order of its keys, so v is read in the order of the accumulators.
template <class Head>
struct ValueProduct<float, Head> {
  static __device__ void add(const Scores& p, const char* values, Context<Head>& context) {
    const int lane = static_cast<int>(threadIdx.x) % warp_size;
#pragma unroll
    for (int j = 0; j < tile_keys / 8; ++j) {
      Fragment<float, 4> a;
#pragma unroll
      for (int i = 0; i < 4; ++i) a.set(i, bits_of(p[j][i % 2 * 2 + i / 2]));
      const char* row = values + (j * 8 + lane % 4 * 2) * Head::stride + lane / 4 * sizeof(float);
#pragma unroll
      for (int n = 0; n < Head::columns / 8; ++n) {
        Fragment<float, 2> b;
#pragma unroll
        for (int i = 0; i < 2; ++i)
          b.set(i, load(reinterpret_cast<const std::uint32_t*>(row + i * Head::stride + n * 8 * sizeof(float))));
        multiply_add(context[n], a, b);
      }
    }
  }
};

// ---- softmax

// Over the four lanes that share a row.
__device__ inline float row_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}
__device__ inline float row_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// The running maximum and sum of the lane's two rows.
struct OnlineSoftmax {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

  // scores -> 2^(score - max); context is rescaled to the new maximum.
  template <int Blocks>
  __device__ void update(Scores& scores, float (&context)[Blocks][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float new_max = max[half];
#pragma unroll
      for (int j = 0; j < tile_keys / 8; ++j)
        new_max = fmaxf(new_max, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
      new_max = row_max(new_max);
      const float rescale = exp2f(max[half] - new_max);
      max[half] = new_max;
      float total = 0.0f;
#pragma unroll
      for (int j = 0; j < tile_keys / 8; ++j)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) total += scores[j][i] = exp2f(scores[j][i] - new_max);
      sum[half] = fmaf(sum[half], rescale, row_sum(total));
#pragma unroll
      for (int n = 0; n < Blocks; ++n) context[n][2 * half] *= rescale, context[n][2 * half + 1] *= rescale;
    }
  }
};

// ---- results

// Through shared memory, 16 rows of the warp's own, so that rows are stored in accesses of 16 bytes.
template <class T, class Head>
__device__ inline void store_context(const Attention& op, const QueryTile& tile, int head, const Context<Head>& context,
                                     const OnlineSoftmax& softmax, char* shared) {
  constexpr int row_chunks = Head::row_bytes / chunk_bytes;
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float inverse = 1.0f / softmax.sum[half];
    auto* row = reinterpret_cast<Vector<T, 2>*>(shared + (half * 8 + lane / 4) * Head::stride) + lane % 4;
#pragma unroll
    for (int n = 0; n < Head::columns / 8; ++n)
      store(row + 4 * n, Vector<T, 2>{from_float<T>(context[n][2 * half] * inverse),
                                      from_float<T>(context[n][2 * half + 1] * inverse)});
  }
  sync_warp();
  const int row0 = tile.query + warp * 16, head_bytes = op.head_size * static_cast<int>(sizeof(T));
  const Index stride = Index{row_stride(op.heads * op.head_size)} * static_cast<int>(sizeof(T));
  char* out = static_cast<char*>(op.out) + row0 * stride + head * head_bytes;
#pragma unroll 1  // the addresses of all of them would spill
  for (int i = lane; i < 16 * row_chunks; i += warp_size) {
    const int row = i / row_chunks, offset = i % row_chunks * chunk_bytes;
    if (row0 + row < tile.end && offset < head_bytes)
      store(reinterpret_cast<Word4*>(out + row * stride + offset),
            load(reinterpret_cast<const Word4*>(shared + row * Head::stride + offset)));
  }
}

// The tile's probabilities, from final row sums; only for a trace.
__device__ inline void store_probabilities(const Attention& op, const QueryTile& tile, int head, int key0,
                                           const Scores& scores, const OnlineSoftmax& softmax) {
  const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
  const Index length = tile.end - tile.begin;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = tile.query - tile.begin + warp * 16 + half * 8 + lane / 4;
    if (row >= length) continue;
    float* out = op.probabilities + load(op.probability_begins + tile.sequence) + (head * length + row) * length;
#pragma unroll
    for (int j = 0; j < tile_keys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = key0 + j * 8 + lane % 4 * 2 + i;
        if (key < length) store(out + key, exp2f(scores[j][2 * half + i] - softmax.max[half]) / softmax.sum[half]);
      }
  }
}

// ---- kernel

template <class T, class Head>
__device__ inline void attend(const Attention& op, const QueryTile& tile, int head) {
  char *queries = shared_memory(), *keys = queries + Head::tile_bytes, *values = keys + Head::tile_bytes;
  const int warp = static_cast<int>(threadIdx.x) / warp_size, length = tile.end - tile.begin;
  const bool has_rows = tile.query + warp * 16 < tile.end;
  const float scale = 1.4426950408889634f / sqrtf(static_cast<float>(op.head_size));  // log2(e) / sqrt(d)
  const auto copy_keys = [&](int key0) {
    if (key0 < length) copy_rows<T, Head>(op, 1, head, tile.begin + key0, tile.end, keys);
    commit_copies();
  };
  const auto copy_values = [&](int key0) {
    if (key0 < length) copy_rows<T, Head>(op, 2, head, tile.begin + key0, tile.end, values);
    commit_copies();
  };
  copy_rows<T, Head>(op, 0, head, tile.query, tile.end, queries);
  copy_keys(0);
  copy_values(0);
  Scores scores;
  Context<Head> context = {};
  OnlineSoftmax softmax;
  for (int key0 = 0; key0 < length; key0 += tile_keys) {
    wait_copies<1>();
    sync_threads();  // the keys have arrived
    if (has_rows) score<T, Head>(queries, keys, length - key0, scale, scores);
    sync_threads();  // no warp reads the keys any more
    copy_keys(key0 + tile_keys);
    if (has_rows) softmax.update(scores, context);
    wait_copies<1>();
    sync_threads();  // the values have arrived
    if (has_rows) ValueProduct<T, Head>::add(scores, values, context);
    sync_threads();
    copy_values(key0 + tile_keys);
  }
  // No warp reads the keys any more.
  if (has_rows) store_context<T, Head>(op, tile, head, context, softmax, keys + warp * 16 * Head::stride);
  if (!op.probabilities) return;
  for (int key0 = 0; key0 < length; key0 += tile_keys) {
    sync_threads();
    copy_keys(key0);
    wait_copies<0>();
    sync_threads();
    if (!has_rows) continue;
    score<T, Head>(queries, keys, length - key0, scale, scores);
    store_probabilities(op, tile, head, key0, scores, softmax);
  }
}

// One head's tiles `first`, `first + stride`, ..., by the whole block.
template <class T, class Head>
__device__ inline void attention_tiles(const Attention& op, int head, int first, int stride) {
  QueryTile tile;
  for (int number = first; find_tile(op, number, tile); number += stride) {
    sync_threads();  // the previous tile no longer uses the shared memory
    attend<T, Head>(op, tile, head);
  }
}

}  // namespace
}  // namespace distilfast::cuda
