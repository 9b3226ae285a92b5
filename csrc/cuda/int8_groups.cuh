// int8 operands of `linear` for many rows: x Wt = wide + sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Numbers of K are rounded in groups of 128, x and W alike, each group in steps of a scale of its own, -127 to 127.
// Before that a channel's mean, the `centre`, is taken off x, and its product with W is in the bias. A group is then
// turned by a Hadamard matrix H, in x and in W, which changes no product, H Ht = 128 I, and spreads what one channel
// has too much of over all 128 (Ashkboos et al., QuaRot, arXiv 2404.00456). A group's products are exact in int32. The
// `wide` channels, which reach farthest from their centre, are not rounded: they are multiplied in bf16, and are zero
// in their groups.
//
// Why all that: a promise of int8 is a cosine of 0.999 for each token. A model of it in numpy, over 1,005 tokens of
// real text (our own, CLINC150's and XQuAD's) with all-MiniLM-L6-v2, has 0.980 with one scale for each row, 0.9959 with
// groups of 64 that are not turned, 0.9986 with turned ones, and with 64 and 128 wide channels for each 768 of K 0.9991
// and 0.9994 in turned groups of 128. Groups of 64 and 64 wide channels have 0.9992 and cost more: to scale a group's
// sums takes three instructions for each, more than its products do, and a wide channel's sums are not scaled. The 255
// steps between a group's two ends that the CPU has gain less than a few wide channels and need a term of their own.
//
// A stretch of K is 128 bytes, a stage of the tiles: a group, or 64 wide channels. The wide ones come first. Scales are
// bf16; integers are counted in steps of the rounded scale, so that nothing is lost by it. Where centre and wide
// channels come from: distilfast/quantize.py.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace distilfast::cuda {

constexpr int int8_group = 128;                      // of K, bytes of it
constexpr int wide_stretch = 64;                     // channels, in bf16
constexpr int wide_stretches = 2, wide_depth = 768;  // so many for each so much of K

// The stretches that a linear of depth K consists of.
struct Stretches {
  int wide, groups;

  explicit constexpr Stretches(int k)
      : wide((k + wide_depth - 1) / wide_depth * wide_stretches), groups((k + int8_group - 1) / int8_group) {}
  constexpr int all() const { return wide + groups; }
  constexpr int row_bytes() const { return all() * int8_group; }  // of operands
};

// The front of a packed W, which make_operands reads; W is behind it.
struct Int8Front {
  const float* centre;       // [groups * 128]; NaN where there is nothing to round: wide channels, and behind K
  const std::int32_t* wide;  // [wide * 64] channels; -1 behind the last one
  const float* wide_centre;  // [wide * 64]
  const char* weight;

  __device__ Int8Front(const void* packed, const Stretches& stretches)
      : centre(static_cast<const float*>(packed)),
        wide(reinterpret_cast<const std::int32_t*>(centre + stretches.groups * int8_group)),
        wide_centre(reinterpret_cast<const float*>(wide + stretches.wide * wide_stretch)),
        weight(reinterpret_cast<const char*>(wide_centre + stretches.wide * wide_stretch)) {}
};

// What of x or W goes into a group.
__device__ inline float rounded_part(float number, float centre) { return centre == centre ? number - centre : 0.0f; }

// H numbers of a group that neighbouring lanes hold, a butterfly for each bit of a number's place in the group. Which
// bits are those of the lane does not matter to H.
template <int Numbers>
__device__ inline void turn(float (&numbers)[Numbers]) {
#pragma unroll
  for (int distance = 1; distance < Numbers; distance *= 2)
#pragma unroll
    for (int i = 0; i < Numbers; ++i)
      if (!(i & distance)) {
        const float a = numbers[i], b = numbers[i + distance];
        numbers[i] = a + b, numbers[i + distance] = a - b;
      }
#pragma unroll
  for (int mask = 1; mask < int8_group / Numbers; mask *= 2)
#pragma unroll
    for (int i = 0; i < Numbers; ++i) {
      const float other = shuffle_xor(numbers[i], mask);
      numbers[i] = static_cast<int>(threadIdx.x) & mask ? other - numbers[i] : numbers[i] + other;
    }
}

template <int Numbers>
struct RoundedGroup {
  std::uint32_t word[Numbers / 4];  // the lane's bytes
  float scale;                      // a bf16
};

// Turns a group and rounds it; all lanes of it. A NaN is in all numbers behind the turn, and so in the scale.
template <int Numbers>
__device__ inline RoundedGroup<Numbers> round_group(float (&numbers)[Numbers]) {
  constexpr float least_step = 1.17549435e-38f;  // a smaller one has no inverse
  turn(numbers);
  float most = fabsf(numbers[0]);
#pragma unroll
  for (int i = 1; i < Numbers; ++i) most = fmaxf(most, fabsf(numbers[i]));
#pragma unroll
  for (int mask = 1; mask < int8_group / Numbers; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
  const float step = to_float(from_float<BFloat16>(most / 127.0f));
  const float inverse = step >= least_step ? 1.0f / step : 0.0f;
  RoundedGroup<Numbers> group{{}, step < least_step ? 0.0f : step};
#pragma unroll
  for (int i = 0; i < Numbers; ++i) {
    // The scale, rounded, is at most 1 / 256 too small: no number is as far as 127.5 steps from zero.
    const auto integer = static_cast<int>(rintf(numbers[i] * inverse));
    group.word[i / 4] |= (static_cast<std::uint32_t>(integer) & 0xffu) << i % 4 * 8;
  }
  return group;
}

}  // namespace distilfast::cuda
