// add_layer_norm: out = (y - mean(y)) / sqrt(var(y) + eps) * weight + bias with y = x + residual, [T, D] -> [T, D],
// in plain C++: accumulated in double, in two passes.
#pragma once

#include <cmath>

#include "cpu/kernels.h"

namespace distilfast {
namespace {

// Normalises a row in place.
inline void layer_norm_row(float* row, const LayerNormWeights& norm) {
  double mean = 0.0, variance = 0.0;
  for (Index c = 0; c < norm.width; ++c) mean += row[c];
  mean /= static_cast<double>(norm.width);
  for (Index c = 0; c < norm.width; ++c) variance += (row[c] - mean) * (row[c] - mean);
  variance /= static_cast<double>(norm.width);
  const double scale = 1.0 / std::sqrt(variance + norm.eps);
  for (Index c = 0; c < norm.width; ++c)
    row[c] = static_cast<float>((row[c] - mean) * scale * norm.weight[c] + norm.bias[c]);
}

void add_layer_norm(const AddLayerNorm& op, Range rows) {
  const Index width = op.norm.width;
  for (Index row = rows.begin; row < rows.end; ++row) {
    const float* x = op.x + row * op.x_stride;
    float* out = op.out + row * width;
    for (Index c = 0; c < width; ++c) out[c] = op.residual ? x[c] + op.residual[row * width + c] : x[c];
    layer_norm_row(out, op.norm);
  }
}

}  // namespace
}  // namespace distilfast
