// linear: out = act(x Wt + b), [T, K] . [N, K] -> [T, N], in plain C++: accumulated in double, rounded once.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/kernels.h"

namespace distilfast {
namespace {

// Packed W: panels of sixteen columns, [k][column], without k-blocks: any compiler can vectorise over the columns.
constexpr Index panel = 16;
constexpr Index mc_multiple = 1;
constexpr Index mc = 256;

// Types of operands. Raise a version with every change of the packed bytes: see linear/vec.h.
struct Fp32 {
  static constexpr PackedLayout layout{"f32/unblocked", 1};
  static float round(float x) { return x; }
};

// To the nearest bf16, ties to even; stored as fp32.
struct Bf16 {
  static constexpr PackedLayout layout{"bf16/unblocked", 1};
  static float round(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x == x) bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof bits);
    return x;
  }
};

Index packed_size(Index n, Index k) { return (n + panel - 1) / panel * panel * k * Index{sizeof(float)}; }

template <class Operands>
void pack_linear(const LinearSource& source, Range panels, std::byte* packed) {
  float* to = view<float>(packed);
  const float* weight = source.weight;
  const Index n = source.n, k_total = source.k;
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index k = 0; k < k_total; ++k)
      for (Index j = 0; j < panel; ++j) {
        const Index row = p * panel + j;
        to[(p * k_total + k) * panel + j] = row < n ? Operands::round(weight[row * k_total + k]) : 0.0f;
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

Index no_packed_a(Index, Index) { return 0; }
void pack_no_a(const Linear&, Range) {}

// x [T, depth] and W as packed from `weight` on.
template <class Operands>
void multiply(const Linear& op, const float* x, Index x_stride, const float* weight, Index depth, Range rows,
              Range panels) {
  const Index n = op.packed.n;
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index row = rows.begin; row < rows.end; ++row) {
      const float* a = x + row * x_stride;
      const float* w = weight + p * depth * panel;
      double accumulators[panel] = {};
      for (Index k = 0; k < depth; ++k)
        for (Index j = 0; j < panel; ++j)
          accumulators[j] += static_cast<double>(Operands::round(a[k])) * w[k * panel + j];
      for (Index j = 0; j < panel && p * panel + j < n; ++j) {
        const Index column = p * panel + j;
        op.out[row * op.out_stride + column] =
            static_cast<float>(apply(op.activation, accumulators[j] + op.packed.bias[column]));
      }
    }
}

template <class Operands>
void linear(const Linear& op, Range rows, Range panels) {
  multiply<Operands>(op, op.x, op.x_stride, view<float>(op.packed.weight), op.packed.k, rows, panels);
}

template <class Operands>
constexpr LinearKernels linear_kernels(const char* arithmetic) {
  return {arithmetic,  Operands::layout,      panel,       mc_multiple, mc,
          packed_size, pack_linear<Operands>, no_packed_a, pack_no_a,   linear<Operands>};
}

}  // namespace
}  // namespace distilfast
