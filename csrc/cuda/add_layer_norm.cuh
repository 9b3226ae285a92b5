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
  T* out_cast = op.out_cast ? static_cast<T*>(op.out_cast) + row * row_stride(op.norm.width) : nullptr;
  with_row(op.norm.width, [&](auto y) {
    y.set(op.x + row * width);
    for (int split = 1; split < op.split_k; ++split) y.add(op.x + row * width + split * op.split_stride);
    if (op.bias) y.add(op.bias);
    float* const sum = op.sum ? op.sum + row * width : nullptr;
    if (op.residual)
      y.add(op.residual + from * width, sum);
    else if (sum)
      y.store(sum);
    normalize(y, op.norm, op.out + row * width, out_cast);
  });
}

}  // namespace
}  // namespace distilfast::cuda
