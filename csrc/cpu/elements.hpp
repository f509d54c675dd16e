// SPDX-License-Identifier: Apache-2.0
// elements.hpp - typed access for kernels that walk along the last dimension: vectors that end
// with it, and lanes that lie a stride apart.
#pragma once

#include "rows.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

SEQKERN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// One lane of fma(): the same bits.
SEQKERN_INLINE float fma_one(float a, float b, float c) {
#if SEQKERN_LANES >= 8 || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

template <DType E>
struct ElementOf {
  typedef uint16_t Type;
};
template <>
struct ElementOf<DType::kF32> {
  typedef float Type;
};
template <DType E>
using Element = typename ElementOf<E>::Type;

// All bits of the first `count` lanes: x & that is 0 beyond them.
SEQKERN_INLINE vi first_lanes(int64_t count) {
  vi lanes;
  for (int i = 0; i < W; ++i) lanes[i] = i < count ? -1 : 0;
  return lanes;
}
SEQKERN_INLINE vf only(vi lanes, vf x) {
  return reinterpret_cast<vf>(lanes & reinterpret_cast<vi>(x));
}

// A vector of which `left` lanes exist.
template <DType E>
SEQKERN_INLINE vf load_left(const void* base, int64_t i, int64_t left) {
  return left >= W ? load_as<E>(base, i) : load_some<E>(base, i, left);
}

template <DType E>
SEQKERN_INLINE void store_left(void* base, int64_t i, int64_t left, vf x) {
  if (left >= W)
    store_as<E>(base, i, x);
  else
    store_some<E>(base, i, left, x);
}

// The `lanes` values base[at], base[at + stride], ...; the other lanes are 0.
template <DType E>
SEQKERN_INLINE vf gather(const Element<E>* base, int64_t at, int64_t stride, int64_t lanes) {
  Element<E> lane[W] = {};
  for (int64_t l = 0; l < lanes; ++l) lane[l] = base[at + l * stride];
  return load_as<E>(lane, 0);
}

template <DType E>
SEQKERN_INLINE void scatter(Element<E>* base, int64_t at, int64_t stride, int64_t lanes, vf x) {
  Element<E> lane[W];
  store_as<E>(lane, 0, x);
  for (int64_t l = 0; l < lanes; ++l) base[at + l * stride] = lane[l];
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
