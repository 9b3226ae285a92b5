// int8 operands of `linear` by vectors; what they stand for: linear/int8_groups.h.
//
// The instructions multiply unsigned bytes with signed ones. The unsigned ones are W's, 128 more than its steps are:
// a group's sum has by that 128 times the sum of the steps of x in excess.
//
// Packed: the front, then [panel][wide channel][column] in fp32, then as in vec.h blocks of K, in each block panels, in
// each panel groups of 16 slots and a row of scales.
// Operands: [row][wide channel], then blocks of K, in each block rows, in each row groups of slots, a scale and the
// excess. Reference: linear/ref_int8.h.
#pragma once

#include "cpu/linear/int8_groups.h"

namespace distilfast {
namespace {

// Of `pack_int8` and of the groups, for all kernels here.
constexpr PackedLayout int8_layout{"int8/g64", 3};

constexpr Index packed_group = (group_slots + 1) * panel;  // floats
// Groups of a block: those of a panel fit L1 beside the rows of a tile, and K = 768 has no rest.
constexpr Index block_groups = 6;
// int32 and fp32 sums, a row of W and a broadcast fill 32 registers: 2 x 4 x 3 + 3 + 1. Of 16 they are twice as many;
// the fp32 sums, which a group needs once, then rest in L1.
constexpr int int8_tile_rows = 4;

// Where everything of one linear lies.
struct Int8Layout : Int8Front {
  Index columns;

  Int8Layout(Index n, Index k) : Int8Front(k), columns(round_up(n, panel)) {}

