// SPDX-License-Identifier: Apache-2.0
// store.hpp - the current domains: bounds, optional value sets, a trail to undo with, a queue.
//
// Invariants bits outside lo .. hi do not count; those of lo and hi are always set. Every value is
//            base (mod step), 0 <= base < step; an interval holds every such integer of lo .. hi.
// Failing    a function that would empty a domain returns false; its caller returns false at once.
// Cost       a bound O(log values), a removed value O(1), saved once per variable and node.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "program.hpp"

namespace constrint {

enum Event : uint8_t { BOUNDS = 1, HOLE = 2, STEP = 4 };

// All values are base (mod step); a step of 0: there is only base.
struct Residue {
  Wide step, base;
};

template <class I>
class Store {
 public:
  explicit Store(const Program<I>& program) : program_(program) {
    for (const Domain<I>& d : program.domains) {
      Var v;
      v.lo = d.lo;
      v.hi = d.hi;
      v.words = uint32_t(bits_.size());
      if (d.kind != Domain<I>::INTERVAL) {
        v.n = d.values.size;
        v.n_words = (v.n + 63) / 64;
        v.last = v.n - 1;
        bits_.resize(bits_.size() + v.n_words, ~uint64_t(0));
        v.values = d.kind == Domain<I>::LISTED ? d.values.begin : DENSE;
        v.base = d.base;
      }
      vars_.push_back(v);
    }
    queued_.assign(program.props.size(), 0);
    queue_.resize(program.props.size() + 1);
    watch();
  }

  I lo(int32_t i) const { return vars_[i].lo; }
  I hi(int32_t i) const { return vars_[i].hi; }
  I step(int32_t i) const { return vars_[i].step; }
  bool fixed(int32_t i) const { return vars_[i].lo == vars_[i].hi; }
  bool listed(int32_t i) const { return vars_[i].n != 0; }

  [[nodiscard]] bool set_lo(int32_t i, Wide bound) {
    Var& x = vars_[i];
    if (bound <= x.lo) return true;
    if (bound > x.hi) return false;
    if (x.n == 0 && x.step > 1) {
      bound += floor_mod(x.rest - bound, Wide(x.step));
      if (bound > x.hi) return false;
    }
    save(i);
    if (x.n == 0) {
      x.lo = I(bound);
    } else {
      x.first = next_bit(x, lower(x, I(bound)));
      x.lo = value(x, x.first);
    }
    tell(i, BOUNDS);
    return true;
  }

  [[nodiscard]] bool set_hi(int32_t i, Wide bound) {
    Var& x = vars_[i];
    if (bound >= x.hi) return true;
    if (bound < x.lo) return false;
    if (x.n == 0 && x.step > 1) {
      bound -= floor_mod(bound - x.rest, Wide(x.step));
      if (bound < x.lo) return false;
    }
    save(i);
    if (x.n == 0) {
      x.hi = I(bound);
    } else {
      uint32_t k = lower(x, I(bound));
      if (value(x, k) > bound) --k;
      x.last = previous_bit(x, k);
      x.hi = value(x, x.last);
    }
    tell(i, BOUNDS);
    return true;
  }

  // Like set_lo, unless that cuts next to nothing off a long interval: rules on remainders would
  // otherwise walk to where they agree in a million steps.
  [[nodiscard]] bool trim_lo(int32_t i, Wide bound) {
    const Var& x = vars_[i];
    return (x.n == 0 && bound - x.lo <= ((x.hi - x.lo) >> TINY)) || set_lo(i, bound);
  }

  [[nodiscard]] bool trim_hi(int32_t i, Wide bound) {
    const Var& x = vars_[i];
    return (x.n == 0 && x.hi - bound <= ((x.hi - x.lo) >> TINY)) || set_hi(i, bound);
  }

  [[nodiscard]] bool fix(int32_t i, Wide v) { return set_lo(i, v) && set_hi(i, v); }

  // Inside an interval nothing happens until a bound reaches v.
  [[nodiscard]] bool remove(int32_t i, Wide v) {
    Var& x = vars_[i];
    if (v == x.lo) return set_lo(i, v + 1);
    if (v == x.hi) return set_hi(i, v - 1);
    if (x.n == 0 || v < x.lo || v > x.hi) return true;
    const uint32_t k = lower(x, I(v));
    if (value(x, k) == v && bit(x, k)) {
      save(i);
      bits_[x.words + k / 64] &= ~(uint64_t(1) << (k % 64));
      tell(i, HOLE);
    }
    return true;
  }

  bool contains(int32_t i, Wide v) const {
    const Var& x = vars_[i];
    if (v < x.lo || v > x.hi) return false;
    if (x.n == 0) return x.step == 1 || floor_mod(v - x.rest, Wide(x.step)) == 0;
    const uint32_t k = lower(x, I(v));
    return value(x, k) == v && bit(x, k);
  }

