// embed: out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]])), [T] -> [T, D], in fp32.
// Reference: embed/ref.h.
#pragma once

#include "cpu/add_layer_norm/vec.h"
#include "cpu/kernels.h"

namespace distilfast {
namespace {

void embed(const Embed& op, Range rows) {
  const Index width = op.norm.width;
  for (Index row = rows.begin; row < rows.end; ++row) {
    const float* word = op.word + op.ids[row] * width;
    const float* position = op.position + op.positions[row] * width;
    const float* type = op.token_type ? op.token_type + (op.token_types ? op.token_types[row] : 0) * width : nullptr;
    float* out = op.out + row * width;
    in_columns(width, [&](Index c, Index n) {
      Vec x = Vec::load(word + c, n) + Vec::load(position + c, n);
      if (type) x = x + Vec::load(type + c, n);
      x.store(out + c, n);
    });
    layer_norm_row(out, op.norm);
  }
}

}  // namespace
}  // namespace distilfast
