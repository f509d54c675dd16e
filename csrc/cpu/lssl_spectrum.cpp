// SPDX-License-Identifier: Apache-2.0
// lssl_spectrum.cpp - sizes and twiddle factors of the transforms in lssl_fft.hpp.
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "../include/seqkern/lssl.h"

namespace seqkern {
namespace {

template <class T>
struct Twiddles {
  const int64_t radix, rest;
  std::vector<T> first, passes;
  const Twiddles* next = nullptr;  // computed before

  explicit Twiddles(const LsslSpectrum& s) : radix(s.radix), rest(s.rest) {
    const int64_t n = s.radix * s.rest;
    for (int64_t k = 0; k < s.rest; ++k)
      for (int64_t q = 0; q < 2; ++q)
        for (int64_t r = 1; r < s.radix; ++r) append(first, r * (k + q * s.rest) % n, n);
    for (int64_t m = s.rest; m > 8; m /= 4)
      for (int64_t k = 0; k < m / 4; ++k)
        for (int64_t r = 1; r < 4; ++r) append(passes, r * k, m);
  }

  // exp(-2 pi i j / n)
  static void append(std::vector<T>& to, int64_t j, int64_t n) {
    // Wider than double where there is such a type: the angle's rounding would be seen in f64.
    const long double angle = 6.283185307179586476925286766559L * static_cast<long double>(j) /
                              static_cast<long double>(n);
    to.push_back(static_cast<T>(std::cos(angle)));
    to.push_back(static_cast<T>(-std::sin(angle)));
  }
};

// Those of `s` among `from` and what was computed before it, up to `end`; or null.
template <class T>
const Twiddles<T>* found(const LsslSpectrum& s, const Twiddles<T>* from, const Twiddles<T>* end) {
  while (from != end && !(from->radix == s.radix && from->rest == s.rest)) from = from->next;
  return from != end ? from : nullptr;
}

// A list that only grows, without a lock: a child of fork() has no thread that could give back one
// that another thread held. Never destroyed: a kernel may run while the process ends.
template <class T>
const Twiddles<T>* twiddles(const LsslSpectrum& s) {
  static std::atomic<const Twiddles<T>*> newest{nullptr};
  const Twiddles<T>* known = newest.load(std::memory_order_acquire);
  if (const auto* before = found<T>(s, known, nullptr)) return before;
  auto own = std::make_unique<Twiddles<T>>(s);
  own->next = known;
  // Whoever was first at a size is the one whom all follow.
  while (!newest.compare_exchange_weak(known, own.get(), std::memory_order_acq_rel,
                                       std::memory_order_acquire)) {
    if (const auto* other = found<T>(s, known, own->next)) return other;
    own->next = known;
  }
  return own.release();
}

template <class T>
LsslSpectrum with_twiddles(LsslSpectrum s) {
  const Twiddles<T>* const computed = twiddles<T>(s);
  s.first = computed->first.data();
  s.passes = computed->passes.data();
  return s;
}

}  // namespace

LsslSpectrum lssl_spectrum(int64_t L, bool f64) {
  LsslSpectrum s;
  s.radix = 4;
  s.rest = 4;
  while (s.radix * s.rest < 2 * L) s.rest *= 2;
  if (3 * s.rest >= 2 * L) s.radix = 3;
  return f64 ? with_twiddles<double>(s) : with_twiddles<float>(s);
}

}  // namespace seqkern
