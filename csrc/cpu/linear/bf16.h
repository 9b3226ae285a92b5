// bf16 operands of `linear`: a slot holds two numbers of K, the earlier one in its lower half. Products of bf16 numbers
// are exact in fp32, and so are their sums' roundings those of fp32.
//
// Bf16Widened is for machines without an instruction for it: both halves are widened to fp32 on their way through the
// registers, which costs two shifts a slot and saves half of the bytes of W. Bf16Dot multiplies both halves at once
// (vdpbf16ps, which takes denormals for zero).
#pragma once

#include "cpu/linear/vec.h"

namespace distilfast {
namespace {

// To the nearest bf16, ties to even, as the upper half of a float. A NaN stays one.
inline unsigned bf16_bits(float x) {
  const unsigned bits = __builtin_bit_cast(unsigned, x);
  if (x != x) return (bits | 0x400000u) >> 16;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline float bf16_slot(const float* w, Index left) {
  const unsigned high = left > 1 ? bf16_bits(w[1]) : 0u;
  return __builtin_bit_cast(float, high << 16 | bf16_bits(w[0]));
}

// How pack_linear stores bf16, for both kernels.
constexpr PackedLayout bf16_layout{"bf16", 1};

struct Bf16Widened {
  using Sum = Vec;
  using Gelu = CoarseGelu;
  static constexpr PackedLayout layout = bf16_layout;
  static constexpr Index per_slot = 2;
  static constexpr int steps = 2;
  static constexpr Index row_size(Index depth) { return (depth + 1) / 2 * 2; }
  static float slot(const float* w, Index left) { return bf16_slot(w, left); }
  // Rounded, and still fp32.
  static void make_row(const float* x, Index depth, float* to) {
    Index k = 0;
    for (; k + Vec::width <= depth; k += Vec::width) round_to_bf16(Vec::load(x + k)).store(to + k);
    for (; k < depth; ++k) to[k] = __builtin_bit_cast(float, bf16_bits(x[k]) << 16);
    if (depth % 2) to[depth] = 0.0f;
  }
  static Vec column(const float* slot, int step) {
    return step == 0 ? lower_bf16(Vec::load(slot)) : upper_bf16(Vec::load(slot));
  }
  static Vec row(const float* a, Index slot, int step) { return Vec::all(a[2 * slot + step]); }
  static Vec multiply_add(Vec row, Vec column, Vec sum) { return fma(row, column, sum); }
};

#if defined(__AVX512BF16__)
struct Bf16Dot {
  using Sum = Vec;
  using Gelu = CoarseGelu;
  static constexpr PackedLayout layout = bf16_layout;
  static constexpr Index per_slot = 2;
  static constexpr int steps = 1;
  static constexpr Index row_size(Index depth) { return (depth + 1) / 2; }
  static float slot(const float* w, Index left) { return bf16_slot(w, left); }
  static void make_row(const float* x, Index depth, float* to) {
    Index k = 0;
    for (; k + 16 <= depth; k += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k / 2),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(x + k))));
    for (; k < depth; k += 2) to[k / 2] = bf16_slot(x + k, depth - k);
  }
  static Vec column(const float* slot, int) { return Vec::load(slot); }
  static Vec row(const float* a, Index slot, int) { return Vec::all(a[slot]); }
  static Vec multiply_add(Vec row, Vec column, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(row.v), reinterpret_cast<__m512bh>(column.v))};
  }
};
#endif

}  // namespace
}  // namespace distilfast