  I size(int32_t i) const {
    const Var& x = vars_[i];
    if (x.n == 0) return (x.hi - x.lo) / x.step + 1;
    int64_t count = 0;
    for (uint32_t w = x.first / 64; w <= x.last / 64; ++w) {
      count += std::popcount(bits_[x.words + w] & mask(x, w));
    }
    return I(count);
  }

  // Calls f(value) for every value left, ascending.
  template <class F>
  void each(int32_t i, F&& f) const {
    const Var& x = vars_[i];
    if (x.n == 0) {
      for (I v = x.lo; v < x.hi; v += x.step) f(v);
      f(x.hi);
      return;
    }
    for (uint32_t w = x.first / 64; w <= x.last / 64; ++w) {
      for (uint64_t b = bits_[x.words + w] & mask(x, w); b != 0; b &= b - 1) {
        f(value(x, w * 64 + uint32_t(std::countr_zero(b))));
      }
    }
  }

  // Requires x_i to be one of n ascending values.
  [[nodiscard]] bool keep(int32_t i, const I* kept, size_t n) {
    size_t first = n, last = 0, inside = 0;
    for (size_t k = 0; k < n; ++k) {
      if (!contains(i, kept[k])) continue;
      if (inside++ == 0) first = k;
      last = k;
    }
    if (inside == 0 || !set_lo(i, kept[first]) || !set_hi(i, kept[last])) return false;
    Var& x = vars_[i];
    if (x.n == 0 || I(inside) == size(i)) return true;
    save(i);
    size_t k = first;
    for (uint32_t w = x.first / 64; w <= x.last / 64; ++w) {
      uint64_t left = 0;
      for (uint64_t b = bits_[x.words + w] & mask(x, w); b != 0; b &= b - 1) {
        const I v = value(x, w * 64 + uint32_t(std::countr_zero(b)));
        while (k < last && kept[k] < v) ++k;
        if (kept[k] == v) left |= b & -b;
      }
      bits_[x.words + w] = left;
    }
    tell(i, HOLE);
    return true;
  }

  Residue residue(int32_t i) const {
    const Var& x = vars_[i];
    return x.lo == x.hi ? Residue{0, x.lo} : Residue{x.step, x.rest};
  }

  // Requires x_i = r (mod m), for m >= 1; very large moduli are left alone.
  [[nodiscard]] bool agree(int32_t i, Wide m, Wide r) {
    Var& x = vars_[i];
    if (m == 1 || m >= MODULUS || x.step >= MODULUS) return true;
    r = floor_mod(r, m);
    if (x.lo == x.hi) return floor_mod(Wide(x.lo), m) == r;
    const Wide g = gcd(x.step, m);
    if ((r - x.rest) % g != 0) return false;
    if (m == g) return true;
    const Wide part = m / g;
    const Wide times = floor_mod((r - x.rest) / g, part) * inverse(x.step / g, part) % part;
    const Wide step = x.step * part, rest = x.rest + x.step * times;
    if (!set_lo(i, x.lo + floor_mod(rest - x.lo, step)) ||
        !set_hi(i, x.hi - floor_mod(x.hi - rest, step))) {
      return false;
    }
    if (x.n != 0) {
      std::vector<I> kept;
      each(i, [&](I v) {
        if (floor_mod(Wide(v) - rest, step) == 0) kept.push_back(v);
      });
      if (!keep(i, kept.data(), kept.size())) return false;
    }
    if (x.lo == x.hi) return true;
    save(i);
    x.step = I(step);
    x.rest = I(rest);
    tell(i, STEP);
    return true;
  }

  size_t mark() const { return trail_.size(); }
  void enter() { ++now_; }

  void undo(size_t length) {
    while (trail_.size() > length) {
      const Saved& s = trail_.back();
      Var& x = vars_[s.i];
      x.lo = s.lo;
      x.hi = s.hi;
      x.step = s.step;
      x.rest = s.rest;
      x.first = s.first;
      x.last = s.last;
      for (uint32_t w = x.n_words; w-- > 0;) {
        bits_[x.words + w] = saved_bits_.back();
        saved_bits_.pop_back();
      }
      trail_.pop_back();
    }
    ++now_;
  }

  bool idle() const { return head_ == tail_; }

  int32_t pop() {
    const int32_t p = queue_[head_];
    head_ = head_ + 1 == queue_.size() ? 0 : head_ + 1;
    return p;
  }

  void push(int32_t p) {
    queued_[p] = 1;
    queue_[tail_] = p;
    tail_ = tail_ + 1 == queue_.size() ? 0 : tail_ + 1;
  }

  bool waits(int32_t p) const { return queued_[p] != 0; }

  void release(int32_t p) { queued_[p] = 0; }

  void clear_queue() {
    while (!idle()) queued_[pop()] = 0;
  }

