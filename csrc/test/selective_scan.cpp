// SPDX-License-Identifier: Apache-2.0
// selective_scan.cpp - forward, backward and single step of the selective scan, and the linear
// scan, against the equations of include/seqkern/selective_scan.h and linear_scan.h.
#include <cstdio>

#include "../cpu/dispatch.hpp"
#include "checks.hpp"

namespace seqkern::test {
namespace {

struct Case {
  int64_t batch = 1, T = 1, D = 1, N = 1, G = 1;
  bool negative = false, softplus = false, constant_b = false, constant_c = false;
  bool skip = false, z = false, bias = false, initial = false, dfinal = false;
  bool time_first = false;  // time is the innermost dimension of u, delta, z and out
  DType dtype = DType::kF32;
  Layout layout = Layout::kDense;
  std::vector<int64_t> cu_seqlens;

  int64_t sequences() const {
    return cu_seqlens.empty() ? batch : static_cast<int64_t>(cu_seqlens.size()) - 1;
  }
  int64_t start(int64_t n) const { return cu_seqlens.empty() ? 0 : cu_seqlens[n]; }
  int64_t length(int64_t n) const { return cu_seqlens.empty() ? T : cu_seqlens[n + 1] - start(n); }
  int64_t entry(int64_t n) const { return cu_seqlens.empty() ? n : 0; }
};

std::string name_of(const Case& c) {
  char text[240];
  snprintf(
      text, sizeof text,
      "batch=%d T=%d D=%d N=%d G=%d sequences=%d negative=%d softplus=%d constant=%d%d skip=%d "
      "z=%d bias=%d initial=%d dfinal=%d time_first=%d dtype=%d layout=%d",
      int(c.batch), int(c.T), int(c.D), int(c.N), int(c.G), int(c.sequences()), c.negative,
      c.softplus, c.constant_b, c.constant_c, c.skip, c.z, c.bias, c.initial, c.dfinal,
      c.time_first, int(c.dtype), int(c.layout));
  return text;
}

// A [batch, D, T] tensor in either order.
struct Rows {
  Tensor x;
  bool time_first = false;
  Rows() = default;
  explicit Rows(const Case& c) : time_first(c.time_first) {
    x = time_first ? Tensor(c.dtype, c.layout, c.batch, c.D, 1, c.T)
                   : Tensor(c.dtype, c.layout, c.batch, c.T, 1, c.D);
  }
  double at(int64_t b, int64_t d, int64_t t) const {
    return time_first ? x.at(b, d, 0, t) : x.at(b, t, 0, d);
  }
  ScanView view() const {
    const View v = x.view();
    return time_first ? ScanView{v.data, v.dtype, v.batch_stride, v.time_stride, 1}
                      : ScanView{v.data, v.dtype, v.batch_stride, 1, v.time_stride};
  }
};

struct Data {
  Rows u, delta, z, dout;
  Tensor A, B, C, skip, bias, h0, dht;

