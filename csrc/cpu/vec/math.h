// exp and GELU on vectors, to a few units in the last place. Included after the Vec of one ISA.
//
// The polynomials come from fit.py beside this file; the command is `python csrc/cpu/vec/fit.py`.
#pragma once

namespace distilfast {
namespace {

// largest error 1.7e-08, relative, of exp on [-log(2)/2, log(2)/2]
constexpr float exp_poly[] = {1.0f, 1.0f, 0.499999911f, 0.166664198f, 0.0416682251f, 0.00837481581f, 0.00138368423f};
// largest errors 1.6e-08 and 6.3e-06, relative, of 2^x on [-1/2, 1/2]
constexpr float exp2_poly[] = {1.0f,           0.693147182f,   0.240226462f,   0.0555032864f,
                               0.00961848907f, 0.00133999309f, 0.000153458081f};
constexpr float coarse_exp2_poly[] = {1.0f, 0.693136871f, 0.240232527f, 0.0558372885f, 0.00961810537f};
// largest error 5.9e-08, relative, of erf(z) / z as a polynomial in z^2 <= 0.85
constexpr float erf_poly[] = {1.12837923f,    -0.376126349f,    0.112836957f,   -0.0268593933f,
                              0.00520102121f, -0.000814258063f, 8.36957697e-05f};
// largest error 1.8e-07, absolute, of log(erfc(z)) on [0.9, 5]
constexpr float log_erfc_poly[] = {0.000358817691f, -1.13042927f,    -0.631410956f,   -0.110562786f,
                                   0.0267588049f,   -0.00490485877f, 0.00063367642f,  -5.05789831e-05f,
                                   1.57720069e-06f, 7.95410315e-08f, -6.26767127e-09f};
// largest error 7.3e-06, absolute, of -t erfc(t / sqrt(2)) / 2 as t times a polynomial in t / 2.25 - 1, t <= 4.5
constexpr float gelu_tail_poly[] = {-0.0122220414f, 0.0713857114f,  -0.180920631f,  0.245604306f,
                                    -0.155933604f,  -0.0329186097f, 0.125589147f,   -0.057639569f,
                                    -0.0226666406f, 0.0237222835f,  -0.00400212267f};

template <int N>
inline Vec polynomial(const float (&coefficients)[N], Vec x) {
  Vec y = Vec::all(coefficients[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, Vec::all(coefficients[i]));
  return y;
}

// e^x. Below -87.3 it stays at 1.2e-38, the smallest normal number, so that no ISA meets a denormal.
inline Vec exp(Vec x) {
  x = min(Vec::all(88.0f), max(Vec::all(-87.3f), x));  // this order keeps a NaN
  const Vec n = round(x * Vec::all(1.44269504f));
  // log(2) as a sum of two: the first has few enough bits for its product with n to be exact.
  const Vec r = fma(n, Vec::all(-1.42860677e-06f), fma(n, Vec::all(-0.693145752f), x));
  return scale(polynomial(exp_poly, r), n);
}

// 2^x for x <= 127 by one of the two polynomials: to a unit in the last place, or to 6.5e-6, relative. Both give 1 for
// 0. Below -126 it stays at 1.2e-38, the smallest normal number.
template <int N>
inline Vec exp2(Vec x, const float (&coefficients)[N]) {
  x = max(Vec::all(-126.0f), x);  // this order keeps a NaN
  const Vec n = round(x);
  return scale(polynomial(coefficients, x - n), n);
}

// x Phi(x) = x (1 + erf(x / sqrt(2))) / 2, the exact form (arXiv 1606.08415). Near zero by the series of erf, elsewhere
// by 1 - erfc, whose logarithm is nearly a parabola. The left tail is x erfc / 2, so nothing cancels there.
inline Vec gelu(Vec x) {
  const Vec half = Vec::all(0.5f);
  const Vec z = x * Vec::all(0.707106781f);
  const Vec square = z * z;
  const Vec near = fma(z * half, polynomial(erf_poly, square), half);
  const Vec distance = abs(z), reach = Vec::all(5.0f);  // erfc(5) is 1.5e-12
  const Vec tail = half * exp(polynomial(log_erfc_poly, min(reach, distance)));
  const Vec beyond = less(reach, distance, Vec::zero(), tail);
  const Vec far = less(x, Vec::zero(), beyond, Vec::all(1.0f) - beyond);
  return x * less(square, Vec::all(0.85f), near, far);
}

// The same to 8.1e-6 and 6e-4 of itself near zero, which is below what a bf16 keeps of it, for less than half of the
// time. -|x| erfc(|x| / sqrt(2)) / 2 is what GELU is below max(x, 0).
inline Vec coarse_gelu(Vec x) {
  const Vec distance = min(Vec::all(4.5f), abs(x));  // this order keeps a NaN
  const Vec centred = fma(distance, Vec::all(1.0f / 2.25f), Vec::all(-1.0f));
  return fma(distance, polynomial(gelu_tail_poly, centred), max(x, Vec::zero()));
}

// The precision of GELU that fits the operands of a `linear`: their `Gelu`.
struct ExactGelu {
  static Vec of(Vec x) { return gelu(x); }
};
struct CoarseGelu {
  static Vec of(Vec x) { return coarse_gelu(x); }
};

}  // namespace
}  // namespace distilfast
