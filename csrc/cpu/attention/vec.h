// attention: out = softmax(q kt / sqrt(d)) v for one head of one sequence; sums and results are fp32.
//
// Keys and values of the head are copied once into the order in which tiles read them, [slot of d][key] and [slot of
// keys][d] in panels as wide as a tile, where they stay in L2: 256 KB for 512 keys of 64, half of it in bf16. Then a
// block of query rows at a time: all scores of these rows, a softmax over whole rows, the product with v. Whole rows
// rather than an online softmax: a block's scores fit L1, and nothing has to be rescaled. A sum over d or over the keys
// is a chain in their order, in fp32 a sum of short chains, which round less than one long one; either way a row
// depends on its own sequence alone. The operands are fp32 here; attention/bf16.h has pairs of bf16 numbers in a slot.
// Reference: attention/ref.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec/math.h"
#include "cpu/vec/tile.h"

namespace distilfast {
namespace {

// A tile is at most so many vectors wide …
constexpr int most_vectors = Vec::registers == 32 ? 4 : 2;

// … and as high as there are registers for its sums beside a row of vectors and a broadcast: 6 x 4 + 4 + 1 of 32.
template <int Vectors>
constexpr int most_rows = (Vec::registers - 1 - Vectors) / Vectors < 12 ? (Vec::registers - 1 - Vectors) / Vectors : 12;

// Floats of a block's scores, where two tiles of rows have no more: they leave a part of L1 to the panels of keys and
// values that pass by.
constexpr Index block_scores = 6144;
constexpr Index least_block_rows = most_rows<most_vectors> * 2, most_block_rows = 48;

struct Fp32Attention : Fp32 {
  static constexpr Index per_slot = 1;
  // Terms of a chain over d and over the keys. Its accumulators are added to the total once, 24 vectors for every
  // 32 x 24 or 64 x 24 multiply-adds.
  static constexpr Index scores_block = 32, context_block = 64;
  // Slots of Vec::width numbers of one key, and of one value.
  static Vec key_slots(const float* k, Index left) { return left < Vec::width ? Vec::load(k, left) : Vec::load(k); }
  static Vec value_slots(const float* v, Index, Index, Index left) { return key_slots(v, left); }
  static void store_slots(float* row, Index column, Vec x) { x.store(row + column); }
  static Vec exp2(Vec x) { return distilfast::exp2(x, exp2_poly); }
};

inline Index padded_keys(Index keys) { return round_up(keys, Vec::width); }
// A line more than the keys need, so that rows of 512 scores do not meet in a few sets of L1.
inline Index scores_stride(Index keys) { return padded_keys(keys) + Vec::width; }
inline Index block_rows(Index keys) {
  const Index rows = block_scores / scores_stride(keys);
  return rows < least_block_rows ? least_block_rows : rows < most_block_rows ? rows : most_block_rows;
}

// What the scratch of one part consists of, in floats; never less for more keys.
struct AttentionSizes {
  Index keys, values, queries, scores;
  AttentionSizes(Index head_size, Index key_count, Index per_slot)
      : keys(padded_keys(key_count) * ((head_size + per_slot - 1) / per_slot)),
        values(round_up(head_size, Vec::width) * ((key_count + per_slot - 1) / per_slot)),
        queries(most_block_rows * round_up((head_size + per_slot - 1) / per_slot, Vec::width)),
        scores(block_scores + least_block_rows * scores_stride(key_count)) {}
};

template <class Operands>
Index attention_scratch(Index head_size, Index keys) {
  const AttentionSizes sizes(head_size, keys, Operands::per_slot);
  return sizes.keys + sizes.values + sizes.queries + sizes.scores;
}

template <int Vectors, class Part>
inline void one_panel(Index vectors, Index column, Part& part) {
  if constexpr (Vectors > 0) {
    if (vectors == Vectors)
      part.template operator()<Vectors>(column);
    else
      one_panel<Vectors - 1>(vectors, column, part);
  }
}

// Calls part<vectors>(first column) for each panel: all as wide as can be, the last as wide as what is left.
template <class Part>
inline void in_panels(Index columns, Part part) {
  for (Index column = 0; column < columns; column += most_vectors * Vec::width) {
    const Index vectors = (columns - column + Vec::width - 1) / Vec::width;
    one_panel<most_vectors>(vectors < most_vectors ? vectors : most_vectors, column, part);
  }
}

// [keys, d] with a stride -> panels [slot of d][key], zeros behind the last key.
template <class Operands>
inline void pack_keys(const float* k, Index stride, Index keys, Index head_size, float* packed) {
  const Index depth = (head_size + Operands::per_slot - 1) / Operands::per_slot;
  in_panels(keys, [&]<int Vectors>(Index key) {
    for (Index j = key; j < key + Vectors * Vec::width; j += Vec::width) {
      float* to = packed + key * depth + (j - key);
      for (Index slot = 0; slot < depth; slot += Vec::width) {
        const Index c = slot * Operands::per_slot;
        Vec rows[Vec::width];
#pragma GCC unroll 16
        for (int i = 0; i < Vec::width; ++i)
          rows[i] = j + i < keys ? Operands::key_slots(k + (j + i) * stride + c, head_size - c) : Vec::zero();
        transpose(rows);
        const Index count = depth - slot < Vec::width ? depth - slot : Vec::width;
        for (Index i = 0; i < count; ++i) rows[i].store(to + (slot + i) * Vectors * Vec::width);
      }
    }
  });
}

// [keys, d] with a stride -> panels [slot of keys][column], zeros behind the last column and the last key.
template <class Operands>
inline void pack_values(const float* v, Index stride, Index keys, Index head_size, float* packed) {
  const Index depth = (keys + Operands::per_slot - 1) / Operands::per_slot;
  in_panels(head_size, [&]<int Vectors>(Index column) {
    float* to = packed + column * depth;
    for (Index key = 0; key < keys; key += Operands::per_slot)
      for (Index c = column; c < column + Vectors * Vec::width; c += Vec::width, to += Vec::width)
        Operands::value_slots(v + key * stride + c, stride, keys - key, head_size - c).store(to);
  });
}

// [rows, d] with a stride -> slots, [rows][to_stride]
template <class Operands>
inline void make_queries(const float* q, Index stride, Index rows, Index head_size, float* to, Index to_stride) {
  for (Index row = 0; row < rows; ++row)
    for (Index c = 0; c < head_size; c += Vec::width * Operands::per_slot)
      Operands::key_slots(q + row * stride + c, head_size - c).store(to + row * to_stride + c / Operands::per_slot);
}

// total = A B, as the sum of blocks of `block` slots of the depth.
template <class Operands, int Rows, int Vectors>
inline __attribute__((always_inline)) void multiply_in_blocks(Tile<Rows, Vectors, Operands>& total, const float* a,
                                                              Index a_stride, const float* b, Index depth,
                                                              Index block) {
  total.multiply(a, a_stride, b, depth < block ? depth : block);
  for (Index k = block; k < depth; k += block) {
    Tile<Rows, Vectors, Operands> part;
    part.multiply(a + k, a_stride, b + k * total.columns, depth - k < block ? depth - k : block);
    total.each([&](int i, int j, auto& sum) { sum = sum + part.sum[i][j]; });
  }
}

// scores = q kt, [rows][scores_stride]
template <class Operands>
inline void score_block(const float* q, Index q_stride, Index rows, const float* packed, Index keys, Index depth,
                        float* scores) {
  const Index stride = scores_stride(keys);
  in_panels(keys, [&]<int Vectors>(Index key) {
    in_row_tiles<most_rows<Vectors>>({0, rows}, [&]<int Rows>(Index row) {
      Tile<Rows, Vectors, Operands> tile;
      multiply_in_blocks(tile, q + row * q_stride, q_stride, packed + key * depth, depth, Operands::scores_block);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) tile.sum[i][j].store(scores + (row + i) * stride + key + j * Vec::width);
    });
  });
}

constexpr float minus_infinity = -__builtin_inff();

// Adds minus infinity to the lanes of the last vector behind the last key.
inline void hide_lanes(float* last, Index keys) {
  alignas(64) float hidden[2 * Vec::width];
  for (int i = 0; i < Vec::width; ++i) hidden[i] = 0.0f, hidden[Vec::width + i] = minus_infinity;
  (Vec::load(last) + Vec::load(hidden + Vec::width - keys)).store(last);
}

// exp(scale (row - max)) in place, as slots, where `factor` is scale / log(2); returns 1 / sum. The same into
// `probabilities`, unless null, divided by the sum.
template <class Operands>
inline float softmax_row(float* row, Index keys, float factor, float* probabilities) {
  const Index last = padded_keys(keys) - Vec::width;
  if (keys - last < Vec::width) hide_lanes(row + last, keys - last);
  Vec high = Vec::load(row);
  for (Index j = Vec::width; j <= last; j += Vec::width) high = max(high, Vec::load(row + j));
  const Vec slope = Vec::all(factor), shift = Vec::all(-largest(high) * factor);
  Vec total = Vec::zero();
  for (Index j = 0; j <= last; j += Vec::width) {
    const Vec e = Operands::exp2(fma(Vec::load(row + j), slope, shift));
    Operands::store_slots(row, j, e);
    total = total + e;
    if (probabilities && j < last) e.store(probabilities + j);
    if (probabilities && j == last) e.store(probabilities + j, keys - j);
  }
  const float inverse = 1.0f / sum(total);
  for (Index j = 0; probabilities && j < keys; ++j) probabilities[j] *= inverse;
  return inverse;
}

// out = weights v, each row times its `inverse`.
template <class Operands>
inline void weigh_block(const float* weights, Index stride, const float* inverse, Index rows, const float* packed,
                        Index depth, Index head_size, float* out, Index out_stride) {
  in_panels(head_size, [&]<int Vectors>(Index column) {
    in_row_tiles<most_rows<Vectors>>({0, rows}, [&]<int Rows>(Index row) {
      Tile<Rows, Vectors, Operands> tile;
      multiply_in_blocks(tile, weights + row * stride, stride, packed + column * depth, depth, Operands::context_block);
#pragma GCC unroll 16
      for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < Vectors; ++j) {
          const Index c = column + j * Vec::width, left = head_size - c;
          const Vec y = tile.sum[i][j] * Vec::all(inverse[row + i]);
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
void attention(const Attention& op, const AttentionPart& part, float* scratch) {
  constexpr Index per_slot = Operands::per_slot;
  const Index keys = part.keys.end - part.keys.begin, d = op.head_size, head = part.head * d;
  const Index key_depth = (d + per_slot - 1) / per_slot, value_depth = (keys + per_slot - 1) / per_slot;
  const Index q_stride = round_up(key_depth, Vec::width), stride = scores_stride(keys);
  const AttentionSizes sizes(d, keys, per_slot);
  float* packed_keys = scratch;
  float* packed_values = packed_keys + sizes.keys;
  float* queries = packed_values + sizes.values;
  float* scores = queries + sizes.queries;
  const float* first_key = op.k + part.keys.begin * op.kv_stride + head;
  const float* first_value = op.v + part.keys.begin * op.kv_stride + head;
  pack_keys<Operands>(first_key, op.kv_stride, keys, d, packed_keys);
  pack_values<Operands>(first_value, op.kv_stride, keys, d, packed_values);
  const float factor = op.scale * 1.44269504f;
  const Index most = block_rows(keys);
  for (Index begin = part.queries.begin; begin < part.queries.end; begin += most) {
    const Index rows = part.queries.end - begin < most ? part.queries.end - begin : most;
    const float* q = op.q + begin * op.q_stride + head;
    make_queries<Operands>(q, op.q_stride, rows, d, queries, q_stride);
    score_block<Operands>(queries, q_stride, rows, packed_keys, keys, key_depth, scores);
    float* probabilities = part.probabilities ? part.probabilities + (begin - part.queries.begin) * keys : nullptr;
    float inverse[most_block_rows];
    for (Index row = 0; row < rows; ++row)
      inverse[row] = softmax_row<Operands>(scores + row * stride, keys, factor,
                                           probabilities ? probabilities + row * keys : nullptr);
    weigh_block<Operands>(scores, stride, inverse, rows, packed_values, value_depth, d,
                          op.out + begin * op.out_stride + head, op.out_stride);
  }
}

template <class Operands>
constexpr AttentionKernels attention_kernels(const char* arithmetic) {
  return {arithmetic, attention_scratch<Operands>, attention<Operands>};
}

}  // namespace
}  // namespace distilfast
