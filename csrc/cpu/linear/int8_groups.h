// int8 operands of `linear`: x Wt = outlier product + sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Group-wise symmetric int8, group size 64: each group of K in each row of W and of x has a scale of its own and values
// in -127..127, so an outlier coarsens only its own group. Before it is quantised, a group of x and of W is multiplied
// by a Hadamard matrix H. H Ht = 64 I, so no product changes, and what one channel has too much of is spread over all
// 64 (Ashkboos et al., QuaRot, arXiv 2404.00456). Products of a group are accumulated exactly, in int32.
//
// Two things happen before that. The channel shift, near a channel's mean, is subtracted from x; its product with W is
// part of the bias. And the outlier channels, hundreds of times larger than the rest in a trained model, are zero in
// the groups: their product is computed in fp32 and initialises the accumulators. Where the channel shift and the
// outlier channels come from: distilfast/quantize.py.
//
// Asymmetric quantisation of x (0..255 above a group's smallest value) would lower the error by a twentieth. It would
// need the product of that value with the sum of the group's weights, one more fp32 multiply-add for each group: a
// fifteenth of the vector units' time, and a fifth of it on AMX, where they and not the tile unit are the bottleneck.
//
// This file has what all kernels share: the quantisation of a group, and the header of a packed W, which `pack_a`
// reads. Where k-packs and scales lie is each kernel's own layout. Reference: linear/ref_int8.h.
#pragma once

#include "cpu/linear/vec.h"

namespace distilfast {
namespace {

constexpr Index group = 64;  // of K
constexpr Index group_k_packs = group / 4;

// The header of a packed W: the channel shift and a mask (1, or 0 for outlier channels), both zero-padded to whole
// groups, then, in int32, the outlier channels. Offsets and sizes are in elements of 4 bytes.
struct Int8Header {
  Index k, outliers, groups;

  explicit Int8Header(Index k) : k(k), outliers(outlier_count(k)), groups(divide_up(k, group)) {}

  Index mask() const { return groups * group; }
  Index outlier_channels() const { return 2 * groups * group; }
  Index size() const { return outlier_channels() + round_up(outliers, 16); }
};

inline void pack_header(const LinearSource& source, const Int8Header& at, std::byte* packed) {
  float *shift = view<float>(packed), *mask = view<float>(packed, at.mask());
  std::int32_t* channels = view<std::int32_t>(packed, at.outlier_channels());
  for (Index k = 0; k < at.groups * group; ++k) {
    shift[k] = k < at.k ? source.channel_shift[k] : 0.0f;
    mask[k] = k < at.k ? 1.0f : 0.0f;
  }
  for (Index i = 0; i < at.size() - at.outlier_channels(); ++i) channels[i] = 0;
  for (Index i = 0; i < at.outliers; ++i) {
    mask[source.outlier_channels[i]] = 0.0f;
    channels[i] = source.outlier_channels[i];
  }
}

// Whether a header of unknown origin names channels of x only.
inline bool outlier_channels_are_valid(Index k, const std::byte* packed) {
  const Int8Header at(k);
  const std::int32_t* channels = view<std::int32_t>(packed, at.outlier_channels());
  for (Index i = 0; i < at.outliers; ++i)
    if (channels[i] < 0 || channels[i] >= k) return false;
  return true;
}

// What a group's quantisation yields beside its int8 values: the scale, and the sum of these values.
struct GroupQuant {
  float scale;
  std::int32_t row_sum;
};

// Several groups in vectors, quantised together, so that their largest values and their sums are reduced at once. Each
// group has `lanes` lanes of every vector: that many consecutive channels of each 16 (of each 8 with AVX2).
template <int Groups>
struct GroupVectors {
  static constexpr int groups = Groups, lanes = Vec::width / Groups, count = group / lanes;
  Vec values[count];

