// embed: out[t] = LN(word[id[t]] + position[p[t]] (+ token_type[s[t]])), [T] -> [T, D], in plain C++.
#pragma once

#include "cpu/add_layer_norm/ref.h"
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
    for (Index c = 0; c < width; ++c) out[c] = word[c] + position[c] + (type ? type[c] : 0.0f);
    layer_norm_row(out, op.norm);
  }
}

}  // namespace
}  // namespace distilfast
