// SPDX-License-Identifier: Apache-2.0
// program.hpp - a model as the Python side packs it, read and checked.
//
// Layout     one stream of I: variables, model variables, objective, orders; (variable, direction)
// per
//            order; a direction per model variable; (0, lo, hi), (1, lo, hi, n, values) or
//            (2, lo, hi) for a dense set per variable; propagators, each (op, r, want, n,
//            variables, n, constants, n, scope). constrint/_flat.py writes it.
#pragma once

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "numbers.hpp"

namespace constrint {

enum Op { LIN_LE, LIN_EQ, LIN_NE, MUL, DIV, MOD, POW, MAX, MIN, OR, IN, ALLDIFF, OPS };

// A list inside Program's pools.
struct Span {
  uint32_t begin = 0, size = 0;
};

struct Prop {
  Op op;
  int32_t r, want;
  Span xs, consts, scope;
};

template <class I>
struct Domain {
  I lo, hi;
  // Values: none (an interval), listed, or every integer from base on.
  enum Kind : uint8_t { INTERVAL, LISTED, DENSE } kind;
  Span values;
  I base;
};

template <class I>
class Program {
 public:
  int32_t variables = 0, user = 0, objective = -1;
  std::vector<std::pair<int32_t, int32_t>> order;
  std::vector<int32_t> directions;
  std::vector<Domain<I>> domains;
  std::vector<Prop> props;
  std::vector<int32_t> ids;
  std::vector<I> numbers;

  Program(const char* data, size_t bytes) : data_(data), left_(bytes / sizeof(I)) {
    variables = index(MOST);
    user = index(variables);
    objective = int32_t(within(-1, I(variables) - 1));
    const int32_t orders = index(MOST);
    for (int32_t k = 0; k < orders; ++k) {
      const int32_t x = below(variables);
      order.emplace_back(x, int32_t(within(-1, 1)));
    }
    for (int32_t k = 0; k < user; ++k) directions.push_back(int32_t(within(-1, 1)));
    for (int32_t k = 0; k < variables; ++k) read_domain();
    const int32_t count = index(MOST);
    for (int32_t k = 0; k < count; ++k) read_prop();
    if (left_ != 0) throw std::invalid_argument("program: numbers left over");
  }

 private:
  static constexpr int32_t MOST = 1 << 28;
  const char* data_;
  size_t left_;

  I next() {
    if (left_ == 0) throw std::invalid_argument("program: it ends too early");
    I value;
    std::memcpy(&value, data_, sizeof(I));
    data_ += sizeof(I);
    --left_;
    return value;
  }

  I within(I low, I high) {
    const I value = next();
    if (value < low || value > high) throw std::invalid_argument("program: a number out of range");
    return value;
  }

  int32_t index(int32_t most) { return int32_t(within(0, most)); }

  int32_t below(int32_t count) { return int32_t(within(0, I(count) - 1)); }

  static constexpr I limit() { return I(1) << (sizeof(I) == 8 ? 62 : 124); }

  I bounded() { return within(1 - limit(), limit() - 1); }

  void read_domain() {
    Domain<I> d{};
    const int32_t kind = int32_t(within(0, 2));
    d.kind = typename Domain<I>::Kind(kind);
    d.lo = bounded();
    d.hi = bounded();
    if (d.lo > d.hi) throw std::invalid_argument("program: an empty domain");
    d.base = d.lo;
    if (d.kind == Domain<I>::LISTED) {
      const int32_t n = index(MOST);
      d.values = {uint32_t(numbers.size()), uint32_t(n)};
      for (int32_t k = 0; k < n; ++k) numbers.push_back(bounded());
      const I* v = numbers.data() + d.values.begin;
      for (int32_t k = 1; k < n; ++k) {
        if (v[k - 1] >= v[k]) throw std::invalid_argument("program: values out of order");
      }
      if (n == 0 || v[0] != d.lo || v[n - 1] != d.hi) {
        throw std::invalid_argument("program: values that do not match their bounds");
      }
    } else if (d.kind == Domain<I>::DENSE) {
      if (d.hi - d.lo >= (1 << 16)) throw std::invalid_argument("program: a dense set too large");
      d.values = {0, uint32_t(d.hi - d.lo + 1)};
    }
    domains.push_back(d);
  }

  Span read_ids(int32_t count) {
    const int32_t n = index(MOST);
    const Span span{uint32_t(ids.size()), uint32_t(n)};
    for (int32_t k = 0; k < n; ++k) ids.push_back(below(count));
    return span;
  }

  void read_prop() {
    Prop p{};
    p.op = Op(int32_t(within(0, OPS - 1)));
    p.r = int32_t(within(-1, I(variables) - 1));
    p.want = int32_t(within(0, 1));
    p.xs = read_ids(variables);
    const int32_t n = index(MOST);
    p.consts = {uint32_t(numbers.size()), uint32_t(n)};
    for (int32_t k = 0; k < n; ++k) numbers.push_back(bounded());
    p.scope = read_ids(user);
    check(p);
    props.push_back(p);
  }

  void check(const Prop& p) {
    const uint32_t n = p.xs.size, m = p.consts.size;
    const bool linear = p.op <= LIN_NE, function = p.op >= MUL && p.op <= POW;
    const bool fits = linear                       ? n >= 1 && m == n + 1
                      : function                   ? n == 3
                      : p.op == MAX || p.op == MIN ? n >= 2
                      : p.op == OR                 ? n >= 1 && m == n
                      : p.op == IN                 ? n == 1 && m >= 1
                                                   : n >= 1;
    if (!fits) throw std::invalid_argument("program: a propagator of the wrong size");
    if (linear) check_sum(p);
    if (p.op == DIV || p.op == MOD) check_divisor(p);
    if (p.op == POW && domains[ids[p.xs.begin + 2]].lo < 0) {
      throw std::invalid_argument("program: a negative power");
    }
  }

  void check_divisor(const Prop& p) {
    const Domain<I>& d = domains[ids[p.xs.begin + 2]];
    bool zero = d.lo <= 0 && d.hi >= 0;
    if (zero && d.kind == Domain<I>::LISTED) {
      zero = false;
      for (uint32_t k = 0; k < d.values.size; ++k) zero |= numbers[d.values.begin + k] == 0;
    }
    if (zero) throw std::invalid_argument("program: a divisor that may be 0");
  }

  // The sum of a linear form must fit an I whatever its variables are.
  void check_sum(const Prop& p) {
    Wide most = magnitude(numbers[p.consts.begin + p.xs.size]);
    for (uint32_t k = 0; k < p.xs.size; ++k) {
      const Domain<I>& d = domains[ids[p.xs.begin + k]];
      const Wide a = magnitude(numbers[p.consts.begin + k]);
      const Wide top = std::max(magnitude(d.lo), magnitude(d.hi));
      if (a == 0) throw std::invalid_argument("program: a coefficient of 0");
      most = add(most, mul(a, top));
    }
    if (most >= Wide(limit())) throw Overflow();
  }

  static Wide magnitude(Wide v) { return v < 0 ? -v : v; }
};

}  // namespace constrint
