// int8 operands of `linear`: x Wt = side + sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Numbers of K are rounded in groups of 64 with a scale of their own, in W (symmetric, -127..127) and in each row of x
// (0..255 above the group's smallest number), so that no number is rounded to a step that one far from it has chosen.
// The sums of a group are exact in int32. What is not rounded is added in fp32, in front: the few `wide` channels of x,
// hundreds of times larger than the rest in a trained model, and each group's smallest number times the sum of its
// weights. Before all that a channel's mean, the `centre`, is taken off x; its product with W has gone into the bias.
// Where `centre` and `wide` come from: distilfast/quantize.py.
//
// Here is what all kernels of it share: one group's rounding, and the front of a packed W, which make_operands reads.
// How slots and scales lie in memory is their own affair.
#pragma once

#include "cpu/linear/vec.h"

namespace distilfast {
namespace {

constexpr Index group = 64;  // of K
constexpr Index group_slots = group / 4;

// The front of a packed W: centre and mask for each number of the groups, then the numbers of the wide channels.
struct Int8Front {
  Index k, wide, groups, side_depth;

  explicit Int8Front(Index k) : k(k), wide(wide_channels(k)), groups(slots(k, group)), side_depth(wide + groups) {}

  Index mask_at() const { return groups * group; }
  Index wide_at() const { return 2 * groups * group; }
  Index size() const { return wide_at() + round_up(wide, 16); }
};

inline void pack_front(const LinearSource& source, const Int8Front& at, float* packed) {
  for (Index k = 0; k < at.groups * group; ++k) {
    packed[k] = k < at.k ? source.centre[k] : 0.0f;
    packed[at.mask_at() + k] = k < at.k ? 1.0f : 0.0f;
  }
  for (Index i = 0; i < at.wide; ++i) {
    packed[at.mask_at() + source.wide[i]] = 0.0f;
    packed[at.wide_at() + i] = __builtin_bit_cast(float, source.wide[i]);
  }
}

// A group in steps of its scale, four of K in a slot; `side` is what stands for it in the fp32 part.
struct Group {
  std::uint32_t slots[group_slots];
  float scale;
  float side;
};

// One group of one column of W; its side is the sum of what the numbers stand for.
inline Group round_column_group(const float* w, Index depth, const float* mask) {
  Group made{};
  float largest = 0.0f;
  for (Index k = 0; k < depth; ++k) {
    const float size = __builtin_fabsf(w[k] * mask[k]);
    largest = size > largest ? size : largest;
  }
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
  int sum = 0;
  for (Index k = 0; k < depth; ++k) {
    const int q = static_cast<int>(__builtin_rintf(w[k] * mask[k] * inverse));
    sum += q;
    made.slots[k / 4] |= static_cast<std::uint32_t>(q & 0xff) << k % 4 * 8;
  }
  made.scale = largest / 127.0f;
  made.side = static_cast<float>(sum) * made.scale;
  return made;
}

// Calls take(group number, Group) for the groups of a column of W, and wide(i, weight) for its wide channels. Behind N
// a column is all zeros.
template <class Take, class Wide>
inline void round_column(const LinearSource& source, const Int8Front& at, Index column, Take take, Wide wide) {
  const bool inside = column < source.n;
  const float* w = source.weight + column * at.k;
  for (Index i = 0; i < at.wide; ++i) wide(i, inside ? w[source.wide[i]] : 0.0f);
  float mask[group];
  for (Index g = 0; g < at.groups; ++g) {
    for (Index k = 0; k < group; ++k) mask[k] = 1.0f;
    for (Index i = 0; i < at.wide; ++i)
      if (source.wide[i] / group == g) mask[source.wide[i] % group] = 0.0f;
    take(g, round_column_group(w + g * group, inside ? least(at.k - g * group, group) : 0, mask));
  }
}

// One group of one row of x; its side is its smallest number.
inline Group round_row_group(const float* x, Index depth, const float* centre, const float* mask) {
  float numbers[group];
  Vec low = Vec::all(3.4e38f), high = Vec::all(-3.4e38f), all = Vec::zero();
  for (Index k = 0; k < group; k += Vec::width) {
    const Index left = depth - k;
    const Vec whole = left >= Vec::width ? Vec::load(x + k) : left > 0 ? Vec::load(x + k, left) : Vec::zero();
    const Vec number = (whole - Vec::load(centre + k)) * Vec::load(mask + k);
    low = min(number, low), high = max(number, high), all = all + number;
    number.store(numbers + k);
  }
  Group made;
  // Comparisons lose a NaN; nothing times zero loses one, and infinity becomes one.
  made.side = -largest(Vec::zero() - low) + 0.0f * sum(all);
  const float range = largest(high) - made.side, inverse = range > 0.0f ? 255.0f / range : 0.0f;
  for (Index k = 0; k < group; k += Vec::width)
    store_bytes((Vec::load(numbers + k) - Vec::all(made.side)) * Vec::all(inverse),
                reinterpret_cast<unsigned char*>(made.slots) + k);
  made.scale = range / 255.0f;
  return made;
}

// Calls take(group number, Group) for the groups of a row of x, and wide(i, number) for its wide channels.
template <class Take, class Wide>
inline void round_row(const Linear& op, const Int8Front& at, Index row, Take take, Wide wide) {
  const float *x = op.x + row * op.x_stride, *centre = op.packed.weight, *mask = centre + at.mask_at();
  for (Index i = 0; i < at.wide; ++i) {
    const Index channel = __builtin_bit_cast(std::int32_t, centre[at.wide_at() + i]);
    wide(i, x[channel] - centre[channel]);
  }
  for (Index g = 0; g < at.groups; ++g) {
    const Index k = g * group;
    take(g, round_row_group(x + k, at.k - k, centre + k, mask + k));
  }
}

}  // namespace
}  // namespace distilfast
