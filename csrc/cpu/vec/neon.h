// Four floats in a NEON register. With 32 registers a tile keeps a vector of each row of A in one, and a product takes
// one of its lanes as a factor (fmla by element): broadcasting loads would occupy the units that multiply.
#pragma once

#include <arm_neon.h>

namespace distilfast {
namespace {

struct Vec {
  static constexpr int width = 4;
  static constexpr int registers = 32;
  static constexpr bool multiplies_by_lane = true;
  float32x4_t v;

  static Vec zero() { return {vdupq_n_f32(0.0f)}; }
  static Vec all(float x) { return {vdupq_n_f32(x)}; }
  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  // The first n floats, zero-padded past n; nothing is read past them.
  static Vec load(const float* p, long n) {
    if (n >= width) return load(p);
    float32x4_t lanes = vdupq_n_f32(0.0f);
    if (n > 0) lanes = vld1q_lane_f32(p, lanes, 0);
    if (n > 1) lanes = vld1q_lane_f32(p + 1, lanes, 1);
    if (n > 2) lanes = vld1q_lane_f32(p + 2, lanes, 2);
    return {lanes};
  }
  void store(float* p) const { vst1q_f32(p, v); }
  void store(float* p, long n) const {
    if (n >= width) return store(p);
    if (n > 0) vst1q_lane_f32(p, v, 0);
    if (n > 1) vst1q_lane_f32(p + 1, v, 1);
    if (n > 2) vst1q_lane_f32(p + 2, v, 2);
  }
};

// Four int32, the accumulators of int8 products, or four k-packs.
struct IntVec {
  int32x4_t v;

  static IntVec zero() { return {vdupq_n_s32(0)}; }
  static IntVec all(int x) { return {vdupq_n_s32(x)}; }
  static IntVec load(const void* p) { return {vreinterpretq_s32_u8(vld1q_u8(static_cast<const unsigned char*>(p)))}; }
  // Eight bytes from each address.
  static IntVec load_halves(const void* first, const void* second) {
    const uint8x8_t low = vld1_u8(static_cast<const unsigned char*>(first));
    return {vreinterpretq_s32_u8(vcombine_u8(low, vld1_u8(static_cast<const unsigned char*>(second))))};
  }
  void store(void* p) const { vst1q_u8(static_cast<unsigned char*>(p), vreinterpretq_u8_s32(v)); }
};

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
// b times one lane of a, + c.
template <int lane>
inline Vec fma_lane(Vec a, Vec b, Vec c) {
  return {vfmaq_laneq_f32(c.v, b.v, a.v, lane)};
}
// Where a is NaN the result is b, as on x86: fmax would give NaN.
inline Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
inline Vec abs(Vec a) { return {vabsq_f32(a.v)}; }
inline Vec round(Vec a) { return {vrndnq_f32(a.v)}; }
inline Vec less(Vec a, Vec b, Vec then, Vec otherwise) { return {vbslq_f32(vcltq_f32(a.v, b.v), then.v, otherwise.v)}; }
// a * 2^n for integral n in [-126, 127].
inline Vec scale(Vec a, Vec n) {
  const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127));
  return {vmulq_f32(a.v, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)))};
}
// The first n lanes of a, zero-padded past n.
inline Vec keep(Vec a, long n) {
  const int lanes[] = {0, 1, 2, 3};
  const uint32x4_t first = vcltq_s32(vld1q_s32(lanes), vdupq_n_s32(static_cast<int>(n)));
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v), first))};
}
// Either value of a bf16 k-pack, widened to fp32; and the nearest bf16 value, as fp32 (not for NaN).
inline Vec lower_bf16(IntVec a) { return {vreinterpretq_f32_s32(vshlq_n_s32(a.v, 16))}; }
inline Vec upper_bf16(IntVec a) { return {vreinterpretq_f32_s32(vandq_s32(a.v, vdupq_n_s32(-65536)))}; }
inline Vec round_to_bf16(Vec a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a.v);
  const uint32x4_t even = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t up = vaddq_u32(bits, vaddq_u32(even, vdupq_n_u32(0x7fff)));
  return {vreinterpretq_f32_u32(vandq_u32(up, vdupq_n_u32(0xffff0000)))};
}
// Exchanges the lanes whose numbers differ by Distance.
template <int Distance>
inline Vec exchange(Vec a) {
  if constexpr (Distance == 1)
    return {vrev64q_f32(a.v)};
  else
    return {vextq_f32(a.v, a.v, 2)};
}
// Lanes a and b whose numbers differ by Distance become a + b and a - b.
template <int Distance>
inline Vec butterfly(Vec a) {
  const float signs[] = {1.0f, Distance == 1 ? -1.0f : 1.0f, Distance == 1 ? 1.0f : -1.0f, -1.0f};
  return {vfmaq_f32(exchange<Distance>(a).v, a.v, vld1q_f32(signs))};
}
inline Vec from_int32(IntVec a) { return {vcvtq_f32_s32(a.v)}; }
inline IntVec to_int32(Vec a) { return {vcvtnq_s32_f32(a.v)}; }  // to the nearest
inline IntVec operator+(IntVec a, IntVec b) { return {vaddq_s32(a.v, b.v)}; }
inline IntVec operator-(IntVec a, IntVec b) { return {vsubq_s32(a.v, b.v)}; }

