// SPDX-License-Identifier: Apache-2.0
// divisors.hpp - the divisors of a number, by trial division and Pollard's rho.
//
// Limits     1 <= number <= Divisors::LIMIT.
// Cost       up to about 30 ms (two prime factors of 30 bits), 0.1 ms below 10^12; lists are kept.
// Memory     lists of KEPT numbers in all; one has at most 103,680.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "numbers.hpp"

namespace constrint {

class Divisors {
 public:
  static constexpr int64_t LIMIT = 1'000'000'000'000'000'000;

  // The positive divisors of `number`, ascending; valid until the next call.
  const std::vector<int64_t>& of(int64_t number) {
    const auto known = lists_.find(number);
    if (known != lists_.end()) return known->second;
    std::vector<int64_t> found = list(number);
    if (kept_ + found.size() > KEPT) {
      lists_.clear();
      kept_ = 0;
    }
    kept_ += found.size();
    return lists_[number] = std::move(found);
  }

 private:
  static constexpr size_t KEPT = size_t(1) << 18;
  static constexpr int64_t TRIAL = 1000;
  std::unordered_map<int64_t, std::vector<int64_t>> lists_;
  size_t kept_ = 0;

  static int64_t times(int64_t a, int64_t b, int64_t m) { return int64_t(Wide(a) * b % m); }

  static std::vector<int64_t> list(int64_t number) {
    std::vector<int64_t> found{1};
    const std::vector<int64_t> primes = primes_of(number);
    size_t fresh = 0;
    for (size_t k = 0; k < primes.size(); ++k) {
      const size_t first = k > 0 && primes[k] == primes[k - 1] ? fresh : 0;
      fresh = found.size();
      for (size_t i = first; i < fresh; ++i) found.push_back(found[i] * primes[k]);
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  // The prime factors, ascending, each as often as it divides.
  static std::vector<int64_t> primes_of(int64_t rest) {
    std::vector<int64_t> primes, parts;
    for (int64_t f = 2; f <= TRIAL && f * f <= rest; f += f == 2 ? 1 : 2) {
      for (; rest % f == 0; rest /= f) primes.push_back(f);
    }
    if (rest > 1) parts.push_back(rest);
    while (!parts.empty()) {
      const int64_t part = parts.back();
      parts.pop_back();
      if (part < TRIAL * TRIAL || is_prime(part)) {
        primes.push_back(part);
      } else {
        const int64_t factor = split(part);
        parts.push_back(factor);
        parts.push_back(part / factor);
      }
    }
    std::sort(primes.begin(), primes.end());
    return primes;
  }

  // Miller-Rabin for an odd number; these bases decide every number below 3 * 10^24.
  static bool is_prime(int64_t n) {
    const int twos = __builtin_ctzll(uint64_t(n - 1));
    for (int64_t base : {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41}) {
      if (n % base == 0) return n == base;
      int64_t x = 1;
      for (int64_t e = (n - 1) >> twos, b = base; e > 0; e >>= 1, b = times(b, b, n)) {
        if (e & 1) x = times(x, b, n);
      }
      bool passes = x == 1;
      for (int k = 0; k < twos && !passes; ++k, x = times(x, x, n)) passes = x == n - 1;
      if (!passes) return false;
    }
    return true;
  }

  // A proper factor of an odd composite number.
  static int64_t split(int64_t n) {
    for (int64_t c = 1;; ++c) {
      int64_t slow = 2, fast = 2, factor = 1;
      const auto step = [&] {
        slow = (times(slow, slow, n) + c) % n;
        fast = (times(fast, fast, n) + c) % n;
        fast = (times(fast, fast, n) + c) % n;
        return slow > fast ? slow - fast : fast - slow;
      };
      // One gcd in 64 steps; where it swallows n the steps are gone through again one by one.
      while (factor == 1) {
        const int64_t slow_before = slow, fast_before = fast;
        int64_t product = 1;
        for (int k = 0; k < 64; ++k) product = times(product, step(), n);
        factor = int64_t(gcd(product, n));
        if (factor == n) {
          slow = slow_before;
          fast = fast_before;
          factor = 1;
          while (factor == 1) factor = int64_t(gcd(step(), n));
          break;
        }
      }
      if (factor != n) return factor;
    }
  }
};

}  // namespace constrint
