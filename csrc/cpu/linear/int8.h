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
// Packed: what make_operands reads (centre, mask, wide), then [panel][side depth][column] in fp32, then as in vec.h
// blocks of K, in each block panels, in each panel groups of 16 slots and a row of scales.
// Operands: [row][side depth], then blocks of K, in each block rows, in each row groups of slots and a scale.
// Reference: linear/ref.h.
#pragma once

#include "cpu/linear/vec.h"

namespace distilfast {
namespace {

// Like `packing` in vec.h, for `pack_int8`.
constexpr int int8_packing = 1;

constexpr Index group = 64;  // of K
constexpr Index group_slots = group / 4;
constexpr Index packed_group = (group_slots + 1) * panel;  // floats
constexpr Index block_groups = 8;

// Where everything of one linear lies.
struct Int8Layout {
  Index k, columns, wide, groups, side_depth;

  Int8Layout(Index n, Index k)
      : k(k), columns(round_up(n, panel)), wide(wide_channels(k)), groups(slots(k, group)), side_depth(wide + groups) {}

  Index mask() const { return groups * group; }
  Index wide_at() const { return 2 * groups * group; }
  Index side(Index p) const { return wide_at() + round_up(wide, 16) + p * side_depth * panel; }
  // Block of groups that begins with group `g`.
  Index block(Index g, Index p) const {
    return side(columns / panel) + g * (group_slots + 1) * columns + p * in_block(g) * packed_group;
  }
  Index in_block(Index g) const { return least(groups - g, block_groups); }
  Index size() const { return block(groups, 0); }
};

// Each product of a row's slot and W's: four of K at once, or two and two.
#if defined(__AVX512VNNI__)
struct Int8Dot {
  using Sum = IntVec;
  static constexpr Index row_slot = 1;  // floats of x a slot
  static constexpr int steps = 1;
  static void store(const Vec (&numbers)[group / Vec::width], float* to) {
#pragma GCC unroll 8
    for (int i = 0; i < group / Vec::width; ++i)
      store_bytes(numbers[i], reinterpret_cast<unsigned char*>(to) + i * Vec::width);
  }
  static Vec column(const float* slot, int) { return Vec::load(slot); }
  static Vec row(const float* a, Index slot, int) { return Vec::all(a[slot]); }
  static IntVec multiply_add(Vec row, Vec column, IntVec sum) {
    return {_mm512_dpbusd_epi32(sum.v, _mm512_castps_si512(row.v), _mm512_castps_si512(column.v))};
  }
};
#elif defined(__AVXVNNI__)
struct Int8Dot {
  using Sum = IntVec;
  static constexpr Index row_slot = 1;
  static constexpr int steps = 1;
  static void store(const Vec (&numbers)[group / Vec::width], float* to) {
#pragma GCC unroll 8
    for (int i = 0; i < group / Vec::width; ++i)
      store_bytes(numbers[i], reinterpret_cast<unsigned char*>(to) + i * Vec::width);
  }
  static Vec column(const float* slot, int) { return Vec::load(slot); }
  static Vec row(const float* a, Index slot, int) { return Vec::all(a[slot]); }
  static IntVec multiply_add(Vec row, Vec column, IntVec sum) {
    return {_mm256_dpbusd_avx_epi32(sum.v, _mm256_castps_si256(row.v), _mm256_castps_si256(column.v))};
  }
};
#else
// For machines without an instruction for it: the even and the odd bytes of a slot are widened to int16, whose products
// are added in pairs. (The instruction that multiplies bytes saturates its sums.)
struct Int8Widened {
  using Sum = IntVec;
  static constexpr Index row_slot = 2;
  static constexpr int steps = 2;
  static void store(const Vec (&numbers)[group / Vec::width], float* to) {
    std::uint32_t slots[group_slots];
    for (int i = 0; i < group / Vec::width; ++i)
      store_bytes(numbers[i], reinterpret_cast<unsigned char*>(slots) + i * Vec::width);
    for (Index slot = 0; slot < group_slots; ++slot) {
      to[2 * slot] = __builtin_bit_cast(float, slots[slot] & 0x00ff00ffu);
      to[2 * slot + 1] = __builtin_bit_cast(float, slots[slot] >> 8 & 0x00ff00ffu);
    }
  }
  static Vec column(const float* slot, int step) {
    return step == 0 ? even_int8_to_int16(Vec::load(slot)) : odd_int8_to_int16(Vec::load(slot));
  }
  static Vec row(const float* a, Index slot, int step) { return Vec::all(a[2 * slot + step]); }
  static IntVec multiply_add(Vec row, Vec column, IntVec sum) { return add_int16_products(row, column, sum); }
};
#endif

template <class Dot>
constexpr Index row_group = group_slots * Dot::row_slot + 1;  // floats of x a group

template <class Dot>
inline Index operand_block(const Int8Layout& at, Index rows, Index g, Index row) {
  return rows * at.side_depth + (rows * g + row * at.in_block(g)) * row_group<Dot>;
}

inline Index int8_packed_size(Index n, Index k) { return Int8Layout(n, k).size(); }

template <class Dot>
Index int8_operands_size(Index rows, Index k) {
  return rows * (Int8Layout(0, k).side_depth + slots(k, group) * row_group<Dot>);
}

// H numbers, by butterflies at distances 1, 2, 4 .. 32.
inline void turn(Vec (&numbers)[group / Vec::width]) {
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
inline void load_group(const float* from, Index depth, const float* centre, const float* mask,
                       Vec (&numbers)[group / Vec::width]) {
#pragma GCC unroll 8
  for (int i = 0; i < group / Vec::width; ++i) {
    const Index k = i * Vec::width, left = depth - k;
    const Vec all = left >= Vec::width ? Vec::load(from + k) : left > 0 ? Vec::load(from + k, left) : Vec::zero();
    numbers[i] = (centre ? all - Vec::load(centre + k) : all) * Vec::load(mask + k);
  }
}

// One group of one column: 16 slots and the scale, `panel` floats apart. Returns the sum of what the numbers stand for.
inline float pack_group(const float* w, Index depth, const float* mask, float* to) {
  Vec numbers[group / Vec::width];
  float turned[group], size = 0.0f;
  load_group(w, depth, nullptr, mask, numbers);
  turn(numbers);
  for (int i = 0; i < group / Vec::width; ++i) {
    const Vec number = numbers[i] * Vec::all(1.0f / group);  // H Ht = 64 I
    number.store(turned + i * Vec::width);
    const float most = largest(abs(number));
    size = most > size ? most : size;
  }
  const float inverse = size > 0.0f ? 127.0f / size : 0.0f;
  int sum = 0;
  for (Index slot = 0; slot < group_slots; ++slot) {
    std::uint32_t four = 0;
    for (Index i = 0; i < 4; ++i) {
      const int q = static_cast<int>(__builtin_rintf(turned[4 * slot + i] * inverse));
      sum += q;
      four |= static_cast<std::uint32_t>(q & 0xff) << 8 * i;
    }
    to[slot * panel] = __builtin_bit_cast(float, four);
  }
  const float scale = size / 127.0f;
  to[group_slots * panel] = scale;
  return static_cast<float>(sum) * scale;
}

inline void pack_what_operands_read(const LinearSource& source, const Int8Layout& at, float* packed) {
  for (Index k = 0; k < at.groups * group; ++k) {
    packed[k] = k < at.k ? source.centre[k] : 0.0f;
    packed[at.mask() + k] = k < at.k ? 1.0f : 0.0f;
  }
  for (Index i = at.wide_at(); i < at.side(0); ++i) packed[i] = 0.0f;
  for (Index i = 0; i < at.wide; ++i) {
    packed[at.mask() + source.wide[i]] = 0.0f;
    packed[at.wide_at() + i] = __builtin_bit_cast(float, source.wide[i]);
  }
}

inline void pack_int8(const LinearSource& source, Range panels, float* packed) {
  const Int8Layout at(source.n, source.k);
  float mask[group];
  if (panels.begin == 0) pack_what_operands_read(source, at, packed);
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index j = 0; j < panel; ++j) {
      const Index column = p * panel + j;
      const bool inside = column < source.n;
      const float* w = source.weight + column * at.k;
      float* side = packed + at.side(p) + j;
      for (Index i = 0; i < at.wide; ++i) side[i * panel] = inside ? w[source.wide[i]] : 0.0f;
      for (Index g = 0; g < at.groups; ++g) {
        const Index first = g / block_groups * block_groups;
        const Index depth = inside ? least(at.k - g * group, group) : 0;
        for (Index k = 0; k < group; ++k) mask[k] = 1.0f;
        for (Index i = 0; i < at.wide; ++i)
          if (source.wide[i] / group == g) mask[source.wide[i] % group] = 0.0f;
        side[(at.wide + g) * panel] =
            pack_group(w + g * group, depth, mask, packed + at.block(first, p) + (g - first) * packed_group + j);
      }
    }
}

// One group of one row: slots and the scale; returns its smallest number.
template <class Dot>
inline float make_group(const float* x, Index depth, const float* centre, const float* mask, float* to) {
  constexpr int count = group / Vec::width;
  Vec numbers[count];
  load_group(x, depth, centre, mask, numbers);
  turn(numbers);
  Vec low = numbers[0], high = numbers[0];
#pragma GCC unroll 8
  for (int i = 1; i < count; ++i) low = min(low, numbers[i]), high = max(high, numbers[i]);
  float smallest, greatest;  // a NaN of x is one in all numbers by now
  smallest_and_largest(low, high, smallest, greatest);
  const float range = greatest - smallest, inverse = range > 0.0f ? 255.0f / range : 0.0f;
#pragma GCC unroll 8
  for (int i = 0; i < count; ++i) numbers[i] = (numbers[i] - Vec::all(smallest)) * Vec::all(inverse);
  Dot::store(numbers, to);
  to[group_slots * Dot::row_slot] = range / 255.0f;
  return smallest;
}

template <class Dot>
void make_int8_operands(const Linear& op, Range rows) {
  const Int8Layout at(op.packed.n, op.packed.k);
  const float *centre = op.packed.weight, *mask = centre + at.mask(), *wide = centre + at.wide_at();
  for (Index row = rows.begin; row < rows.end; ++row) {
    const float* x = op.x + row * op.x_stride;
    float* side = op.operands + row * at.side_depth;
    for (Index i = 0; i < at.wide; ++i) {
      const Index channel = __builtin_bit_cast(std::int32_t, wide[i]);
      side[i] = x[channel] - centre[channel];
    }
    for (Index g = 0; g < at.groups; ++g) {
      const Index first = g / block_groups * block_groups, k = g * group;
      float* to = op.operands + operand_block<Dot>(at, op.rows, first, row) + (g - first) * row_group<Dot>;
      side[at.wide + g] = make_group<Dot>(x + k, at.k - k, centre + k, mask + k, to);
    }
  }
}

// c += the scaled sums of a block's groups.
template <class Dot, int Rows>
inline void add_groups(const float* x, Index x_stride, const float* w, Index groups, float* c) {
  for (Index g = 0; g < groups; ++g, x += row_group<Dot>, w += packed_group) {
    Tile<Rows, panel_vectors, Dot> tile;
    tile.multiply(x, x_stride, w, group_slots);
    Vec scale[panel_vectors];
#pragma GCC unroll 4
    for (int j = 0; j < panel_vectors; ++j) scale[j] = Vec::load(w + group_slots * panel + j * Vec::width);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const Vec row_scale = Vec::all(x[i * x_stride + group_slots * Dot::row_slot]);
#pragma GCC unroll 4
      for (int j = 0; j < panel_vectors; ++j) {
        float* at = c + i * panel + j * Vec::width;
        fma(from_int32(tile.sum[i][j]), row_scale * scale[j], Vec::load(at)).store(at);
      }
    }
  }
}

template <int Rows>
inline void copy_panel(const float* from, Index from_stride, float* to, Index to_stride) {
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < panel; j += Vec::width) Vec::load(from + i * from_stride + j).store(to + i * to_stride + j);
}