  // Calls body<distance>() for 1, 2, 4 .. lanes / 2.
  template <int Distance = 1, class Body>
  static inline __attribute__((always_inline)) void for_lane_distances(Body body) {
    if constexpr (Distance < lanes) {
      body.template operator()<Distance>();
      for_lane_distances<2 * Distance>(body);
    }
  }
};

// Calls body<count>(first) for all groups, as many at a time as fit with at least four lanes each.
template <int Groups = Vec::width / 4, class Body>
inline void in_group_vectors(Index first, Index groups, Body body) {
  for (; groups - first >= Groups; first += Groups) body.template operator()<Groups>(first);
  if constexpr (Groups > 1) in_group_vectors<Groups / 2>(first, groups, body);
}

// Groups of x, minus the channel shift, or of W, where `shift` is null; times the mask, zero-padded past `depth`.
template <int Groups>
inline void load(const float* from, Index depth, const float* shift, const float* mask, GroupVectors<Groups>& vectors) {
#pragma GCC unroll 16
  for (int i = 0; i < vectors.count; ++i) {
    const Index k = i * Vec::width, left = depth - k;
    const Vec all = left >= Vec::width ? Vec::load(from + k) : left > 0 ? Vec::load(from + k, left) : Vec::zero();
    vectors.values[i] = (shift ? all - Vec::load(shift + k) : all) * Vec::load(mask + k);
  }
}

// Multiplies each group by H: butterflies at distances 1, 2, 4 .. 32.
template <int Groups>
inline void hadamard_rotate(GroupVectors<Groups>& vectors) {
  constexpr int count = GroupVectors<Groups>::count;
#pragma GCC unroll 4
  for (int distance = 1; distance < count; distance *= 2)
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i)
      if (!(i & distance)) {
        const Vec a = vectors.values[i], b = vectors.values[i + distance];
        vectors.values[i] = a + b, vectors.values[i + distance] = a - b;
      }
  vectors.for_lane_distances([&]<int Distance>() {
#pragma GCC unroll 16
    for (Vec& value : vectors.values) value = butterfly<Distance>(value);
  });
}

// Quantises rotated groups into the k-packs at place(group), in an order of K that is the same for x and W. Calls
// take(group, GroupQuant).
template <int Groups, class Place, class Take>
inline void quantize(const GroupVectors<Groups>& vectors, Place place, Take take) {
  using V = GroupVectors<Groups>;
  Vec largest = abs(vectors.values[0]);
#pragma GCC unroll 16
  for (int i = 1; i < V::count; ++i) largest = max(largest, abs(vectors.values[i]));
  V::for_lane_distances([&]<int Distance>() { largest = max(largest, exchange<Distance>(largest)); });
  // The rotation has spread a NaN to all values of its group: the scale becomes NaN.
  const Vec inverse = less(Vec::zero(), largest, Vec::all(127.0f) / largest, Vec::zero());
  KPack* k_packs[Groups];
  for (int g = 0; g < Groups; ++g) k_packs[g] = place(g);
  IntVec row_sum = IntVec::zero();
#pragma GCC unroll 4
  for (int i = 0; i < V::count; i += 4) {
    IntVec quantized[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j)
      quantized[j] = to_int32(vectors.values[i + j] * inverse), row_sum = row_sum + quantized[j];
    // Four lanes of the four vectors become 16 bytes; a group has `fours` times four lanes, 16 bytes for each.
    constexpr int fours = V::lanes / 4;
    store_int8(quantized, [&](int four) { return k_packs[four / fours] + (i + four % fours * V::count); });
  }
  V::for_lane_distances([&]<int Distance>() { row_sum = row_sum + exchange<Distance>(row_sum); });
  float scales[Vec::width];
  std::int32_t row_sums[Vec::width];
  (largest / Vec::all(127.0f)).store(scales);
  row_sum.store(row_sums);
#pragma GCC unroll 4
  for (int g = 0; g < Groups; ++g) take(g, GroupQuant{scales[g * V::lanes], row_sums[g * V::lanes]});
}

// Quantises one row of W, a column of Wt. Calls take(group, GroupQuant, k-packs) for each group and outlier(i, weight)
// for each outlier channel. A column past N is zero.
template <class Take, class Outlier>
inline void quantize_column(const LinearSource& source, const Int8Header& at, Index column, Take take,
                            Outlier outlier) {
  const bool inside = column < source.n;
  const float* w = source.weight + column * at.k;
  const std::int32_t* channels = source.outlier_channels;
  for (Index i = 0; i < at.outliers; ++i) outlier(i, inside ? w[channels[i]] : 0.0f);
  in_group_vectors(0, at.groups, [&]<int Groups>(Index first) {
    const Index k = first * group;
    float mask[Groups * group];
    KPack k_packs[Groups][group_k_packs];
    for (float& each : mask) each = 1.0f / group;  // H Ht = 64 I
    for (Index i = 0; i < at.outliers; ++i)
      if (k <= channels[i] && channels[i] < k + Groups * group) mask[channels[i] - k] = 0.0f;
    GroupVectors<Groups> vectors;
    load(w + k, inside ? at.k - k : 0, nullptr, mask, vectors);
    hadamard_rotate(vectors);
    quantize(
        vectors, [&](int g) { return k_packs[g]; },
        [&](int g, GroupQuant quant) { take(first + g, quant, k_packs[g]); });
  });
}

// Quantises one row of x into the k-packs at place(group). Calls take(group, GroupQuant) for each group and
// outlier(i, value) for each outlier channel.
template <class Place, class Take, class Outlier>
inline void quantize_row(const Linear& op, const Int8Header& at, Index row, Place place, Take take, Outlier outlier) {
  const float *x = op.x + row * op.x_stride, *shift = view<float>(op.packed.weight), *mask = shift + at.mask();
  const std::int32_t* channels = view<std::int32_t>(op.packed.weight, at.outlier_channels());
  for (Index i = 0; i < at.outliers; ++i) outlier(i, x[channels[i]] - shift[channels[i]]);
  in_group_vectors(0, at.groups, [&]<int Groups>(Index first) {
    const Index k = first * group;
    GroupVectors<Groups> vectors;
    load(x + k, at.k - k, shift + k, mask + k, vectors);
    hadamard_rotate(vectors);
    quantize(
        vectors, [&](int g) { return place(first + g); }, [&](int g, GroupQuant quant) { take(first + g, quant); });
  });
}

}  // namespace
}  // namespace distilfast
