// SPDX-License-Identifier: Apache-2.0
// propagate.hpp - each propagator removes values that its relation rules out, or returns false.
//
// Twin       constrint/_propagate.py is the same algorithm step by step; the tests compare their
// node
//            counts, so a change here needs the same change there.
// Bounds     quotients are rounded towards the inside, corner by corner, for either sign.
// Overflow   thrown by mul, add and power; nothing wraps.
#pragma once

#include <array>

#include "divisors.hpp"
#include "store.hpp"

namespace constrint {

template <class I>
class Propagators {
 public:
  Propagators(const Program<I>& program, Store<I>& store) : program_(program), s(store) {}

  static bool idempotent(Op op) { return op == LIN_LE || op == LIN_NE || op == OR; }

  [[nodiscard]] bool run(const Prop& p) {
    xs_ = program_.ids.data() + p.xs.begin;
    n_ = p.xs.size;
    consts_ = program_.numbers.data() + p.consts.begin;
    m_ = p.consts.size;
    r_ = p.r;
    want_ = p.want;
    switch (p.op) {
      case LIN_LE:
        return linear_le();
      case LIN_EQ:
        return linear_eq();
      case LIN_NE:
        return linear_ne();
      case MUL:
        return product(xs_[0], xs_[1], xs_[2]);
      case DIV:
        return quotient(xs_[0], xs_[1], xs_[2]);
      case MOD:
        return remainder(xs_[0], xs_[1], xs_[2]);
      case POW:
        return raised(xs_[0], xs_[1], xs_[2]);
      case MAX:
        return largest();
      case MIN:
        return smallest();
      case OR:
        return either();
      case IN:
        return member(xs_[0]);
      default:
        return different();
    }
  }

 private:
  // Pairs (x, y) of a relation z == f(x, y) are walked through up to this many.
  static constexpr int64_t PAIRS = 16;
  // Residues of sums of more terms, and of numbers beyond these, are not looked at.
  static constexpr uint32_t MOST_RESIDUES = 8;
  // An interval of up to so many steps is walked through for divisors of a number.
  static constexpr int WALK = 64;
  static constexpr Wide HALF = Wide(1) << 60, MODULUS = Wide(1) << 62;

  const Program<I>& program_;
  Store<I>& s;
  const int32_t* xs_ = nullptr;
  const I* consts_ = nullptr;
  uint32_t n_ = 0, m_ = 0;
  int32_t r_ = -1, want_ = 1;
  std::vector<I> kept_;
  Divisors divisors_;

  enum State { HOLDS, FAILS, OPEN };

  State state() const {
    if (r_ < 0) return HOLDS;
    if (!s.fixed(r_)) return OPEN;
    return s.lo(r_) == want_ ? HOLDS : FAILS;
  }

  void sums(I& low, I& high) const {
    low = high = 0;
    for (uint32_t k = 0; k < n_; ++k) {
      const I a = consts_[k];
      if (a > 0) {
        low += a * s.lo(xs_[k]);
        high += a * s.hi(xs_[k]);
      } else {
        low += a * s.hi(xs_[k]);
        high += a * s.lo(xs_[k]);
      }
    }
  }

  // sum sign a_i x_i <= c, whose least value is `low`.
  bool at_most(I c, I low, int sign) {
    const I slack = c - low;
    if (slack < 0) return false;
    for (uint32_t k = 0; k < n_; ++k) {
      const int32_t x = xs_[k];
      const I a = sign > 0 ? consts_[k] : -consts_[k];
      if (a > 0) {
        if (!s.set_hi(x, Wide(s.lo(x)) + slack / a)) return false;
      } else {
        if (!s.set_lo(x, Wide(s.hi(x)) - slack / -a)) return false;
      }
    }
    return true;
  }

  bool linear_le() {
    const I c = consts_[n_];
    I low, high;
    sums(low, high);
    switch (state()) {
      case HOLDS:
        return at_most(c, low, 1);
      case FAILS:
        return at_most(-c - 1, -high, -1);
      default:
        if (high <= c) return s.fix(r_, want_);
        return low > c ? s.fix(r_, 1 - want_) : true;
    }
  }