template <class Dot>
void int8_linear(const Linear& op, Range rows, Range panels) {
  const Int8Layout at(op.packed.n, op.packed.k);
  for (Index g = 0; g < at.groups; g += block_groups) {
    const Index groups = at.in_block(g);
    const bool first = g == 0, last = g + groups == at.groups;
    for (Index p = panels.begin; p < panels.end; ++p)
      in_tiles(op, rows, p, first, [&]<int Rows>(Index row, float* c, Index c_stride) {
        alignas(64) float sums[Rows * panel];
        if (first)
          block_tile<Fp32, Rows>(op.operands + row * at.side_depth, at.side_depth, op.packed.weight + at.side(p),
                                 at.side_depth, sums, panel, true);
        else
          copy_panel<Rows>(c, c_stride, sums, panel);
        add_groups<Dot, Rows>(op.operands + operand_block<Dot>(at, op.rows, g, row), groups * row_group<Dot>,
                              op.packed.weight + at.block(g, p), groups, sums);
        if (last) finish_tile<Rows>(sums, panel, op.packed.bias + p * panel, op.activation);
        copy_panel<Rows>(sums, panel, c, c_stride);
      });
  }
}

template <class Dot>
constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          int8_packing,
          panel,
          int8_packed_size,
          pack_int8,
          int8_operands_size<Dot>,
          make_int8_operands<Dot>,
          int8_linear<Dot>};
}

}  // namespace
}  // namespace distilfast
