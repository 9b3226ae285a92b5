// Eight floats in a ymm register.
#pragma once

#include <immintrin.h>

namespace distilfast {
namespace {

struct Vec {
  static constexpr int width = 8;
  static constexpr int registers = 16;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  // The first n floats, zeros behind them; nothing is read past them.
  static Vec load(const float* p, long n) { return {_mm256_maskload_ps(p, first(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, long n) const { _mm256_maskstore_ps(p, first(n), v); }

 private:
  static __m256i first(long n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

// Eight int32, the sums of int8 products.
struct IntVec {
  __m256i v;

  static IntVec zero() { return {_mm256_setzero_si256()}; }
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// Where a is NaN the result is b.
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec less(Vec a, Vec b, Vec then, Vec otherwise) {
  return {_mm256_blendv_ps(otherwise.v, then.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
// a * 2^n for integral n in [-126, 127].
inline Vec scale(Vec a, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)))};
}
// The first n lanes of a, zeros behind them.
inline Vec keep(Vec a, long n) {
  const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_and_ps(a.v, _mm256_cmp_ps(lane, _mm256_set1_ps(static_cast<float>(n)), _CMP_LT_OQ))};
}
// Both numbers of a slot of bf16, widened; and the nearest bf16 number, as fp32 (not for NaN).
inline Vec lower_bf16(Vec a) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 16))}; }
inline Vec upper_bf16(Vec a) {
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a.v), _mm256_set1_epi32(-65536)))};
}
inline Vec round_to_bf16(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
  return {_mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(-65536)))};
}
// Lanes a and b whose numbers differ by Distance become a + b and a - b.
template <int Distance>
inline Vec butterfly(Vec a) {
  __m256 other;
  if constexpr (Distance == 1)
    other = _mm256_permute_ps(a.v, 0xb1);
  else if constexpr (Distance == 2)
    other = _mm256_permute_ps(a.v, 0x4e);
  else
    other = _mm256_permute2f128_ps(a.v, a.v, 1);
  constexpr int seconds = Distance == 1 ? 0xaa : Distance == 2 ? 0xcc : 0xf0;
  return {_mm256_blend_ps(_mm256_add_ps(a.v, other), _mm256_sub_ps(other, a.v), seconds)};
}
inline Vec from_int32(IntVec a) { return {_mm256_cvtepi32_ps(a.v)}; }

// 8 numbers, rounded to the nearest of 0..255.
inline void store_bytes(Vec a, unsigned char* to) {
  const __m256i whole = _mm256_cvtps_epi32(a.v);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
}
// Bytes 0 and 2, or 1 and 3, of each four; and sums of the products of such pairs.
inline Vec even_int8_to_int16(Vec a) {
  return {_mm256_castsi256_ps(_mm256_srai_epi16(_mm256_slli_epi16(_mm256_castps_si256(a.v), 8), 8))};
}
inline Vec odd_int8_to_int16(Vec a) { return {_mm256_castsi256_ps(_mm256_srai_epi16(_mm256_castps_si256(a.v), 8))}; }
inline IntVec add_int16_products(Vec a, Vec b, IntVec sum) {
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(_mm256_castps_si256(a.v), _mm256_castps_si256(b.v)))};
}
#if defined(__AVXVNNI__)
// Sums of the products of four bytes, a's unsigned and b's signed.
inline IntVec add_int8_products(Vec a, Vec b, IntVec sum) {
  return {_mm256_dpbusd_avx_epi32(sum.v, _mm256_castps_si256(a.v), _mm256_castps_si256(b.v))};
}
#endif
// rows[i] lane j <-> rows[j] lane i: pairs of rows, then pairs of pairs, then halves of registers.
inline void transpose(Vec (&rows)[8]) {
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  // b[4 g + c]: column c of each 4 x 4 block of rows 4 g .. 4 g + 3.
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44), b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44), b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    rows[c].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    rows[4 + c].v = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
}
inline float sum(Vec a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float largest(Vec a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// Both at once; NaN where all lanes are NaN.
inline void smallest_and_largest(Vec low, Vec high, float& smallest, float& greatest) {
  const __m256 negative = _mm256_sub_ps(_mm256_setzero_ps(), low.v);
  // Each halved by itself, then the halves of both side by side.
  const __m256 mixed = _mm256_permute2f128_ps(negative, high.v, 0x20);
  const __m256 others = _mm256_permute2f128_ps(negative, high.v, 0x31);
  __m256 most = _mm256_max_ps(mixed, others);
  most = _mm256_max_ps(most, _mm256_permute_ps(most, 0x4e));
  most = _mm256_max_ps(most, _mm256_permute_ps(most, 0xb1));
  smallest = -_mm256_cvtss_f32(most);
  greatest = _mm_cvtss_f32(_mm256_extractf128_ps(most, 1));
}

}  // namespace
}  // namespace distilfast
