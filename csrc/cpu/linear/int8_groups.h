// What the vector kernels of linear/int8_format.h share: the quantisation of a group, and the header of a packed W,
// which `pack_a` reads. Where k-packs and scales lie is each kernel's own layout. Reference: linear/ref_int8.h.
//
// Asymmetric quantisation of x (0..255 above a group's smallest value) would lower the error by a twentieth. It would
// need the product of that value with the sum of the group's weights, one more fp32 multiply-add for each group.
#pragma once

#include "cpu/linear/int8_format.h"
#include "cpu/linear/vec.h"

namespace distilfast {
namespace {

// The header of a packed W: the channel shift and the signs (zero for outlier channels), both zero-padded to whole
// groups, then, in int32, the outlier channels. Offsets and sizes are in elements of 4 bytes.
struct Int8Header {
  Index k, outliers, group, groups;

  explicit Int8Header(Index k) : k(k), outliers(outlier_count(k)), group(int8_group(k)), groups(divide_up(k, group)) {}

  Index k_packs() const { return group / 4; }  // of a group
  Index depth() const { return groups * group; }
  Index signs() const { return depth(); }
  Index outlier_channels() const { return 2 * depth(); }
  Index size() const { return outlier_channels() + round_up(outliers, 16); }
};

inline void pack_header(const LinearSource& source, const Int8Header& at, std::byte* packed) {
  float* shift = view<float>(packed);
  std::int32_t* channels = view<std::int32_t>(packed, at.outlier_channels());
  for (Index k = 0; k < at.depth(); ++k) shift[k] = k < at.k ? source.channel_shift[k] : 0.0f;
  int8_signs(source, 0, at.depth(), view<float>(packed, at.signs()));
  for (Index i = 0; i < at.size() - at.outlier_channels(); ++i)
    channels[i] = i < at.outliers ? source.outlier_channels[i] : 0;
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

// How far before its quantisation a value of x is prefetched: a row lies in L2 or beyond, and at its end the next one
// follows within a few cache lines.
constexpr Index prefetch_distance = 512;

// A group in vectors.
template <Index Group>
struct GroupVectors {
  static constexpr int count = static_cast<int>(Group) / Vec::width;
  Vec values[count];
};

// Calls body<group>() for the groups of K.
template <class Body>
inline void with_group(const Int8Header& at, Body body) {
  if (at.group == 256)
    body.template operator()<256>();
  else
    body.template operator()<64>();
}

// Calls body<distance>() for 1, 2, 4 .. half a vector.
template <int Distance = 1, class Body>
inline __attribute__((always_inline)) void for_lane_distances(Body body) {
  if constexpr (Distance < Vec::width) {
    body.template operator()<Distance>();
    for_lane_distances<2 * Distance>(body);
  }
}

// A group of x, minus the channel shift, or of W, where `shift` is null; times the signs, zero-padded past `depth`.
template <Index Group>
inline void load(const float* from, Index depth, const float* shift, const float* signs, GroupVectors<Group>& vectors) {
  float padded[Group];
  if (depth < Group) {
    for (Index k = 0; k < Group; ++k) padded[k] = k < depth ? from[k] : 0.0f;
    from = padded;
  }
#pragma GCC unroll 32
  for (int i = 0; i < vectors.count; ++i) {
    const Index k = i * Vec::width;
    const Vec all = Vec::load(from + k);
    vectors.values[i] = (shift ? all - Vec::load(shift + k) : all) * Vec::load(signs + k);
  }
}

// Multiplies a group by H: butterflies at distances 1, 2, 4 ..
template <Index Group>
inline void hadamard_rotate(GroupVectors<Group>& vectors) {
  constexpr int count = GroupVectors<Group>::count;
#pragma GCC unroll 5
  for (int distance = 1; distance < count; distance *= 2)
#pragma GCC unroll 32
    for (int i = 0; i < count; ++i)
      if (!(i & distance)) {
        const Vec a = vectors.values[i], b = vectors.values[i + distance];
        vectors.values[i] = a + b, vectors.values[i + distance] = a - b;
      }
  for_lane_distances([&]<int Distance>() {
#pragma GCC unroll 32
    for (Vec& value : vectors.values) value = butterfly<Distance>(value);
  });
}

// Quantises a rotated group into k-packs, in an order of K that is the same for x and W. place(k-pack) says where four
// of them, from that one on, are put.
template <Index Group, class Place>
inline GroupQuant quantize(const GroupVectors<Group>& vectors, Place place) {
  constexpr int count = GroupVectors<Group>::count;
  // Four chains: one would take the latency of `count` maxima.
  Vec highs[4] = {abs(vectors.values[0]), abs(vectors.values[1]), abs(vectors.values[2]), abs(vectors.values[3])};
#pragma GCC unroll 32
  for (int i = 4; i < count; ++i) highs[i % 4] = max(highs[i % 4], abs(vectors.values[i]));
  // The rotation has spread a NaN to all values of its group: the scale becomes NaN.
  const float high = largest(max(max(highs[0], highs[1]), max(highs[2], highs[3])));
  const Vec inverse = Vec::all(high > 0.0f ? 127.0f / high : 0.0f);
  IntVec row_sum = IntVec::zero();
#pragma GCC unroll 8
  for (int i = 0; i < count; i += 4) {
    IntVec quantized[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) quantized[j] = to_int32(vectors.values[i + j] * inverse);
    row_sum = row_sum + ((quantized[0] + quantized[1]) + (quantized[2] + quantized[3]));
    // Four lanes of the four vectors become four k-packs.
    store_int8(quantized, [&](int four) { return place(i + four * count); });
  }
  return {high / 127.0f, sum(row_sum)};
}

// Quantises one row of W, a column of Wt. Calls take(group, GroupQuant, k-packs) for each group and outlier(i, weight)
// for each outlier channel. A column past N is zero.
template <class Take, class Outlier>
inline void quantize_column(const LinearSource& source, const Int8Header& at, Index column, Take take,
                            Outlier outlier) {
  const bool inside = column < source.n;
  const float* w = source.weight + column * at.k;
  for (Index i = 0; i < at.outliers; ++i) outlier(i, inside ? w[source.outlier_channels[i]] : 0.0f);
  with_group(at, [&]<Index Group>() {
    for (Index g = 0; g < at.groups; ++g) {
      const Index k = g * Group;
      float signs[Group];
      int8_signs(source, k, Group, signs);
      for (float& sign : signs) sign /= static_cast<float>(Group);  // H Ht = group size . I
      GroupVectors<Group> vectors;
      load(w + k, inside ? at.k - k : 0, nullptr, signs, vectors);
      hadamard_rotate(vectors);
      KPack k_packs[Group / 4];
      const GroupQuant quant = quantize(vectors, [&](int k_pack) { return k_packs + k_pack; });
      take(g, quant, k_packs);
    }
  });
}

// Quantises one row of x into the k-packs at place(group)(k-pack). Calls take(group, GroupQuant) for each group and
// outlier(i, value) for each outlier channel.
template <class Place, class Take, class Outlier>
inline void quantize_row(const Linear& op, const Int8Header& at, Index row, Place place, Take take, Outlier outlier) {
  const float *x = op.x + row * op.x_stride, *shift = view<float>(op.packed.weight), *signs = shift + at.signs();
  const std::int32_t* channels = view<std::int32_t>(op.packed.weight, at.outlier_channels());
  for (Index i = 0; i < at.outliers; ++i) outlier(i, x[channels[i]] - shift[channels[i]]);
  with_group(at, [&]<Index Group>() {
    for (Index g = 0; g < at.groups; ++g) {
      const Index k = g * Group;
      GroupVectors<Group> vectors;
      for (Index ahead = 0; ahead < Group; ahead += 16) __builtin_prefetch(x + k + prefetch_distance + ahead, 0, 3);
      load(x + k, at.k - k, shift + k, signs + k, vectors);
      hadamard_rotate(vectors);
      take(g, quantize(vectors, place(g)));
    }
  });
}

}  // namespace
}  // namespace distilfast
