// SPDX-License-Identifier: Apache-2.0
// lssl.cpp - the linear state-space layer against the equations of include/seqkern/lssl.h, with
// dense solves.
#include "../include/seqkern/lssl.h"

#include <cstdio>
#include <limits>

#include "../cpu/dispatch.hpp"
#include "checks.hpp"

namespace seqkern::test {
namespace {

struct Case {
  int64_t B = 1, L = 1, H = 1, N = 1, M = 1, segment = 16;
  bool lower = false, impulse = false, x0 = false, D = false, sparse_input = false;
  bool shared = false;  // features differ in their time step alone
  bool family = false;  // and the kernels get to know no more
  LsslWanted wanted = LsslWanted::kAll;
};

std::string name_of(const Case& c, bool f64) {
  char text[200];
  snprintf(text, sizeof text,
           "B=%d L=%d H=%d N=%d M=%d segment=%d lower=%d impulse=%d x0=%d D=%d sparse=%d shared=%d "
           "family=%d wanted=%d f64=%d",
           int(c.B), int(c.L), int(c.H), int(c.N), int(c.M), int(c.segment), c.lower, c.impulse,
           c.x0, c.D, c.sparse_input, c.shared, c.family, int(c.wanted), f64);
  return text;
}

typedef std::vector<double> Values;

// Inputs, every number one that a float holds, but for shared systems.
struct Data {
  Values E, F, g, C, D, u, x0, dy, dxt;

  Data(const Case& c, Random& random) {
    const int64_t HN = c.H * c.N;
    const auto fill = [&](Values& to, int64_t count, double scale) {
      to.resize(static_cast<size_t>(count));
      for (double& x : to) x = static_cast<float>(scale * random.normal());
    };
    fill(E, 3 * HN, 0.3);
    fill(F, 3 * HN, 0.3);
    for (int64_t i = 0; i < HN; ++i) E[HN + i] += E[HN + i] < 0 ? -1.5 : 1.5;
    // Stable: F is -E / 8 and a little.
    for (int64_t i = 0; i < 3 * HN; ++i) F[i] = static_cast<float>(0.1 * F[i] - 0.125 * E[i]);
    for (int64_t i = 2 * HN; c.lower && i < 3 * HN; ++i) E[i] = F[i] = 0.0;
    fill(g, HN, 1.0);
    for (int64_t i = c.N; c.shared && i < HN; ++i) share(c, i);
    for (int64_t i = 0; c.sparse_input && i < HN; ++i)
      if (i % c.N > 0) g[i] = 0.0;
    fill(C, HN * c.M, 1.0);
    fill(D, c.H * c.M, 1.0);
    fill(u, c.B * c.L * c.H, 1.0);
    fill(x0, c.B * HN, 1.0);
    fill(dy, c.B * c.L * c.M * c.H, 1.0);
    fill(dxt, c.B * HN, 1.0);
  }

