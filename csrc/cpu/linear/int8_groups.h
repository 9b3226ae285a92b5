// int8 operands of `linear`: x Wt = side + sum over the groups of K of  scale_x scale_w (q_x . q_w).
//
// Numbers of K are rounded in groups of 64, -127..127 with a scale of their own, in W and in each row of x, so that no
// number is rounded to a step that one far from it has chosen. Before it is rounded a group is turned by a Hadamard
// matrix H, in x and in W, which changes no product, H Ht = 64 I, and spreads what one channel has too much of over all
// 64 (Ashkboos et al., QuaRot, arXiv 2404.00456). The sums of a group are exact in int32. What is not rounded, the
// side, is added in fp32, in front: the few `wide` channels of x, hundreds of times larger than the rest in a trained
// model. Before all that a channel's mean, the `centre`, is taken off x; its product with W has gone into the bias.
// Where `centre` and `wide` come from: distilfast/quantize.py.
//
// 0..255 above a group's smallest number would be finer steps for x, and lower the error by a twentieth. That number
// would have to be multiplied with the sum of the group's weights, one more product for the side in each group: a
// fifteenth of the vector units' time, and of AMX's, where they and not the tiles are the limit, a fifth.
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
  Index k, wide, groups;

  explicit Int8Front(Index k) : k(k), wide(wide_channels(k)), groups(slots(k, group)) {}

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

// A group in steps: how large they are, and the sum of how many each number has.
struct Steps {
  float scale;
  std::int32_t sum;
};

// Groups are rounded side by side, so that what each has but one of, its largest number and its sum, is found for all
// of them at once: a group has `lanes` lanes of each vector, and so of each 16 (8 with AVX2) channels that follow each
// other.
template <int Groups>
struct Bundle {
  static constexpr int groups = Groups, lanes = Vec::width / Groups, count = group / lanes;
  Vec numbers[count];

  // Calls part<distance>() for 1, 2, 4 .. lanes / 2.
  template <int Distance = 1, class Part>
  static inline __attribute__((always_inline)) void inside_vectors(Part part) {
    if constexpr (Distance < lanes) {
      part.template operator()<Distance>();
      inside_vectors<2 * Distance>(part);
    }
  }
};

// Calls part<how many>(first) for all groups, as many at a time as a vector has fours of lanes.
template <int Groups = Vec::width / 4, class Part>
inline void in_bundles(Index first, Index groups, Part part) {
  for (; groups - first >= Groups; first += Groups) part.template operator()<Groups>(first);
  if constexpr (Groups > 1) in_bundles<Groups / 2>(first, groups, part);
}

// What is rounded of some groups of x or W: zeros where a channel is wide, and behind K.
template <int Groups>
inline void load(const float* from, Index depth, const float* centre, const float* mask, Bundle<Groups>& bundle) {
#pragma GCC unroll 16
  for (int i = 0; i < bundle.count; ++i) {
    const Index k = i * Vec::width, left = depth - k;
    const Vec all = left >= Vec::width ? Vec::load(from + k) : left > 0 ? Vec::load(from + k, left) : Vec::zero();
    bundle.numbers[i] = (centre ? all - Vec::load(centre + k) : all) * Vec::load(mask + k);
  }
}

// H numbers of each group, by butterflies at distances 1, 2, 4 .. 32.
template <int Groups>
inline void turn(Bundle<Groups>& bundle) {
  constexpr int count = Bundle<Groups>::count;
#pragma GCC unroll 4
  for (int distance = 1; distance < count; distance *= 2)
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i)
      if (!(i & distance)) {
        const Vec a = bundle.numbers[i], b = bundle.numbers[i + distance];
        bundle.numbers[i] = a + b, bundle.numbers[i + distance] = a - b;
      }
  bundle.inside_vectors([&]<int Distance>() {
#pragma GCC unroll 16
    for (Vec& number : bundle.numbers) number = butterfly<Distance>(number);
  });
}

