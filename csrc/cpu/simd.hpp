// SPDX-License-Identifier: Apache-2.0
// simd.hpp - a vector of W floats, and the few operations that every kernel is written in.
//
// The file that includes this one is compiled once per instruction set (csrc/cpu/isa/) and defines
//   SEQKERN_ISA      the namespace of the instruction set
//   SEQKERN_LANES    W: 16 (AVX-512), 8 (AVX2), 4 (NEON and the baseline)
// Everything below is internal to that translation unit. Nothing of the C++ library is
// instantiated here: an inline function compiled for AVX-512 must never be the copy that the
// linker keeps for everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define SEQKERN_INLINE_MEMBER inline __attribute__((always_inline))
#define SEQKERN_INLINE static SEQKERN_INLINE_MEMBER

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr int W = SEQKERN_LANES;

typedef float vf __attribute__((vector_size(4 * W)));
typedef float vf_unaligned __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef uint16_t vh_unaligned __attribute__((vector_size(2 * W), aligned(2), may_alias));

SEQKERN_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
SEQKERN_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }

// A load() whose result stays in a register. With few of those GCC may read memory again for every
// use, and loads are what bounds a small tile.
SEQKERN_INLINE vf load_once(const float* p) {
  vf x = load(p);
#if SEQKERN_LANES == 8
  asm("" : "+x"(x));
#endif
  return x;
}
// `x`, which is not read from memory again, or spilled, for want of foresight.
SEQKERN_INLINE vf in_register(vf x) {
#if SEQKERN_LANES == 16
  asm("" : "+v"(x));
#endif
  return x;
}

// store() past the caches, at an aligned address, where the instruction set has it; elsewhere a
// plain store(). The kLineVectors vectors of a cache line must follow one another: a line that is
// written in parts is read first. Other threads see it after stream_end().
constexpr bool kStreams = W >= 8;
constexpr int kLineVectors = 16 / W;
SEQKERN_INLINE void stream(float* p, vf x) {
#if SEQKERN_LANES == 16
  _mm512_stream_ps(p, x);
#elif SEQKERN_LANES == 8
  _mm256_stream_ps(p, x);
#else
  store(p, x);
#endif
}
SEQKERN_INLINE void stream_end() {
#if SEQKERN_LANES >= 8
  _mm_sfence();
#endif
}

// Asks for the cache line `bytes` bytes from `base`, which need not exist.
SEQKERN_INLINE void prefetch(const void* base, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) +
                                                   static_cast<uintptr_t>(bytes)));
}
SEQKERN_INLINE void prefetch_to_write(const void* base, int64_t bytes = 0) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) +
                                                   static_cast<uintptr_t>(bytes)),
                     1);
}

// x - 0 is x for every x, -0 and NaN included, and compiles to one broadcast.
SEQKERN_INLINE vf splat(float x) {
#if SEQKERN_LANES == 16
  return _mm512_set1_ps(x);
#elif SEQKERN_LANES == 8
  return _mm256_set1_ps(x);
#else
  return x - vf{};
#endif
}