 private:
  // Row i of a feature, from the same row of the first, for a time step of a quarter to 2.
  void share(const Case& c, int64_t i) {
    const int64_t h = i / c.N, n = i % c.N, plane = c.H * c.N;
    const double dt = (1.0 + static_cast<double>(h % 8)) / 4.0;
    for (int64_t k = 0; k < 3 * plane; k += plane) {
      E[k + i] = E[k + n] + 0.5 * (1.0 - dt) * F[k + n];
      F[k + i] = dt * F[k + n];
    }
    g[i] = dt * g[n];
  }
};

template <class Real>
using Vector = std::vector<Real>;

// Solves A x = b by elimination with row exchanges; A is [N][N] and destroyed.
template <class Real>
Vector<Real> solve(Vector<Real> A, Vector<Real> b) {
  const size_t N = b.size();
  for (size_t k = 0; k < N; ++k) {
    size_t best = k;
    for (size_t i = k + 1; i < N; ++i)
      if (std::fabs(A[i * N + k]) > std::fabs(A[best * N + k])) best = i;
    for (size_t j = 0; j < N; ++j) std::swap(A[k * N + j], A[best * N + j]);
    std::swap(b[k], b[best]);
    for (size_t i = k + 1; i < N; ++i) {
      const Real f = A[i * N + k] / A[k * N + k];
      for (size_t j = k; j < N; ++j) A[i * N + j] -= f * A[k * N + j];
      b[i] -= f * b[k];
    }
  }
  for (size_t k = N; k-- > 0;) {
    for (size_t j = k + 1; j < N; ++j) b[k] -= A[k * N + j] * b[j];
    b[k] /= A[k * N + k];
  }
  return b;
}

template <class Real>
struct Results {
  Vector<Real> y, xt, du, dx0, dE, dF, dg, dC, dD;
  double dC_terms = 0.0;  // the largest term of dC, which may cancel
};

template <class Real>
Results<Real> define(const Case& c, const Data& data) {
  const int64_t H = c.H, N = c.N, M = c.M, L = c.L, HN = H * N;
  const size_t order = static_cast<size_t>(N);
  Results<Real> out;
  const auto zeros = [](Vector<Real>& x, int64_t n) { x.assign(static_cast<size_t>(n), Real(0)); };
  zeros(out.y, c.B * L * M * H);
  zeros(out.xt, c.B * HN);
  zeros(out.du, c.B * L * H);
  zeros(out.dx0, c.B * HN);
  zeros(out.dE, 3 * HN);
  zeros(out.dF, 3 * HN);
  zeros(out.dg, HN);
  zeros(out.dC, HN * M);
  zeros(out.dD, H * M);
  for (int64_t h = 0; h < H; ++h) {
    Vector<Real> E(order * order, Real(0)), F(order * order, Real(0)), Et(order * order, Real(0));
    for (int64_t n = 0; n < N; ++n)
      for (int64_t k = -1; k <= 1; ++k) {
        if (n + k < 0 || n + k >= N) continue;
        const size_t from = static_cast<size_t>((k + 1) * HN + h * N + n);
        E[n * N + n + k] = static_cast<Real>(data.E[from]);
        Et[(n + k) * N + n] = static_cast<Real>(data.E[from]);
        F[n * N + n + k] = static_cast<Real>(data.F[from]);
      }
    for (int64_t b = 0; b < c.B; ++b) {
      const auto u = [&](int64_t t) {
        if (c.impulse) return t == 0 ? Real(1) : Real(0);
        return static_cast<Real>(data.u[(b * L + t) * H + h]);
      };
      const auto dy = [&](int64_t t, int64_t m) {
        return static_cast<Real>(data.dy[((b * L + t) * M + m) * H + h]);
      };
      Vector<Vector<Real>> x(1, Vector<Real>(order, Real(0))), d;
      for (int64_t n = 0; c.x0 && n < N; ++n)
        x[0][n] = static_cast<Real>(data.x0[b * HN + h * N + n]);
      for (int64_t t = 0; t < L; ++t) {
        Vector<Real> r(order), next(order);
        for (int64_t n = 0; n < N; ++n) {
          r[n] = static_cast<Real>(data.g[h * N + n]) * u(t);
          for (int64_t k = 0; k < N; ++k) r[n] += F[n * N + k] * x.back()[k];
        }
        d.push_back(solve(E, r));
        for (int64_t n = 0; n < N; ++n) next[n] = x.back()[n] + d.back()[n];
        x.push_back(next);
        for (int64_t m = 0; m < M; ++m) {
          Real y = c.D ? static_cast<Real>(data.D[h * M + m]) * u(t) : Real(0);
          for (int64_t n = 0; n < N; ++n)
            y += static_cast<Real>(data.C[(h * M + m) * N + n]) * next[n];
          out.y[((b * L + t) * M + m) * H + h] = y;
        }
      }
      Vector<Real> flow(order);
      for (int64_t n = 0; n < N; ++n) {
        out.xt[b * HN + h * N + n] = x.back()[n];
        flow[n] = static_cast<Real>(data.dxt[b * HN + h * N + n]);
      }
      for (int64_t t = L - 1; t >= 0; --t) {
        Vector<Real> a = flow;
        Real du = 0;
        for (int64_t m = 0; m < M; ++m) {
          for (int64_t n = 0; n < N; ++n) {
            a[n] += static_cast<Real>(data.C[(h * M + m) * N + n]) * dy(t, m);
            const Real term = dy(t, m) * x[t + 1][n];
            out.dC[(h * M + m) * N + n] += term;
            out.dC_terms = std::max(out.dC_terms, std::fabs(static_cast<double>(term)));
          }
          if (!c.D) continue;
          du += static_cast<Real>(data.D[h * M + m]) * dy(t, m);
          out.dD[h * M + m] += dy(t, m) * u(t);
        }
        const Vector<Real> mu = solve(Et, a);
        for (int64_t n = 0; n < N; ++n) {
          du += static_cast<Real>(data.g[h * N + n]) * mu[n];
          out.dg[h * N + n] += mu[n] * u(t);
          for (int64_t k = -1; k <= 1; ++k) {
            if (n + k < 0 || n + k >= N) continue;
            out.dE[(k + 1) * HN + h * N + n] -= mu[n] * d[t][n + k];
            out.dF[(k + 1) * HN + h * N + n] += mu[n] * x[t][n + k];
          }
        }
        flow = a;
        for (int64_t n = 0; n < N; ++n)
          for (int64_t k = 0; k < N; ++k) flow[k] += F[n * N + k] * mu[n];
        out.du[(b * L + t) * H + h] = du;
      }
      for (int64_t n = 0; n < N; ++n) out.dx0[b * HN + h * N + n] = flow[n];
    }
  }
  return out;
}

template <class T>
Vector<T> typed(const Values& x) {
  return Vector<T>(x.begin(), x.end());
}

template <class T>
Vector<T> unwritten(size_t count) {
  return Vector<T>(count, std::numeric_limits<T>::quiet_NaN());
}

// T: type of the kernel; the error of the definition in it sets what is allowed.
template <class T, class U>
void compare(Report& report, const char* what, const Vector<U>& got, const Vector<double>& exact,
             const Vector<T>& rough, double terms = 0.0) {
  double largest = terms, error = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    largest = std::max(largest, std::fabs(exact[i]));
    error = std::max(error, std::fabs(static_cast<double>(rough[i]) - exact[i]));
  }
  const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
  const double allowed = 2.0 * error + kRoundings * unit * largest + 1e-30;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double off = std::fabs(static_cast<double>(got[i]) - exact[i]);
    if (off <= allowed) continue;
    char text[200];
    snprintf(text, sizeof text, "%s[%zu] is %.9g, not %.9g; off by %.2g, allowed %.2g", what, i,
             static_cast<double>(got[i]), exact[i], off, allowed);
    return report.check(false, text);
  }
  report.check(true, what);
}

