// bf16 operands of `attention`: q, k, v and the probabilities, before these are divided by their sum, are rounded to
// bf16; a k-pack is two values of d or of two keys. Scores, softmax and accumulators are fp32. Only where an
// instruction multiplies such pairs (vdpbf16ps, which takes denormals for zero): elsewhere fp32 operands cost as much
// and are more exact.
#pragma once

#include "cpu/attention/vec.h"
#include "cpu/linear/bf16.h"

namespace distilfast {
namespace {

struct Bf16Attention : Bf16Dot {
  // One chain: the rounding of the operands loses a hundred times what the accumulation does.
  static constexpr Index score_terms = Index{1} << 30, context_terms = score_terms;
  // The k-packs of 2 * Vec::width values of one key.
  static IntVec key_k_packs(const float* k, Index left) {
    const Vec low = left < 16 ? Vec::load(k, left) : Vec::load(k);
    const Vec high = left < 32 ? Vec::load(k + 16, left < 16 ? 0 : left - 16) : Vec::load(k + 16);
    return pair(low, high);
  }
  // The k-packs of Vec::width columns of this row of v and the next one, `stride` floats on.
  static IntVec value_k_packs(const float* v, Index stride, Index values, Index left) {
    const Vec first = left < 16 ? Vec::load(v, left) : Vec::load(v);
    const Vec second = values < 2 ? Vec::zero() : left < 16 ? Vec::load(v + stride, left) : Vec::load(v + stride);
    const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                                 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_permutexvar_epi16(interleaved, pair(first, second).v)};
  }
  static void store_k_packs(float* row, Index column, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + column / 2),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
  }
  static Vec exp2(Vec x) { return distilfast::exp2(x, coarse_exp2_poly); }

 private:
  // Thirty-two bf16 values, those of `low` first.
  static IntVec pair(Vec low, Vec high) { return {reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high.v, low.v))}; }
};

}  // namespace
}  // namespace distilfast