 private:
  static constexpr uint32_t DENSE = ~uint32_t(0);
  // A part of 1 / 2^TINY is next to nothing.
  static constexpr int TINY = 8;
  static constexpr Wide MODULUS = Wide(1) << 62;

  struct Var {
    I lo{}, hi{}, base{}, step{1}, rest{};
    uint32_t values = 0, n = 0, words = 0, n_words = 0, first = 0, last = 0;
    uint64_t stamp = 0;
  };
  struct Saved {
    int32_t i;
    uint32_t first, last;
    I lo, hi, step, rest;
  };
  struct Watch {
    int32_t prop;
    uint8_t events;
  };

  const Program<I>& program_;
  std::vector<Var> vars_;
  std::vector<uint64_t> bits_, saved_bits_;
  std::vector<Saved> trail_;
  std::vector<Watch> watches_;
  std::vector<uint32_t> watch_begin_;
  std::vector<uint8_t> queued_;
  std::vector<int32_t> queue_;
  size_t head_ = 0, tail_ = 0;
  uint64_t now_ = 1;

  I value(const Var& x, uint32_t k) const {
    return x.values == DENSE ? x.base + I(k) : program_.numbers[x.values + k];
  }

  // The first index whose value is at least v, for lo <= v <= hi.
  uint32_t lower(const Var& x, I v) const {
    if (x.values == DENSE) return uint32_t(v - x.base);
    const I* list = program_.numbers.data() + x.values;
    return uint32_t(std::lower_bound(list + x.first, list + x.last, v) - list);
  }

  bool bit(const Var& x, uint32_t k) const { return bits_[x.words + k / 64] >> (k % 64) & 1; }

  uint32_t next_bit(const Var& x, uint32_t k) const {
    uint32_t w = k / 64;
    uint64_t b = bits_[x.words + w] & (~uint64_t(0) << (k % 64));
    while (b == 0) b = bits_[x.words + ++w];
    return w * 64 + uint32_t(std::countr_zero(b));
  }

  uint32_t previous_bit(const Var& x, uint32_t k) const {
    uint32_t w = k / 64;
    uint64_t b = bits_[x.words + w] & (~uint64_t(0) >> (63 - k % 64));
    while (b == 0) b = bits_[x.words + --w];
    return w * 64 + 63 - uint32_t(std::countl_zero(b));
  }

  // The bits of word w that lie in lo .. hi.
  uint64_t mask(const Var& x, uint32_t w) const {
    uint64_t m = ~uint64_t(0);
    if (w == x.first / 64) m &= ~uint64_t(0) << (x.first % 64);
    if (w == x.last / 64) m &= ~uint64_t(0) >> (63 - x.last % 64);
    return m;
  }

  void save(int32_t i) {
    Var& x = vars_[i];
    if (x.stamp == now_) return;
    x.stamp = now_;
    trail_.push_back({i, x.first, x.last, x.lo, x.hi, x.step, x.rest});
    for (uint32_t w = 0; w < x.n_words; ++w) saved_bits_.push_back(bits_[x.words + w]);
  }

  void tell(int32_t i, uint8_t event) {
    for (uint32_t k = watch_begin_[i]; k < watch_begin_[i + 1]; ++k) {
      const Watch& w = watches_[k];
      if ((w.events & event) && !queued_[w.prop]) push(w.prop);
    }
  }

  static uint8_t events_of(const Prop& p) {
    switch (p.op) {
      case LIN_LE:
      case LIN_NE:
      case MAX:
      case MIN:
      case OR:
      case ALLDIFF:
        return BOUNDS;
      case LIN_EQ:
        return p.xs.size > 2 ? BOUNDS | STEP : BOUNDS | HOLE | STEP;
      case MUL:
      case MOD:
        return BOUNDS | HOLE | STEP;
      default:
        return BOUNDS | HOLE;
    }
  }

  // Lists the propagators of every variable, each once for its operands and once for its `r`.
  void watch() {
    std::vector<std::vector<Watch>> lists(vars_.size());
    for (size_t p = 0; p < program_.props.size(); ++p) {
      const Prop& prop = program_.props[p];
      for (uint32_t k = 0; k < prop.xs.size; ++k) {
        std::vector<Watch>& list = lists[program_.ids[prop.xs.begin + k]];
        if (list.empty() || list.back().prop != int32_t(p)) {
          list.push_back({int32_t(p), events_of(prop)});
        }
      }
      if (prop.r >= 0) lists[prop.r].push_back({int32_t(p), BOUNDS});
    }
    for (const std::vector<Watch>& list : lists) {
      watch_begin_.push_back(uint32_t(watches_.size()));
      watches_.insert(watches_.end(), list.begin(), list.end());
    }
    watch_begin_.push_back(uint32_t(watches_.size()));
  }
};

}  // namespace constrint
