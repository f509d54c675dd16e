// SPDX-License-Identifier: Apache-2.0
// lssl_fft.hpp - complex Fourier transforms of n vectors, one transform per lane.
//
// Maths      X_f = sum_t x_t w^(f t), w = exp(-2 pi i / n), for x that is 0 from n / 2 on; and of
//            the inverse, n times too large, the first half.
// Layout     element t: kL real parts, then kL imaginary parts. Frequencies lie in the order in
//            which decimation leaves them; the inverse undoes it, so nothing is ever reordered.
// Cost       n = R m, R 3 or 4, m a power of 2: a pass that knows the zeros, passes of radix 4 and
//            a last one of radix 4 or 8, about 17 log2 n / 4 operations an element. Blocks are
//            finished one after the other: all but the first passes stay in the first cache.
// Precision  of the vectors; twiddle factors rounded once from f64.
// Threads    none.
#pragma once

#include "lssl_system.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

template <class V>
struct Complex {
  typename V::Vec re, im;
};

template <class V>
SEQKERN_INLINE Complex<V> get(const typename V::T* x, int64_t i) {
  return {V::load(x + 2 * i * V::kLanes), V::load(x + (2 * i + 1) * V::kLanes)};
}

template <class V>
SEQKERN_INLINE void put(typename V::T* x, int64_t i, Complex<V> a) {
  V::store(x + 2 * i * V::kLanes, a.re);
  V::store(x + (2 * i + 1) * V::kLanes, a.im);
}

template <class V>
SEQKERN_INLINE Complex<V> plus(Complex<V> a, Complex<V> b) {
  return {a.re + b.re, a.im + b.im};
}

template <class V>
SEQKERN_INLINE Complex<V> minus(Complex<V> a, Complex<V> b) {
  return {a.re - b.re, a.im - b.im};
}

// -i a
template <class V>
SEQKERN_INLINE Complex<V> turned(Complex<V> a) {
  return {a.im, -a.re};
}

// a b, or a conj(b).
template <class V, bool Conjugate>
SEQKERN_INLINE Complex<V> times(Complex<V> a, Complex<V> b) {
  const typename V::Vec im = Conjugate ? -b.im : b.im;
  return {V::fma(a.re, b.re, -(a.im * im)), V::fma(a.im, b.re, a.re * im)};
}

// c + a b, or c + a conj(b).
template <class V, bool Conjugate>
SEQKERN_INLINE Complex<V> add_times(Complex<V> c, Complex<V> a, Complex<V> b) {
  const typename V::Vec im = Conjugate ? -b.im : b.im;
  return {V::fma(a.re, b.re, V::fma(-a.im, im, c.re)), V::fma(a.im, b.re, V::fma(a.re, im, c.im))};
}

// A twiddle factor in all lanes.
template <class V>
SEQKERN_INLINE Complex<V> factor(const typename V::T* w) {
  return {V::splat(w[0]), V::splat(w[1])};
}

// The four sums over q of a_q i^(-q r), or i^(q r) for the inverse.
template <class V, bool Inverse>
SEQKERN_INLINE void four(Complex<V> (&a)[4]) {
  const Complex<V> even = plus<V>(a[0], a[2]), odd = plus<V>(a[1], a[3]);
  const Complex<V> rest = minus<V>(a[0], a[2]), side = turned<V>(minus<V>(a[1], a[3]));
  a[0] = plus<V>(even, odd);
  a[2] = minus<V>(even, odd);
  a[Inverse ? 3 : 1] = plus<V>(rest, side);
  a[Inverse ? 1 : 3] = minus<V>(rest, side);
}

// One pass of radix 4 over m elements.
template <class V, bool Inverse>
inline void pass_four(typename V::T* x, int64_t m, const typename V::T* w) {
  const int64_t quarter = m / 4;
  for (int64_t k = 0; k < quarter; ++k, w += 6) {
    Complex<V> a[4];
    for (int q = 0; q < 4; ++q) {
      a[q] = get<V>(x, k + q * quarter);
      if (Inverse && q > 0) a[q] = times<V, true>(a[q], factor<V>(w + 2 * (q - 1)));
    }
    four<V, Inverse>(a);
    for (int q = 0; q < 4; ++q) {
      if (!Inverse && q > 0) a[q] = times<V, false>(a[q], factor<V>(w + 2 * (q - 1)));
      put<V>(x, k + q * quarter, a[q]);
    }
  }
}

// The last pass of the forward transform, the first of the inverse: 4 or 8 elements.
template <class V, bool Inverse>
inline void smallest_four(typename V::T* x) {
  Complex<V> a[4];
  for (int q = 0; q < 4; ++q) a[q] = get<V>(x, q);
  four<V, Inverse>(a);
  for (int q = 0; q < 4; ++q) put<V>(x, q, a[q]);
}

// a times exp(-2 pi i k / 8), or its inverse.
template <class V, bool Inverse, int K>
SEQKERN_INLINE Complex<V> eighths(Complex<V> a) {
  typedef typename V::T T;
  constexpr T kHalfRoot = static_cast<T>(0.70710678118654752440);
  if constexpr (K == 0) return a;
  if constexpr (K == 1) return times<V, Inverse>(a, {V::splat(kHalfRoot), V::splat(-kHalfRoot)});
  if constexpr (K == 2) {
    const Complex<V> b = turned<V>(a);
    return Inverse ? Complex<V>{-b.re, -b.im} : b;
  }
  return times<V, Inverse>(a, {V::splat(-kHalfRoot), V::splat(-kHalfRoot)});
}