  Data(const Case& c, Random& random) {
    const auto normal = [&] { return random.normal(); };
    for (Rows* rows : {&u, &z, &dout}) fill((*rows = Rows(c)).x, normal);
    fill((delta = Rows(c)).x, [&] { return c.softplus ? random.normal() - 1 : random.uniform(); });
    fill(A = dense(1, 1, c.D, c.N), [&] { return -3 * random.uniform(); });
    fill(B = coefficient(c, c.constant_b), normal);
    fill(C = coefficient(c, c.constant_c), normal);
    fill(skip = dense(1, 1, 1, c.D), normal);
    // Without softplus a negative step would let the states grow beyond all numbers.
    fill(bias = dense(1, 1, 1, c.D), [&] { return c.softplus ? normal() : random.uniform(); });
    for (Tensor* t : {&h0, &dht}) fill(*t = dense(1, c.sequences(), c.D, c.N), normal);
  }
  static Tensor coefficient(const Case& c, bool constant) {
    return constant ? dense(1, 1, c.D, c.N) : dense(c.batch, c.G, c.T, c.N);
  }
  static double at(const Tensor& x, const Case& c, bool constant, int64_t b, int64_t d, int64_t t,
                   int64_t n) {
    return constant ? x.at(0, 0, d, n) : x.at(b, d / (c.D / c.G), t, n);
  }
};

// Everything as [batch][D][T], [D][N] and so on, dense.
template <class Real>
struct Results {
  std::vector<Real> out, ht, du, ddelta, dz, dA, dB, dC, dskip, dbias, dh0;
};

template <class Real>
class Definition {
 public:
  Definition(const Case& c, const Data& data) : c_(c), data_(data) {
    const size_t rows = c.batch * c.D * c.T, states = c.D * c.N;
    for (auto* v : {&r_.out, &r_.du, &r_.ddelta, &r_.dz}) v->assign(rows, Real(0));
    for (auto* v : {&r_.ht, &r_.dh0}) v->assign(c.sequences() * states, Real(0));
    r_.dA.assign(states, Real(0));
    r_.dB.assign(c.constant_b ? states : c.batch * c.G * c.T * c.N, Real(0));
    r_.dC.assign(c.constant_c ? states : c.batch * c.G * c.T * c.N, Real(0));
    for (auto* v : {&r_.dskip, &r_.dbias}) v->assign(c.D, Real(0));
    for (int64_t n = 0; n < c.sequences(); ++n)
      for (int64_t d = 0; d < c.D; ++d) channel(n, d);
  }
  const Results<Real>& results() const { return r_; }

 private:
  Real coefficient(const Tensor& x, bool constant, int64_t b, int64_t d, int64_t t,
                   int64_t n) const {
    return static_cast<Real>(Data::at(x, c_, constant, b, d, t, n));
  }
  Real& gradient(std::vector<Real>& to, bool constant, int64_t b, int64_t d, int64_t t,
                 int64_t n) const {
    const int64_t g = d / (c_.D / c_.G);
    return to[constant ? d * c_.N + n : ((b * c_.G + g) * c_.T + t) * c_.N + n];
  }

  // One channel of one sequence, forwards and backwards.
  void channel(int64_t i_n, int64_t d) {
    const int64_t b = c_.entry(i_n), start = c_.start(i_n), T = c_.length(i_n), N = c_.N;
    const Real skip = c_.skip ? static_cast<Real>(data_.skip.at(0, 0, 0, d)) : Real(0);
    std::vector<Real> h((T + 1) * N), e(T * N), u(T), dt(T), slope(T, Real(1)), y(T), dy(T);
    for (int64_t n = 0; n < N; ++n)
      h[n] = c_.initial ? static_cast<Real>(data_.h0.at(0, i_n, d, n)) : Real(0);
    for (int64_t t = 0; t < T; ++t) {
      u[t] = static_cast<Real>(data_.u.at(b, d, start + t));
      Real raw = static_cast<Real>(data_.delta.at(b, d, start + t));
      if (c_.bias) raw += static_cast<Real>(data_.bias.at(0, 0, 0, d));
      dt[t] = raw;
      if (c_.softplus) {
        dt[t] = std::max(raw, Real(0)) + std::log1p(std::exp(-std::fabs(raw)));
        slope[t] = 1 / (1 + std::exp(-raw));
      }
      y[t] = skip * u[t];
      for (int64_t n = 0; n < N; ++n) {
        e[t * N + n] = std::exp(dt[t] * static_cast<Real>(data_.A.at(0, 0, d, n)));
        const Real a = c_.negative ? 2 * e[t * N + n] - 1 : e[t * N + n];
        const Real B = coefficient(data_.B, c_.constant_b, b, d, start + t, n);
        h[(t + 1) * N + n] = a * h[t * N + n] + dt[t] * u[t] * B;
        y[t] += coefficient(data_.C, c_.constant_c, b, d, start + t, n) * h[(t + 1) * N + n];
      }
      const int64_t at = (b * c_.D + d) * c_.T + start + t;
      dy[t] = static_cast<Real>(data_.dout.at(b, d, start + t));
      r_.out[at] = y[t];
      if (c_.z) {
        const Real z = static_cast<Real>(data_.z.at(b, d, start + t)), s = 1 / (1 + std::exp(-z));
        r_.out[at] *= z * s;
        r_.dz[at] = dy[t] * y[t] * s * (1 + z * (1 - s));
        dy[t] *= z * s;
      }
    }
    for (int64_t n = 0; n < N; ++n) r_.ht[(i_n * c_.D + d) * N + n] = h[T * N + n];
    std::vector<Real> g(N);
    for (int64_t n = 0; n < N; ++n)
      g[n] = c_.dfinal ? static_cast<Real>(data_.dht.at(0, i_n, d, n)) : Real(0);
    for (int64_t t = T - 1; t >= 0; --t) {
      Real ddu = 0, ddt = 0;
      for (int64_t n = 0; n < N; ++n) {
        const Real A = static_cast<Real>(data_.A.at(0, 0, d, n)), grown = e[t * N + n];
        g[n] += coefficient(data_.C, c_.constant_c, b, d, start + t, n) * dy[t];
        gradient(r_.dC, c_.constant_c, b, d, start + t, n) += dy[t] * h[(t + 1) * N + n];
        gradient(r_.dB, c_.constant_b, b, d, start + t, n) += g[n] * dt[t] * u[t];
        ddu += g[n] * coefficient(data_.B, c_.constant_b, b, d, start + t, n);
        const Real dx = g[n] * h[t * N + n] * (c_.negative ? 2 * grown : grown);
        ddt += dx * A;
        r_.dA[d * N + n] += dx * dt[t];
        g[n] *= c_.negative ? 2 * grown - 1 : grown;
      }
      const int64_t at = (b * c_.D + d) * c_.T + start + t;
      r_.du[at] = ddu * dt[t] + skip * dy[t];
      r_.ddelta[at] = (ddt + ddu * u[t]) * slope[t];
      r_.dskip[d] += dy[t] * u[t];
      r_.dbias[d] += r_.ddelta[at];
    }
    for (int64_t n = 0; n < N; ++n) r_.dh0[(i_n * c_.D + d) * N + n] = g[n];
  }

