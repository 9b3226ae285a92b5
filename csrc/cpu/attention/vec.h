// attention: out = softmax(q kt / sqrt(d)) v for one head of one sequence; accumulators and results are fp32.
//
// The keys and values of the head are packed once, as the B of two products: panels [k-pack of d][key] and [k-pack of
// keys][d]. They stay in L2: 256 KB for 512 keys of 64, half of that in bf16. Then, for one block of query rows at a
// time: all scores of these rows, a softmax over whole rows, the product with v. Whole rows rather than an online
// softmax: a block's scores fit L1, and nothing has to be rescaled.
//
// A sum over d or over the keys is a chain in their order; in fp32 it is a sum of short chains, which rounds less than
// one long chain. Either way a row depends on its own sequence alone. The operands are fp32 here and bf16 in
// attention/bf16.h; a k-pack is 4 bytes of them, as in vec/tile.h. Reference: attention/ref.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec/math.h"
#include "cpu/vec/tile.h"

namespace distilfast {
namespace {

// The most vectors of columns that a tile has …
constexpr int max_vectors = Vec::registers == 32 ? 4 : 2;

// … and the most rows: accumulators, a row of B and a broadcast fill the registers, 6 x 4 + 4 + 1 of 32; by lane it is
// accumulators, a row of B and a vector of each row of A, 5 x 4 + 4 + 5.
template <int Vectors>
constexpr int rows_that_fit = (Vec::registers - 1 - Vectors) / (Vec::multiplies_by_lane ? Vectors + 1 : Vectors);
template <int Vectors>
constexpr int max_tile_rows = rows_that_fit<Vectors> < 12 ? rows_that_fit<Vectors> : 12;

// Floats of a block's scores, unless two row tiles need more: they leave room in L1 for the panels of keys and values
// that stream past.
constexpr Index block_scores = 6144;
constexpr Index min_block_rows = max_tile_rows<max_vectors> * 2, max_block_rows = 48;

struct Fp32Attention : Fp32 {
  static constexpr Index k_pack_size = 1;
  // Terms of a chain over d and over the keys. Adding the chain to the total costs 24 vector additions for every
  // 32 x 24 or 64 x 24 multiply-adds.
  static constexpr Index score_terms = 32, context_terms = 64;
  // The k-packs of Vec::width values of one key, and of one row of v.
  static Vec key_k_packs(const float* k, Index left) { return left < Vec::width ? Vec::load(k, left) : Vec::load(k); }
  static Vec value_k_packs(const float* v, Index, Index, Index left) { return key_k_packs(v, left); }
  static void store_k_packs(float* row, Index column, Vec x) { x.store(row + column); }
  static Vec exp2(Vec x) { return distilfast::exp2(x, exp2_poly); }
};

inline Index padded_keys(Index keys) { return round_up(keys, Vec::width); }
// One cache line more than the keys need, so that rows of 512 scores do not collide in a few sets of L1.
inline Index scores_stride(Index keys) { return padded_keys(keys) + Vec::width; }
inline Index block_rows(Index keys) {
  const Index rows = block_scores / scores_stride(keys);
  return rows < min_block_rows ? min_block_rows : rows < max_block_rows ? rows : max_block_rows;
}

// The sizes of what one task keeps in scratch, in elements of 4 bytes; they never shrink with more keys.
struct AttentionSizes {
  Index keys, values, queries, scores;
  AttentionSizes(Index head_size, Index key_count, Index k_pack_size)
      : keys(padded_keys(key_count) * divide_up(head_size, k_pack_size)),
        values(round_up(head_size, Vec::width) * divide_up(key_count, k_pack_size)),
        queries(max_block_rows * round_up(divide_up(head_size, k_pack_size), Vec::width)),
        scores(block_scores + min_block_rows * scores_stride(key_count)) {}
};

template <class Operands>
Index attention_scratch(Index head_size, Index keys) {
  const AttentionSizes sizes(head_size, keys, Operands::k_pack_size);
  return (sizes.keys + sizes.values + sizes.queries + sizes.scores) * Index{sizeof(float)};
}

template <int Vectors, class Body>
inline void one_panel(Index vectors, Index column, Body& body) {
  if constexpr (Vectors > 0) {
    if (vectors == Vectors)
      body.template operator()<Vectors>(column);
    else
      one_panel<Vectors - 1>(vectors, column, body);
  }
}

// Calls body<vectors>(first column) for each panel: all have max_vectors, the last one what is left.
template <class Body>
inline void in_panels(Index columns, Body body) {
  for (Index column = 0; column < columns; column += max_vectors * Vec::width) {
    const Index vectors = (columns - column + Vec::width - 1) / Vec::width;
    one_panel<max_vectors>(vectors < max_vectors ? vectors : max_vectors, column, body);
  }
}

// Prefetches some columns of the rows that are packed `rows_ahead` rows later. They lie in L2 or beyond, and no
// hardware prefetcher follows their stride.
constexpr Index rows_ahead = 16;
inline void prefetch_ahead(const float* x, Index stride, Index rows, Index columns) {
  for (Index row = rows_ahead; row < rows_ahead + rows; ++row)
    for (Index c = 0; c < columns; c += 16) __builtin_prefetch(x + row * stride + c, 0, 3);
}

// [keys, d] with a stride -> panels [k-pack of d][key], zero-padded past the last key.
template <class Operands>
inline void pack_keys(const float* k, Index stride, Index keys, Index head_size, typename Operands::B* packed) {
  using KPacks = decltype(Operands::key_k_packs(k, head_size));
  const Index depth = divide_up(head_size, Operands::k_pack_size);
  in_panels(keys, [&]<int Vectors>(Index key) {
    for (Index j = key; j < key + Vectors * Vec::width; j += Vec::width) {
      auto* to = packed + key * depth + (j - key);
      prefetch_ahead(k + j * stride, stride, Vec::width, head_size);
      for (Index k_pack = 0; k_pack < depth; k_pack += Vec::width) {
        const Index c = k_pack * Operands::k_pack_size;
        KPacks rows[Vec::width];
#pragma GCC unroll 16
        for (int i = 0; i < Vec::width; ++i)
          rows[i] = j + i < keys ? Operands::key_k_packs(k + (j + i) * stride + c, head_size - c) : KPacks::zero();
        transpose(rows);
        const Index count = depth - k_pack < Vec::width ? depth - k_pack : Vec::width;
        for (Index i = 0; i < count; ++i) rows[i].store(to + (k_pack + i) * Vectors * Vec::width);
      }
    }
  });
}

// [keys, d] with a stride -> panels [k-pack of keys][column], zero-padded past the last column and the last key.
template <class Operands>
inline void pack_values(const float* v, Index stride, Index keys, Index head_size, typename Operands::B* packed) {
  const Index depth = divide_up(keys, Operands::k_pack_size);
  in_panels(head_size, [&]<int Vectors>(Index column) {
    auto* to = packed + column * depth;
    for (Index key = 0; key < keys; key += Operands::k_pack_size) {
      prefetch_ahead(v + key * stride + column, stride, Operands::k_pack_size, Vectors * Vec::width);
      for (Index c = column; c < column + Vectors * Vec::width; c += Vec::width, to += Vec::width)
        Operands::value_k_packs(v + key * stride + c, stride, keys - key, head_size - c).store(to);
    }
  });
}

// [rows, d] with a stride -> k-packs, [rows][to_stride]
template <class Operands>
inline void pack_queries(const float* q, Index stride, Index rows, Index head_size, typename Operands::A* to,
                         Index to_stride) {
  for (Index row = 0; row < rows; ++row)
    for (Index c = 0; c < head_size; c += Vec::width * Operands::k_pack_size)
      Operands::key_k_packs(q + row * stride + c, head_size - c)
          .store(to + row * to_stride + c / Operands::k_pack_size);
}

// total = A B, as the sum of chains of `terms` k-packs of the depth.
template <class Operands, int Rows, int Vectors>
inline __attribute__((always_inline)) void multiply_in_chains(Tile<Rows, Vectors, Operands>& total,
                                                              const typename Operands::A* a, Index a_stride,
                                                              const typename Operands::B* b, Index depth, Index terms) {
  total.multiply(a, a_stride, b, depth < terms ? depth : terms);
  for (Index k = terms; k < depth; k += terms) {
    Tile<Rows, Vectors, Operands> chain;
    chain.multiply(a + k, a_stride, b + k * total.columns, depth - k < terms ? depth - k : terms);
    total.each([&](int i, int j, auto& accumulator) { accumulator = accumulator + chain.accumulators[i][j]; });
  }
}

// scores = q kt, [rows][scores_stride]
template <class Operands>
inline void score_block(const typename Operands::A* q, Index q_stride, Index rows, const typename Operands::B* packed,
                        Index keys, Index depth, float* scores) {
  const Index stride = scores_stride(keys);
  in_panels(keys, [&]<int Vectors>(Index key) {
    in_row_tiles<max_tile_rows<Vectors>>({0, rows}, [&]<int Rows>(Index row) {
      Tile<Rows, Vectors, Operands> tile;
      multiply_in_chains(tile, q + row * q_stride, q_stride, packed + key * depth, depth, Operands::score_terms);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j)
          tile.accumulators[i][j].store(scores + (row + i) * stride + key + j * Vec::width);
    });
  });
}

constexpr float minus_infinity = -__builtin_inff();

// Adds minus infinity to the lanes past the last key, in the last vector of a row.
inline void mask_lanes(float* last, Index keys) {
  alignas(64) float masked[2 * Vec::width];
  for (int i = 0; i < Vec::width; ++i) masked[i] = 0.0f, masked[Vec::width + i] = minus_infinity;
  (Vec::load(last) + Vec::load(masked + Vec::width - keys)).store(last);
}

// Replaces a row of scores by the k-packs of exp(scale (row - max)), where `factor` is scale / log(2); returns 1 / sum.
// Also writes them, divided by the sum, to `probabilities` unless that is null.
template <class Operands>
inline float softmax_row(float* row, Index keys, float factor, float* probabilities) {
  const Index last = padded_keys(keys) - Vec::width;
  if (keys - last < Vec::width) mask_lanes(row + last, keys - last);
  Vec high = Vec::load(row);
  for (Index j = Vec::width; j <= last; j += Vec::width) high = max(high, Vec::load(row + j));
  const Vec slope = Vec::all(factor), shift = Vec::all(-largest(high) * factor);
  Vec total = Vec::zero();
  for (Index j = 0; j <= last; j += Vec::width) {
    const Vec e = Operands::exp2(fma(Vec::load(row + j), slope, shift));
    Operands::store_k_packs(row, j, e);
    total = total + e;
    if (probabilities && j < last) e.store(probabilities + j);
    if (probabilities && j == last) e.store(probabilities + j, keys - j);
  }
  const float inverse = 1.0f / sum(total);
  for (Index j = 0; probabilities && j < keys; ++j) probabilities[j] *= inverse;
  return inverse;
}

// out = weights v; the epilogue multiplies each row by its `inverse`.
template <class Operands>
inline void weigh_block(const typename Operands::A* weights, Index stride, const float* inverse, Index rows,
                        const typename Operands::B* packed, Index depth, Index head_size, float* out,
                        Index out_stride) {
  in_panels(head_size, [&]<int Vectors>(Index column) {
    in_row_tiles<max_tile_rows<Vectors>>({0, rows}, [&]<int Rows>(Index row) {
      Tile<Rows, Vectors, Operands> tile;
      multiply_in_chains(tile, weights + row * stride, stride, packed + column * depth, depth, Operands::context_terms);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) {
          const Index c = column + j * Vec::width, left = head_size - c;
          const Vec y = tile.accumulators[i][j] * Vec::all(inverse[row + i]);
          float* at = out + (row + i) * out_stride + c;
          if (left >= Vec::width)
            y.store(at);
          else
            y.store(at, left);
        }
    });
  });
}

