// SPDX-License-Identifier: Apache-2.0
// side.hpp - vectors side by side, for formulas that are one long chain.
//
// A core looks only so far ahead for work that need not wait. With one formula of thirty dependent
// operations after the other its units idle; over Side<n> every operation is done for n vectors
// before the next one, so that n chains go on at once. A function over `V` takes either: vf, or
// Side<n>; its constants are vf or float.
#pragma once

#include "simd.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// T: vf, or vi for masks.
template <int n, class T = vf>
struct Side {
  T x[n];
};

// {f(0), f(1), ...}
template <int n, class F>
SEQKERN_INLINE auto side(F f) {
  Side<n, decltype(f(0))> y;
  for (int i = 0; i < n; ++i) y.x[i] = f(i);
  return y;
}

// The n vectors that begin at x.
template <int n>
SEQKERN_INLINE Side<n> load_vectors(const float* x) {
  return side<n>([&](int i) __attribute__((always_inline)) { return load(x + i * W); });
}
template <int n>
SEQKERN_INLINE void store_vectors(float* x, const Side<n>& y) {
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) store(x + i * W, y.x[i]);
}

template <class V>
constexpr int kVectors = 0;
template <int n, class T>
constexpr int kVectors<Side<n, T>> = n;

template <class... V>
constexpr int most_vectors() {
  int n = 0;
  ((n = kVectors<V> > n ? kVectors<V> : n), ...);
  return n;
}

template <class... V>
concept Beside = most_vectors<V...>() > 0;

// What each() takes of its arguments: of a constant one register for all of them. With few
// registers GCC may read it from memory for every use, and loads are soon what bounds the loop.
SEQKERN_INLINE vf shared(vf x) {
#if SEQKERN_LANES == 8
  asm("" : "+x"(x));
#endif
  return x;
}
SEQKERN_INLINE vf shared(float x) { return shared(splat(x)); }
template <int n, class T>
SEQKERN_INLINE const Side<n, T>& shared(const Side<n, T>& x) {
  return x;
}

SEQKERN_INLINE vf part(vf x, int) { return x; }
template <int n, class T>
SEQKERN_INLINE T part(const Side<n, T>& x, int i) {
  return x.x[i];
}

template <class F, class... V>
SEQKERN_INLINE auto each_of(F f, const V&... args) {
  constexpr int n = most_vectors<V...>();
  Side<n, decltype(f(part(args, 0)...))> y;
  for (int i = 0; i < n; ++i) y.x[i] = f(part(args, i)...);
  return y;
}

// f(args...) for each vector.
template <class F, class... V>
SEQKERN_INLINE auto each(F f, const V&... args) {
  return each_of(f, shared(args)...);
}

// Declares the function `name` of vectors for vectors side by side.
#define SEQKERN_BESIDE(name)                                                           \
  template <class... V>                                                                \
  requires Beside<V...> SEQKERN_INLINE auto name(const V&... args) {                   \
    return each(                                                                       \
        [](auto... v) __attribute__((always_inline)) { return name(v...); }, args...); \
  }
#define SEQKERN_BESIDE_OPERATOR(op)                                                  \
  template <class A, class B>                                                        \
  requires Beside<A, B> SEQKERN_INLINE auto operator op(const A& a, const B& b) {    \
    return each(                                                                     \
        [](auto u, auto v) __attribute__((always_inline)) { return u op v; }, a, b); \
  }

template <int n>
SEQKERN_INLINE Side<n> operator-(const Side<n>& x) {
  return each(
      [](vf v) __attribute__((always_inline)) { return -v; }, x);
}
SEQKERN_BESIDE_OPERATOR(+)
SEQKERN_BESIDE_OPERATOR(-)
SEQKERN_BESIDE_OPERATOR(*)
SEQKERN_BESIDE_OPERATOR(/)
SEQKERN_BESIDE_OPERATOR(<)
SEQKERN_BESIDE_OPERATOR(>)
SEQKERN_BESIDE_OPERATOR(<=)
SEQKERN_BESIDE_OPERATOR(>=)
SEQKERN_BESIDE_OPERATOR(==)
SEQKERN_BESIDE_OPERATOR(|)
SEQKERN_BESIDE(fma)
SEQKERN_BESIDE(fnma)
SEQKERN_BESIDE(blend)
SEQKERN_BESIDE(at_most)
SEQKERN_BESIDE(at_least)
SEQKERN_BESIDE(magnitude)
SEQKERN_BESIDE(power_of_shifted)
SEQKERN_BESIDE(scale_by_power)

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