  const Case& c_;
  const Data& data_;
  Results<Real> r_;
};

// [batch][D][T] in the order of `rows`.
template <class Real>
std::vector<Real> ordered(const Rows& rows, const std::vector<Real>& values) {
  if (rows.time_first) return values;
  std::vector<Real> out;
  for (int64_t b = 0; b < rows.x.B; ++b)
    for (int64_t t = 0; t < rows.x.T; ++t)
      for (int64_t d = 0; d < rows.x.D; ++d)
        out.push_back(values[(b * rows.x.D + d) * rows.x.T + t]);
  return out;
}

SelectiveScan describe(const Case& c, const Data& data) {
  SelectiveScan p;
  p.batch = c.batch;
  p.T = c.T;
  p.D = c.D;
  p.N = c.N;
  p.G = c.G;
  p.sequences = c.sequences();
  p.cu_seqlens = c.cu_seqlens.empty() ? nullptr : c.cu_seqlens.data();
  p.softplus = c.softplus;
  p.negative = c.negative;
  p.constant_b = c.constant_b;
  p.constant_c = c.constant_c;
  p.u = data.u.view();
  p.delta = data.delta.view();
  if (c.z) p.z = data.z.view();
  p.A = data.A.floats();
  p.B = data.B.floats();
  p.C = data.C.floats();
  if (c.skip) p.skip = data.skip.floats();
  if (c.bias) p.delta_bias = data.bias.floats();
  if (c.initial) p.h0 = data.h0.floats();
  return p;
}

// Adds up what the tasks have left, `parts` neighbouring blocks of the size of `to`.
Tensor sum_parts(const Tensor& from, Tensor to, int64_t rows, int64_t parts) {
  const int64_t width = to.B * to.T * to.H * to.D / rows;
  kernels().sum_groups(from.floats(), DType::kF32, to.floats(), 0, rows, parts, width);
  return to;
}

void check(const Case& c, const Data& data, const Results<double>& exact,
           const Results<float>& rough, Report& report) {
  const SelectiveScanKernels& kernels = seqkern::kernels().selective_scan;
  SelectiveScan p = describe(c, data);
  const int64_t tasks = c.batch * c.G * scan_parts(p);
  const Rows out(c);
  const Tensor ht = dense(1, c.sequences(), c.D, c.N);
  const Tensor checkpoints = dense(c.batch, c.T / kScanRows, scan_lane_blocks(p) * c.N, kScanLanes);
  p.out = out.view();
  p.ht = ht.floats();
  p.checkpoints = checkpoints.floats();
  for (int64_t i = 0; i < tasks; ++i) {
    const Scratch workspace(kernels.forward_workspace(p));
    kernels.forward(p, i, workspace.data());
  }
  const auto rows = [&](const char* name, const Rows& got, const std::vector<double>& want,
                        const std::vector<float>& near) {
    report.compare(name, got.x, {ordered(got, want), ordered(got, near)});
  };
  rows("out", out, exact.out, rough.out);
  report.compare("ht", ht, {exact.ht, rough.ht});

  SelectiveScanGrad g;
  g.in = p;
  const Rows du(c), ddelta(c), dz(c);
  g.dout = data.dout.view();
  g.du = du.view();
  g.ddelta = ddelta.view();
  if (c.z) g.dz = dz.view();
  const int64_t parts = scan_parts(p);
  const Tensor dh0 = dense(1, c.sequences(), c.D, c.N), dA = dense(1, c.batch, c.D, c.N);
  const Tensor dskip = dense(1, 1, c.batch, c.D), dbias = dense(1, 1, c.batch, c.D);
  const auto sums = [&](bool constant) {
    return constant ? dense(1, c.batch, c.D, c.N) : dense(c.batch * c.G, parts, c.T, c.N);
  };
  const Tensor dB = sums(c.constant_b), dC = sums(c.constant_c);
  if (c.dfinal) g.dht = data.dht.floats();
  if (c.initial) g.dh0 = dh0.floats();
  g.dA = dA.floats();
  g.dB = dB.floats();
  g.dC = dC.floats();
  if (c.skip) g.dskip = dskip.floats();
  if (c.bias) g.ddelta_bias = dbias.floats();
  for (int64_t i = 0; i < tasks; ++i) {
    const Scratch workspace(kernels.backward_workspace(p));
    kernels.backward(g, i, workspace.data());
  }
  rows("du", du, exact.du, rough.du);
  rows("ddelta", ddelta, exact.ddelta, rough.ddelta);
  if (c.z) rows("dz", dz, exact.dz, rough.dz);
  const auto over_batch = [&](const char* name, const Tensor& from, Tensor to,
                              const std::vector<double>& want, const std::vector<float>& near) {
    report.compare(name, sum_parts(from, std::move(to), 1, c.batch), {want, near});
  };
  const auto coefficient = [&](const char* name, const Tensor& from, bool constant,
                               const std::vector<double>& want, const std::vector<float>& near) {
    if (constant) return over_batch(name, from, dense(1, 1, c.D, c.N), want, near);
    Tensor to = dense(c.batch, c.G, c.T, c.N);
    report.compare(name, sum_parts(from, std::move(to), c.batch * c.G, parts), {want, near});
  };
  over_batch("dA", dA, dense(1, 1, c.D, c.N), exact.dA, rough.dA);
  coefficient("dB", dB, c.constant_b, exact.dB, rough.dB);
  coefficient("dC", dC, c.constant_c, exact.dC, rough.dC);
  if (c.skip) over_batch("dskip", dskip, dense(1, 1, 1, c.D), exact.dskip, rough.dskip);
  if (c.bias) over_batch("dbias", dbias, dense(1, 1, 1, c.D), exact.dbias, rough.dbias);
  if (c.initial) report.compare("dh0", dh0, {exact.dh0, rough.dh0});
}

// The step on a case of one row: the state moves on in place.
void check_step(const Case& c, const Data& data, const Results<double>& exact,
                const Results<float>& rough, Report& report) {
  const SelectiveScan whole = describe(c, data);
  SelectiveScanStep p;
  p.D = c.D;
  p.N = c.N;
  p.G = c.G;
  p.softplus = c.softplus;
  p.negative = c.negative;
  const Rows out(c);
  p.u = whole.u;
  p.delta = whole.delta;
  p.z = whole.z;
  p.out = out.view();
  for (ScanView* v : {&p.u, &p.delta, &p.z, &p.out}) v->time_stride = 0;
  p.A = whole.A;
  p.B = whole.B;
  p.C = whole.C;
  p.constant_b = c.constant_b;
  p.constant_c = c.constant_c;
  p.skip = whole.skip;
  p.delta_bias = whole.delta_bias;
  Tensor state = dense(1, c.batch, c.D, c.N);
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t d = 0; d < c.D; ++d)
      for (int64_t n = 0; n < c.N; ++n)
        state.set(0, b, d, n, c.initial ? data.h0.at(0, b, d, n) : 0.0);
  p.state = state.floats();
  const int64_t half = c.D / 2;
  for (int64_t b = 0; b < c.batch; ++b) {
    kernels().selective_scan.step(p, b, 0, half);
    kernels().selective_scan.step(p, b, half, c.D - half);
  }
  report.compare("step out", out.x, {ordered(out, exact.out), ordered(out, rough.out)});
  report.compare("state", state, {exact.ht, rough.ht});
}

Case draw(int64_t T, int64_t D, int64_t N, Random& random) {
  Case c;
  c.T = T;
  c.D = D;
  c.N = N;
  c.G = D % 3 == 0 ? random.pick<int64_t>({1, 3}) : 1;
  for (bool* flag :
       {&c.negative, &c.softplus, &c.skip, &c.z, &c.bias, &c.initial, &c.dfinal, &c.time_first})
    *flag = random.coin();
  c.constant_b = random.below(4) == 0;
  c.constant_c = random.below(4) == 0;
  if (c.constant_b && c.constant_c) c.G = 1;
  c.dtype = random.pick<DType>({DType::kF32, DType::kBF16, DType::kF16});
  c.layout = random.pick<Layout>({Layout::kDense, Layout::kPadded});
  if (random.below(3) == 0) {
    const int64_t cut = T > 0 ? random.below(T) : 0;
    c.cu_seqlens = {0, 0, cut, T, T};
  } else {
    c.batch = 1 + random.below(3);
  }
  return c;
}

// x_t = a_t x_{t-1} + b_t and its gradients, real numbers or pairs.
template <class Real>
struct LinearResults {
  std::vector<Real> x, da, db, dh0;

