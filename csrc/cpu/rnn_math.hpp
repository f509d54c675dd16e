// SPDX-License-Identifier: Apache-2.0
// rnn_math.hpp - the functions that recurrent cells are made of, over vectors of floats.
//
// Error      in units in the last place of the result, over all floats; tests measure it
//              sigmoid      3    below 1.2e-38 the result is 0
//              tanh         3
//              log_sigmoid  4
//              exp_negative 2    for x <= 0
// Limits     Infinities give the limits, NaN stays NaN, +-0 keeps its sign where the function does.
#pragma once

#include "side.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// c - a b
SEQKERN_INLINE vf less_product(vf a, vf b, vf c) {
#if SEQKERN_LANES == 16
  return _mm512_fnmadd_ps(a, b, c);
#elif SEQKERN_LANES == 8
  return _mm256_fnmadd_ps(a, b, c);
#else
  return fnma(a, b, c);
#endif
}

// What stands for 2^n: where scalef exists, n; else the number itself.
SEQKERN_INLINE vf power_from(vf n, vf shifted) {
#if SEQKERN_LANES == 16
  return n;
#else
  return power_of_shifted(shifted);
#endif
}
// x 2^n, rounded once.
SEQKERN_INLINE vf times_power(vf x, vf power) {
#if SEQKERN_LANES == 16
  return _mm512_scalef_ps(x, power);
#else
  return x * power;
#endif
}

SEQKERN_INLINE vf two_to(vf power) {
#if SEQKERN_LANES == 16
  return _mm512_scalef_ps(splat(1.0f), power);
#else
  return power;
#endif
}

// 1 / d for d in [1, 2^127]; 0 where the result is below 1.2e-38.
SEQKERN_INLINE vf reciprocal(vf d) {
#if SEQKERN_LANES == 16
  // An estimate of 14 bits and one Newton step: about 0.6 ulp.
  const vf r = _mm512_rcp14_ps(d);
  return fma(r, less_product(d, r, splat(1.0f)), r);
#else
  return 1.0f / d;
#endif
}

// a / d for d in [0.5, 2^127] and, unless kQuotientOfAny, |a| above 1e-33.
constexpr bool kQuotientOfAny = W != 16;
SEQKERN_INLINE vf quotient(vf a, vf d) {
#if SEQKERN_LANES == 16
  // As reciprocal(), but the step corrects the quotient, which is then rounded but once.
  const vf r = _mm512_rcp14_ps(d), q = a * r;
  return fma(less_product(q, d, a), r, q);
#else
  return a / d;
#endif
}

// The magnitude of x with the sign of y.
SEQKERN_INLINE vf with_sign(vf x, vf y) {
  const vi sign = vi{} + static_cast<int32_t>(0x80000000);
#if SEQKERN_LANES == 16
  // Bit by bit: sign ? y : x.
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      reinterpret_cast<__m512i>(sign), _mm512_castps_si512(y), _mm512_castps_si512(x), 0xca));
#else
  return reinterpret_cast<vf>((reinterpret_cast<vi>(x) & ~sign) | (reinterpret_cast<vi>(y) & sign));
#endif
}

SEQKERN_BESIDE(less_product)
SEQKERN_BESIDE(power_from)
SEQKERN_BESIDE(times_power)
SEQKERN_BESIDE(two_to)
SEQKERN_BESIDE(reciprocal)
SEQKERN_BESIDE(quotient)
SEQKERN_BESIDE(with_sign)

// exp(kRate x) = 2^n (1 + |kRate| (s r + p r^2)), s the sign of kRate, for kRate x in [-87.4, 88];
// |kRate r| < 0.35. kRate is a power of two, so that it changes no rounding.
template <int kRate, class V>
SEQKERN_INLINE void exp_parts(V x, V& power, V& r, V& p) {
  const vf magic = splat(12582912.0f + 127.0f);  // adding 1.5 * 2^23 rounds to the nearest integer
  const V shifted = fma(x, splat(kRate * 1.44269504f), magic), n = shifted - magic;
  power = power_from(n, shifted);
  r = less_product(n, splat(0.693145751953125f / kRate), x);
  r = less_product(n, splat(1.42860677e-6f / kRate), r);
  constexpr float k2 = kRate > 0 ? kRate : -kRate, k3 = kRate * k2, k4 = kRate * k3,
                  k5 = kRate * k4, k6 = kRate * k5;
  p = fma(splat(k6 * 1.39504881e-3f), r, splat(k5 * 8.36888794e-3f));
  p = fma(p, r, splat(k4 * 4.16662060e-2f));
  p = fma(p, r, splat(k3 * 1.66665182e-1f));
  p = fma(p, r, splat(k2 * 0.5f));
}

template <class V>
SEQKERN_INLINE V sigmoid_of(V x) {
  V power, r, p;
  exp_parts<-1>(at_least(splat(-88.0f), at_most(splat(88.0f), x)), power, r, p);
  const V e = fma(fma(p, r, splat(-1.0f)), r, splat(1.0f));
  return reciprocal(fma(two_to(power), e, splat(1.0f)));
}

template <class V>
SEQKERN_INLINE V tanh_of(V x) {
  // With e = (exp(-2|x|) - 1) / 2: tanh|x| = -e / (1 + e), and nothing cancels.
  const V size = magnitude(x);
  V power, r, p;
  exp_parts<-2>(at_most(splat(20.0f), size), power, r, p);
  const V scale = two_to(power);
  const V e = less_product(scale, less_product(p * r, r, r), fma(scale, splat(0.5f), splat(-0.5f)));
  V t = quotient(e, e + 1.0f);
  if (!kQuotientOfAny) t = blend(size < 2e-4f, size, t);
  return with_sign(t, x);
}

// exp(x) for x <= 0 (or NaN); results below 2^-126 are 0.
template <class V>
SEQKERN_INLINE V exp_negative(V x) {
  V power, r, p;
  exp_parts<1>(at_least(splat(-87.33f), x), power, r, p);
  const V e = fma(fma(p, r, splat(1.0f)), r, splat(1.0f));
  return blend(x < -87.33f, vf{}, times_power(e, power));
}

// log(1 + u) for u in [0, 1], as 2 atanh(u / (2 + u)).
template <class V>
SEQKERN_INLINE V log_one_plus(V u) {
  const V r = reciprocal(u + 2.0f), y = u * (r + r), s2 = y * y * 0.25f;
  V p = fma(splat(0.07692307692f), s2, splat(0.09090909091f));
  p = fma(p, s2, splat(0.1111111111f));
  p = fma(p, s2, splat(0.1428571429f));
  p = fma(p, s2, splat(0.2f));
  p = fma(p, s2, splat(0.3333333333f));
  return fma(p * s2, y, y);
}

// log(1 / (1 + exp(-x))); leaves exp(-|x|) in u.
template <class V>
SEQKERN_INLINE V log_sigmoid_of(V x, V& u) {
  u = exp_negative(-magnitude(x));
  return at_most(splat(0.0f), x) - log_one_plus(u);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
