// int8 operands of `linear` for many rows: x Wt = wide + sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Numbers of K are rounded in groups of 64, x and W alike, each group in steps of a scale of its own, -127 to 127.
// Before that a channel's mean, the `centre`, is taken off x, and its product with W is in the bias. A group is then
// turned by a Hadamard matrix H, in x and in W, which changes no product, H Ht = 64 I, and spreads what one channel has
// too much of over all 64 (Ashkboos et al., QuaRot, arXiv 2404.00456). A group's products are exact in int32. The
// `wide` channels, which reach farthest from their centre, are not rounded: they are multiplied in bf16, and are zero
// in their groups.
//
// Why all that: a promise of int8 is a cosine of 0.999 for each token. A model of it in numpy, over 1,005 tokens of
// real text (our own, CLINC150's and XQuAD's) with all-MiniLM-L6-v2, has 0.980 with one scale for each row, 0.9959 with
// groups that are not turned, 0.9986 with turned groups alone, and with wide channels, 32 for each 768 of K, 0.9992.
// With 64 of them, the square of the error is a sixth less, and they are two units beside the twelve groups of 768:
// even stages of two. The 255 steps between a group's two ends that the CPU has would have to be paid for with wide
// channels, and gain no more than those do.
//
// A unit of K is 64 bytes: a group, or 32 wide channels. The wide units come first. Scales are bf16, of which the tile
// of most rows has room for three stages within 99 KB; integers are counted in steps of the rounded scale, so that
// nothing is lost by it. Where centre and wide channels come from: distilfast/quantize.py.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace distilfast::cuda {

constexpr int int8_group = 64;                   // of K, bytes of it
constexpr int wide_unit = 32;                    // channels, in bf16
constexpr int wide_units = 2, wide_depth = 768;  // so many units for each so much of K
constexpr int group_lanes = 4;                   // that hold a group
constexpr int lane_numbers = int8_group / group_lanes;

// What a linear of depth K consists of.
struct Int8Units {
  int wide, groups;

  explicit constexpr Int8Units(int k)
      : wide((k + wide_depth - 1) / wide_depth * wide_units), groups((k + int8_group - 1) / int8_group) {}
  constexpr int all() const { return wide + groups; }
  constexpr int row_bytes() const { return all() * int8_group; }  // of operands
};

// The front of a packed W, which make_operands reads; W is behind it.
struct Int8Front {
  const float* centre;       // [groups * 64]; NaN where there is nothing to round: wide channels, and behind K
  const std::int32_t* wide;  // [wide * 32] channels; -1 behind the last one
  const float* wide_centre;  // [wide * 32]
  const char* weight;

  __device__ Int8Front(const void* packed, const Int8Units& units)
      : centre(static_cast<const float*>(packed)),
        wide(reinterpret_cast<const std::int32_t*>(centre + units.groups * int8_group)),
        wide_centre(reinterpret_cast<const float*>(wide + units.wide * wide_unit)),
        weight(reinterpret_cast<const char*>(wide_centre + units.wide * wide_unit)) {}
};

// What of x or W goes into a group.
__device__ inline float rounded_part(float number, float centre) { return centre == centre ? number - centre : 0.0f; }

// H numbers, a butterfly for each bit of a number's place in the group: four bits in the lane, two across lanes. Which
// bit is where does not matter to H.
__device__ inline void turn(float (&numbers)[lane_numbers]) {
#pragma unroll
  for (int distance = 1; distance < lane_numbers; distance *= 2)
#pragma unroll
    for (int i = 0; i < lane_numbers; ++i)
      if (!(i & distance)) {
        const float a = numbers[i], b = numbers[i + distance];
        numbers[i] = a + b, numbers[i + distance] = a - b;
      }
#pragma unroll
  for (int mask = 1; mask < group_lanes; mask *= 2)
#pragma unroll
    for (int i = 0; i < lane_numbers; ++i) {
      const float other = shuffle_xor(numbers[i], mask);
      numbers[i] = static_cast<int>(threadIdx.x) & mask ? other - numbers[i] : numbers[i] + other;
    }
}

struct RoundedGroup {
  Word4 bytes;  // of the lane
  float scale;  // a bf16
};

// Turns a group and rounds it; all four lanes of it. A NaN is in all numbers behind the turn, and so in the scale.
__device__ inline RoundedGroup round_group(float (&numbers)[lane_numbers]) {
  constexpr float least_step = 1.17549435e-38f;  // a smaller one has no inverse
  turn(numbers);
  float most = fabsf(numbers[0]);
#pragma unroll
  for (int i = 1; i < lane_numbers; ++i) most = fmaxf(most, fabsf(numbers[i]));
#pragma unroll
  for (int mask = 1; mask < group_lanes; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
  const float step = to_float(from_float<BFloat16>(most / 127.0f));
  const float inverse = step >= least_step ? 1.0f / step : 0.0f;
  RoundedGroup group{{}, step < least_step ? 0.0f : step};
#pragma unroll
  for (int i = 0; i < lane_numbers; ++i) {
    // The scale, rounded, is at most 1 / 256 too small: no number is as far as 127.5 steps from zero.
    const auto integer = static_cast<int>(rintf(numbers[i] * inverse));
    group.bytes.word[i / 4] |= (static_cast<std::uint32_t>(integer) & 0xffu) << i % 4 * 8;
  }
  return group;
}

}  // namespace distilfast::cuda
