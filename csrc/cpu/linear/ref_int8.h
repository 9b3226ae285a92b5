// linear with int8 operands in plain C++: x and W are quantised as linear/int8_format.h says, stored as the values that
// the int8 numbers stand for, and multiplied as in linear/ref.h.
#pragma once

#include "cpu/linear/int8_format.h"
#include "cpu/linear/ref.h"

namespace distilfast {
namespace {

constexpr PackedLayout int8_layout{"int8/rotated/unblocked", 2};

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

// Rotates and quantises one group, zero-padded past `count`.
inline void quantize_group(const float* row, Index count, const float* signs, Index group, float* values) {
  for (Index k = 0; k < group; ++k) values[k] = k < count ? row[k] * signs[k] : 0.0f;
  hadamard_rotate(values, group);
  quantize_dequantize(values, group);
}

// The groups' values; outlier channels follow them.
inline Index grouped_depth(Index k) { return (k + int8_group(k) - 1) / int8_group(k) * int8_group(k); }
inline Index int8_depth(Index k) { return grouped_depth(k) + outlier_count(k); }

// Packed W: the header, which is the channel shift [K], the signs [K] (zero for outlier channels) and the outlier
// channels' numbers; then W as in linear/ref.h, where the rotated groups and the outlier channels take the place of K.
// All are floats.
inline Index header_size(Index k) { return 2 * k + outlier_count(k); }
Index int8_packed_size(Index n, Index k) {
  return header_size(k) * Index{sizeof(float)} + packed_size(n, int8_depth(k));
}

// Whether a header of unknown origin names channels of x only; NaN is none.
inline bool outlier_channels_are_valid(Index k, const std::byte* packed) {
  const float* channels = view<float>(packed) + 2 * k;
  for (Index i = 0; i < outlier_count(k); ++i)
    if (!(channels[i] >= 0.0f && channels[i] < static_cast<float>(k))) return false;
  return true;
}

inline void pack_header(const LinearSource& source, float* packed) {
  std::memcpy(packed, source.channel_shift, static_cast<std::size_t>(source.k) * sizeof(float));
  int8_signs(source, 0, source.k, packed + source.k);
  for (Index i = 0; i < outlier_count(source.k); ++i)
    packed[2 * source.k + i] = static_cast<float>(source.outlier_channels[i]);
}

void pack_int8(const LinearSource& source, Range panels, std::byte* packed) {
  const Index k_total = source.k, depth = int8_depth(k_total), group = int8_group(k_total);
  if (panels.begin == 0) pack_header(source, view<float>(packed));
  for (Index p = panels.begin; p < panels.end; ++p)
    for (Index j = 0; j < panel; ++j) {
      const Index column = p * panel + j;
      const float* w = source.weight + column * k_total;
      float* to = view<float>(packed, header_size(k_total) + p * depth * panel + j);
      for (Index k = 0; k < k_total; k += group) {
        float signs[256], values[256];
        int8_signs(source, k, group, signs);
        quantize_group(w + k, column < source.n ? k_total - k : 0, signs, group, values);
        for (Index i = 0; i < group; ++i, to += panel) *to = values[i] / static_cast<float>(group);  // H Ht = group I
      }
      for (Index i = 0; i < outlier_count(k_total); ++i, to += panel)
        *to = column < source.n ? w[source.outlier_channels[i]] : 0.0f;
    }
}

Index int8_packed_a_size(Index rows, Index k) { return rows * (k + int8_depth(k)) * Index{sizeof(float)}; }

void pack_int8_a(const Linear& op, Range rows) {
  const Index k_total = op.packed.k, depth = int8_depth(k_total), group = int8_group(k_total);
  const float *shift = view<float>(op.packed.weight), *signs = shift + k_total, *outlier_channels = signs + k_total;
  for (Index row = rows.begin; row < rows.end; ++row) {
    float* to = view<float>(op.packed_a, row * depth);
    float* x = view<float>(op.packed_a, op.rows * depth + row * k_total);
    for (Index k = 0; k < k_total; ++k) x[k] = op.x[row * op.x_stride + k] - shift[k];
    for (Index k = 0; k < k_total; k += group, to += group) quantize_group(x + k, k_total - k, signs + k, group, to);
    for (Index i = 0; i < outlier_count(k_total); ++i) to[i] = x[static_cast<Index>(outlier_channels[i])];
  }
}

void int8_linear(const Linear& op, Range rows, Range panels) {
  const Index k = op.packed.k, depth = int8_depth(k);
  multiply<Fp32>(op, view<float>(op.packed_a), depth, view<float>(op.packed.weight, header_size(k)), depth, rows,
                 panels);
}

constexpr LinearKernels int8_linear_kernels(const char* arithmetic) {
  return {arithmetic,
          int8_layout,
          panel,
          mc_multiple,
          mc,
          int8_packed_size,
          pack_int8,
          int8_packed_a_size,
          pack_int8_a,
          int8_linear,
          outlier_channels_are_valid};
}

}  // namespace
}  // namespace distilfast