// The sum over the parts.
Values summed(const Values& parts, int64_t count) {
  Values out(parts.size() / static_cast<size_t>(count), 0.0);
  for (size_t i = 0; i < parts.size(); ++i) out[i % out.size()] += parts[i];
  return out;
}

template <class T>
void check(const Case& c, const Data& data, const Results<double>& exact, Report& report) {
  const Results<T> rough = define<T>(c, data);
  const LsslKernels& k = kernels().lssl;
  const Vector<T> C = typed<T>(data.C), D = typed<T>(data.D), u = typed<T>(data.u),
                  x0 = typed<T>(data.x0), dy = typed<T>(data.dy), dxt = typed<T>(data.dxt);
  LsslGrad q;
  LsslScan& p = q.scan;
  LsslSystem& s = p.system;
  s.H = c.H;
  s.N = c.N;
  s.M = c.M;
  s.f64 = sizeof(T) == 8;
  s.lower = c.lower;
  s.E = data.E.data();
  s.F = data.F.data();
  s.g = data.g.data();
  s.C = C.data();
  s.D = c.D ? D.data() : nullptr;
  Values memory(static_cast<size_t>(lssl_share_memory(s)));
  LsslShared shared;
  const bool found = lssl_share(s, memory.data(), shared);
  report.check(found || !c.shared, "what is shared was not found");
  report.check(!found || c.shared || c.H == 1, "what is not shared was found to be");
  if (found && c.shared) s.shared = &shared;
  s.compact = s.shared != nullptr && !s.f64 && c.N % 2 == 0;
  if (found && c.family) s.E = s.F = s.g = nullptr;
  p.B = c.B;
  p.L = c.L;
  p.u = c.impulse ? nullptr : u.data();
  p.u_batch = c.L * c.H;
  p.u_time = c.H;
  p.x0 = c.x0 ? x0.data() : nullptr;
  p.segment = c.segment;
  Vector<T> y = unwritten<T>(exact.y.size()), xt = unwritten<T>(exact.xt.size());
  const int64_t segments = (c.L + c.segment - 1) / c.segment;
  const int64_t width = lssl_checkpoint_block(c.H), blocks = (c.H + width - 1) / width;
  Vector<T> checkpoints = unwritten<T>(static_cast<size_t>(c.B * segments * blocks * c.N * width));
  p.y = y.data();
  p.xt = xt.data();
  p.checkpoints = checkpoints.data();
  const Scratch forward(k.forward_workspace(p));
  double growth = 0.0;
  for (int64_t task = 0; task < k.forward_tasks(p); ++task)
    growth = std::max(growth, k.forward(p, task, forward.data()));
  report.check(growth >= 1.0 - 1e-9 && growth < 100.0, "growth");
  compare<T>(report, "y", y, exact.y, rough.y);
  compare<T>(report, "xt", xt, exact.xt, rough.xt);
  for (const T x : checkpoints)
    if (x != x) return report.check(false, "a checkpoint was not written");

  Vector<T> du = unwritten<T>(exact.du.size()), dx0 = unwritten<T>(exact.dx0.size());
  q.parts = std::min<int64_t>(c.B, 2);
  const size_t parts = static_cast<size_t>(q.parts);
  Values dE = unwritten<double>(parts * exact.dE.size()), dF = dE;
  Values dg = unwritten<double>(parts * exact.dg.size());
  Values dC = unwritten<double>(parts * exact.dC.size());
  Values dD = unwritten<double>(parts * exact.dD.size());
  q.dy = dy.data();
  q.dy_batch = c.L * c.M * c.H;
  q.dy_time = c.M * c.H;
  q.dy_channel = c.H;
  q.dxt = dxt.data();
  q.wanted = c.wanted;
  q.du = c.impulse ? nullptr : du.data();
  q.dx0 = dx0.data();
  q.dE = dE.data();
  q.dF = dF.data();
  q.dg = dg.data();
  q.dC = dC.data();
  q.dD = c.D ? dD.data() : nullptr;
  const Scratch backward(k.backward_workspace(q));
  for (int64_t task = 0; task < q.parts * k.groups(s); ++task) k.backward(q, task, backward.data());
  if (!c.impulse) compare<T>(report, "du", du, exact.du, rough.du);
  compare<T>(report, "dx0", dx0, exact.dx0, rough.dx0);
  compare<T>(report, "dC", summed(dC, q.parts), exact.dC, rough.dC, exact.dC_terms);
  if (c.D) compare<T>(report, "dD", summed(dD, q.parts), exact.dD, rough.dD);
  if (c.wanted == LsslWanted::kNone) return;
  compare<T>(report, "dg", summed(dg, q.parts), exact.dg, rough.dg);
  Values E = summed(dE, q.parts), F = summed(dF, q.parts), trueE = exact.dE, trueF = exact.dF;
  if (c.wanted == LsslWanted::kLower && c.lower)
    for (Values* x : {&E, &F, &trueE, &trueF}) x->resize(x->size() / 3 * 2);
  compare<T>(report, "dE", E, trueE, rough.dE);
  compare<T>(report, "dF", F, trueF, rough.dF);
}

