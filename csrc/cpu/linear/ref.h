// linear: out = act(x Wt + b), [T, K] . [N, K] -> [T, N], in plain C++: every sum in double, rounded once.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/kernels.h"

namespace distilfast {
namespace {

// Sixteen columns at a time, [k][column], so that a compiler for any machine finds something to vectorise.
constexpr Index panel = 16;
constexpr Index part_step = 1;
constexpr Index part_rows = 256;

// K is not cut into blocks here. Raise a version with every change of the bytes: see linear/vec.h.
struct AsItIs {
  static constexpr PackedLayout layout{"f32/unblocked", 1};
  static float round(float x) { return x; }
};

// To the nearest bf16, ties to even; kept as fp32.
struct ToBf16 {
  static constexpr PackedLayout layout{"bf16/unblocked", 1};
  static float round(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x == x) bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
  }
};

Index packed_size(Index n, Index k) { return (n + panel - 1) / panel * panel * k; }

template <class Operands>
void pack_linear(const LinearSource& source, Range panels, float* packed) {
  const float* weight = source.weight;
  const Index n = source.n, k_total = source.k;
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index k = 0; k < k_total; ++k)
      for (Index j = 0; j < panel; ++j) {
        const Index row = p * panel + j;
        packed[(p * k_total + k) * panel + j] = row < n ? Operands::round(weight[row * k_total + k]) : 0.0f;
      }
}

inline double apply(Activation activation, double x) {
  switch (activation) {
    case Activation::gelu:
      return 0.5 * x * std::erfc(-x * 0.70710678118654752440);
    case Activation::relu:
      return x > 0.0 ? x : 0.0;
    case Activation::tanh:
      return std::tanh(x);
    case Activation::none:
      break;
  }
  return x;
}

Index no_operands(Index, Index) { return 0; }
void make_no_operands(const Linear&, Range) {}

// x [T, depth] and W as packed from `weight` on.
template <class Operands>
void multiply(const Linear& op, const float* x, Index x_stride, const float* weight, Index depth, Range rows,
              Range panels) {
  const Index n = op.packed.n;
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index row = rows.begin; row < rows.end; ++row) {
      const float* a = x + row * x_stride;
      const float* w = weight + p * depth * panel;
      double sum[panel] = {};
      for (Index k = 0; k < depth; ++k)
        for (Index j = 0; j < panel; ++j) sum[j] += static_cast<double>(Operands::round(a[k])) * w[k * panel + j];
      for (Index j = 0; j < panel && p * panel + j < n; ++j) {
        const Index column = p * panel + j;
        op.out[row * op.out_stride + column] =
            static_cast<float>(apply(op.activation, sum[j] + op.packed.bias[column]));
      }
    }
}

template <class Operands>
void linear(const Linear& op, Range rows, Range panels) {
  multiply<Operands>(op, op.x, op.x_stride, op.packed.weight, op.packed.k, rows, panels);
}

template <class Operands>
constexpr LinearKernels linear_kernels(const char* arithmetic) {
  return {arithmetic,  Operands::layout,      panel,       part_step,        part_rows,
          packed_size, pack_linear<Operands>, no_operands, make_no_operands, linear<Operands>};
}

}  // namespace
}  // namespace distilfast
