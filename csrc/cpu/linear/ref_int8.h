// linear with int8 operands in plain C++: x and W are quantised as linear/int8_format.h says, stored as the values that
// the int8 numbers stand for, and multiplied as in linear/ref.h.
#pragma once

#include "cpu/linear/int8_format.h"
#include "cpu/linear/ref.h"

namespace distilfast {
namespace {

constexpr PackedLayout int8_layout{"int8/rotated/unblocked", 1};

// Rounds each value of a group to the nearest multiple of the scale, largest / 127. Where one value is NaN all are, by
// the rotation.
inline void quantize_dequantize(float* values, Index group) {
  float largest = std::fabs(values[0]);
  for (Index k = 1; k < group; ++k) largest = std::fmax(largest, std::fabs(values[k]));
  const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f, scale = largest / 127.0f;
  for (Index k = 0; k < group; ++k) values[k] = scale * std::rint(values[k] * inverse);
}

// Multiplies a group by H: butterflies at distances 1, 2, 4 ..
inline void hadamard_rotate(float* values, Index group) {
  for (Index distance = 1; distance < group; distance *= 2)
    for (Index i = 0; i < group; ++i)
      if (!(i & distance)) {
        const float a = values[i], b = values[i + distance];
        values[i] = a + b, values[i + distance] = a - b;
      }
}

// Rotates and quantises the group that begins with channel `first`, zero-padded past `count`.
inline void quantize_group(const float* row, Index first, Index count, Index group, float* values) {
  for (Index k = 0; k < group; ++k) values[k] = k < count ? row[k] * int8_sign(first + k) : 0.0f;
  hadamard_rotate(values, group);
  quantize_dequantize(values, group);
}

inline Index int8_depth(Index k) { return (k + int8_group(k) - 1) / int8_group(k) * int8_group(k); }

// Packed W: the channel shift [K]; then W as in linear/ref.h, where the rotated groups take the place of K. All are
// floats.
Index int8_packed_size(Index n, Index k) { return k * Index{sizeof(float)} + packed_size(n, int8_depth(k)); }

void pack_int8(const LinearSource& source, Range panels, std::byte* packed) {
  const Index k_total = source.k, depth = int8_depth(k_total), group = int8_group(k_total);
  if (panels.begin == 0) std::memcpy(packed, source.channel_shift, static_cast<std::size_t>(k_total) * sizeof(float));
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index j = 0; j < panel; ++j) {
      const Index column = p * panel + j;
      const float* w = source.weight + column * k_total;
      float* to = view<float>(packed, k_total + p * depth * panel + j);
      for (Index k = 0; k < k_total; k += group) {
        float values[256];
        quantize_group(w + k, k, column < source.n ? k_total - k : 0, group, values);
        for (Index i = 0; i < group; ++i, to += panel) *to = values[i] / static_cast<float>(group);  // H Ht = group I
      }
    }
}

Index int8_packed_a_size(Index rows, Index k) { return rows * (k + int8_depth(k)) * Index{sizeof(float)}; }

void pack_int8_a(const Linear& op, Range rows) {
  const Index k_total = op.packed.k, depth = int8_depth(k_total), group = int8_group(k_total);
  const float* shift = view<float>(op.packed.weight);
  for (Index row = rows.begin; row < rows.end; ++row) {
    float* to = view<float>(op.packed_a, row * depth);
    float* x = view<float>(op.packed_a, op.rows * depth + row * k_total);
    for (Index k = 0; k < k_total; ++k) x[k] = op.x[row * op.x_stride + k] - shift[k];
    for (Index k = 0; k < k_total; k += group) quantize_group(x + k, k, k_total - k, group, to + k);
  }
}

void int8_linear(const Linear& op, Range rows, Range panels) {
  const Index k = op.packed.k, depth = int8_depth(k);
  multiply<Fp32>(op, view<float>(op.packed_a), depth, view<float>(op.packed.weight, k), depth, rows, panels);
}

constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic, int8_layout,        panel,       mc_multiple, mc, int8_packed_size,
          pack_int8,  int8_packed_a_size, pack_int8_a, int8_linear};
}

}  // namespace
}  // namespace distilfast
