// add_layer_norm: out = (y - mean(y)) / sqrt(var(y) + eps) * weight + bias with y = x + residual, [T, D] -> [T, D].
//
// x may come in the parts that a split linear left: they are added in their order, then the linear's bias, and so the
// sum over K needs neither atomics nor a kernel of its own. Precision: fp32 throughout; `out` carries the residual
// stream on and `out_low` is what the next linear reads. Reference: distilfast/reference.py, add_layer_norm. One block
// makes one row.
#pragma once

#include "cuda/layer_norm.cuh"

namespace distilfast::cuda {
namespace {

// One row of out, by the whole block.
template <class T>
__device__ inline void add_layer_norm_row(const AddLayerNorm& op, Index row) {
  const Index width = op.norm.width;
  if (row >= load(op.rows)) return;
  const Index from = op.gather ? load(op.gather + row) : row;
  const auto sum = [&](int c) {
    const float* x = op.x + row * width + c;
    float y = load(x);
    for (int part = 1; part < op.splits; ++part) y += load(x + part * op.plane);
    if (op.bias) y += load(op.bias + c);
    if (op.sum) store(op.sum + row * width + c, y);
    return op.residual ? y + load(op.residual + from * width + c) : y;
  };
  T* out_low = op.out_low ? static_cast<T*>(op.out_low) + row * row_stride(op.norm.width) : nullptr;
  layer_norm_row(op.norm, sum, op.out + row * width, out_low);
}

}  // namespace
}  // namespace distilfast::cuda
