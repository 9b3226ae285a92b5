// Eight floats in a ymm register.
#pragma once

#include <immintrin.h>

namespace distilfast {
namespace {

struct Vec {
  static constexpr int width = 8;
  static constexpr int registers = 16;
  static constexpr bool multiplies_by_lane = false;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  // The first n floats, zero-padded past n; nothing is read past them.
  static Vec load(const float* p, long n) { return {_mm256_maskload_ps(p, first(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, long n) const { _mm256_maskstore_ps(p, first(n), v); }

 private:
  static __m256i first(long n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

// Eight int32, the accumulators of int8 products, or eight k-packs.
struct IntVec {
  __m256i v;

  static IntVec zero() { return {_mm256_setzero_si256()}; }
  static IntVec all(int x) { return {_mm256_set1_epi32(x)}; }
  static IntVec load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
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
// The first n lanes of a, zero-padded past n.
inline Vec keep(Vec a, long n) {
  const __m256 lane = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
  return {_mm256_and_ps(a.v, _mm256_cmp_ps(lane, _mm256_set1_ps(static_cast<float>(n)), _CMP_LT_OQ))};
}
// Either value of a bf16 k-pack, widened to fp32; and the nearest bf16 value, as fp32 (not for NaN).
inline Vec lower_bf16(IntVec a) { return {_mm256_castsi256_ps(_mm256_slli_epi32(a.v, 16))}; }
inline Vec upper_bf16(IntVec a) { return {_mm256_castsi256_ps(_mm256_and_si256(a.v, _mm256_set1_epi32(-65536)))}; }
inline Vec round_to_bf16(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
  return {_mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(-65536)))};
}
// Exchanges the lanes whose numbers differ by Distance.
template <int Distance>
inline Vec exchange(Vec a) {
  if constexpr (Distance == 1)
    return {_mm256_permute_ps(a.v, 0xb1)};
  else if constexpr (Distance == 2)
    return {_mm256_permute_ps(a.v, 0x4e)};
  else
    return {_mm256_permute2f128_ps(a.v, a.v, 1)};
}
// Lanes a and b whose numbers differ by Distance become a + b and a - b.
template <int Distance>
inline Vec butterfly(Vec a) {
  constexpr int seconds = Distance == 1 ? 0xaa : Distance == 2 ? 0xcc : 0xf0;
  const __m256 other = exchange<Distance>(a).v;
  return {_mm256_blend_ps(_mm256_add_ps(a.v, other), _mm256_sub_ps(other, a.v), seconds)};
}
inline Vec from_int32(IntVec a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline IntVec to_int32(Vec a) { return {_mm256_cvtps_epi32(a.v)}; }  // to the nearest
inline IntVec operator+(IntVec a, IntVec b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline IntVec operator-(IntVec a, IntVec b) { return {_mm256_sub_epi32(a.v, b.v)}; }

// 32 numbers of -128..127: lanes 4 i to 4 i + 3 of all four vectors to to(i).
template <class To>
inline void store_int8(const IntVec (&a)[4], To to) {
  const __m256i low = _mm256_packs_epi32(a[0].v, a[1].v), high = _mm256_packs_epi32(a[2].v, a[3].v);
  const __m256i all = _mm256_packs_epi16(low, high);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to(0)), _mm256_castsi256_si128(all));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to(1)), _mm256_extracti128_si256(all, 1));
}
// Bytes 0 and 2, or 1 and 3, of each four unsigned bytes, as int16; and sums of the products of such pairs.
inline IntVec even_bytes_to_int16(IntVec a) { return {_mm256_and_si256(a.v, _mm256_set1_epi16(0xff))}; }
inline IntVec odd_bytes_to_int16(IntVec a) { return {_mm256_srli_epi16(a.v, 8)}; }
inline IntVec add_int16_products(IntVec a, IntVec b, IntVec sum) {
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(a.v, b.v))};
}
#if defined(__AVXVNNI__)
// Sums of the products of four bytes, a's unsigned and b's signed.
inline IntVec add_int8_products(IntVec a, IntVec b, IntVec sum) { return {_mm256_dpbusd_avx_epi32(sum.v, a.v, b.v)}; }
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
inline int sum(IntVec a) {
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}
inline float largest(Vec a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

}  // namespace
}  // namespace distilfast
