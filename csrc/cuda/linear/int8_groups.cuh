// W8A8, int8 for more than 64 rows: x Wt = outliers + the sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Group-wise symmetric int8 (g = 128): x and W are quantised in groups of 128 of K, each with its own scale, so that an
// outlier coarsens only its own group. Before that each channel's shift (its mean) is subtracted from x, and its
// product with W is added to the bias. A group of x and of W is then multiplied by a Hadamard matrix H, which leaves
// the product as it is, H Ht = 128 I, and spreads an outlier over all 128 (Ashkboos et al., QuaRot, arXiv 2404.00456).
// A group's products are exact in int32. The outlier channels, which reach farthest from their shift, are not
// quantised: they are multiplied in bf16, and are zero in their groups.
//
// Why all of it: int8 promises a cosine of 0.999 for each token. A model of it in numpy, over 1,005 tokens of real text
// (our own, CLINC150's and XQuAD's) with all-MiniLM-L6-v2, has 0.980 with one scale for each row, 0.9959 with groups of
// 64 without rotation, 0.9986 with it, and with 64 and 128 outlier channels for each 768 of K 0.9991 and 0.9994 in
// rotated groups of 128. Groups of 64 with 64 outlier channels have 0.9992 and cost more: dequantising a group takes
// three instructions for each accumulator, more than its products take, and an outlier channel needs none. Asymmetric
// quantisation, as on the CPU, gains less than a few outlier channels and needs a compensation term.
//
// A k-block is 128 bytes of K, one pipeline stage: a group, or 64 outlier channels in bf16. The outliers come first.
// Scales are bf16, and x is divided by the rounded scale, so that rounding it costs no accuracy. Where shifts and
// outlier channels come from: distilfast/quantize.py.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace distilfast::cuda {

constexpr int int8_group = 128;                         // of K, bytes of it
constexpr int outlier_block = 64;                       // channels of a k-block, in bf16
constexpr int outlier_blocks = 2, outlier_depth = 768;  // k-blocks of outliers for each so much of K

// The k-blocks of a linear of depth K.
struct KBlocks {
  int outliers, groups;

  explicit constexpr KBlocks(int k)
      : outliers((k + outlier_depth - 1) / outlier_depth * outlier_blocks), groups((k + int8_group - 1) / int8_group) {}
  constexpr int all() const { return outliers + groups; }
  constexpr int row_bytes() const { return all() * int8_group; }  // of packed A
};

// The header of a packed W, which quantize_activations reads too; `weight` follows it.
struct Int8Header {
  const float* channel_shift;            // [groups * 128]; NaN where nothing is quantised: outlier channels, and past K
  const std::int32_t* outlier_channels;  // [outliers * 64] channels; -1 past the last one
  const float* outlier_shift;            // [outliers * 64]
  const char* weight;

  __device__ Int8Header(const void* packed, const KBlocks& k_blocks)
      : channel_shift(static_cast<const float*>(packed)),
        outlier_channels(reinterpret_cast<const std::int32_t*>(channel_shift + k_blocks.groups * int8_group)),
        outlier_shift(reinterpret_cast<const float*>(outlier_channels + k_blocks.outliers * outlier_block)),
        weight(reinterpret_cast<const char*>(outlier_shift + k_blocks.outliers * outlier_block)) {}
};

// What of x goes into a group: zero where nothing is quantised.
__device__ inline float shifted_or_zero(float number, float channel_shift) {
  return channel_shift == channel_shift ? number - channel_shift : 0.0f;
}

// numbers = H numbers, of a group that neighbouring lanes hold: a butterfly for each bit of a number's index in the
// group. Which of the bits select the lane does not matter to H.
template <int Numbers>
__device__ inline void hadamard_rotate(float (&numbers)[Numbers]) {
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
struct QuantizedGroup {
  std::uint32_t word[Numbers / 4];  // the lane's bytes
  float scale;                      // a bf16
};

// Rotates a group and quantises it, by all its lanes. The rotation spreads a NaN over the group, and so into the scale.
template <int Numbers>
__device__ inline QuantizedGroup<Numbers> quantize_group(float (&numbers)[Numbers]) {
  constexpr float least_step = 1.17549435e-38f;  // the inverse of a smaller one overflows
  hadamard_rotate(numbers);
  float most = fabsf(numbers[0]);
#pragma unroll
  for (int i = 1; i < Numbers; ++i) most = fmaxf(most, fabsf(numbers[i]));
#pragma unroll
  for (int mask = 1; mask < int8_group / Numbers; mask *= 2) most = fmaxf(most, shuffle_xor(most, mask));
  const float step = to_float(from_float<BFloat16>(most / 127.0f));
  const float inverse = step >= least_step ? 1.0f / step : 0.0f;
  QuantizedGroup<Numbers> group{{}, step < least_step ? 0.0f : step};
#pragma unroll
  for (int i = 0; i < Numbers; ++i) {
    // Rounding makes the scale at most 1 / 256 too small, so no integer exceeds 127.
    const auto integer = static_cast<int>(rintf(numbers[i] * inverse));
    group.word[i / 4] |= (static_cast<std::uint32_t>(integer) & 0xffu) << i % 4 * 8;
  }
  return group;
}

}  // namespace distilfast::cuda
