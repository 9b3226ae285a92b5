// embed: out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]])), [T] -> [T, D].
//
// Precision: tables, sums and LayerNorm in fp32, whatever T is: only the rows of a batch are read, so a narrower table
// would save memory and no time. Reference: distilfast/reference.py, embed. One block makes one row.
#pragma once

#include "cuda/layer_norm.cuh"

namespace distilfast::cuda {
namespace {

// One row of out, by the whole block.
template <class T>
__device__ inline void embed_row(const Embed& op, Index token) {
  const Index width = op.norm.width;
  if (token >= load(op.rows)) return;
  const float* word = op.word + load(op.ids + token) * width;
  const float* position = op.position + load(op.positions + token) * width;
  const float* token_type = op.token_type ? op.token_type + load(op.token_types + token) * width : nullptr;
  const auto sum = [&](int c) {
    const float y = load(word + c) + load(position + c);
    return token_type ? y + load(token_type + c) : y;
  };
  T* out_low = op.out_low ? static_cast<T*>(op.out_low) + token * row_stride(op.norm.width) : nullptr;
  layer_norm_row(op.norm, sum, op.out + token * width, out_low);
}

}  // namespace
}  // namespace distilfast::cuda
