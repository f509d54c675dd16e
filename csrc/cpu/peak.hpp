// SPDX-License-Identifier: Apache-2.0
// peak.hpp - what one thread reaches with multiply-adds on registers alone: the roof under which
// the benchmarks place every kernel.
#pragma once

#include <time.h>

#include "simd.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

inline double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Twelve independent chains hide the latency of the multiply-add on every core we know.
constexpr int kChains = 12;

inline double fma_peak(double seconds) {
  const vf x = splat(0.999f), y = splat(1e-3f);
  double best = 0.0;
  const double start = now();
  do {
    vf acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = splat(static_cast<float>(i));
    constexpr int kRounds = 20000;
    const double before = now();
    for (int r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], x, y);
      asm volatile("" ::: "memory");
    }
    const double taken = now() - before;
    for (int i = 0; i < kChains; ++i) {
      const volatile float keep = acc[i][0];
      (void)keep;
    }
    const double rate = 2.0 * W * kChains * kRounds / taken * 1e-9;
    best = rate > best ? rate : best;
  } while (now() - start < seconds);
  return best;
}

#if defined(SEQKERN_BF16_DOT)
inline double bf16_dot_peak(double seconds) {
  const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f7f3f7f));
  double best = 0.0;
  const double start = now();
  do {
    __m512 acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
    constexpr int kRounds = 20000;
    const double before = now();
    for (int r = 0; r < kRounds; ++r) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], x, x);
      asm volatile("" ::: "memory");
    }
    const double taken = now() - before;
    for (int i = 0; i < kChains; ++i) {
      const volatile float keep = acc[i][0];
      (void)keep;
    }
    const double rate = 4.0 * W * kChains * kRounds / taken * 1e-9;
    best = rate > best ? rate : best;
  } while (now() - start < seconds);
  return best;
}
#endif

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