  bool linear_eq() {
    const I c = consts_[n_];
    I low, high;
    sums(low, high);
    switch (state()) {
      case HOLDS:
        return equal(c, low, high);
      case FAILS:
        return linear_ne();
      default:
        if (low == high && low == c) return s.fix(r_, want_);
        if (c < low || c > high) return s.fix(r_, 1 - want_);
        if (n_ == 1 && !(c % consts_[0] == 0 && s.contains(xs_[0], c / consts_[0]))) {
          return s.fix(r_, 1 - want_);
        }
        return true;
    }
  }

  // a x = c (mod m), for m >= 1.
  bool congruent(int32_t x, Wide a, Wide c, Wide m) {
    if (m == 1) return true;
    if (m >= MODULUS) return true;
    a = floor_mod(a, m);
    c = floor_mod(c, m);
    const Wide g = gcd(a, m);
    if (c % g != 0) return false;
    m /= g;
    return s.agree(x, m, c / g % m * inverse(a / g, m) % m);
  }

  // Every x_k has to agree with the residues of the other terms of sum a_i x_i == c.
  bool congruences(I c) {
    if (n_ > MOST_RESIDUES) return true;
    std::array<Wide, MOST_RESIDUES + 1> after;
    after[n_] = 0;
    for (uint32_t k = n_; k-- > 0;) {
      after[k] = gcd(after[k + 1], mul(Wide(consts_[k]), s.residue(xs_[k]).step));
    }
    Wide before = 0, rest = c;
    for (uint32_t k = 0; k < n_; ++k) rest -= consts_[k] * s.residue(xs_[k]).base;
    for (uint32_t k = 0; k < n_; ++k) {
      const Residue had = s.residue(xs_[k]);
      const Wide m = gcd(before, after[k + 1]), a = consts_[k];
      if (m > 1 && had.step != 0 && !congruent(xs_[k], a, rest + a * had.base, m)) return false;
      const Residue now = s.residue(xs_[k]);
      rest -= a * (now.base - had.base);
      before = gcd(before, a * now.step);
    }
    return true;
  }

  bool equal(I c, I low, I high) {
    if (c < low || c > high) return false;
    const I below = c - low, above = high - c;
    for (uint32_t k = 0; k < n_; ++k) {
      const int32_t x = xs_[k];
      const I lo = s.lo(x), hi = s.hi(x), a = consts_[k];
      if (lo == hi) continue;
      if (a > 0) {
        if (!s.set_hi(x, Wide(lo) + below / a) || !s.set_lo(x, Wide(hi) - above / a)) return false;
      } else {
        if (!s.set_lo(x, Wide(hi) - below / -a) || !s.set_hi(x, Wide(lo) + above / -a)) {
          return false;
        }
      }
    }
    if (n_ == 1) return s.contains(xs_[0], floor_div(c, consts_[0]));
    if (n_ == 2 && s.listed(xs_[0]) && s.listed(xs_[1])) {
      return match(xs_[0], xs_[1], consts_[0], consts_[1], c) &&
             match(xs_[1], xs_[0], consts_[1], consts_[0], c);
    }
    return congruences(c);
  }

  // Keeps the values of x that have a partner in y under a x + b y == c.
  bool match(int32_t x, int32_t y, I a, I b, I c) {
    kept_.clear();
    s.each(x, [&](I v) {
      const I rest = c - a * v;
      if (rest % b == 0 && s.contains(y, rest / b)) kept_.push_back(v);
    });
    return s.keep(x, kept_.data(), kept_.size());
  }

  bool linear_ne() {
    I rest = consts_[n_];
    int64_t free = -1;
    for (uint32_t k = 0; k < n_; ++k) {
      if (s.fixed(xs_[k])) {
        rest -= consts_[k] * s.lo(xs_[k]);
      } else if (free >= 0) {
        return true;
      } else {
        free = k;
      }
    }
    if (free < 0) return rest != 0;
    return rest % consts_[free] != 0 || s.remove(xs_[free], rest / consts_[free]);
  }

