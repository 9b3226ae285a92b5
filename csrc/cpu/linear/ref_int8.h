// linear with int8 operands in plain C++: x and W are rounded as linear/int8_groups.h says, kept as the numbers that
// they stand for, and multiplied as in linear/ref.h.
#pragma once

#include "cpu/linear/ref.h"

namespace distilfast {
namespace {

constexpr PackedLayout int8_layout{"int8/g64/unblocked", 2};

constexpr Index group = 64;

// Every number onto the nearest of 127 steps to either side of zero. Where one is NaN all are, by the turn.
inline void round_to_steps(float* numbers) {
  float most = std::fabs(numbers[0]);
  for (Index k = 1; k < group; ++k) most = std::fmax(most, std::fabs(numbers[k]));
  const float inverse = most > 0.0f ? 127.0f / most : 0.0f, step = most / 127.0f;
  for (Index k = 0; k < group; ++k) numbers[k] = step * std::rint(numbers[k] * inverse);
}

// H numbers, by butterflies at distances 1, 2, 4 .. 32.
inline void turn(float* numbers) {
  for (Index distance = 1; distance < group; distance *= 2)
    for (Index i = 0; i < group; ++i)
      if (!(i & distance)) {
        const float a = numbers[i], b = numbers[i + distance];
        numbers[i] = a + b, numbers[i + distance] = a - b;
      }
}

// Turns and rounds one group but for its channels that are wide, where `rounded` is 0: these follow apart.
inline void round_group(const float* row, Index count, const float* rounded, float* numbers) {
  for (Index k = 0; k < group; ++k) numbers[k] = k < count ? row[k] * rounded[k] : 0.0f;
  turn(numbers);
  round_to_steps(numbers);
}

inline Index groups_of(Index k) { return (k + group - 1) / group; }
inline Index int8_depth(Index k) { return groups_of(k) * group + wide_channels(k); }

// Packed: the centre [K], which channels are rounded (1) and which are wide (0), the wide ones' numbers, and W as in
// linear/ref.h, where the turned groups and the wide channels take the place of K.
inline Index packed_weight(Index k) { return 2 * k + wide_channels(k); }
Index int8_packed_size(Index n, Index k) { return packed_weight(k) + packed_size(n, int8_depth(k)); }

inline void find_rounded(const LinearSource& source, Range channels, float* rounded) {
  for (Index k = channels.begin; k < channels.end; ++k) rounded[k - channels.begin] = 1.0f;
  for (Index i = 0; i < wide_channels(source.k); ++i)
    if (source.wide[i] >= channels.begin && source.wide[i] < channels.end)
      rounded[source.wide[i] - channels.begin] = 0.0f;
}

inline void pack_what_operands_read(const LinearSource& source, float* packed) {
  std::memcpy(packed, source.centre, static_cast<std::size_t>(source.k) * sizeof(float));
  find_rounded(source, {0, source.k}, packed + source.k);
  for (Index i = 0; i < wide_channels(source.k); ++i) packed[2 * source.k + i] = static_cast<float>(source.wide[i]);
}

void pack_int8(const LinearSource& source, Range panels, float* packed) {
  const Index k_total = source.k, depth = int8_depth(k_total);
  if (panels.begin == 0) pack_what_operands_read(source, packed);
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index j = 0; j < panel; ++j) {
      const Index column = p * panel + j;
      const float* w = source.weight + column * k_total;
      float* to = packed + packed_weight(k_total) + p * depth * panel + j;
      for (Index k = 0; k < k_total; k += group) {
        const Index end = k_total - k < group ? k_total : k + group;
        float rounded[group], numbers[group];
        find_rounded(source, {k, end}, rounded);
        round_group(w + k, column < source.n ? end - k : 0, rounded, numbers);
        for (Index i = 0; i < group; ++i, to += panel) *to = numbers[i] / group;  // H Ht = 64 I
      }
      for (Index i = 0; i < wide_channels(k_total); ++i, to += panel)
        *to = column < source.n ? w[source.wide[i]] : 0.0f;
    }
}

Index int8_operands_size(Index rows, Index k) { return rows * (k + int8_depth(k)); }

void make_int8_operands(const Linear& op, Range rows) {
  const Index k_total = op.packed.k, depth = int8_depth(k_total);
  const float *centre = op.packed.weight, *rounded = centre + k_total, *wide = rounded + k_total;
  for (Index row = rows.begin; row < rows.end; ++row) {
    float* to = op.operands + row * depth;
    float* x = op.operands + op.rows * depth + row * k_total;
    for (Index k = 0; k < k_total; ++k) x[k] = op.x[row * op.x_stride + k] - centre[k];
    for (Index k = 0; k < k_total; k += group, to += group) round_group(x + k, k_total - k, rounded + k, to);
    for (Index i = 0; i < wide_channels(k_total); ++i) to[i] = x[static_cast<Index>(wide[i])];
  }
}

void int8_linear(const Linear& op, Range rows, Range panels) {
  const Index k = op.packed.k, depth = int8_depth(k);
  multiply<AsItIs>(op, op.operands, depth, op.packed.weight + packed_weight(k), depth, rows, panels);
}

constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,         int8_layout,        panel,      part_step, part_rows, int8_packed_size, pack_int8,
          int8_operands_size, make_int8_operands, int8_linear};
}

}  // namespace
}  // namespace distilfast