  Index side(Index p) const { return Int8Front::size() + p * wide * panel; }
  // Block of groups that begins with group `g`.
  Index block(Index g, Index p) const {
    return side(columns / panel) + g * (group_slots + 1) * columns + p * in_block(g) * packed_group;
  }
  Index in_block(Index g) const { return least(groups - g, block_groups); }
  Index size() const { return block(groups, 0); }
};

constexpr int weight_offset = 128;

// Each product of a row's slot and W's: four of K at once, or two and two.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
struct Int8Dot {
  using Sum = IntVec;
  static constexpr Index row_slot = 1;  // floats of x a slot
  static constexpr int steps = 1;
  static void spread(float*) {}
  static Vec column(const float* slot, int) { return Vec::load(slot); }
  static Vec row(const float* a, Index slot, int) { return Vec::all(a[slot]); }
  static IntVec multiply_add(Vec row, Vec column, IntVec sum) { return add_int8_products(column, row, sum); }
};
#else
// For machines without an instruction for it: the even and the odd bytes of a slot are widened to int16, whose products
// are added in pairs. (The instruction that multiplies bytes saturates its sums.)
struct Int8Widened {
  using Sum = IntVec;
  static constexpr Index row_slot = 2;
  static constexpr int steps = 2;
  // From 16 slots on to twice as many words, the last first: a word's slot has been read when it is written.
  static void spread(float* words) {
    for (Index slot = group_slots - 1; slot >= 0; --slot) {
      const auto four = __builtin_bit_cast(std::uint32_t, words[slot]);
      words[2 * slot] = widened(four, four >> 16);
      words[2 * slot + 1] = widened(four >> 8, four >> 24);
    }
  }
  // The lowest, signed, byte of each.
  static float widened(std::uint32_t first, std::uint32_t second) {
    const short both[] = {static_cast<signed char>(first), static_cast<signed char>(second)};
    return __builtin_bit_cast(float, both);
  }
  static Vec column(const float* slot, int step) {
    return step == 0 ? even_bytes_to_int16(Vec::load(slot)) : odd_bytes_to_int16(Vec::load(slot));
  }
  static Vec row(const float* a, Index slot, int step) { return Vec::all(a[2 * slot + step]); }
  static IntVec multiply_add(Vec row, Vec column, IntVec sum) { return add_int16_products(row, column, sum); }
};
#endif

template <class Dot>
constexpr Index row_slots = group_slots * Dot::row_slot;
template <class Dot>
constexpr Index row_group = row_slots<Dot> + 2;  // floats of x a group

// Floats from a row of a block of x to the next; the last block has room for as many groups as any other.
template <class Dot>
constexpr Index row_stride = block_groups * row_group<Dot>;

template <class Dot>
inline Index operand_block(const Int8Layout& at, Index rows, Index g, Index row) {
  return rows * (at.wide + g * row_group<Dot>)+row * row_stride<Dot>;
}

inline Index int8_packed_size(Index n, Index k) { return Int8Layout(n, k).size(); }

template <class Dot>
Index int8_operands_size(Index rows, Index k) {
  return rows * (wide_channels(k) + slots(k, group * block_groups) * row_stride<Dot>);
}

// Four signed bytes, each 128 more.
inline float with_offset(float slot) {
  return __builtin_bit_cast(float, __builtin_bit_cast(std::uint32_t, slot) ^ 0x80808080u);
}

inline void pack_int8(const LinearSource& source, Range panels, float* packed) {
  const Int8Layout at(source.n, source.k);
  if (panels.begin == 0) pack_front(source, at, packed);
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index j = 0; j < panel; ++j) {
      float* side = packed + at.side(p) + j;
      const auto take = [&](Index g, Steps made, const float* slots) {
        const Index first = g / block_groups * block_groups;
        float* to = packed + at.block(first, p) + (g - first) * packed_group + j;
        for (Index slot = 0; slot < group_slots; ++slot) to[slot * panel] = with_offset(slots[slot]);
        to[group_slots * panel] = made.scale;
      };
      round_column(source, at, p * panel + j, take, [&](Index i, float w) { side[i * panel] = w; });
    }
}

template <class Dot>
void make_int8_operands(const Linear& op, Range rows) {
  const Int8Layout at(op.packed.n, op.packed.k);
  for (Index row = rows.begin; row < rows.end; ++row) {
    float* side = op.operands + row * at.wide;
    const auto place = [&](Index g) {
      const Index first = g / block_groups * block_groups;
      return op.operands + operand_block<Dot>(at, op.rows, first, row) + (g - first) * row_group<Dot>;
    };
    const auto take = [&](Index g, Steps made) {
      float* to = place(g);
      Dot::spread(to);
      to[row_slots<Dot>] = made.scale;
      to[row_slots<Dot> + 1] = __builtin_bit_cast(float, weight_offset* made.sum);
    };
    round_row(op, at, row, place, take, [&](Index i, float x) { side[i] = x; });
  }
}

// What the tiles of one panel of W share in one block of groups.
struct Int8Panel {
  const float* side;  // of W; null behind the first block
  Index wide;
  const float* groups;
  Index count;
  const float* bias;  // null before the last block
};

// total += the sums of a group times its scales; `x` and `w` begin behind the group's slots.
template <class Dot, int Rows>
inline __attribute__((always_inline)) void add_scaled(Tile<Rows, panel_vectors, Dot>& group, const float* x,
                                                      const float* w, Tile<Rows, panel_vectors>& total) {
  Vec scale[panel_vectors];
#pragma GCC unroll 4
  for (int j = 0; j < panel_vectors; ++j) scale[j] = Vec::load(w + j * Vec::width);
  group.each([&](int i, int j, IntVec sum) {
    const float* behind = x + i * row_stride<Dot>;
    const IntVec excess = IntVec::all(__builtin_bit_cast(std::int32_t, behind[1]));
    total.sum[i][j] = fma(from_int32(sum - excess), Vec::all(behind[0]) * scale[j], total.sum[i][j]);
  });
}

// c = the side, or c where there was a block before, + the scaled sums of the groups (+ bias). Not inlined: the sums
// fill the registers, and what a caller keeps in some would push them out.
template <class Dot, int Rows, int Fetched>
__attribute__((noinline)) void int8_tile(const Int8Panel& w, const float* wanted, const float* x_side, const float* x,
                                         float* c, Index c_stride) {
  Tile<Rows, panel_vectors> total;
  if (w.side)
    total.multiply(x_side, w.wide, w.side, w.wide);
  else
    total.each([&](int i, int j, Vec& sum) { sum = Vec::load(c + i * c_stride + j * Vec::width); });
  const float* columns = w.groups;
  for (Index g = 0; g < w.count; ++g, x += row_group<Dot>) {
    Tile<Rows, panel_vectors, Dot> group;
    group.clear();
#pragma GCC unroll 4
    for (int slot = 0; slot < group_slots; ++slot, columns += panel, wanted += panel) {
      fetch_vectors<Fetched>(wanted);
      group.add_slot(x, row_stride<Dot>, slot, columns);
    }
    fetch_vectors<Fetched>(wanted);
    add_scaled(group, x + row_slots<Dot>, columns, total);
    columns += panel, wanted += panel;
  }
  if (w.bias) total.each([&](int, int j, Vec& sum) { sum = sum + Vec::load(w.bias + j * Vec::width); });
  total.each([&](int i, int j, Vec sum) { sum.store(c + i * c_stride + j * Vec::width); });
}

template <class Dot>
void int8_linear(const Linear& op, Range rows, Range panels) {
  const Int8Layout at(op.packed.n, op.packed.k);
  const float* weight = op.packed.weight;
  for (Index g = 0; g < at.groups; g += block_groups) {
    const bool first = g == 0, last = g + block_groups >= at.groups;
    const float* x = op.operands + operand_block<Dot>(at, op.rows, g, 0);
    for (Index p = panels.begin; p < panels.end; ++p) {
      const Int8Panel w{first ? weight + at.side(p) : nullptr, at.wide, weight + at.block(g, p), at.in_block(g),
                        last ? op.packed.bias + p * panel : nullptr};
      const Place next = behind(op, panels, g * group, p, (g + block_groups) * group);
      const float* wanted = weight + at.block(next.k / group, next.p);
      in_tiles<int8_tile_rows>(op, rows, p, first, [&]<int Rows>(Index row, float* c, Index c_stride, Fetch fetch) {
        for_count(fetch.vectors, [&]<int Fetched>() {
          int8_tile<Dot, Rows, Fetched>(w, fetch.of(wanted), op.operands + row * at.wide, x + row * row_stride<Dot>, c,
                                        c_stride);
        });
        if (last) activate<CoarseGelu, Rows>(c, c_stride, op.activation);
      });
    }
  }
}

template <class Dot>
constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          int8_layout,
          panel,
          part_step,
          part_rows,
          int8_packed_size,
          pack_int8,
          int8_operands_size<Dot>,
          make_int8_operands<Dot>,
          int8_linear<Dot>};
}

}  // namespace
}  // namespace distilfast
