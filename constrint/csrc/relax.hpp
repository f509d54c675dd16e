// SPDX-License-Identifier: Apache-2.0
// relax.hpp - refutes linear rules together, over the rationals, where bounds would creep for ever.
//
// Algorithm  the simplex of Dutertre and de Moura for feasibility, with Bland's rule and whole
//            numbers: row i says below[i] basic_i == sum_j factors[i][j] nonbasic_j, and nonbasic
//            variables have values. constrint/_relax.py is its twin.
// Limits     more rows or pivots than MOST_*, or larger factors than COEFFICIENT: no answer.
#pragma once

#include <optional>

#include "store.hpp"

namespace constrint {

template <class I>
class Relaxation {
 public:
  explicit Relaxation(const Store<I>& store) : s(store) {}

  // Says whether no rational point in the bounds of now satisfies the linear ones of `late`.
  bool refuted(const Program<I>& program, const std::vector<int32_t>& late) {
    for (int32_t p : late) add(program, program.props[p]);
    if (rows_.empty() || rows_.size() > MOST_ROWS) return false;
    fill();
    for (int k = 0; k < MOST_PIVOTS; ++k) {
      bool grows = false;
      const int i = broken(grows);
      if (i < 0) return false;
      const int j = entering(i, grows);
      if (j < 0) return true;
      if (!pivot(i, j, grows)) return false;
    }
    return false;
  }

 private:
  static constexpr size_t MOST_ROWS = 64;
  static constexpr int MOST_PIVOTS = 200;
  static constexpr Wide COEFFICIENT = Wide(1) << 60;
  using Bound = std::optional<Wide>;

  struct Row {
    std::vector<std::pair<int32_t, Wide>> terms;
    Bound least, most;
  };

  const Store<I>& s;
  std::vector<Row> rows_;
  std::vector<Bound> least_, most_;
  std::vector<int> columns_, basic_;
  std::vector<Wide> values_, below_;
  std::vector<std::vector<Wide>> factors_;

  // Adds what a propagator says linearly here.
  void add(const Program<I>& program, const Prop& p) {
    const int32_t* xs = program.ids.data() + p.xs.begin;
    const I* consts = program.numbers.data() + p.consts.begin;
    if (p.op == MAX || p.op == MIN) {
      const Wide sign = p.op == MAX ? 1 : -1;
      for (uint32_t k = 1; k < p.xs.size; ++k) {
        if (xs[k] != xs[0]) rows_.push_back({{{xs[0], sign}, {xs[k], -sign}}, 0, {}});
      }
    } else if (p.op == MUL || p.op == DIV) {
      if (xs[0] != xs[1] && xs[0] != xs[2] && xs[1] != xs[2]) add_scaled(p.op, xs);
    } else if (p.op == LIN_LE || p.op == LIN_EQ) {
      if (p.r >= 0 && !s.fixed(p.r)) return;
      Row row;
      for (uint32_t k = 0; k < p.xs.size; ++k) row.terms.emplace_back(xs[k], consts[k]);
      const Wide c = consts[p.xs.size];
      if (p.r < 0 || s.lo(p.r) == p.want) {
        if (p.op == LIN_EQ) row.least = c;
        row.most = c;
      } else if (p.op == LIN_LE) {
        row.least = c + 1;
      } else {
        return;
      }
      rows_.push_back(row);
    }
  }

  // z == x * by, or z == x // by.
  void add_scaled(Op op, const int32_t* xs) {
    const int32_t z = xs[0];
    int32_t x = xs[1], y = xs[2];
    if (op == MUL && s.fixed(x)) std::swap(x, y);
    const Wide by = s.lo(y);
    if (!s.fixed(y) || by == 0) return;
    if (op == MUL) {
      rows_.push_back({{{z, 1}, {x, -by}}, 0, 0});
      return;
    }
    const Wide most = (by < 0 ? -by : by) - 1;
    const Bound least = by > 0 ? Wide(0) : -most;
    rows_.push_back({{{x, 1}, {z, -by}}, least, by > 0 ? most : Wide(0)});
  }

  void fill() {
    std::vector<int32_t> seen;
    const auto place = [&](int32_t x) {
      return size_t(std::find(seen.begin(), seen.end(), x) - seen.begin());
    };
    for (const Row& row : rows_) {
      for (const auto& [x, a] : row.terms) {
        if (place(x) == seen.size()) seen.push_back(x);
      }
    }
    const int n = int(seen.size());
    for (int j = 0; j < n; ++j) {
      least_.push_back(Wide(s.lo(seen[j])));
      most_.push_back(Wide(s.hi(seen[j])));
      values_.push_back(s.lo(seen[j]));
      columns_.push_back(j);
    }
    for (const Row& row : rows_) {
      std::vector<Wide> line(n, 0);
      for (const auto& [x, a] : row.terms) line[place(x)] += a;
      basic_.push_back(n + int(factors_.size()));
      factors_.push_back(line);
      below_.push_back(1);
      least_.push_back(row.least);
      most_.push_back(row.most);
    }
  }

  // Returns the row of the first variable out of its bounds, or -1, and whether it has to grow.
  int broken(bool& grows) const {
    int found = -1;
    for (int i = 0; i < int(basic_.size()); ++i) {
      const int b = basic_[i];
      if (found >= 0 && b > basic_[found]) continue;
      Wide value = 0;
      for (size_t j = 0; j < columns_.size(); ++j) {
        value = constrint::add(value, mul(factors_[i][j], values_[j]));
      }
      if (least_[b] && value < mul(*least_[b], below_[i])) {
        found = i;
        grows = true;
      } else if (most_[b] && value > mul(*most_[b], below_[i])) {
        found = i;
        grows = false;
      }
    }
    return found;
  }

  // Returns the column of the first variable that can move row i the right way, or -1.
  int entering(int i, bool grows) const {
    int found = -1;
    for (int j = 0; j < int(columns_.size()); ++j) {
      const Wide a = factors_[i][j];
      const int c = columns_[j];
      if (a == 0 || (found >= 0 && c > columns_[found])) continue;
      const Bound& end = (a > 0) == grows ? most_[c] : least_[c];
      if (!end || values_[j] != *end) found = j;
    }
    return found;
  }

  // Swaps basic variable i, put to the bound it broke, with column j; false: too large.
  bool pivot(int i, int j, bool grows) {
    const int leaving = basic_[i];
    const Wide sign = factors_[i][j] > 0 ? 1 : -1, d = sign * factors_[i][j];
    std::vector<Wide>& fresh = factors_[i];
    for (Wide& a : fresh) a *= -sign;
    fresh[j] = sign * below_[i];
    below_[i] = d;
    std::swap(basic_[i], columns_[j]);
    values_[j] = grows ? *least_[leaving] : *most_[leaving];
    for (int k = 0; k < int(basic_.size()); ++k) {
      std::vector<Wide>& row = factors_[k];
      if (k == i || row[j] == 0) continue;
      const Wide m = row[j];
      row[j] = 0;
      below_[k] *= d;
      Wide common = below_[k];
      for (size_t c = 0; c < row.size(); ++c) {
        row[c] = constrint::add(mul(d, row[c]), mul(m, fresh[c]));
        common = gcd(common, row[c]);
      }
      below_[k] /= common;
      bool small = below_[k] < COEFFICIENT;
      for (Wide& a : row) {
        a /= common;
        small &= a < COEFFICIENT && a > -COEFFICIENT;
      }
      if (!small) return false;
    }
    return true;
  }
};

}  // namespace constrint