template <class V, bool Inverse>
inline void smallest_eight(typename V::T* x) {
  Complex<V> a[4], b[4];
  if constexpr (!Inverse) {
    for (int q = 0; q < 4; ++q) {
      const Complex<V> low = get<V>(x, q), high = get<V>(x, q + 4);
      a[q] = plus<V>(low, high);
      b[q] = minus<V>(low, high);
    }
    b[1] = eighths<V, false, 1>(b[1]);
    b[2] = eighths<V, false, 2>(b[2]);
    b[3] = eighths<V, false, 3>(b[3]);
  } else {
    for (int q = 0; q < 4; ++q) {
      a[q] = get<V>(x, q);
      b[q] = get<V>(x, q + 4);
    }
  }
  four<V, Inverse>(a);
  four<V, Inverse>(b);
  if constexpr (Inverse) {
    b[1] = eighths<V, true, 1>(b[1]);
    b[2] = eighths<V, true, 2>(b[2]);
    b[3] = eighths<V, true, 3>(b[3]);
  }
  for (int q = 0; q < 4; ++q) {
    put<V>(x, q, Inverse ? plus<V>(a[q], b[q]) : a[q]);
    put<V>(x, q + 4, Inverse ? minus<V>(a[q], b[q]) : b[q]);
  }
}

// The transform of m = 2^k >= 4 elements in place; `w` holds the factors of m, m / 4, ...
template <class V, bool Inverse>
inline void power_of_two(typename V::T* x, int64_t m, const typename V::T* w) {
  if (m == 4) return smallest_four<V, Inverse>(x);
  if (m == 8) return smallest_eight<V, Inverse>(x);
  if (!Inverse) pass_four<V, false>(x, m, w);
  for (int q = 0; q < 4; ++q)
    power_of_two<V, Inverse>(x + 2 * q * (m / 4) * V::kLanes, m / 4, w + 6 * (m / 4));
  if (Inverse) pass_four<V, true>(x, m, w);
}

// The first pass, from `from(t)` for t < L <= n / 2 to the workspace. The factors of k are those of
// the elements k and k + m, for the blocks 1 to R - 1.
template <class V, int R, class From>
SEQKERN_INLINE void first_pass(const LsslSpectrum& s, int64_t L, const From& from,
                               typename V::T* x) {
  const int64_t m = s.rest;
  const typename V::T* w = static_cast<const typename V::T*>(s.first);
  const int64_t both = L > m ? L - m : 0;
  for (int64_t k = 0; k < m; ++k, w += 4 * (R - 1)) {
    const bool one = k < L, two = k < both;
    const Complex<V> a = one ? from(k) : Complex<V>{};
    if (two) {
      const Complex<V> b = from(k + m);
      put<V>(x, k, plus<V>(a, b));
      for (int r = 1; r < R; ++r) {
        const Complex<V> c = times<V, false>(a, factor<V>(w + 2 * (r - 1)));
        const Complex<V> d = factor<V>(w + 2 * (R - 1) + 2 * (r - 1));
        put<V>(x, k + r * m, add_times<V, false>(c, b, d));
      }
    } else {
      put<V>(x, k, a);
      for (int r = 1; r < R; ++r)
        put<V>(x, k + r * m, times<V, false>(a, factor<V>(w + 2 * (r - 1))));
    }
  }
}

// The last pass of the inverse, to `to(t, value)` for t < L.
template <class V, int R, class To>
SEQKERN_INLINE void last_pass(const LsslSpectrum& s, int64_t L, const typename V::T* x,
                              const To& to) {
  const int64_t m = s.rest, end = L < m ? L : m;
  const typename V::T* w = static_cast<const typename V::T*>(s.first);
  for (int64_t k = 0; k < end; ++k, w += 4 * (R - 1)) {
    Complex<V> a = get<V>(x, k), b = a;
    for (int r = 1; r < R; ++r) {
      const Complex<V> c = get<V>(x, k + r * m);
      a = add_times<V, true>(a, c, factor<V>(w + 2 * (r - 1)));
      b = add_times<V, true>(b, c, factor<V>(w + 2 * (R - 1) + 2 * (r - 1)));
    }
    to(k, a);
    if (k + m < L) to(k + m, b);
  }
}

// `after(begin, end)` is called for every block that is finished, while it is in the first cache.
template <class V, class From, class After>
inline void transform(const LsslSpectrum& s, int64_t L, const From& from, typename V::T* x,
                      const After& after) {
  s.radix == 3 ? first_pass<V, 3>(s, L, from, x) : first_pass<V, 4>(s, L, from, x);
  const typename V::T* w = static_cast<const typename V::T*>(s.passes);
  for (int64_t begin = 0; begin < s.radix * s.rest; begin += s.rest) {
    power_of_two<V, false>(x + 2 * begin * V::kLanes, s.rest, w);
    after(begin, begin + s.rest);
  }
}

// `before(begin, end)` fills in a block.
template <class V, class Before, class To>
inline void transform_back(const LsslSpectrum& s, int64_t L, typename V::T* x, const Before& before,
                           const To& to) {
  const typename V::T* w = static_cast<const typename V::T*>(s.passes);
  for (int64_t begin = 0; begin < s.radix * s.rest; begin += s.rest) {
    before(begin, begin + s.rest);
    power_of_two<V, true>(x + 2 * begin * V::kLanes, s.rest, w);
  }
  s.radix == 3 ? last_pass<V, 3>(s, L, x, to) : last_pass<V, 4>(s, L, x, to);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
