// bf16 operands of `attention`: q, k, v and the probabilities, before these are divided by their sum, are rounded to
// bf16; a k-pack is two values of d or of two keys. Scores, softmax and accumulators are fp32. Only where an
// instruction multiplies such pairs (vdpbf16ps and bfdot, which take denormals for zero): elsewhere fp32 operands cost
// as much and are more exact.
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
    constexpr Index width = Vec::width;
    const Vec low = left < width ? Vec::load(k, left) : Vec::load(k);
    const Vec high = left < 2 * width ? Vec::load(k + width, left < width ? 0 : left - width) : Vec::load(k + width);
    return to_bf16(low, high);
  }
  // The k-packs of Vec::width columns of this row of v and the next one, `stride` floats on.
  static IntVec value_k_packs(const float* v, Index stride, Index values, Index left) {
    constexpr Index width = Vec::width;
    const Vec first = left < width ? Vec::load(v, left) : Vec::load(v);
    const Vec second = values < 2 ? Vec::zero() : left < width ? Vec::load(v + stride, left) : Vec::load(v + stride);
    return interleave_bf16(first, second);
  }
  static void store_k_packs(float* row, Index column, Vec x) { store_bf16(x, row + column / 2); }
  static Vec exp2(Vec x) { return distilfast::exp2(x, coarse_exp2_poly); }
};

}  // namespace
}  // namespace distilfast
