// int8 operands of `linear`: x Wt = outlier product + sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Group-wise symmetric int8: each group of K in each row of W and of x has a scale of its own and values in -127..127.
// Products of a group are accumulated exactly, in int32.
//
// Before it is quantised a group of x and of W is multiplied by a Hadamard matrix H, after random signs: (x S H)(w S
// H)t = group size . x wt, so no product changes, and what one channel has too much of is spread over the whole group
// (Ashkboos et al., QuaRot, arXiv 2404.00456). Without the signs the outlier channels of a trained model, which are
// hundreds of times larger than the rest, could add up in one value.
//
// The larger a group, the fewer scales there are to multiply by, but the larger is its largest value, which sets the
// scale. Groups of 256 keep every token of both text sets above a cosine of 0.999 in a base model, whose K are 768 and
// 3,072. In all-MiniLM-L6-v2, whose K are 384 and 1,536, some tokens fell below it with groups of 64, 128 and 256
// alone. So all other sizes have groups of 64 without the outlier channels, which are zero in them: their product is
// computed in fp32 and initialises the accumulators.
//
// Before that the channel shift, near a channel's mean, is subtracted from x; its product with W is part of the bias.
// Where the channel shift and the outlier channels come from: distilfast/quantize.py.
//
// This file has what the plain kernel of linear/ref_int8.h and the vector kernels share.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"

namespace distilfast {
namespace {

// The sign, 1 or -1, by which channel `k` of x and of W is multiplied: a bit of a hash.
inline float int8_sign(Index k) {
  std::uint32_t hash = static_cast<std::uint32_t>(k) * 2654435761u;
  hash ^= hash >> 16, hash *= 2246822519u, hash ^= hash >> 13;
  return hash & 1 ? 1.0f : -1.0f;
}

// The signs of channels [first, first + count), which are zero for outlier channels and past K.
inline void int8_signs(const LinearSource& source, Index first, Index count, float* signs) {
  for (Index i = 0; i < count; ++i) signs[i] = first + i < source.k ? int8_sign(first + i) : 0.0f;
  for (Index i = 0; i < outlier_count(source.k); ++i) {
    const Index channel = source.outlier_channels[i];
    if (channel >= first && channel < first + count) signs[channel - first] = 0.0f;
  }
}

}  // namespace
}  // namespace distilfast
