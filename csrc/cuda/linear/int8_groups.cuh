// W8A8, int8 for more than 64 rows: x Wt = outliers + the sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Group-wise symmetric int8 (g = 128): x and W are quantised in groups of 128 of K, each with its own scale, so that an
// outlier coarsens only its own group. Before that each channel's shift (its mean) is subtracted from x; the product of
// the shifts with W is in the bias. Then each group of x and of W is multiplied by a Hadamard matrix H, which leaves
// the product unchanged but for a factor, H Ht = 128 I, and spreads an outlier over the group (Ashkboos et al., QuaRot,
// arXiv 2404.00456). A group's products are exact in int32. The outlier channels, those farthest from their shift, are
// not quantised: they are multiplied in bf16, and are zero in their groups.
//
// Each of these is needed: int8 promises a cosine of 0.999 for each token. A numpy model of the arithmetic, run with
// all-MiniLM-L6-v2 on 1,005 tokens of text (our own, CLINC150's and XQuAD's), gives 0.980 with one scale for each row,
// 0.9959 with groups of 64, 0.9986 if they are rotated too, and, with rotated groups of 128, 0.9991 and 0.9994 with 64
// and 128 outlier channels for each 768 of K. Groups of 64 with 64 outlier channels give 0.9992 and cost more:
// dequantising a group takes three instructions for each accumulator, more than its products take, and an outlier
// channel needs none. Asymmetric quantisation, as on the CPU, gains less than a few outlier channels and needs a
// compensation term.
//
// A k-block is 128 bytes of K, one pipeline stage: a group, or 64 outlier channels in bf16. The outliers come first.
// Scales are bf16. x is divided by the rounded scale, so its rounding costs no accuracy. Channel shifts and outlier
// channels come from distilfast/quantize.py.
#pragma once

#include "cuda/device.cuh"
#include "cuda/kernels.h"

namespace distilfast::cuda {

constexpr int int8_group = 128;                         // values of K that share a scale, a byte each
constexpr int outlier_block = 64;                       // outlier channels in a k-block, bf16
constexpr int outlier_blocks = 2, outlier_depth = 768;  // so many k-blocks of outliers for each 768 of K

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

// A value of x as its group holds it: zero where nothing is quantised.
__device__ inline float shifted_or_zero(float value, float channel_shift) {
  return channel_shift == channel_shift ? value - channel_shift : 0.0f;
}

// values = H values, for a group spread over neighbouring lanes: a butterfly for each bit of the index in the group. H
// is the same whichever bits select the lane.
template <int Values>
__device__ inline void hadamard_rotate(float (&values)[Values]) {
#pragma unroll
  for (int distance = 1; distance < Values; distance *= 2)
#pragma unroll
    for (int i = 0; i < Values; ++i)
      if (!(i & distance)) {
        const float a = values[i], b = values[i + distance];
        values[i] = a + b, values[i + distance] = a - b;
      }
#pragma unroll
  for (int mask = 1; mask < int8_group / Values; mask *= 2)
#pragma unroll
    for (int i = 0; i < Values; ++i) {
      const float other = shuffle_xor(values[i], mask);
      values[i] = static_cast<int>(threadIdx.x) & mask ? other - values[i] : values[i] + other;
    }
}

template <int Values>
struct QuantizedGroup {
  std::uint32_t word[Values / 4];  // the lane's bytes
  float scale;                     // a bf16
};

// Rotates and quantises a group, by all its lanes. The rotation spreads a NaN over the group, so the scale is NaN too.
template <int Values>
__device__ inline QuantizedGroup<Values> quantize_group(float (&values)[Values]) {
  constexpr float min_scale = 1.17549435e-38f;  // the smallest normal float: below it the inverse may overflow
  hadamard_rotate(values);
  float max_abs = fabsf(values[0]);
#pragma unroll
  for (int i = 1; i < Values; ++i) max_abs = fmaxf(max_abs, fabsf(values[i]));
#pragma unroll
  for (int mask = 1; mask < int8_group / Values; mask *= 2) max_abs = fmaxf(max_abs, shuffle_xor(max_abs, mask));
  const float scale = to_float(from_float<BFloat16>(max_abs / 127.0f));
  const float inverse = scale >= min_scale ? 1.0f / scale : 0.0f;
  QuantizedGroup<Values> group{{}, scale < min_scale ? 0.0f : scale};
#pragma unroll
  for (int i = 0; i < Values; ++i) {
    // bf16 makes the scale smaller by at most 1 / 256, so no integer exceeds 127.
    const auto integer = static_cast<int>(rintf(values[i] * inverse));
    group.word[i / 4] |= (static_cast<std::uint32_t>(integer) & 0xffu) << i % 4 * 8;
  }
  return group;
}

}  // namespace distilfast::cuda