// The convolution against its sums; whole numbers, of which these are exact in double.
template <class T>
void check_convolution(int64_t B, int64_t L, int64_t H, int64_t M, Random& random, Report& report) {
  const auto whole = [&](int64_t count) {
    Vector<T> x(static_cast<size_t>(count));
    for (T& value : x) value = static_cast<T>(random.below(17) - 8);
    return x;
  };
  const Vector<T> u = whole(B * L * H), K = whole(L * M * H), D = whole(H * M),
                  dy = whole(B * L * M * H);
  Vector<T> y = unwritten<T>(dy.size()), du = unwritten<T>(u.size());
  LsslConvolution p;
  p.B = B;
  p.L = L;
  p.H = H;
  p.M = M;
  p.f64 = sizeof(T) == 8;
  p.spectrum = lssl_spectrum(L, p.f64);
  p.u = u.data();
  p.u_batch = L * H;
  p.u_time = H;
  p.K = K.data();
  p.D = D.data();
  p.y = y.data();
  p.parts = std::min<int64_t>((B + 1) / 2, 2);
  const LsslKernels& k = kernels().lssl;
  const int64_t tasks = p.parts * ((H + kLsslBlock - 1) / kLsslBlock);
  const Scratch forward(k.convolution_workspace(p));
  for (int64_t task = 0; task < tasks; ++task) k.convolve(p, task, forward.data());
  Vector<T> dK = unwritten<T>(static_cast<size_t>(p.parts) * K.size());
  p.dy = dy.data();
  p.dy_batch = L * M * H;
  p.dy_time = M * H;
  p.dy_channel = H;
  p.du = du.data();
  p.dK = dK.data();
  const Scratch backward(k.convolution_workspace(p));
  for (int64_t task = 0; task < tasks; ++task) k.convolve_back(p, task, backward.data());

  Values true_y(y.size(), 0.0), true_du(du.size(), 0.0), true_dK(K.size(), 0.0);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < L; ++t)
      for (int64_t m = 0; m < M; ++m)
        for (int64_t h = 0; h < H; ++h)
          for (int64_t s = 0; s <= t; ++s) {
            const int64_t out = ((b * L + t) * M + m) * H + h, in = (b * L + s) * H + h;
            const int64_t at = ((t - s) * M + m) * H + h;
            const double weight = static_cast<double>(K[at]) + (s == t ? double(D[h * M + m]) : 0);
            true_y[out] += weight * static_cast<double>(u[in]);
            true_du[in] += weight * static_cast<double>(dy[out]);
            true_dK[at] += static_cast<double>(u[in]) * static_cast<double>(dy[out]);
          }
  Values sums(true_dK.size(), 0.0);
  for (size_t i = 0; i < dK.size(); ++i) sums[i % sums.size()] += static_cast<double>(dK[i]);
  // The transform rounds in the scale of the whole sequence: its norm is the term that counts.
  const double norm = 64.0 * std::sqrt(static_cast<double>(L * B * M));
  const auto exact = [](const Values& x) { return Vector<T>(x.begin(), x.end()); };
  compare<T>(report, "y", y, true_y, exact(true_y), norm);
  compare<T>(report, "du", du, true_du, exact(true_du), norm);
  compare<T>(report, "dK", sums, true_dK, exact(true_dK), norm);
}

}  // namespace

