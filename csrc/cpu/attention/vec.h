// attention: out = softmax(q kt / sqrt(d)) v for one head of one sequence, fp32.
//
// Keys and values of the head are copied once into panels [d][keys] and [keys][d], then a few query rows at a time:
// all scores of these rows, a softmax over whole rows, the product with v. Whole rows rather than an online softmax:
// 512 scores of twelve rows are 24 KB, and nothing has to be rescaled. Sums run over the keys in their order, so a row
// depends on its own sequence alone. Reference: attention/ref.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/vec/math.h"
#include "cpu/vec/tile.h"

namespace distilfast {
namespace {

constexpr int key_vectors = 2;
constexpr int key_panel = key_vectors * Vec::width;
constexpr int query_rows = Vec::registers == 32 ? 12 : 6;

Index attention_scratch(Index head_size, Index keys) {
  const Index k = round_up(keys, key_panel) * head_size, v = round_up(head_size, key_panel) * keys;
  return k + v + query_rows * round_up(keys, key_panel);
}

// [keys, d] with a stride -> panels of keys, [d][key_panel], zeros behind the last key.
inline void pack_keys(const float* k, Index stride, Index keys, Index head_size, float* packed) {
  for (Index j0 = 0; j0 < keys; j0 += key_panel, packed += head_size * key_panel)
    for (Index j = 0; j < key_panel; ++j)
      for (Index c = 0; c < head_size; ++c) packed[c * key_panel + j] = j0 + j < keys ? k[(j0 + j) * stride + c] : 0.0f;
}

// [keys, d] with a stride -> panels of d, [keys][key_panel], zeros behind the last column.
inline void pack_values(const float* v, Index stride, Index keys, Index head_size, float* packed) {
  for (Index c0 = 0; c0 < head_size; c0 += key_panel)
    for (Index j = 0; j < keys; ++j, packed += key_panel)
      for (Index c = 0; c < key_panel; ++c) packed[c] = c0 + c < head_size ? v[j * stride + c0 + c] : 0.0f;
}

// exp(row - max) in place over `padded` columns; returns 1 / sum. Columns behind `keys` count as -infinity.
inline float softmax_row(float* row, Index keys, Index padded) {
  for (Index j = keys; j < padded; ++j) row[j] = -__builtin_inff();
  Vec high = Vec::load(row);
  for (Index j = Vec::width; j < padded; j += Vec::width) high = max(high, Vec::load(row + j));
  const Vec peak = Vec::all(largest(high));
  Vec total = Vec::zero();
  for (Index j = 0; j < padded; j += Vec::width) {
    const Vec e = exp(Vec::load(row + j) - peak);
    e.store(row + j);
    total = total + e;
  }
  return 1.0f / sum(total);
}

template <int Rows>
inline void score_rows(const float* q, Index q_stride, const float* keys, Index head_size, float scale, float* scores,
                       Index padded) {
  for (Index j = 0; j < padded; j += key_panel, keys += head_size * key_panel) {
    Tile<Rows, key_vectors> tile;
    tile.multiply(q, q_stride, keys, head_size);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int c = 0; c < key_vectors; ++c)
        (tile.sum[i][c] * Vec::all(scale)).store(scores + i * padded + j + c * Vec::width);
  }
}

template <int Rows>
inline void weigh_values(const float* scores, Index padded, const float* inverse, const float* values, Index keys,
                         Index head_size, float* out, Index out_stride) {
  for (Index c0 = 0; c0 < head_size; c0 += key_panel, values += keys * key_panel) {
    Tile<Rows, key_vectors> tile;
    tile.multiply(scores, padded, values, keys);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
      for (int c = 0; c < key_vectors; ++c) {
        const Index left = head_size - c0 - c * Vec::width;
        const Vec y = tile.sum[i][c] * Vec::all(inverse[i]);
        float* at = out + i * out_stride + c0 + c * Vec::width;
        if (left >= Vec::width)
          y.store(at);
        else if (left > 0)
          y.store(at, left);
      }
  }
}

void attention(const Attention& op, const AttentionPart& part, float* scratch) {
  const Index keys = part.keys.end - part.keys.begin, d = op.head_size, padded = round_up(keys, key_panel);
  const Index head = part.head * d, kv = part.keys.begin * op.kv_stride + head;
  float* packed_keys = scratch;
  float* packed_values = packed_keys + padded * d;
  float* scores = packed_values + round_up(d, key_panel) * keys;
  pack_keys(op.k + kv, op.kv_stride, keys, d, packed_keys);
  pack_values(op.v + kv, op.kv_stride, keys, d, packed_values);
  in_row_tiles<query_rows>(part.queries, [&]<int Rows>(Index row) {
    float inverse[Rows];
    score_rows<Rows>(op.q + row * op.q_stride + head, op.q_stride, packed_keys, d, op.scale, scores, padded);
    for (int i = 0; i < Rows; ++i) inverse[i] = softmax_row(scores + i * padded, keys, padded);
    weigh_values<Rows>(scores, padded, inverse, packed_values, keys, d, op.out + row * op.out_stride + head,
                       op.out_stride);
    if (part.probabilities)
      for (int i = 0; i < Rows; ++i)
        for (Index j = 0; j < keys; ++j)
          part.probabilities[(row - part.queries.begin + i) * keys + j] = scores[i * padded + j] * inverse[i];
  });
}

}  // namespace
}  // namespace distilfast
