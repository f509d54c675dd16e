// SPDX-License-Identifier: Apache-2.0
// linear_scan.hpp - the diagonal linear scan, forward and backward.
//
// Maths      x_t = a_t x_{t-1} + b_t
//            g_t = dx_t + conj(a_{t+1}) g_{t+1};  db_t = g_t;  da_t = g_t conj(x_{t-1});
//            dh0 = conj(a_0) g_0
// Layout     a, b, x: [time][D] with any time stride; vectors run over channels. Complex numbers
//            lie as pairs, and a vector holds W / 2 of them.
// Precision  a, b, x and the gradients f32, bf16 or f16; the state and the gradient that is carried
//            f32: they are not rounded from step to step.
// Cost       bound by memory: forward reads a and b and writes x, backward reads dx, a and x and
//            writes da and db. What is carried stays in the first-level cache.
// Limits     T, D any; D even for complex numbers; offsets int64.
// Threads    none: the caller splits sequences x channels.
#pragma once

#include "../include/seqkern/linear_scan.h"
#include "elements.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

template <int... L>
SEQKERN_INLINE vf swap_pairs(vf x) {
  return __builtin_shufflevector(x, x, (L ^ 1)...);
}

template <int... L>
SEQKERN_INLINE vf pick_real(vf x) {
  return __builtin_shufflevector(x, x, (L & ~1)...);
}

template <int... L>
SEQKERN_INLINE vf pick_imaginary(vf x) {
  return __builtin_shufflevector(x, x, (L | 1)...);
}

// -, +, -, +, ...: what the imaginary part is multiplied with on its way to either lane.
template <int... L>
SEQKERN_INLINE vf alternate(vf x) {
  return x * vf{(L & 1 ? 1.0f : -1.0f)...};
}

#if SEQKERN_LANES == 16
#define SEQKERN_EACH_LANE 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif SEQKERN_LANES == 8
#define SEQKERN_EACH_LANE 0, 1, 2, 3, 4, 5, 6, 7
#else
#define SEQKERN_EACH_LANE 0, 1, 2, 3
#endif

// a x + b of real numbers, or of pairs; with kConjugate conj(a) x + b.
template <bool kComplex, bool kConjugate>
SEQKERN_INLINE vf multiply_add(vf a, vf x, vf b) {
  if constexpr (!kComplex) {
    return fma(a, x, b);
  } else {
    const vf turned = alternate<SEQKERN_EACH_LANE>(pick_imaginary<SEQKERN_EACH_LANE>(a));
    const vf swapped = swap_pairs<SEQKERN_EACH_LANE>(x);
    return fma(pick_real<SEQKERN_EACH_LANE>(a), x, fma(kConjugate ? -turned : turned, swapped, b));
  }
}

#undef SEQKERN_EACH_LANE

struct LinearScanPart {
  int64_t i_b, start, length, count;
};

inline LinearScanPart linear_scan_part(const LinearScan& p, int64_t i_n, int64_t channel) {
  const int64_t count = smaller(kLinearScanChannels, p.D - channel);
  if (p.cu_seqlens == nullptr) return {i_n, 0, p.T, count};
  return {0, p.cu_seqlens[i_n], p.cu_seqlens[i_n + 1] - p.cu_seqlens[i_n], count};
}

template <DType E>
SEQKERN_INLINE Element<E>* scan_row(const View& v, const LinearScanPart& s, int64_t t,
                                    int64_t channel) {
  return static_cast<Element<E>*>(v.data) + s.i_b * v.batch_stride + (s.start + t) * v.time_stride +
         channel;
}

// Full vectors only; `stream`: of float32, at an aligned address.
template <DType E>
SEQKERN_INLINE void store_or_stream_as(Element<E>* base, int64_t i, vf x, bool stream_it) {
  if constexpr (E == DType::kF32)
    if (stream_it) return stream(base + i, x);
  store_as<E>(base, i, x);
}

inline void load_carried(const float* from, int64_t count, float* to) {
  if (from == nullptr)
    memset(to, 0, kLinearScanChannels * sizeof(float));
  else
    memcpy(to, from, count * sizeof(float));
}

