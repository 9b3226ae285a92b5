// C [16, 8] += A [16, K] B [K, 8] as a tensor core computes it, which differs from every order of rounded additions.
//
// For each element of C: the products are exact, with the sum of their factors' exponents; all of them and c are
// aligned to the largest exponent and truncated (toward zero) to `kept_bits` bits below it; what is left is added
// exactly; and the sum is truncated to fp32. Nothing is normalised in between. This is a Hopper mma of fp16, bf16 or
// tf32 operands; Ampere keeps 24 bits and adds the two halves of K one after the other. Source: Xie et al., MMA-Sim,
// arXiv 2511.10909, whose model has the bits of real devices.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace cuda_host {

constexpr int kept_bits = 25;

// Four numbers at once.
using Floats = float __attribute__((vector_size(16)));
using Ints = std::int32_t __attribute__((vector_size(16)));
constexpr int lanes = 4;

// x = significand * 2^exponent. Significands are below 1 where x is subnormal in its type; infinities and NaN count as
// zero, see `tensor_core_multiply`.
struct Parts {
  Floats significand;
  Ints exponent;
  bool is_finite = true;

  Parts() = default;
  // `least`: the smallest exponent of a normal number of x's type.
  Parts(const Floats& x, int least) {
    const Ints bits = std::bit_cast<Ints>(x), field = bits >> 23 & 255;
    const Ints is_normal = (field > least + 126) & (field < 255);
    const auto without_exponent = static_cast<std::int32_t>(0x807fffff), exponent_of_1 = 127 << 23;
    significand = std::bit_cast<Floats>(((bits & without_exponent) | exponent_of_1) & is_normal);
    exponent = ((field - 127) & is_normal) | (-126 & ~is_normal);
    if (is_normal[0] & is_normal[1] & is_normal[2] & is_normal[3]) return;
    for (int i = 0; i < lanes; ++i) {
      if (field[i] == 255) is_finite = false;
      if (is_normal[i] || field[i] == 255 || x[i] == 0.0f) continue;
      significand[i] = std::ldexp(x[i], -least), exponent[i] = least;
    }
  }
};

// 2^exponent, or 0 where a float cannot hold it.
inline Floats power_of_two(Ints exponent) {
  const Ints biased = exponent + 127, none = {};
  return std::bit_cast<Floats>((biased > none ? biased : none) << 23);
}

inline double power_of_two(int exponent) {
  return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

// x rounded toward zero.
inline float truncated(double x) {
  if (std::fabs(x) >= 0x1p128) return static_cast<float>(x);  // infinite
  const float nearest = static_cast<float>(x);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.0f) : nearest;
}

// A result that is infinite or NaN, which a sum in double has too; else nothing is changed.
template <int k>
void keep_infinite(float& result, float c, const float (&a)[k], const float (&b)[k][8], int column) {
  double sum = c;
  for (int j = 0; j < k; ++j) sum += static_cast<double>(a[j]) * b[j][column];
  if (!std::isfinite(sum)) result = static_cast<float>(sum);
}

// Four columns of a row of C; `of_b`: of the same columns of B.
template <int k>
void multiply_row(float* c, const Parts& of_c, const Parts (&of_a)[k / lanes], const Parts (&of_b)[k]) {
  Ints exponent[k], largest = of_c.exponent;
  for (int j = 0; j < k; ++j) {
    exponent[j] = of_a[j / lanes].exponent[j % lanes] + of_b[j].exponent;
    largest = exponent[j] > largest ? exponent[j] : largest;
  }
  // Fixed-point numbers with `kept_bits` bits after the point; products are below 2^27, so that 16 of them fit 32 bits.
  const auto fixed = [&](Floats x, Ints of_x) {
    return __builtin_convertvector(x * power_of_two(of_x - largest + kept_bits), Ints);
  };
  Ints sum = {};
  for (int j = 0; j < k; ++j) sum += fixed(of_a[j / lanes].significand[j % lanes] * of_b[j].significand, exponent[j]);
  const Ints addend = fixed(of_c.significand, of_c.exponent);
  for (int column = 0; column < lanes; ++column)
    c[column] =
        truncated((static_cast<double>(sum[column]) + addend[column]) * power_of_two(largest[column] - kept_bits));
}

// `least`: the smallest exponent of a normal number of the operands' type.
template <int k>
void tensor_core_multiply(float (&c)[16][8], const float (&a)[16][k], const float (&b)[k][8], int least) {
  static_assert(k <= 16 && k % lanes == 0);
  const auto four = [](const float* from) { return Floats{from[0], from[1], from[2], from[3]}; };
  Parts of_b[2][k], of_a[k / lanes];
  bool b_is_finite = true;
  for (int j = 0; j < k; ++j)
    for (int half = 0; half < 2; ++half) {
      of_b[half][j] = Parts(four(b[j] + half * lanes), least);
      b_is_finite = b_is_finite && of_b[half][j].is_finite;
    }
  for (int row = 0; row < 16; ++row) {
    bool is_finite = b_is_finite;
    for (int i = 0; i < k / lanes; ++i) {
      of_a[i] = Parts(four(a[row] + i * lanes), least);
      is_finite = is_finite && of_a[i].is_finite;
    }
    for (int half = 0; half < 2; ++half) {
      float* const to = c[row] + half * lanes;
      const Floats before = four(to);
      const Parts of_c(before, -126);
      multiply_row<k>(to, of_c, of_a, of_b[half]);
      if (is_finite && of_c.is_finite) continue;
      for (int i = 0; i < lanes; ++i) keep_infinite<k>(to[i], before[i], a[row], b, half * lanes + i);
    }
  }
}

}  // namespace cuda_host