  // Keeps exactly the values that occur in a triple z == f(x, y), if there are few pairs.
  template <class F>
  bool pairs(F&& f, int32_t z, int32_t x, int32_t y) {
    const Wide nx = s.size(x), ny = s.size(y);
    if (nx > PAIRS || ny > PAIRS || nx * ny > PAIRS) return true;
    std::array<I, PAIRS> ys, kept_x, kept_z;
    std::array<bool, PAIRS> kept_y{};
    size_t count_y = 0, count_x = 0, count_z = 0;
    s.each(y, [&](I v) { ys[count_y++] = v; });
    s.each(x, [&](I a) {
      bool supported = false;
      for (size_t k = 0; k < count_y; ++k) {
        const Wide v = f(a, ys[k]);
        if (s.contains(z, v)) {
          supported = kept_y[k] = true;
          kept_z[count_z++] = I(v);
        }
      }
      if (supported) kept_x[count_x++] = a;
    });
    if (!s.keep(x, kept_x.data(), count_x)) return false;
    size_t left = 0;
    for (size_t k = 0; k < count_y; ++k) {
      if (kept_y[k]) ys[left++] = ys[k];
    }
    if (!s.keep(y, ys.data(), left)) return false;
    std::sort(kept_z.begin(), kept_z.begin() + count_z);
    const auto end = std::unique(kept_z.begin(), kept_z.begin() + count_z);
    return s.keep(z, kept_z.data(), size_t(end - kept_z.begin()));
  }

  bool between(int32_t z, Wide a, Wide b, Wide c, Wide d) {
    return s.set_lo(z, std::min({a, b, c, d})) && s.set_hi(z, std::max({a, b, c, d}));
  }

  // Cuts the bounds of x where z == x * y.
  bool divide(int32_t z, int32_t x, int32_t y) {
    const I zl = s.lo(z), zh = s.hi(z);
    if (s.lo(y) <= 0 && s.hi(y) >= 0) {
      if (zl <= 0 && zh >= 0) return true;
      if (!s.remove(y, 0)) return false;
    }
    const I yl = s.lo(y), yh = s.hi(y);
    if (yl < 0 && yh > 0) {
      const I top = std::max(zh, I(-zl));
      return s.set_lo(x, -top) && s.set_hi(x, top);
    }
    const I low =
        std::min({ceil_div(zl, yl), ceil_div(zl, yh), ceil_div(zh, yl), ceil_div(zh, yh)});
    const I high =
        std::max({floor_div(zl, yl), floor_div(zl, yh), floor_div(zh, yl), floor_div(zh, yh)});
    return s.set_lo(x, low) && s.set_hi(x, high);
  }

  // y x = z (mod everything that is known of y and z).
  bool factor(int32_t z, int32_t x, int32_t y) {
    const Residue of_y = s.residue(y), of_z = s.residue(z);
    const Wide m = gcd(of_y.step, of_z.step);
    return m == 0 || congruent(x, of_y.base, of_z.base, m);
  }

  bool product_residues(int32_t z, int32_t x, int32_t y) {
    const Residue a = s.residue(x), b = s.residue(y);
    if (a.step >= HALF || b.step >= HALF || a.base >= HALF || b.base >= HALF || a.base <= -HALF ||
        b.base <= -HALF) {
      return true;
    }
    const Wide m = gcd(gcd(a.step * b.step, a.step * b.base), a.base * b.step);
    return (m == 0 || s.agree(z, m, a.base * b.base)) && factor(z, x, y) && factor(z, y, x);
  }

  bool product(int32_t z, int32_t x, int32_t y) {
    const I xl = s.lo(x), xh = s.hi(x), yl = s.lo(y), yh = s.hi(y);
    return between(z, mul(xl, yl), mul(xl, yh), mul(xh, yl), mul(xh, yh)) && divide(z, x, y) &&
           divide(z, y, x) && product_residues(z, x, y) &&
           (!s.fixed(z) || (dividing(s.lo(z), x) && dividing(s.lo(z), y))) &&
           pairs([](I a, I b) { return mul(a, b); }, z, x, y);
  }

