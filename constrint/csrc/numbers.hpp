// SPDX-License-Identifier: Apache-2.0
// numbers.hpp - integer arithmetic that never wraps.
//
// Types      I: what domains hold, int64_t (|bound| < 2^62) or __int128 (|bound| < 2^124).
//            Wide: what products and sums are computed in, always __int128.
// Overflow   products of two 64-bit numbers fit a Wide; those of two 128-bit numbers are checked
// and
//            throw, upon which the caller starts again with the Python twin.
#pragma once

#include <cstdint>
#include <numeric>

namespace constrint {

__extension__ typedef __int128 Wide;

struct Overflow {};

inline Wide add(Wide a, Wide b) {
  Wide c;
  if (__builtin_add_overflow(a, b, &c)) throw Overflow();
  return c;
}

inline Wide sub(Wide a, Wide b) {
  Wide c;
  if (__builtin_sub_overflow(a, b, &c)) throw Overflow();
  return c;
}

inline Wide mul(int64_t a, int64_t b) { return Wide(a) * b; }

inline Wide mul(Wide a, Wide b) {
  Wide c;
  if (__builtin_mul_overflow(a, b, &c)) throw Overflow();
  return c;
}

template <class I>
inline I floor_div(I a, I b) {
  I q = a / b;
  return q - ((a % b != 0) && ((a < 0) != (b < 0)) ? 1 : 0);
}

template <class I>
inline I ceil_div(I a, I b) {
  I q = a / b;
  return q + ((a % b != 0) && ((a < 0) == (b < 0)) ? 1 : 0);
}

// The remainder with the sign of the divisor.
template <class I>
inline I floor_mod(I a, I b) {
  I r = a % b;
  return (r != 0 && ((r < 0) != (b < 0))) ? r + b : r;
}

inline Wide gcd(Wide a, Wide b) {
  if (a < 0) a = -a;
  if (b < 0) b = -b;
  while (b != 0 && (a > INT64_MAX || b > INT64_MAX)) {
    const Wide rest = a % b;
    a = b;
    b = rest;
  }
  return b == 0 ? a : Wide(std::gcd(int64_t(a), int64_t(b)));
}

// The number 0 <= i < m with a i = 1 (mod m), for gcd(a, m) = 1 and m >= 1.
inline Wide inverse(Wide a, Wide m) {
  Wide high = m, low = a % m, before = 0, now = 1;
  while (low > 1) {
    const Wide q = high / low, rest = high - q * low, next = before - q * now;
    high = low;
    low = rest;
    before = now;
    now = next;
  }
  return m == 1 ? 0 : now < 0 ? now + m : now;
}

inline Wide power(Wide base, Wide exponent) {
  if (exponent == 0 || base == 1) return 1;
  if (base == 0) return 0;
  if (base == -1) return exponent % 2 == 0 ? 1 : -1;
  Wide result = 1;
  for (; exponent > 0; --exponent) result = mul(result, base);
  return result;
}

// Whether base^exponent <= value, for base >= 1, value >= 0.
inline bool power_at_most(Wide base, Wide exponent, Wide value) {
  if (base == 1) return value >= 1;
  Wide result = 1;
  for (; exponent > 0; --exponent) {
    if (result > value / base) return false;
    result *= base;
  }
  return result <= value;
}

// The largest r >= 0 with r^degree <= value, for value >= 0 and degree >= 1.
inline Wide root_floor(Wide value, Wide degree) {
  if (value < 2 || degree == 1) return value;
  if (degree >= 127) return 1;
  Wide low = 1, high = 2;
  while (power_at_most(high, degree, value)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const Wide middle = low + (high - low) / 2;
    (power_at_most(middle, degree, value) ? low : high) = middle;
  }
  return low;
}

// The smallest r >= 0 with r^degree >= value.
inline Wide root_ceil(Wide value, Wide degree) {
  const Wide r = root_floor(value, degree);
  return r >= 2 ? (power_at_most(r, degree, value - 1) ? r + 1 : r) : (r == value ? r : r + 1);
}

// The largest e >= 0 with base^e <= value, for value >= 1 and base >= 2.
inline Wide log_floor(Wide value, Wide base) {
  Wide e = 0;
  for (; value >= base; value /= base) ++e;
  return e;
}

// The smallest e >= 0 with base^e >= value, for base >= 2.
inline Wide log_ceil(Wide value, Wide base) {
  Wide e = 0;
  for (; value > 1; value = ceil_div(value, base)) ++e;
  return e;
}

}  // namespace constrint
