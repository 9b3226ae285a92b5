// bf16 operands of `linear`: a k-pack is a pair of values of K, the earlier one in its lower half. The product of two
// bf16 values is exact in fp32; accumulators are fp32.
//
// Bf16Widened is for machines without a bf16 instruction: both halves are widened to fp32 in registers, which costs two
// shifts a k-pack and halves the bytes of W. Bf16Dot multiplies both halves at once (vdpbf16ps and bfdot, which take
// denormals for zero; bfdot also rounds each step to odd). Both read the same packed W.
#pragma once

#include "cpu/linear/vec.h"

namespace distilfast {
namespace {

// The nearest bf16, ties to even, as the upper half of a float. A NaN stays one.
inline unsigned bf16_bits(float x) {
  const unsigned bits = __builtin_bit_cast(unsigned, x);
  if (x != x) return (bits | 0x400000u) >> 16;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// The pair at w; zero-padded where only one value is `left`.
inline KPack bf16_pair(const float* w, Index left) {
  const unsigned high = left > 1 ? bf16_bits(w[1]) : 0u;
  return high << 16 | bf16_bits(w[0]);
}

struct Bf16Pairs {
  using B = KPack;
  using Accumulator = Vec;
  using Gelu = CoarseGelu;
  static constexpr int rows = tile_rows;
  static constexpr bool by_lane = Vec::multiplies_by_lane;
  // 256 take 1 to 2 % longer on Zen 4. With 768 it would be 1 % less, but the sums would lose more than twice what a
  // naive float32 product loses.
  static constexpr Index k_block = 384;
  static constexpr PackedLayout layout{"bf16", 2};
  static constexpr Index k_pack_size = 2;
  static KPack k_pack(const float* w, Index left) { return bf16_pair(w, left); }
};

struct Bf16Widened : Bf16Pairs {
  using A = float;
  static constexpr int products = 2;
  static constexpr Index packed_row_size(Index depth) { return (depth + 1) / 2 * 2; }
  // Packed A is rounded to bf16 and stored as fp32.
  static void pack_row(const float* x, Index depth, float* to) {
    Index k = 0;
    for (; k + Vec::width <= depth; k += Vec::width) round_to_bf16(Vec::load(x + k)).store(to + k);
    for (; k < depth; ++k) to[k] = __builtin_bit_cast(float, bf16_bits(x[k]) << 16);
    if (depth % 2) to[depth] = 0.0f;
  }
  static Vec column(const KPack* k_pack, int product) {
    return product == 0 ? lower_bf16(IntVec::load(k_pack)) : upper_bf16(IntVec::load(k_pack));
  }
  static Vec row(const float* a, Index k_pack, int product) { return Vec::all(a[2 * k_pack + product]); }
  static Vec multiply_add(Vec row, Vec column, Vec accumulator) { return fma(row, column, accumulator); }
  static Vec row_lanes(const float* a) { return Vec::load(a); }
  template <int lane, class V>
  static V multiply_add_lane(V row, V column, V accumulator) {
    return fma_lane<lane>(row, column, accumulator);
  }
};

#if defined(__AVX512BF16__)
struct Bf16Dot : Bf16Pairs {
  using A = KPack;
  static constexpr int products = 1;
  static constexpr Index packed_row_size(Index depth) { return (depth + 1) / 2; }
  static void pack_row(const float* x, Index depth, KPack* to) {
    Index k = 0;
    for (; k + 16 <= depth; k += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + k / 2),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(x + k))));
    for (; k < depth; k += 2) to[k / 2] = bf16_pair(x + k, depth - k);
  }
  static IntVec column(const KPack* k_pack, int) { return IntVec::load(k_pack); }
  static IntVec row(const KPack* a, Index k_pack, int) { return IntVec::all(static_cast<int>(a[k_pack])); }
  static Vec multiply_add(IntVec row, IntVec column, Vec accumulator) {
    return {_mm512_dpbf16_ps(accumulator.v, reinterpret_cast<__m512bh>(row.v), reinterpret_cast<__m512bh>(column.v))};
  }
};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// For attention alone: `linear` has the matrix instruction of linear/neon_matrix.h.
struct Bf16Dot : Bf16Pairs {
  using A = KPack;
  static constexpr int products = 1;
  static IntVec column(const KPack* k_pack, int) { return IntVec::load(k_pack); }
  static IntVec row(const KPack* a, Index k_pack, int) { return IntVec::all(static_cast<int>(a[k_pack])); }
  static Vec multiply_add(IntVec row, IntVec column, Vec accumulator) {
    return add_bf16_products(row, column, accumulator);
  }
  static IntVec row_lanes(const KPack* a) { return IntVec::load(a); }
  template <int lane>
  static Vec multiply_add_lane(IntVec row, IntVec column, Vec accumulator) {
    return add_bf16_products_lane<lane>(row, column, accumulator);
  }
};
#endif

}  // namespace
}  // namespace distilfast