template <DType E, bool kComplex>
inline void linear_scan_forward_as(const LinearScan& p, int64_t i_n, int64_t channel) {
  const LinearScanPart s = linear_scan_part(p, i_n, channel);
  alignas(64) float x[kLinearScanChannels];
  load_carried(p.h0 != nullptr ? p.h0 + i_n * p.D + channel : nullptr, s.count, x);
  for (int64_t t = 0; t < s.length; ++t) {
    const Element<E>*a = scan_row<E>(p.a, s, t, channel), *b = scan_row<E>(p.b, s, t, channel);
    Element<E>* out = scan_row<E>(p.x, s, t, channel);
    int64_t c = 0;
    for (; c + W <= s.count; c += W) {
      const vf next =
          multiply_add<kComplex, false>(load_as<E>(a, c), load(x + c), load_as<E>(b, c));
      store(x + c, next);
      store_or_stream_as<E>(out, c, next, p.stream);
    }
    if (c < s.count) {
      const int64_t left = s.count - c;
      const vf next = multiply_add<kComplex, false>(load_some<E>(a, c, left), load(x + c),
                                                    load_some<E>(b, c, left));
      store(x + c, next);
      store_some<E>(out, c, left, next);
    }
  }
  stream_end();
}

template <DType E, bool kComplex>
SEQKERN_INLINE void linear_scan_back_vector(const Element<E>* dx, const Element<E>* a,
                                            const Element<E>* before, Element<E>* da,
                                            Element<E>* db, float* carried, int64_t c, int64_t left,
                                            bool stream_it) {
  const vf g = load(carried + c) + load_left<E>(dx, c, left);
  const vf da_c = multiply_add<kComplex, true>(load_left<E>(before, c, left), g, vf{});
  if (left >= W) {
    store_or_stream_as<E>(db, c, g, stream_it);
    store_or_stream_as<E>(da, c, da_c, stream_it);
  } else {
    store_some<E>(db, c, left, g);
    store_some<E>(da, c, left, da_c);
  }
  store(carried + c, multiply_add<kComplex, true>(load_left<E>(a, c, left), g, vf{}));
}

template <DType E, bool kComplex>
inline void linear_scan_backward_as(const LinearScanGrad& d, int64_t i_n, int64_t channel) {
  const LinearScan& p = d.in;
  const LinearScanPart s = linear_scan_part(p, i_n, channel);
  alignas(64) float carried[kLinearScanChannels];
  Element<E> first[kLinearScanChannels];  // h0 in the dtype of the rows
  load_carried(nullptr, 0, carried);
  memset(first, 0, sizeof first);
  if (p.h0 != nullptr && s.length > 0) {
    for (int64_t c = 0; c < s.count; c += W)
      store_left<E>(first, c, s.count - c,
                    load_left<DType::kF32>(p.h0 + i_n * p.D + channel, c, s.count - c));
  }
  for (int64_t t = s.length - 1; t >= 0; --t) {
    const Element<E>*dx = scan_row<E>(d.dx, s, t, channel), *a = scan_row<E>(p.a, s, t, channel);
    const Element<E>* before = t > 0 ? scan_row<E>(p.x, s, t - 1, channel) : first;
    Element<E>*da = scan_row<E>(d.da, s, t, channel), *db = scan_row<E>(d.db, s, t, channel);
    int64_t c = 0;
    for (; c + W <= s.count; c += W)
      linear_scan_back_vector<E, kComplex>(dx, a, before, da, db, carried, c, W, d.stream);
    if (c < s.count)
      linear_scan_back_vector<E, kComplex>(dx, a, before, da, db, carried, c, s.count - c,
                                           d.stream);
  }
  stream_end();
  if (d.dh0 != nullptr) memcpy(d.dh0 + i_n * p.D + channel, carried, s.count * sizeof(float));
}

inline void linear_scan_forward(const LinearScan& p, int64_t i_n, int64_t channel) {
  const FlushSubnormals flush;
  if (p.complex) return linear_scan_forward_as<DType::kF32, true>(p, i_n, channel);
  if (p.a.dtype == DType::kF32) return linear_scan_forward_as<DType::kF32, false>(p, i_n, channel);
  if (p.a.dtype == DType::kBF16)
    return linear_scan_forward_as<DType::kBF16, false>(p, i_n, channel);
  linear_scan_forward_as<DType::kF16, false>(p, i_n, channel);
}

inline void linear_scan_backward(const LinearScanGrad& d, int64_t i_n, int64_t channel) {
  const FlushSubnormals flush;
  if (d.in.complex) return linear_scan_backward_as<DType::kF32, true>(d, i_n, channel);
  if (d.in.a.dtype == DType::kF32)
    return linear_scan_backward_as<DType::kF32, false>(d, i_n, channel);
  if (d.in.a.dtype == DType::kBF16)
    return linear_scan_backward_as<DType::kBF16, false>(d, i_n, channel);
  linear_scan_backward_as<DType::kF16, false>(d, i_n, channel);
}

constexpr LinearScanKernels linear_scan_kernels = {&linear_scan_forward, &linear_scan_backward};

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