template <class Operands>
void attention(const Attention& op, const AttentionTask& task, std::byte* scratch) {
  using A = typename Operands::A;
  using B = typename Operands::B;
  constexpr Index k_pack_size = Operands::k_pack_size;
  const Index keys = task.keys.end - task.keys.begin, d = op.head_size, head = task.head * d;
  const Index key_depth = divide_up(d, k_pack_size), value_depth = divide_up(keys, k_pack_size);
  const Index q_stride = round_up(key_depth, Vec::width), stride = scores_stride(keys);
  const AttentionSizes sizes(d, keys, k_pack_size);
  B* packed_keys = view<B>(scratch);
  B* packed_values = view<B>(scratch, sizes.keys);
  A* queries = view<A>(scratch, sizes.keys + sizes.values);
  float* scores = view<float>(scratch, sizes.keys + sizes.values + sizes.queries);
  const float* first_key = op.k + task.keys.begin * op.kv_stride + head;
  const float* first_value = op.v + task.keys.begin * op.kv_stride + head;
  pack_keys<Operands>(first_key, op.kv_stride, keys, d, packed_keys);
  pack_values<Operands>(first_value, op.kv_stride, keys, d, packed_values);
  const float factor = op.scale * 1.44269504f;
  const Index max_rows = block_rows(keys);
  for (Index begin = task.queries.begin; begin < task.queries.end; begin += max_rows) {
    const Index rows = task.queries.end - begin < max_rows ? task.queries.end - begin : max_rows;
    const float* q = op.q + begin * op.q_stride + head;
    pack_queries<Operands>(q, op.q_stride, rows, d, queries, q_stride);
    score_block<Operands>(queries, q_stride, rows, packed_keys, keys, key_depth, scores);
    float* probabilities = task.probabilities ? task.probabilities + (begin - task.queries.begin) * keys : nullptr;
    float inverse[max_block_rows];
    for (Index row = 0; row < rows; ++row)
      inverse[row] = softmax_row<Operands>(scores + row * stride, keys, factor,
                                           probabilities ? probabilities + row * keys : nullptr);
    weigh_block<Operands>(reinterpret_cast<const A*>(scores), stride, inverse, rows, packed_values, value_depth, d,
                          op.out + begin * op.out_stride + head, op.out_stride);
  }
}

template <class Operands>
constexpr AttentionKernels attention_kernels(const char* arithmetic) {
  return {arithmetic, attention_scratch<Operands>, attention<Operands>};
}

}  // namespace
}  // namespace distilfast
