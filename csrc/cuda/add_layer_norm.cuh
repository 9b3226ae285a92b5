// add_layer_norm: out = (y - mean(y)) / sqrt(var(y) + eps) * weight + bias with y = x + residual, [T, D] -> [T, D].
//
// x may be the partial sums of a split-K linear: they are added in order, then the linear's bias, so that split-K needs
// neither atomics nor a reduction kernel. Precision: fp32 throughout; `out` is the residual stream and `out_cast` what
// the next linear reads. Reference: distilfast/reference.py, add_layer_norm. One block computes one row.
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
    for (int split = 1; split < op.split_k; ++split) y += load(x + split * op.split_stride);
    if (op.bias) y += load(op.bias + c);
    if (op.sum) store(op.sum + row * width + c, y);
    return op.residual ? y + load(op.residual + from * width + c) : y;
  };
  T* out_cast = op.out_cast ? static_cast<T*>(op.out_cast) + row * row_stride(op.norm.width) : nullptr;
  layer_norm_row(op.norm, sum, op.out + row * width, out_cast);
}

}  // namespace
}  // namespace distilfast::cuda