  bool quotient(int32_t z, int32_t x, int32_t y) {
    const I xl = s.lo(x), xh = s.hi(x), yl = s.lo(y), yh = s.hi(y);
    if (yl < 0 && yh > 0) {
      const I top = std::max(xh, I(-xl));
      if (!s.set_lo(z, -top) || !s.set_hi(z, top)) return false;
    } else {
      if (!between(z, floor_div(xl, yl), floor_div(xl, yh), floor_div(xh, yl), floor_div(xh, yh))) {
        return false;
      }
      const I zl = s.lo(z), zn = s.hi(z) + 1;
      const Wide a = mul(zl, yl), b = mul(zl, yh), c = mul(zn, yl), d = mul(zn, yh);
      if (yl > 0) {
        if (!s.set_lo(x, std::min(a, b)) || !s.set_hi(x, std::max(c, d) - 1)) return false;
        if (s.lo(x) >= 0 && zl >= 0) {
          if (zl >= 1 && !s.set_hi(y, s.hi(x) / zl)) return false;
          if (!s.set_lo(y, s.lo(x) / zn + 1)) return false;
        }
      } else {
        if (!s.set_hi(x, std::max(a, b)) || !s.set_lo(x, std::min(c, d) + 1)) return false;
      }
    }
    return pairs([](I a, I b) -> Wide { return floor_div(a, b); }, z, x, y);
  }

  bool remainder(int32_t z, int32_t x, int32_t y) {
    const I xh = s.hi(x), yl = s.lo(y), yh = s.hi(y);
    I low = std::min(I(yl + 1), I(0)), high = std::max(I(yh - 1), I(0));
    if (s.lo(x) >= 0 && yl > 0) {
      high = std::min(high, xh);
      if (xh < yl) low = s.lo(x);
    }
    if (!s.set_lo(z, low) || !s.set_hi(z, high)) return false;
    if (yl == yh) {
      if (!remainder_of_constant(z, x, yl)) return false;
    } else if (yl > 0) {
      if (!s.set_lo(y, Wide(s.lo(z)) + 1)) return false;
      if (s.lo(x) > s.hi(z) && !divisor(z, x, y)) return false;
      if (s.fixed(x) && s.fixed(z) && !dividing(Wide(s.lo(x)) - s.lo(z), y)) return false;
    }
    return remainder_residues(z, x, y) &&
           pairs([](I a, I b) -> Wide { return floor_mod(a, b); }, z, x, y);
  }

  // y, where it is positive, divides the number unless that is 0.
  bool dividing(Wide number, int32_t y) {
    if (number < 0) number = -number;
    if (number == 0 || number > Divisors::LIMIT || s.fixed(y) || s.lo(y) <= 0) return true;
    if (s.listed(y)) {
      kept_.clear();
      s.each(y, [&](I v) {
        if (number % v == 0) kept_.push_back(v);
      });
      return s.keep(y, kept_.data(), kept_.size());
    }
    if ((s.hi(y) - s.lo(y)) / s.step(y) <= WALK) {
      Wide low = s.lo(y), high = s.hi(y);
      while (low <= high && number % low != 0) low += s.step(y);
      while (low < high && number % high != 0) high -= s.step(y);
      return low <= high && s.set_lo(y, low) && s.set_hi(y, high);
    }
    const std::vector<int64_t>& all = divisors_.of(int64_t(number));
    const auto first = std::lower_bound(all.begin(), all.end(), s.lo(y));
    const auto last = std::upper_bound(first, all.end(), s.hi(y));
    return first != last && s.set_lo(y, *first) && s.set_hi(y, last[-1]);
  }

  // x = z modulo everything that divides y for certain.
  bool remainder_residues(int32_t z, int32_t x, int32_t y) {
    const Residue of_y = s.residue(y);
    const Wide m = gcd(of_y.step, of_y.base);
    const Residue of_z = s.residue(z);
    if (!s.agree(x, gcd(m, of_z.step), of_z.base)) return false;
    const Residue of_x = s.residue(x);
    return s.agree(z, gcd(m, of_x.step), of_x.base);
  }

