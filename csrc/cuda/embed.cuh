// embed: out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]])), [T] -> [T, D].
//
// A negative id yields a row of NaN: unpack_device_batch marks tokens that it refuses with one.
//
// Precision: tables, sums and LayerNorm in fp32, whatever T is: only a batch's rows of the tables are read, so a
// smaller type would save memory but no time. Reference: distilfast/reference.py, embed. One block computes one row.
#pragma once

#include <cmath>

#include "cuda/layer_norm.cuh"

namespace distilfast::cuda {
namespace {

// One row of out, by the whole block.
template <class T>
__device__ inline void embed_row(const Embed& op, Index token) {
  const Index width = op.norm.width;
  if (token >= load(op.rows)) return;
  const std::int32_t id = load(op.ids + token);
  const float* position = op.position + load(op.positions + token) * width;
  const float* token_type = op.token_type ? op.token_type + load(op.token_types + token) * width : nullptr;
  T* out_cast = op.out_cast ? static_cast<T*>(op.out_cast) + token * row_stride(op.norm.width) : nullptr;
  with_row(op.norm.width, [&](auto y) {
    if (id < 0) {
      y.fill(NAN);
    } else {
      y.set(op.word + id * width);
      y.add(position);
      if (token_type) y.add(token_type);
    }
    normalize(y, op.norm, op.out + token * width, out_cast);
  });
}

}  // namespace
}  // namespace distilfast::cuda
