// add_layer_norm: out = (y - mean(y)) / sqrt(var(y) + eps) * weight + bias with y = x + residual, [T, D] -> [T, D].
//
// fp32, the variance in a second pass over centred values (E[y^2] - mean^2 would cancel). A row is summed lane by lane
// in the order of its columns, then across the lanes: fixed by D alone. Reference: add_layer_norm/ref.h.
#pragma once

#include "cpu/kernels.h"

namespace distilfast {
namespace {

// Calls body(column, lanes) along a row: whole vectors, then what is left.
template <class Body>
inline void in_columns(Index width, Body body) {
  Index column = 0;
  for (; column + Vec::width <= width; column += Vec::width) body(column, Index{Vec::width});
  if (column < width) body(column, width - column);
}

// Normalises a row in place.
inline void layer_norm_row(float* row, const LayerNormWeights& norm) {
  const Index width = norm.width;
  Vec total = Vec::zero();
  in_columns(width, [&](Index c, Index n) { total = total + Vec::load(row + c, n); });
  const Vec mean = Vec::all(sum(total) / static_cast<float>(width));
  Vec squares = Vec::zero();
  in_columns(width, [&](Index c, Index n) {
    const Vec centred = keep(Vec::load(row + c, n) - mean, n);
    squares = fma(centred, centred, squares);
  });
  const float variance = sum(squares) / static_cast<float>(width);
  const Vec scale = Vec::all(1.0f / __builtin_sqrtf(variance + norm.eps));
  in_columns(width, [&](Index c, Index n) {
    const Vec y = (Vec::load(row + c, n) - mean) * scale;
    fma(y, Vec::load(norm.weight + c, n), Vec::load(norm.bias + c, n)).store(row + c, n);
  });
}

void add_layer_norm(const AddLayerNorm& op, Range rows) {
  const Index width = op.norm.width;
  for (Index row = rows.begin; row < rows.end; ++row) {
    const float* x = op.x + row * op.x_stride;
    float* out = op.out + row * width;
    if (op.residual) {
      const float* residual = op.residual + row * width;
      in_columns(width,
                 [&](Index c, Index n) { (Vec::load(x + c, n) + Vec::load(residual + c, n)).store(out + c, n); });
    } else if (out != x) {
      in_columns(width, [&](Index c, Index n) { Vec::load(x + c, n).store(out + c, n); });
    }
    layer_norm_row(out, op.norm);
  }
}

}  // namespace
}  // namespace distilfast
