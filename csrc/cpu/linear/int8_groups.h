// int8 operands of `linear`: x Wt = side + sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Numbers of K are rounded in groups of 64 with a scale of their own, in W (symmetric, -127..127) and in each row of x
// (0..255 above the group's smallest number), so that no number is rounded to a step that one far from it has chosen.
// Before it is rounded a group is turned by a Hadamard matrix H, in x and in W, which changes no product, H Ht = 64 I,
// and spreads what one channel has too much of over all 64 (Ashkboos et al., QuaRot, arXiv 2404.00456).
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
  for (Index i = at.wide_at(); i < at.size(); ++i) packed[i] = 0.0f;
  for (Index i = 0; i < at.wide; ++i) {
    packed[at.mask_at() + source.wide[i]] = 0.0f;
    packed[at.wide_at() + i] = __builtin_bit_cast(float, source.wide[i]);
  }
}

// The scale of a group's steps, and what stands for it in the fp32 part.
struct Scaled {
  float scale, side;
};

// A group in steps of its scale, four of K in a slot.
struct Group : Scaled {
  std::uint32_t slots[group_slots];
};

using GroupNumbers = Vec[group / Vec::width];

// H numbers, by butterflies at distances 1, 2, 4 .. 32.
inline void turn(GroupNumbers& numbers) {
  constexpr int count = group / Vec::width;
#pragma GCC unroll 8
  for (Vec& number : numbers) {
    number = butterfly<4>(butterfly<2>(butterfly<1>(number)));
    if constexpr (Vec::width == 16) number = butterfly<8>(number);
  }
#pragma GCC unroll 4
  for (int distance = 1; distance < count; distance *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i)
      if (!(i & distance)) {
        const Vec a = numbers[i], b = numbers[i + distance];
        numbers[i] = a + b, numbers[i + distance] = a - b;
      }
}

// What is rounded of one group of x or W: zeros where a channel is wide, and behind K.
inline void load_group(const float* from, Index depth, const float* centre, const float* mask, GroupNumbers& numbers) {
#pragma GCC unroll 8
  for (int i = 0; i < group / Vec::width; ++i) {
    const Index k = i * Vec::width, left = depth - k;
    const Vec all = left >= Vec::width ? Vec::load(from + k) : left > 0 ? Vec::load(from + k, left) : Vec::zero();
    numbers[i] = (centre ? all - Vec::load(centre + k) : all) * Vec::load(mask + k);
  }
}

// One group of one column of W; its side is the sum of what the numbers stand for.
inline Group round_column_group(const float* w, Index depth, const float* mask) {
  GroupNumbers numbers;
  load_group(w, depth, nullptr, mask, numbers);
  turn(numbers);
  Vec size = Vec::zero();
  for (Vec& number : numbers) number = number * Vec::all(1.0f / group), size = max(size, abs(number));  // H Ht = 64 I
  const float most = largest(size), inverse = most > 0.0f ? 127.0f / most : 0.0f;
  float scaled[group];
  for (int i = 0; i < group / Vec::width; ++i) (numbers[i] * Vec::all(inverse)).store(scaled + i * Vec::width);
  Group made{};
  int sum = 0;
  for (Index k = 0; k < group; ++k) {
    const int q = static_cast<int>(__builtin_rintf(scaled[k]));
    sum += q;
    made.slots[k / 4] |= static_cast<std::uint32_t>(q & 0xff) << k % 4 * 8;
  }
  made.scale = most / 127.0f;
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

// One group of one row of x, four of K in a slot of `slots`; its side is its smallest number.
inline Scaled round_row_group(const float* x, Index depth, const float* centre, const float* mask, float* slots) {
  constexpr int count = group / Vec::width;
  GroupNumbers numbers;
  load_group(x, depth, centre, mask, numbers);
  turn(numbers);
  Vec low = numbers[0], high = numbers[0];
#pragma GCC unroll 8
  for (int i = 1; i < count; ++i) low = min(low, numbers[i]), high = max(high, numbers[i]);
  float smallest, greatest;  // a NaN of x is one in all numbers by now
  smallest_and_largest(low, high, smallest, greatest);
  const float range = greatest - smallest, inverse = range > 0.0f ? 255.0f / range : 0.0f;
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i)
    store_bytes((numbers[i] - Vec::all(smallest)) * Vec::all(inverse),
                reinterpret_cast<unsigned char*>(slots) + i * Vec::width);
  return {range / 255.0f, smallest};
}

// Calls take(group number, Scaled) for the groups of a row of x, whose slots it leaves at place(group number), and
// wide(i, number) for its wide channels.
template <class Place, class Take, class Wide>
inline void round_row(const Linear& op, const Int8Front& at, Index row, Place place, Take take, Wide wide) {
  const float *x = op.x + row * op.x_stride, *centre = op.packed.weight, *mask = centre + at.mask_at();
  for (Index i = 0; i < at.wide; ++i) {
    const Index channel = __builtin_bit_cast(std::int32_t, centre[at.wide_at() + i]);
    wide(i, x[channel] - centre[channel]);
  }
  for (Index g = 0; g < at.groups; ++g) {
    const Index k = g * group;
    take(g, round_row_group(x + k, at.k - k, centre + k, mask + k, place(g)));
  }
}

}  // namespace
}  // namespace distilfast