  LinearResults(const Tensor& a, const Tensor& b, const Tensor& h0, const Tensor& dx, bool pairs) {
    const int64_t B = a.B, T = a.T, D = a.D, each = pairs ? 2 : 1;
    for (auto* v : {&x, &da, &db}) v->assign(B * T * D, Real(0));
    dh0.assign(B * D, Real(0));
    const auto of = [&](const Tensor& t, int64_t i, int64_t at, int64_t c) {
      return static_cast<Real>(t.at(i, at, 0, c));
    };
    for (int64_t i = 0; i < B; ++i)
      for (int64_t c = 0; c < D; c += each) {
        const int64_t other = c + each - 1;
        Real re = of(h0, 0, i, c), im = pairs ? of(h0, 0, i, other) : Real(0);
        std::vector<Real> before;
        for (int64_t t = 0; t < T; ++t) {
          before.push_back(re);
          before.push_back(im);
          const Real ar = of(a, i, t, c), ai = pairs ? of(a, i, t, other) : Real(0);
          const Real next = ar * re - ai * im + of(b, i, t, c);
          im = ar * im + ai * re + (pairs ? of(b, i, t, other) : Real(0));
          re = next;
          if (pairs) x[(i * T + t) * D + other] = im;
          x[(i * T + t) * D + c] = re;
        }
        Real gr = 0, gi = 0;
        for (int64_t t = T - 1; t >= 0; --t) {
          const int64_t at = (i * T + t) * D + c;
          const Real ar = of(a, i, t, c), ai = pairs ? of(a, i, t, other) : Real(0);
          const Real hr = before[2 * t], hi = before[2 * t + 1];
          gr += of(dx, i, t, c);
          gi += pairs ? of(dx, i, t, other) : Real(0);
          if (pairs) {
            db[at + 1] = gi;
            da[at + 1] = gi * hr - gr * hi;
          }
          db[at] = gr;
          da[at] = gr * hr + gi * hi;
          const Real carried = gr * ar + gi * ai;
          gi = gi * ar - gr * ai;
          gr = carried;
        }
        if (pairs) dh0[i * D + other] = gi;
        dh0[i * D + c] = gr;
      }
  }
};

void check_linear(const Plan& plan, int64_t T, int64_t D, bool pairs, Random& random,
                  Report& report) {
  const DType dtype =
      pairs ? DType::kF32 : random.pick<DType>({DType::kF32, DType::kBF16, DType::kF16});
  const Layout layout = random.pick<Layout>({Layout::kDense, Layout::kPadded});
  const int64_t B = 2;
  const auto rows = [&] { return Tensor(dtype, layout, B, T, 1, D); };
  Tensor a = rows(), b = rows(), dx = rows(), h0 = dense(1, B, 1, D);
  fill(a, [&] { return 1.6 * random.uniform() - 0.8; });
  for (Tensor* t : {&b, &dx}) fill(*t, [&] { return random.normal(); });
  // In the dtype of the rows: the way back reads it in that.
  Tensor like(dtype, Layout::kDense, 1, B, 1, D);
  fill(like, [&] { return random.normal(); });
  for (int64_t i = 0; i < B; ++i)
    for (int64_t c = 0; c < D; ++c) h0.set(0, i, 0, c, like.at(0, i, 0, c));
  const LinearResults<double> exact(a, b, h0, dx, pairs);
  const LinearResults<float> rough(a, b, h0, dx, pairs);
  char name[80];
  snprintf(name, sizeof name, "linear T=%d D=%d pairs=%d dtype=%d layout=%d", int(T), int(D), pairs,
           int(dtype), int(layout));
  on_every_isa(plan, report, name, [&] {
    const Tensor x = rows(), da = rows(), db = rows(), dh0 = dense(1, B, 1, D);
    LinearScanGrad d;
    LinearScan& p = d.in;
    p.batch = p.sequences = B;
    p.T = T;
    p.D = D;
    p.complex = pairs;
    p.a = a.view();
    p.b = b.view();
    p.x = x.view();
    p.h0 = h0.floats();
    d.dx = dx.view();
    d.da = da.view();
    d.db = db.view();
    d.dh0 = dh0.floats();
    for (int64_t n = 0; n < B; ++n)
      for (int64_t c = 0; c < D; c += kLinearScanChannels) {
        kernels().linear_scan.forward(p, n, c);
        kernels().linear_scan.backward(d, n, c);
      }
    report.compare("x", x, {exact.x, rough.x});
    report.compare("db", db, {exact.db, rough.db});
    report.compare("dh0", dh0, {exact.dh0, rough.dh0});
    // The way back multiplies with the states as they were stored.
    if (dtype == DType::kF32) report.compare("da", da, {exact.da, rough.da});
  });
}

}  // namespace

