// linear with int8 operands in plain C++: x and W are rounded as linear/int8_groups.h says, kept as the numbers that
// they stand for, and multiplied as in linear/ref.h.
#pragma once

#include "cpu/linear/ref.h"

namespace distilfast {
namespace {

constexpr Index group = 64;

// Puts `steps` steps between `low` and `high`, and every number onto the nearest.
inline void round_to_steps(float* numbers, float low, float high, float steps) {
  const float range = high - low, inverse = range > 0.0f ? steps / range : 0.0f, step = range / steps;
  for (Index k = 0; k < group; ++k) numbers[k] = low + step * std::rint((numbers[k] - low) * inverse);
}

inline void round_weight_group(float* w) {
  float largest = 0.0f;
  for (Index k = 0; k < group; ++k) largest = std::fmax(largest, std::fabs(w[k]));
  round_to_steps(w, 0.0f, largest, 127.0f);
}

inline void round_row_group(float* x) {
  float low = x[0], high = x[0];
  for (Index k = 1; k < group; ++k) low = std::fmin(low, x[k]), high = std::fmax(high, x[k]);
  round_to_steps(x, low, high, 255.0f);
}

// Rounds one group but for its channels that are wide, where `rounded` is 0.
template <class Round>
inline void round_group(float* row, Index count, const float* rounded, Round round) {
  float numbers[group] = {};  // a short group ends in zeros
  for (Index k = 0; k < count; ++k) numbers[k] = row[k] * rounded[k];
  round(numbers);
  for (Index k = 0; k < count; ++k)
    if (rounded[k] != 0.0f) row[k] = numbers[k];
}

inline Index group_end(Index k, Index k_total) { return k_total - k < group ? k_total : k + group; }

// Packed: the centre [K], which channels are rounded (1) and which are wide (0), and W as in linear/ref.h.
Index int8_packed_size(Index n, Index k) { return 2 * k + packed_size(n, k); }

inline void find_rounded(const LinearSource& source, Range channels, float* rounded) {
  for (Index k = channels.begin; k < channels.end; ++k) rounded[k - channels.begin] = 1.0f;
  for (Index i = 0; i < wide_channels(source.k); ++i)
    if (source.wide[i] >= channels.begin && source.wide[i] < channels.end)
      rounded[source.wide[i] - channels.begin] = 0.0f;
}

void pack_int8(const LinearSource& source, Range panels, float* packed) {
  const Index k_total = source.k;
  if (panels.begin == 0) {
    std::memcpy(packed, source.centre, static_cast<std::size_t>(k_total) * sizeof(float));
    find_rounded(source, {0, k_total}, packed + k_total);
  }
  float* weight = packed + 2 * k_total;
  pack_linear<AsItIs>(source, panels, weight);
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index k = 0, end; k < k_total; k = end) {
      end = group_end(k, k_total);
      float rounded[group], column[group];
      find_rounded(source, {k, end}, rounded);
      float* block = weight + (p * k_total + k) * panel;
      for (Index j = 0; j < panel; ++j) {
        for (Index i = 0; i < end - k; ++i) column[i] = block[i * panel + j];
        round_group(column, end - k, rounded, round_weight_group);
        for (Index i = 0; i < end - k; ++i) block[i * panel + j] = column[i];
      }
    }
}

Index int8_operands_size(Index rows, Index k) { return rows * k; }

void make_int8_operands(const Linear& op, Range rows) {
  const Index k_total = op.packed.k;
  const float *centre = op.packed.weight, *rounded = centre + k_total;
  for (Index row = rows.begin; row < rows.end; ++row) {
    float* to = op.operands + row * k_total;
    for (Index k = 0; k < k_total; ++k) to[k] = op.x[row * op.x_stride + k] - centre[k];
    for (Index k = 0, end; k < k_total; k = end) {
      end = group_end(k, k_total);
      round_group(to + k, end - k, rounded + k, round_row_group);
    }
  }
}

void int8_linear(const Linear& op, Range rows, Range panels) {
  multiply<AsItIs>(op, op.operands, op.packed.k, op.packed.weight + 2 * op.packed.k, rows, panels);
}

constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,         panel,      part_step, part_rows, int8_packed_size, pack_int8, int8_operands_size,
          make_int8_operands, int8_linear};
}

}  // namespace
}  // namespace distilfast
