// linear: out = act(x Wt + b), [T, K] . [N, K] -> [T, N], in plain C++: every sum in double, rounded once.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/kernels.h"

namespace distilfast {
namespace {

// Sixteen columns at a time, [k][column], so that a compiler for any machine finds something to vectorise.
constexpr Index panel = 16;

// Raise this with every change of the bytes that `pack_linear` writes: packed weights outlive the program on disk, and
// what another version wrote is not read. tests/kernels/test_packing.py knows the bytes of each version.
constexpr int packing = 1;

struct AsItIs {
  static float round(float x) { return x; }
};

// To the nearest bf16, ties to even; kept as fp32.
struct ToBf16 {
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
void pack_linear(const float* weight, Index n, Index k_total, Range panels, float* packed) {
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

Index linear_scratch(Index, Index) { return 0; }

template <class Operands>
void linear(const Linear& op, Range rows, Range panels, float*) {
  const Index n = op.packed.n, k_total = op.packed.k;
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index row = rows.begin; row < rows.end; ++row) {
      const float* x = op.x + row * op.x_stride;
      const float* w = op.packed.weight + p * k_total * panel;
      double sum[panel] = {};
      for (Index k = 0; k < k_total; ++k)
        for (Index j = 0; j < panel; ++j) sum[j] += static_cast<double>(Operands::round(x[k])) * w[k * panel + j];
      for (Index j = 0; j < panel && p * panel + j < n; ++j) {
        const Index column = p * panel + j;
        op.out[row * op.out_stride + column] =
            static_cast<float>(apply(op.activation, sum[j] + op.packed.bias[column]));
      }
    }
}

template <class Operands>
constexpr LinearKernels linear_kernels(const char* arithmetic) {
  return {arithmetic, packing, panel, packed_size, linear_scratch, pack_linear<Operands>, linear<Operands>};
}

}  // namespace
}  // namespace distilfast