// Turned numbers to steps, four of K in a slot of place(group); in what order is the same for x and W. Calls
// take(group, Steps).
template <int Groups, class Place, class Take>
inline void round(const Bundle<Groups>& bundle, Place place, Take take) {
  using B = Bundle<Groups>;
  Vec most = abs(bundle.numbers[0]);
#pragma GCC unroll 16
  for (int i = 1; i < B::count; ++i) most = max(most, abs(bundle.numbers[i]));
  B::inside_vectors([&]<int Distance>() { most = max(most, exchange<Distance>(most)); });
  // A NaN of a group is one in all its numbers by now: it makes its scale NaN.
  const Vec inverse = less(Vec::zero(), most, Vec::all(127.0f) / most, Vec::zero());
  float* slots[Groups];
  for (int g = 0; g < Groups; ++g) slots[g] = place(g);
  IntVec sums = IntVec::zero();
#pragma GCC unroll 4
  for (int i = 0; i < B::count; i += 4) {
    IntVec whole[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) whole[j] = to_int32(bundle.numbers[i + j] * inverse), sums = sums + whole[j];
    // Four lanes of the four vectors are 16 bytes.
    constexpr int fours = B::lanes / 4;  // of one vector in a group: 16 bytes behind each other from four of them
    store_int8(whole, [&](int four) { return slots[four / fours] + (i + four % fours * B::count); });
  }
  B::inside_vectors([&]<int Distance>() { sums = sums + exchange<Distance>(sums); });
  float scales[Vec::width], counts[Vec::width];
  (most / Vec::all(127.0f)).store(scales);
  sums.store(counts);
#pragma GCC unroll 4
  for (int g = 0; g < Groups; ++g)
    take(g, Steps{scales[g * B::lanes], __builtin_bit_cast(std::int32_t, counts[g * B::lanes])});
}

// Calls take(group number, Steps, slots) for the groups of a column of W, and wide(i, weight) for its wide channels.
// Behind N a column is all zeros.
template <class Take, class Wide>
inline void round_column(const LinearSource& source, const Int8Front& at, Index column, Take take, Wide wide) {
  const bool inside = column < source.n;
  const float* w = source.weight + column * at.k;
  for (Index i = 0; i < at.wide; ++i) wide(i, inside ? w[source.wide[i]] : 0.0f);
  in_bundles(0, at.groups, [&]<int Groups>(Index first) {
    const Index k = first * group;
    float mask[Groups * group], slots[Groups][group_slots];
    for (float& each : mask) each = 1.0f / group;  // H Ht = 64 I
    for (Index i = 0; i < at.wide; ++i)
      if (k <= source.wide[i] && source.wide[i] < k + Groups * group) mask[source.wide[i] - k] = 0.0f;
    Bundle<Groups> bundle;
    load(w + k, inside ? at.k - k : 0, nullptr, mask, bundle);
    turn(bundle);
    round(bundle, [&](int g) { return slots[g]; }, [&](int g, Steps made) { take(first + g, made, slots[g]); });
  });
}

// Calls take(group number, Steps) for the groups of a row of x, whose slots it leaves at place(group number), and
// wide(i, number) for its wide channels.
template <class Place, class Take, class Wide>
inline void round_row(const Linear& op, const Int8Front& at, Index row, Place place, Take take, Wide wide) {
  const float *x = op.x + row * op.x_stride, *centre = op.packed.weight, *mask = centre + at.mask_at();
  for (Index i = 0; i < at.wide; ++i) {
    const Index channel = __builtin_bit_cast(std::int32_t, centre[at.wide_at() + i]);
    wide(i, x[channel] - centre[channel]);
  }
  in_bundles(0, at.groups, [&]<int Groups>(Index first) {
    const Index k = first * group;
    Bundle<Groups> bundle;
    load(x + k, at.k - k, centre + k, mask + k, bundle);
    turn(bundle);
    round(bundle, [&](int g) { return place(first + g); }, [&](int g, Steps made) { take(first + g, made); });
  });
}

}  // namespace
}  // namespace distilfast
