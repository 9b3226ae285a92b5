// Sixteen floats in a zmm register.
#pragma once

#include <immintrin.h>

namespace distilfast {
namespace {

struct Vec {
  static constexpr int width = 16;
  static constexpr int registers = 32;
  static constexpr bool multiplies_by_lane = false;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec all(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  // The first n floats, zero-padded past n; nothing is read past them.
  static Vec load(const float* p, long n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, long n) const { _mm512_mask_storeu_ps(p, first(n), v); }

 private:
  static __mmask16 first(long n) { return static_cast<__mmask16>((1u << n) - 1u); }
};

// Sixteen int32, the accumulators of int8 products, or sixteen k-packs.
struct IntVec {
  __m512i v;

  static IntVec zero() { return {_mm512_setzero_si512()}; }
  static IntVec all(int x) { return {_mm512_set1_epi32(x)}; }
  static IntVec load(const void* p) { return {_mm512_loadu_si512(p)}; }
  void store(void* p) const { _mm512_storeu_si512(p, v); }
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Where a is NaN the result is b.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec less(Vec a, Vec b, Vec then, Vec otherwise) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), otherwise.v, then.v)};
}
// a * 2^n for integral n.
inline Vec scale(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
// The first n lanes of a, zero-padded past n.
inline Vec keep(Vec a, long n) { return {_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << n) - 1u), a.v)}; }
// Either value of a bf16 k-pack, widened to fp32; and the nearest bf16 value, as fp32 (not for NaN).
inline Vec lower_bf16(IntVec a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16))}; }
inline Vec upper_bf16(IntVec a) { return {_mm512_castsi512_ps(_mm512_and_si512(a.v, _mm512_set1_epi32(-65536)))}; }
inline Vec round_to_bf16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
  return {_mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(-65536)))};
}
// Exchanges the lanes whose numbers differ by Distance.
template <int Distance>
inline Vec exchange(Vec a) {
  if constexpr (Distance == 1)
    return {_mm512_permute_ps(a.v, 0xb1)};
  else if constexpr (Distance == 2)
    return {_mm512_permute_ps(a.v, 0x4e)};
  else
    return {_mm512_shuffle_f32x4(a.v, a.v, Distance == 4 ? 0xb1 : 0x4e)};
}
// Lanes a and b whose numbers differ by Distance become a + b and a - b.
template <int Distance>
inline Vec butterfly(Vec a) {
  constexpr __mmask16 seconds = Distance == 1 ? 0xaaaa : Distance == 2 ? 0xcccc : Distance == 4 ? 0xf0f0 : 0xff00;
  const __m512 sign = _mm512_mask_blend_ps(seconds, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
  return {_mm512_fmadd_ps(a.v, sign, exchange<Distance>(a).v)};
}
inline Vec from_int32(IntVec a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline IntVec to_int32(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }  // to the nearest
inline IntVec operator+(IntVec a, IntVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline IntVec operator-(IntVec a, IntVec b) { return {_mm512_sub_epi32(a.v, b.v)}; }

// 64 numbers of -128..127: lanes 4 i to 4 i + 3 of all four vectors to to(i).
template <class To>
inline void store_int8(const IntVec (&a)[4], To to) {
  const __m512i low = _mm512_packs_epi32(a[0].v, a[1].v), high = _mm512_packs_epi32(a[2].v, a[3].v);
  const __m512i all = _mm512_packs_epi16(low, high);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to(0)), _mm512_castsi512_si128(all));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to(1)), _mm512_extracti32x4_epi32(all, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to(2)), _mm512_extracti32x4_epi32(all, 2));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to(3)), _mm512_extracti32x4_epi32(all, 3));
}
// Bytes 0 and 2, or 1 and 3, of each four unsigned bytes, as int16; and sums of the products of such pairs.
inline IntVec even_bytes_to_int16(IntVec a) { return {_mm512_and_si512(a.v, _mm512_set1_epi16(0xff))}; }
inline IntVec odd_bytes_to_int16(IntVec a) { return {_mm512_srli_epi16(a.v, 8)}; }
inline IntVec add_int16_products(IntVec a, IntVec b, IntVec sum) {
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(a.v, b.v))};
}
#if defined(__AVX512VNNI__)
// Sums of the products of four bytes, a's unsigned and b's signed.
inline IntVec add_int8_products(IntVec a, IntVec b, IntVec sum) { return {_mm512_dpbusd_epi32(sum.v, a.v, b.v)}; }
#endif
#if defined(__AVX512BF16__)
// Thirty-two bf16 values, those of `low` first; and sixteen to memory.
inline IntVec to_bf16(Vec low, Vec high) { return {reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v))}; }
inline void store_bf16(Vec a, void* to) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}
// The k-packs of a lane of `first` and the same lane of `second`.
inline IntVec interleave_bf16(Vec first, Vec second) {
  const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                               6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return {_mm512_permutexvar_epi16(interleaved, to_bf16(first, second).v)};
}
#endif
// rows[i] lane j <-> rows[j] lane i: pairs of rows, then pairs of pairs, then quarters of registers.
inline void transpose(Vec (&rows)[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  auto low = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  auto high = [](__m512 x, __m512 y) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
  };
  // b[4 g + c]: column c of each 4 x 4 block of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    b[i] = low(a[i], a[i + 2]), b[i + 1] = high(a[i], a[i + 2]);
    b[i + 2] = low(a[i + 1], a[i + 3]), b[i + 3] = high(a[i + 1], a[i + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), odd = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    const __m512 even2 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
    const __m512 odd2 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    rows[c].v = _mm512_shuffle_f32x4(even, even2, 0x88), rows[8 + c].v = _mm512_shuffle_f32x4(even, even2, 0xdd);
    rows[4 + c].v = _mm512_shuffle_f32x4(odd, odd2, 0x88), rows[12 + c].v = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
  }
}
inline void transpose(IntVec (&rows)[16]) {
  Vec lanes[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) lanes[i].v = _mm512_castsi512_ps(rows[i].v);
  transpose(lanes);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i].v = _mm512_castps_si512(lanes[i].v);
}
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline int sum(IntVec a) { return _mm512_reduce_add_epi32(a.v); }
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }

}  // namespace
}  // namespace distilfast
