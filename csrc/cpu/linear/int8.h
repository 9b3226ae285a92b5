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

// Like `packing` in vec.h, for `pack_int8` and the groups.
constexpr int int8_packing = 2;

constexpr Index packed_group = (group_slots + 1) * panel;  // floats
constexpr Index block_groups = 8;

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

template <class Dot>
inline Index operand_block(const Int8Layout& at, Index rows, Index g, Index row) {
  return rows * at.wide + (rows * g + row * at.in_block(g)) * row_group<Dot>;
}

inline Index int8_packed_size(Index n, Index k) { return Int8Layout(n, k).size(); }

template <class Dot>
Index int8_operands_size(Index rows, Index k) {
  return rows * (wide_channels(k) + slots(k, group) * row_group<Dot>);
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

inline void fetch_group(const float* w) {
  for (Index i = 0; i < packed_group; i += 16) __builtin_prefetch(w + i, 0, 2);
}

// c += the scaled sums of a block's groups. `ahead`, where it is not null, is the block that comes next: it is fetched
// while this one is multiplied.
template <class Dot, int Rows>
inline void add_groups(const float* x, Index x_stride, const float* w, const float* ahead, Index groups, float* c) {
  for (Index g = 0; g < groups; ++g, x += row_group<Dot>, w += packed_group) {
    if (ahead) fetch_group(ahead + g * packed_group);
    Tile<Rows, panel_vectors, Dot> tile;
    tile.multiply(x, x_stride, w, group_slots);
    Vec scale[panel_vectors];
#pragma GCC unroll 4
    for (int j = 0; j < panel_vectors; ++j) scale[j] = Vec::load(w + group_slots * panel + j * Vec::width);
#pragma GCC unroll 16
    for (int i = 0; i < Rows; ++i) {
      const float* behind = x + i * x_stride + row_slots<Dot>;
      const Vec row_scale = Vec::all(behind[0]);
      const IntVec excess = IntVec::all(__builtin_bit_cast(std::int32_t, behind[1]));
#pragma GCC unroll 4
      for (int j = 0; j < panel_vectors; ++j) {
        float* at = c + i * panel + j * Vec::width;
        fma(from_int32(tile.sum[i][j] - excess), row_scale * scale[j], Vec::load(at)).store(at);
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
    for (Index p = panels.begin; p < panels.end; ++p) {
      const float* next = p + 1 < panels.end ? op.packed.weight + at.block(g, p + 1) : nullptr;
      in_tiles(op, rows, p, first, [&]<int Rows>(Index row, float* c, Index c_stride) {
        alignas(64) float sums[Rows * panel];
        if (first)
          block_tile<Fp32, Rows>(op.operands + row * at.wide, at.wide, op.packed.weight + at.side(p), at.wide, sums,
                                 panel, true);
        else
          copy_panel<Rows>(c, c_stride, sums, panel);
        add_groups<Dot, Rows>(op.operands + operand_block<Dot>(at, op.rows, g, row), groups * row_group<Dot>,
                              op.packed.weight + at.block(g, p), row == rows.begin ? next : nullptr, groups, sums);
        if (last) finish_tile<Rows>(sums, panel, op.packed.bias + p * panel, op.activation);
        copy_panel<Rows>(sums, panel, c, c_stride);
      });
    }
  }
}

template <class Dot>
constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          int8_packing,
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