  bool remainder_of_constant(int32_t z, int32_t x, I d) {
    const I xl = s.lo(x), xh = s.hi(x);
    const I q = floor_div(xl, d);
    if (q == floor_div(xh, d)) {
      const Wide base = mul(q, d);
      return s.set_lo(z, xl - base) && s.set_hi(z, xh - base) && s.set_lo(x, s.lo(z) + base) &&
             s.set_hi(x, s.hi(z) + base);
    }
    if (d < 0) return true;
    const Wide zl = s.lo(z), zh = s.hi(z);
    Wide rest = floor_mod(xl, d);
    if (rest < zl) {
      if (!s.trim_lo(x, xl + zl - rest)) return false;
    } else if (rest > zh) {
      if (!s.trim_lo(x, xl + d - rest + zl)) return false;
    }
    rest = floor_mod(xh, d);
    if (rest > zh) return s.trim_hi(x, xh - rest + zh);
    return rest >= zl || s.trim_hi(x, xh - rest - d + zh);
  }

  // Cuts bounds where x - z == q * y for x > z and y > 0, with q between ql and qh.
  bool divisor(int32_t z, int32_t x, int32_t y) {
    const I zl = s.lo(z), zh = s.hi(z);
    const I ql = ceil_div(I(s.lo(x) - zh), s.hi(y)), qh = (s.hi(x) - zl) / s.lo(y);
    if (ql > qh) return false;
    const Wide low = mul(ql, s.lo(y)), high = mul(qh, s.hi(y));
    return s.trim_lo(x, low + zl) && s.trim_hi(x, high + zh) && s.trim_hi(y, (s.hi(x) - zl) / ql) &&
           s.trim_lo(y, ceil_div(I(s.lo(x) - zh), qh));
  }

  // A range that holds x ** y, for y >= 0; the same as `powers` of _numbers.py.
  void powers(I xl, I xh, I yl, I yh, Wide& low, Wide& high) const {
    if (xl >= 1) {
      low = power(xl, yl);
      high = power(xh, yh);
    } else if (yl == yh) {
      const Wide a = power(xl, yl), b = power(xh, yl);
      low = a;
      high = b;
      if (yl % 2 == 0) {
        low = yl == 0 ? 1 : (xl <= 0 && xh >= 0) ? Wide(0) : std::min(a, b);
        high = std::max(a, b);
      }
    } else {
      const Wide top = power(std::max(xl < 0 ? I(-xl) : xl, xh < 0 ? I(-xh) : xh), yh);
      low = xl >= 0 ? Wide(0) : -top;
      high = std::max(top, Wide(1));
    }
  }

  bool raised(int32_t z, int32_t x, int32_t y) {
    Wide low, high;
    powers(s.lo(x), s.hi(x), s.lo(y), s.hi(y), low, high);
    if (!s.set_lo(z, low) || !s.set_hi(z, high)) return false;
    const I zl = s.lo(z), zh = s.hi(z), yl = s.lo(y), yh = s.hi(y);
    if (yl == yh) {
      if (yl >= 1 && !root(x, zl, zh, yl)) return false;
    } else if (s.lo(x) >= 2) {
      if (!s.set_hi(y, log_floor(zh, s.lo(x))) || !s.set_lo(y, log_ceil(zl, s.hi(x)))) return false;
      if (s.lo(y) >= 1 && !s.set_hi(x, root_floor(zh, s.lo(y)))) return false;
      if (s.hi(y) >= 1 && !s.set_lo(x, root_ceil(zl, s.hi(y)))) return false;
    }
    return pairs([](I a, I b) { return power(a, b); }, z, x, y);
  }

  // Cuts the bounds of x where zl <= x ** n <= zh.
  bool root(int32_t x, I zl, I zh, I n) {
    if (n % 2 == 1) {
      return s.set_lo(x, zl >= 0 ? root_ceil(zl, n) : -root_floor(-zl, n)) &&
             s.set_hi(x, zh >= 0 ? root_floor(zh, n) : -root_ceil(-zh, n));
    }
    if (zh < 0) return false;
    const Wide top = root_floor(zh, n);
    if (!s.set_lo(x, -top) || !s.set_hi(x, top)) return false;
    if (zl > 0) {
      const Wide least = root_ceil(zl, n);
      if (s.lo(x) > -least && !s.set_lo(x, least)) return false;
      if (s.hi(x) < least && !s.set_hi(x, -least)) return false;
    }
    return true;
  }