// 16 numbers of -128..127: the lanes of the four vectors, one after the other, to to(0).
template <class To>
inline void store_int8(const IntVec (&a)[4], To to) {
  const int16x8_t low = vcombine_s16(vqmovn_s32(a[0].v), vqmovn_s32(a[1].v));
  const int16x8_t high = vcombine_s16(vqmovn_s32(a[2].v), vqmovn_s32(a[3].v));
  const int8x16_t all = vcombine_s8(vqmovn_s16(low), vqmovn_s16(high));
  IntVec{vreinterpretq_s32_s8(all)}.store(to(0));
}
// sum + the sums of the products of four signed bytes, none of them -128.
inline IntVec add_int8_products(IntVec a, IntVec b, IntVec sum) {
  const int8x16_t x = vreinterpretq_s8_s32(a.v), y = vreinterpretq_s8_s32(b.v);
  // Two products are at most 2 x 127 x 127 and fit int16.
  const int16x8_t pairs = vpaddq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(y)), vmull_high_s8(x, y));
  return {vpadalq_s16(sum.v, pairs)};
}
#if defined(__ARM_FEATURE_DOTPROD)
// The same with one lane of a as the factor.
template <int lane>
inline IntVec add_int8_products_lane(IntVec a, IntVec b, IntVec sum) {
  return {vdotq_laneq_s32(sum.v, vreinterpretq_s8_s32(b.v), vreinterpretq_s8_s32(a.v), lane)};
}
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
// block [2, 2] += rows [2, 8] . columns [2, 8] of signed bytes.
inline IntVec add_int8_matrix_products(IntVec rows, IntVec columns, IntVec block) {
  return {vmmlaq_s32(block.v, vreinterpretq_s8_s32(rows.v), vreinterpretq_s8_s32(columns.v))};
}
#endif
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// Eight bf16 values, those of `low` first; and four to memory.
inline IntVec to_bf16(Vec low, Vec high) {
  return {vreinterpretq_s32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low.v), high.v))};
}
inline void store_bf16(Vec a, void* to) {
  vst1_u16(static_cast<unsigned short*>(to), vreinterpret_u16_bf16(vcvt_bf16_f32(a.v)));
}
// The k-packs of a lane of `first` and the same lane of `second`.
inline IntVec interleave_bf16(Vec first, Vec second) {
  const uint16x8_t a = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(first.v));
  const uint16x8_t b = vreinterpretq_u16_bf16(vcvtq_low_bf16_f32(second.v));
  return {vreinterpretq_s32_u16(vzip1q_u16(a, b))};
}
// sum + the products of two bf16 values; the same with one lane of a as the factor.
inline Vec add_bf16_products(IntVec a, IntVec b, Vec sum) {
  return {vbfdotq_f32(sum.v, vreinterpretq_bf16_s32(b.v), vreinterpretq_bf16_s32(a.v))};
}
template <int lane>
inline Vec add_bf16_products_lane(IntVec a, IntVec b, Vec sum) {
  return {vbfdotq_laneq_f32(sum.v, vreinterpretq_bf16_s32(b.v), vreinterpretq_bf16_s32(a.v), lane)};
}
// block [2, 2] += rows [2, 4] . columns [2, 4] of bf16.
inline Vec add_bf16_matrix_products(IntVec rows, IntVec columns, Vec block) {
  return {vbfmmlaq_f32(block.v, vreinterpretq_bf16_s32(rows.v), vreinterpretq_bf16_s32(columns.v))};
}
#endif
inline Vec lower_halves(Vec a, Vec b) { return {vcombine_f32(vget_low_f32(a.v), vget_low_f32(b.v))}; }
inline Vec upper_halves(Vec a, Vec b) { return {vcombine_f32(vget_high_f32(a.v), vget_high_f32(b.v))}; }
inline IntVec lower_halves(IntVec a, IntVec b) { return {vcombine_s32(vget_low_s32(a.v), vget_low_s32(b.v))}; }
inline IntVec upper_halves(IntVec a, IntVec b) { return {vcombine_s32(vget_high_s32(a.v), vget_high_s32(b.v))}; }
// rows[i] lane j <-> rows[j] lane i: pairs of rows, then halves of registers.
inline void transpose(Vec (&rows)[4]) {
  const float32x4x2_t a = vtrnq_f32(rows[0].v, rows[1].v), b = vtrnq_f32(rows[2].v, rows[3].v);
  rows[0].v = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  rows[1].v = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  rows[2].v = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  rows[3].v = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}
inline void transpose(IntVec (&rows)[4]) {
  Vec lanes[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) lanes[i].v = vreinterpretq_f32_s32(rows[i].v);
  transpose(lanes);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) rows[i].v = vreinterpretq_s32_f32(lanes[i].v);
}
inline float sum(Vec a) { return vaddvq_f32(a.v); }
inline int sum(IntVec a) { return vaddvq_s32(a.v); }
inline float largest(Vec a) { return vmaxvq_f32(a.v); }

}  // namespace
}  // namespace distilfast
