// SPDX-License-Identifier: Apache-2.0
// driver.cpp - random programs for the search core, meant to run under sanitizers.
//
// Usage      driver [ROUNDS]          (default 3000)
// Checks     small programs: every solution satisfies every propagator's definition, and there are
// as
//            many as by trying all points; in 64 and in 128 bits alike.
//            long intervals around a hidden point: it is never refuted, also where bounds creep.
//            divisors: those of trial division.
//            damaged programs: read or refused, never more.

#include <cstdio>
#include <cstdlib>
#include <random>

#include "../search.hpp"

namespace {

using constrint::Engine;
using constrint::Wide;
using Ints = std::vector<int64_t>;

struct Rule {
  int op;
  int r, want;
  std::vector<int> xs;
  Ints consts;
};

struct Model {
  std::vector<Ints> domains;
  std::vector<int> kinds;
  std::vector<Rule> rules;
  std::vector<std::pair<int, int>> order;
  int objective = -1;
};

// The kind of a domain that is every integer from its first to its last number.
constexpr int LONG = 3;

std::mt19937_64 rng(1);

int pick(int low, int high) { return low + int(rng() % uint64_t(high - low + 1)); }

Model random_model() {
  Model m;
  const int n = pick(2, 4);
  for (int i = 0; i < n; ++i) {
    const int kind = pick(0, 2), low = pick(-4, 3);
    Ints values;
    for (int v = low; v < low + pick(1, 6); ++v) {
      if (kind != 1 || pick(0, 2) > 0) values.push_back(v);
    }
    if (values.empty()) values.push_back(low);
    m.domains.push_back(values);
    m.kinds.push_back(kind);
  }
  // One 0/1 variable that rules may be tied to.
  m.domains.push_back({0, 1});
  m.kinds.push_back(0);
  const auto any = [&] { return pick(0, n - 1); };
  for (int k = pick(1, 4); k > 0; --k) {
    Rule rule{pick(0, constrint::OPS - 1), -1, 1, {}, {}};
    const bool linear = rule.op <= constrint::LIN_NE;
    const bool tied = rule.op == constrint::LIN_LE || rule.op == constrint::LIN_EQ ||
                      rule.op == constrint::OR || rule.op == constrint::IN;
    if (tied && pick(0, 1)) rule.r = n, rule.want = pick(0, 1);
    if (linear) {
      for (int i = 0; i < n; ++i) {
        if (pick(0, 1) || i == n - 1) {
          rule.xs.push_back(i);
          rule.consts.push_back(pick(0, 1) ? pick(1, 4) : -pick(1, 4));
        }
      }
      rule.consts.push_back(pick(-6, 12));
    } else if (rule.op <= constrint::POW) {
      rule.xs = {any(), any(), any()};
    } else if (rule.op == constrint::IN) {
      rule.xs = {any()};
      for (int v = -5; v < 9; ++v) {
        if (pick(0, 1)) rule.consts.push_back(v);
      }
      if (rule.consts.empty()) rule.consts.push_back(0);
    } else {
      for (int i = 0; i < n; ++i) rule.xs.push_back(i);
      if (rule.op == constrint::OR) {
        for (int i = 0; i < n; ++i) rule.consts.push_back(pick(-2, 3));
      }
    }
    // The core takes no divisor that may be 0 and no negative power.
    const bool divides = rule.op == constrint::DIV || rule.op == constrint::MOD;
    if (divides || rule.op == constrint::POW) {
      for (int64_t v : m.domains[rule.xs[2]]) {
        if (divides ? v == 0 || m.domains[rule.xs[2]].front() * m.domains[rule.xs[2]].back() < 0
                    : v < 0) {
          rule = Rule{constrint::MAX, -1, 1, {0, 0, 1}, {}};
          break;
        }
      }
    }
    // A disjunction reads its operands as two-valued; only such a variable may stand in one.
    if (rule.op == constrint::OR) rule.xs = {n}, rule.consts = {pick(0, 1)}, rule.r = -1;
    m.rules.push_back(rule);
  }
  if (pick(0, 1)) m.order.push_back({any(), pick(0, 1) ? 1 : -1});
  if (pick(0, 3) == 0) m.objective = any();
  return m;
}

template <class I>
std::vector<char> pack(const Model& m) {
  std::vector<I> out;
  const int n = int(m.domains.size());
  out.insert(out.end(), {I(n), I(n), I(m.objective), I(m.order.size())});
  for (const auto& [x, way] : m.order) out.insert(out.end(), {I(x), I(way)});
  for (int i = 0; i < n; ++i) out.push_back(i % 2 ? 1 : -1);
  for (int i = 0; i < n; ++i) {
    const Ints& v = m.domains[i];
    if (m.kinds[i] == LONG) {
      out.insert(out.end(), {I(0), I(v.front()), I(v.back())});
      continue;
    }
    const bool dense = v.back() - v.front() + 1 == int64_t(v.size());
    const int kind = dense ? (m.kinds[i] == 2 ? 2 : m.kinds[i]) : 1;
    out.insert(out.end(), {I(kind), I(v.front()), I(v.back())});
    if (kind == 1) {
      out.push_back(I(v.size()));
      out.insert(out.end(), v.begin(), v.end());
    }
  }
  out.push_back(I(m.rules.size()));
  for (const Rule& rule : m.rules) {
    out.insert(out.end(), {I(rule.op), I(rule.r), I(rule.want), I(rule.xs.size())});
    out.insert(out.end(), rule.xs.begin(), rule.xs.end());
    out.push_back(I(rule.consts.size()));
    out.insert(out.end(), rule.consts.begin(), rule.consts.end());
    out.insert(out.end(), {I(1), I(rule.xs[0])});
  }
  std::vector<char> bytes(out.size() * sizeof(I));
  if (!out.empty()) std::memcpy(bytes.data(), out.data(), bytes.size());
  return bytes;
}

bool holds(const Rule& rule, const Ints& at) {
  Ints x;
  for (int i : rule.xs) x.push_back(at[i]);
  bool good = false;
  switch (rule.op) {
    case constrint::LIN_LE:
    case constrint::LIN_EQ:
    case constrint::LIN_NE: {
      int64_t sum = 0;
      for (size_t k = 0; k < x.size(); ++k) sum += rule.consts[k] * x[k];
      const int64_t c = rule.consts.back();
      good = rule.op == constrint::LIN_LE ? sum <= c : (sum == c) == (rule.op == constrint::LIN_EQ);
      break;
    }
    case constrint::MUL:
      return x[0] == x[1] * x[2];
    case constrint::DIV:
      return x[0] == constrint::floor_div(x[1], x[2]);
    case constrint::MOD:
      return x[0] == constrint::floor_mod(x[1], x[2]);
    case constrint::POW:
      return Wide(x[0]) == constrint::power(x[1], x[2]);
    case constrint::MAX:
      return x[0] == *std::max_element(x.begin() + 1, x.end());
    case constrint::MIN:
      return x[0] == *std::min_element(x.begin() + 1, x.end());
    case constrint::OR:
      for (size_t k = 0; k < x.size(); ++k) good |= x[k] == rule.consts[k];
      break;
    case constrint::IN:
      good = std::find(rule.consts.begin(), rule.consts.end(), x[0]) != rule.consts.end();
      break;
    default:
      for (size_t a = 0; a < x.size(); ++a) {
        for (size_t b = 0; b < a; ++b) {
          if (x[a] == x[b]) return false;
        }
      }
      return true;
  }
  return rule.r < 0 ? good : good == (at[rule.r] == rule.want);
}

bool all_hold(const Model& m, const Ints& at) {
  for (const Rule& rule : m.rules) {
    if (!holds(rule, at)) return false;
  }
  return true;
}

int64_t by_trying(const Model& m) {
  Ints at(m.domains.size());
  std::vector<size_t> index(at.size(), 0);
  int64_t found = 0;
  for (;;) {
    for (size_t i = 0; i < at.size(); ++i) at[i] = m.domains[i][index[i]];
    found += all_hold(m, at) ? 1 : 0;
    size_t i = 0;
    while (i < at.size() && ++index[i] == m.domains[i].size()) index[i++] = 0;
    if (i == at.size()) return found;
  }
}

template <class I>
bool agrees(const Model& m, int64_t truth, int64_t& nodes) {
  const std::vector<char> bytes = pack<I>(m);
  const auto engine =
      constrint::make_engine(bytes.data(), bytes.size(), sizeof(I), 0, false, false);
  int64_t found = 0;
  while (engine->run(1000000, 10.0) == constrint::SOLUTION) {
    Ints at;
    for (Wide v : engine->solution()) at.push_back(int64_t(v));
    if (!all_hold(m, at)) return false;
    ++found;
  }
  nodes = engine->nodes;
  if (m.objective >= 0) {
    const auto best =
        constrint::make_engine(bytes.data(), bytes.size(), sizeof(I), 2, false, false);
    if (best->run(1000000, 10.0) != constrint::DONE) return false;
    if (best->best().size() != size_t(std::min<int64_t>(truth, 2))) return false;
  }
  return found == truth;
}

// Adds a variable whose hidden value is a function of those of x and y.
void derive(Model& m, Ints& hidden, int op, int x, int y) {
  const int64_t a = hidden[x], b = hidden[y];
  hidden.push_back(op == constrint::MUL ? a * b : op == constrint::DIV ? a / b : a % b);
  m.domains.push_back({0, op == constrint::MUL ? 1'000'000'000'000 : 1'000'000});
  m.kinds.push_back(LONG);
  m.rules.push_back({op, -1, 1, {int(hidden.size()) - 1, x, y}, {}});
}

// Long intervals and rules that hold at a hidden point, tight enough that bounds often creep.
template <class I>
bool keeps_hidden_point() {
  Model m;
  Ints hidden;
  for (int i = 0; i < 3; ++i) {
    m.domains.push_back({1, 1'000'000});
    m.kinds.push_back(LONG);
    hidden.push_back(pick(0, 1) ? pick(1, 900) : pick(1, 900) * 1000);
  }
  hidden.push_back(pick(2, 5));
  m.domains.push_back({hidden.back(), hidden.back()});
  m.kinds.push_back(LONG);
  for (int k = pick(0, 3); k > 0; --k) {
    derive(m, hidden, pick(constrint::MUL, constrint::MOD), pick(0, 2), pick(0, 3));
  }
  const int n = int(hidden.size());
  for (int k = pick(2, 8); k > 0; --k) {
    Rule rule{pick(constrint::LIN_LE, constrint::LIN_EQ), -1, 1, {}, {}};
    const int x = pick(0, n - 1), y = (x + pick(1, n - 1)) % n;
    // Factors that differ by little make bounds creep.
    const int low = pick(0, 1) ? 1 : 990;
    const int64_t a = pick(low, low + 5), b = -pick(low, low + 5);
    rule.xs = {x, y};
    rule.consts = {a, b, a * hidden[x] + b * hidden[y]};
    if (rule.op == constrint::LIN_LE) rule.consts.back() += pick(0, 1);
    m.rules.push_back(rule);
  }
  const std::vector<char> bytes = pack<I>(m);
  const auto engine =
      constrint::make_engine(bytes.data(), bytes.size(), sizeof(I), 0, false, pick(0, 1));
  const int outcome = engine->run(200, 10.0);
  if (outcome == constrint::DONE) return false;
  if (outcome != constrint::SOLUTION) return true;
  Ints at;
  for (Wide v : engine->solution()) at.push_back(int64_t(v));
  return all_hold(m, at);
}

bool divisors_are_right() {
  constrint::Divisors divisors;
  const int64_t number = int64_t(pick(1, 30000)) * (pick(0, 1) ? pick(1, 30000) : 1);
  Ints truth, upper;
  for (int64_t d = 1; d * d <= number; ++d) {
    if (number % d != 0) continue;
    truth.push_back(d);
    if (d * d != number) upper.push_back(number / d);
  }
  truth.insert(truth.end(), upper.rbegin(), upper.rend());
  return divisors.of(number) == truth;
}

// Damages one byte or one number, or cuts the end off; whatever is left must be read or refused.
bool survives(const Model& m) {
  std::vector<char> bytes = pack<int64_t>(m);
  for (int k = pick(1, 3); k > 0; --k) {
    const size_t at = rng() % bytes.size();
    bytes[at] = char(rng());
    if (pick(0, 3) == 0) bytes.resize(bytes.size() - rng() % 9 % bytes.size());
    if (bytes.empty()) return true;
  }
  try {
    const auto engine =
        constrint::make_engine(bytes.data(), bytes.size(), 8, pick(0, 1), false, pick(0, 1));
    for (int k = 0; k < 20 && engine->run(50, 0.01) == constrint::SOLUTION; ++k) engine->solution();
    engine->bound();
  } catch (const std::invalid_argument&) {
  } catch (const constrint::Overflow&) {
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const long rounds = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 3000;
  if (argc > 2 || rounds < 1) {
    std::fprintf(stderr, "usage: %s [ROUNDS]\n", argv[0]);
    return 2;
  }
  long passed = 0, failed = 0;
  for (long k = 0; k < rounds; ++k) {
    const Model m = random_model();
    const int64_t truth = by_trying(m);
    int64_t narrow = 0, wide = 0;
    const bool good = agrees<int64_t>(m, truth, narrow) && agrees<Wide>(m, truth, wide) &&
                      narrow == wide && keeps_hidden_point<int64_t>() &&
                      keeps_hidden_point<Wide>() && divisors_are_right() && survives(m);
    (good ? passed : failed) += 1;
  }
  std::printf("constrint %ld passed, %ld failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}