  bool largest() {
    const int32_t z = xs_[0];
    I low = s.lo(xs_[1]), high = s.hi(xs_[1]);
    for (uint32_t k = 2; k < n_; ++k) {
      low = std::max(low, s.lo(xs_[k]));
      high = std::max(high, s.hi(xs_[k]));
    }
    if (!s.set_hi(z, high) || !s.set_lo(z, low)) return false;
    const I zl = s.lo(z), zh = s.hi(z);
    int32_t able = -1, count = 0;
    for (uint32_t k = 1; k < n_; ++k) {
      if (!s.set_hi(xs_[k], zh)) return false;
      if (s.hi(xs_[k]) >= zl) able = xs_[k], ++count;
    }
    return count > 1 || (count == 1 && s.set_lo(able, zl));
  }

  bool smallest() {
    const int32_t z = xs_[0];
    I low = s.lo(xs_[1]), high = s.hi(xs_[1]);
    for (uint32_t k = 2; k < n_; ++k) {
      low = std::min(low, s.lo(xs_[k]));
      high = std::min(high, s.hi(xs_[k]));
    }
    if (!s.set_lo(z, low) || !s.set_hi(z, high)) return false;
    const I zl = s.lo(z), zh = s.hi(z);
    int32_t able = -1, count = 0;
    for (uint32_t k = 1; k < n_; ++k) {
      if (!s.set_lo(xs_[k], zl)) return false;
      if (s.lo(xs_[k]) <= zh) able = xs_[k], ++count;
    }
    return count > 1 || (count == 1 && s.set_hi(able, zh));
  }

  bool either() {
    uint32_t free = 0, count = 0;
    for (uint32_t k = 0; k < n_; ++k) {
      if (!s.fixed(xs_[k])) {
        free = k;
        ++count;
      } else if (s.lo(xs_[k]) == consts_[k]) {
        return r_ < 0 || s.fix(r_, want_);
      }
    }
    if (count == 0) return r_ >= 0 && s.fix(r_, 1 - want_);
    const State now = state();
    if (now == FAILS) {
      for (uint32_t k = 0; k < n_; ++k) {
        if (!s.fix(xs_[k], 1 - Wide(consts_[k]))) return false;
      }
      return true;
    }
    return now == OPEN || count > 1 || s.fix(xs_[free], consts_[free]);
  }

  bool member(int32_t x) {
    const I* end = consts_ + m_;
    const I* first = std::lower_bound(consts_, end, s.lo(x));
    const I* last = std::upper_bound(consts_, end, s.hi(x));
    switch (state()) {
      case HOLDS:
        if (first == last || !s.set_lo(x, *first) || !s.set_hi(x, last[-1])) return false;
        if (!s.listed(x)) return true;
        kept_.clear();
        s.each(x, [&](I v) {
          if (std::binary_search(consts_, end, v)) kept_.push_back(v);
        });
        return s.keep(x, kept_.data(), kept_.size());
      case FAILS:
        for (const I* v = first; v != last; ++v) {
          if (!s.remove(x, *v)) return false;
        }
        for (const I* v = last; v != first;) {
          if (!s.remove(x, *--v)) return false;
        }
        return true;
      default: {
        int64_t inside = 0;
        for (const I* v = first; v != last; ++v) inside += s.contains(x, *v) ? 1 : 0;
        if (inside == 0) return s.fix(r_, 1 - want_);
        return I(inside) != s.size(x) || s.fix(r_, want_);
      }
    }
  }

  bool different() {
    std::vector<bool> done(n_, false);
    for (bool again = true; again;) {
      again = false;
      for (uint32_t k = 0; k < n_; ++k) {
        if (done[k] || !s.fixed(xs_[k])) continue;
        done[k] = again = true;
        const I v = s.lo(xs_[k]);
        for (uint32_t other = 0; other < n_; ++other) {
          if (xs_[other] != xs_[k] && !s.remove(xs_[other], v)) return false;
        }
      }
    }
    I low = s.lo(xs_[0]), high = s.hi(xs_[0]);
    for (uint32_t k = 1; k < n_; ++k) {
      low = std::min(low, s.lo(xs_[k]));
      high = std::max(high, s.hi(xs_[k]));
    }
    return Wide(high) - low + 1 >= Wide(n_);
  }
};

}  // namespace constrint