// a * b + c, fused where the instruction set has it.
SEQKERN_INLINE vf fma(vf a, vf b, vf c) {
#if SEQKERN_LANES == 16
  return _mm512_fmadd_ps(a, b, c);
#elif SEQKERN_LANES == 8
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// c - a * b
SEQKERN_INLINE vf fnma(vf a, vf b, vf c) { return fma(-a, b, c); }

SEQKERN_INLINE vf blend(vi mask, vf yes, vf no) { return mask ? yes : no; }

// min(limit, x) and max(limit, x); NaN in x stays NaN.
SEQKERN_INLINE vf at_most(vf limit, vf x) {
#if SEQKERN_LANES == 16
  return _mm512_min_ps(limit, x);
#elif SEQKERN_LANES == 8
  return _mm256_min_ps(limit, x);
#else
  return blend(x > limit, limit, x);
#endif
}

SEQKERN_INLINE vf at_least(vf limit, vf x) {
#if SEQKERN_LANES == 16
  return _mm512_max_ps(limit, x);
#elif SEQKERN_LANES == 8
  return _mm256_max_ps(limit, x);
#else
  return blend(x < limit, limit, x);
#endif
}

SEQKERN_INLINE vf magnitude(vf x) {
  return reinterpret_cast<vf>(reinterpret_cast<vi>(x) & 0x7fffffff);
}

// 2^n from 1.5 * 2^23 + 127 + n, n in [-127, 127]: the last bits of that are the exponent. -127
// gives 0, as subnormal numbers are here.
SEQKERN_INLINE vf power_of_shifted(vf x) {
  return reinterpret_cast<vf>(reinterpret_cast<vi>(x) << 23);
}

// x 2^n for whole n in [-151, 129]; NaN in x stays NaN.
SEQKERN_INLINE vf scale_by_power(vf x, vf n) {
#if SEQKERN_LANES == 16
  return _mm512_scalef_ps(x, n);
#else
  // In two factors, so that neither leaves the range of normal numbers.
  const vi whole = __builtin_convertvector(n, vi);
  const vi half = whole >> 1;
  const vi first = (half + 127) << 23, second = (whole - half + 127) << 23;
  return x * reinterpret_cast<vf>(first) * reinterpret_cast<vf>(second);
#endif
}

SEQKERN_INLINE float sum(vf x) {
  float lane[W];
  memcpy(lane, &x, sizeof x);
  for (int step = W / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lane[i] += lane[i + step];
  return lane[0];
}

// One step of the butterfly that transposes: exchanges the S-wide halves of every 2 S lanes.
//   lo = a where bit S of the lane is clear, b moved up by S where it is set;  hi is the mirror.
template <int S, int... L>
SEQKERN_INLINE void exchange(vf a, vf b, vf& lo, vf& hi) {
  lo = __builtin_shufflevector(a, b, ((L & S) ? W + L - S : L)...);
  hi = __builtin_shufflevector(a, b, ((L & S) ? W + L : L + S)...);
}

template <int S>
SEQKERN_INLINE void exchange_all(vf a, vf b, vf& lo, vf& hi) {
#if SEQKERN_LANES == 16
  exchange<S, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>(a, b, lo, hi);
#elif SEQKERN_LANES == 8
  exchange<S, 0, 1, 2, 3, 4, 5, 6, 7>(a, b, lo, hi);
#else
  exchange<S, 0, 1, 2, 3>(a, b, lo, hi);
#endif
}

template <int S>
SEQKERN_INLINE void transpose_steps(vf (&x)[W]) {
  if constexpr (S > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if ((i & S) == 0) {
        vf lo, hi;
        exchange_all<S>(x[i], x[i + S], lo, hi);
        x[i] = lo;
        x[i + S] = hi;
      }
    transpose_steps<S / 2>(x);
  }
}

// x[i] lane j  <->  x[j] lane i.
SEQKERN_INLINE void transpose(vf (&x)[W]) { transpose_steps<W / 2>(x); }

template <int S>
SEQKERN_INLINE vf sum_steps(vf (&x)[W]) {
  if constexpr (S == 0) {
    return x[0];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < S; ++i) {
      vf lo, hi;
      exchange_all<S>(x[i], x[i + S], lo, hi);
      x[i] = lo + hi;
    }
    return sum_steps<S / 2>(x);
  }
}

// Lane i of the result is the sum over the lanes of x[i].
SEQKERN_INLINE vf sum_each(vf (&x)[W]) { return sum_steps<W / 2>(x); }

SEQKERN_INLINE float rsqrt_exact(float x) { return 1.0f / __builtin_sqrtf(x); }

// Subnormal numbers are flushed to zero while a kernel runs: a decayed state passes through them
// for many steps, and every operation on one costs more than a hundred normal ones.
class FlushSubnormals {
 public:
  FlushSubnormals() {
#if defined(__x86_64__)
    saved_ = _mm_getcsr();
    _mm_setcsr(static_cast<unsigned>(saved_) | 0x8040u);
#elif defined(__aarch64__)
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (1ull << 24)));
#endif
  }
  ~FlushSubnormals() {
#if defined(__x86_64__)
    _mm_setcsr(static_cast<unsigned>(saved_));
#elif defined(__aarch64__)
    asm volatile("msr fpcr, %0" : : "r"(saved_));
#endif
  }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  uint64_t saved_ = 0;
};

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
