// SPDX-License-Identifier: Apache-2.0
// lssl_spectrum.cpp - sizes and twiddle factors of the transforms in lssl_fft.hpp.
#include <cmath>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "../include/seqkern/lssl.h"

namespace seqkern {
namespace {

template <class T>
struct Twiddles {
  std::vector<T> first, passes;

  explicit Twiddles(const LsslSpectrum& s) {
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

template <class T>
LsslSpectrum with_twiddles(LsslSpectrum s) {
  // Never destroyed: a kernel may run while the process ends.
  static std::mutex* const mutex = new std::mutex;
  static auto* const all = new std::map<std::pair<int64_t, int64_t>, Twiddles<T>>;
  const std::lock_guard<std::mutex> lock(*mutex);
  const auto at = all->try_emplace({s.radix, s.rest}, s).first;
  s.first = at->second.first.data();
  s.passes = at->second.passes.data();
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