Report test_lssl(const Plan& plan) {
  Report report("lssl", plan.isas);
  uint64_t seed = 4000;
  for (const int64_t L : {1, 5, 8, 19, 50})
    for (const int64_t H : {1, 7, 16, 21, 35})
      for (const int64_t N : {1, 2, 6, 17}) {
        ++seed;
        if (plan.quick && seed % 4 != 0) continue;
        Random random(seed);
        Case c;
        c.L = L;
        c.H = H;
        c.N = N;
        c.M = 1 + random.below(3);
        c.lower = random.coin();
        c.impulse = random.below(3) == 0;
        c.B = c.impulse ? 1 : 1 + random.below(3);
        c.x0 = !c.impulse && random.coin();
        c.D = random.coin();
        c.sparse_input = random.coin();
        c.shared = seed % 3 == 0;
        c.family = c.shared && seed / 4 % 2 == 0;
        c.segment = random.pick<int64_t>({8, 16, 24});
        c.wanted = random.pick<LsslWanted>(
            {LsslWanted::kNone, c.lower ? LsslWanted::kLower : LsslWanted::kAll, LsslWanted::kAll});
        const Data data(c, random);
        const Results<double> exact = define<double>(c, data);
        for (size_t i = 0; i < plan.isas.size(); ++i) {
          set_isa_cap(plan.isas[i].c_str());
          report.begin(i, name_of(c, false));
          check<float>(c, data, exact, report);
          report.begin(i, name_of(c, true));
          check<double>(c, data, exact, report);
        }
        set_isa_cap("");
      }
  for (const int64_t L : {1, 2, 7, 8, 9, 12, 13, 24, 33, 70})
    for (const int64_t H : {1, 16, 21}) {
      ++seed;
      if (plan.quick && seed % 4 != 0) continue;
      for (size_t i = 0; i < plan.isas.size(); ++i) {
        set_isa_cap(plan.isas[i].c_str());
        Random random(seed);
        const int64_t B = 1 + random.below(4), M = 1 + random.below(2);
        char name[100];
        snprintf(name, sizeof name, "convolution B=%d L=%d H=%d M=%d", int(B), int(L), int(H),
                 int(M));
        report.begin(i, std::string(name) + " f32");
        check_convolution<float>(B, L, H, M, random, report);
        report.begin(i, std::string(name) + " f64");
        check_convolution<double>(B, L, H, M, random, report);
      }
      set_isa_cap("");
    }
  return report;
}

}  // namespace seqkern::test