Report test_selective_scan(const Plan& plan) {
  Report report("selective_scan", plan.isas);
  uint64_t seed = 3000;
  const auto run = [&](int64_t T, int64_t D, int64_t N) {
    ++seed;
    if (plan.quick && (seed % 5 != 0 || T * D * N > 20000)) return;
    Random random(seed);
    const Case c = draw(T, D, N, random);
    const Data data(c, random);
    const Definition<double> exact(c, data);
    const Definition<float> rough(c, data);
    on_every_isa(plan, report, name_of(c), [&] {
      check(c, data, exact.results(), rough.results(), report);
      if (c.T == 1 && c.cu_seqlens.empty())
        check_step(c, data, exact.results(), rough.results(), report);
    });
  };
  for (const int64_t T : {1, 1, 2, 15, 31, 32, 33, 64, 100})
    for (const int64_t D : {1, 3, 15, 16, 17, 33, 66, 150})
      for (const int64_t N : {1, 4, 16, 17, 40}) run(T, D, N);
  Random random(4000);
  for (const int64_t T : {1, 2, 33})
    for (const int64_t D : {2, 16, 34, 1030})
      for (const bool pairs : {false, true}) check_linear(plan, T, D, pairs, random, report);
  return report;
}

}  // namespace seqkern::test
