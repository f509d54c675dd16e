// SPDX-License-Identifier: Apache-2.0
// linear_attention.cpp - forward, decoding step and backward of linear attention and the delta rule
// against linear_attention_definition.hpp.
#include <cstdio>
#include <limits>

#include "../cpu/dispatch.hpp"
#include "checks.hpp"
#include "linear_attention_definition.hpp"

namespace seqkern::test {
namespace {

enum class Decay { kMild, kStrong, kResets };

struct Case {
  Shape shape;
  DType dtype = DType::kF32, gate_dtype = DType::kF32;
  Layout layout = Layout::kDense;
  Decay decay = Decay::kMild;
  bool h0 = true, dht = true;
  int64_t interval = 16;
};

constexpr struct {
  Gate gate;
  Beta beta;
} kKinds[] = {{Gate::kNone, Beta::kNone},     {Gate::kScalar, Beta::kNone},
              {Gate::kVector, Beta::kNone},   {Gate::kNone, Beta::kScalar},
              {Gate::kScalar, Beta::kScalar}, {Gate::kNone, Beta::kVector},
              {Gate::kScalar, Beta::kVector}};

std::string name_of(const Case& c) {
  const Shape& s = c.shape;
  char text[240];
  snprintf(text, sizeof text,
           "B=%d T=%d H=%d HV=%d K=%d V=%d n=%d N=%d gate=%d beta=%d l2norm=%d dtype=%d "
           "gate_dtype=%d layout=%d decay=%d h0=%d dht=%d interval=%d",
           int(s.B), int(s.T), int(s.H), int(s.HV), int(s.K), int(s.V), int(s.n),
           int(s.sequences()), int(s.gate), int(s.beta), s.l2norm, int(c.dtype), int(c.gate_dtype),
           int(c.layout), int(c.decay), c.h0, c.dht, int(c.interval));
  return text;
}

double random_gate(Random& random, Decay decay) {
  const double u = random.uniform();
  if (decay == Decay::kMild) return -0.2 * u;
  if (decay == Decay::kStrong) return -40.0 * u * u;
  if (u < 0.1) return -std::numeric_limits<double>::infinity();
  return u < 0.2 ? -1e4 : -0.2 * u;
}

struct Data {
  Tensor q, k, v, g, beta, h0, d_o, dht;

  Data(const Case& c, Random& random) {
    const Shape& s = c.shape;
    const int64_t N = s.sequences(), TN = s.T * s.n;
    const auto normal = [&] { return random.normal(); };
    // Keys of about unit length: the delta rule is stable up to beta |k|^2 = 2.
    const double length = s.l2norm ? 1.0 : 1.0 / std::sqrt(static_cast<double>(s.K));
    const bool delta = s.beta != Beta::kNone;
    q = Tensor(c.dtype, c.layout, s.B, s.T, s.H, s.K);
    k = Tensor(c.dtype, c.layout, s.B, TN, s.H, s.K);
    v = Tensor(c.dtype, c.layout, s.B, TN, s.HV, s.V);
    d_o = Tensor(c.dtype, c.layout, s.B, s.T, s.HV, s.V);
    fill(q, normal);
    fill(k, [&] {
      const double x = random.normal() * length;
      return delta && s.K == 1 ? std::copysign(0.5 + 0.1 * std::fabs(x), x) : x;
    });
    fill(v, normal);
    fill(d_o, normal);
    const bool vector_gate = s.gate == Gate::kVector, vector_beta = s.beta == Beta::kVector;
    if (s.gate != Gate::kNone) {
      g = vector_gate ? Tensor(c.gate_dtype, c.layout, s.B, s.T, s.H, s.K)
                      : Tensor(c.gate_dtype, c.layout, s.B, s.T, s.HV, 1);
      fill(g, [&] { return random_gate(random, c.decay); });
    }
    if (delta) {
      beta = Tensor(c.gate_dtype, c.layout, s.B, TN, s.HV, vector_beta ? s.V : 1);
      const double most = s.l2norm ? 2.0 : 1.0;
      fill(beta, [&] { return most * random.uniform(); });
    }
    if (c.h0) fill(h0 = dense(N, s.HV, s.K, s.V), normal);
    if (c.dht) fill(dht = dense(N, s.HV, s.K, s.V), normal);
  }

  template <class Real>
  LinearAttentionValues<Real> values() const {
    const auto as = [](const Tensor& x) {
      const std::vector<double> all = x.values();
      return std::vector<Real>(all.begin(), all.end());
    };
    return {as(q), as(k), as(v), as(g), as(beta), as(h0), as(d_o), as(dht)};
  }
};

struct Truth {
  Expected o, ht, dq, dk, dv, dg, dbeta, dh0;

  Truth(const Shape& s, const Data& data) {
    auto exact = define_linear_attention<double>(s, data.values<double>());
    auto rough = define_linear_attention<float>(s, data.values<float>());
    o = {std::move(exact.o), std::move(rough.o)};
    ht = {std::move(exact.ht), std::move(rough.ht)};
    dq = {std::move(exact.dq), std::move(rough.dq), exact.dq_terms};
    dk = {std::move(exact.dk), std::move(rough.dk), exact.dk_terms};
    dv = {std::move(exact.dv), std::move(rough.dv)};
    dg = {std::move(exact.dg), std::move(rough.dg), exact.dg_terms};
    dbeta = {std::move(exact.dbeta), std::move(rough.dbeta), exact.dbeta_terms};
    dh0 = {std::move(exact.dh0), std::move(rough.dh0)};
  }
};

LinearAttention describe(const Case& c, const Data& data) {
  const Shape& s = c.shape;
  LinearAttention p;
  p.N = s.sequences();
  p.T = s.T;
  p.H = s.H;
  p.HV = s.HV;
  p.K = s.K;
  p.V = s.V;
  p.num_householder = s.n;
  p.scale = s.scale;
  p.l2norm = s.l2norm;
  p.gate = s.gate;
  p.beta_kind = s.beta;
  p.cu_seqlens = s.cu_seqlens.empty() ? nullptr : s.cu_seqlens.data();
  p.q = data.q.view();
  p.k = data.k.view();
  p.v = data.v.view();
  if (s.gate != Gate::kNone) p.g = data.g.view();
  if (s.beta != Beta::kNone) p.beta = data.beta.view();
  if (c.h0) p.h0 = data.h0.floats();
  return p;
}

void run_forward(const LinearAttention& p) {
  const KernelTable& table = kernels();
  for (int64_t i = 0; i < p.N * p.HV; ++i) {
    const Scratch workspace(table.linear_attention_forward_workspace(p));
    table.linear_attention_forward(p, i / p.HV, i % p.HV, workspace.data());
  }
}

// Without checkpoints: what decoding and evaluation run.
void check_inference(const Case& c, const Data& data, const Truth& truth, Report& report) {
  const Shape& s = c.shape;
  LinearAttention p = describe(c, data);
  const Tensor o(c.dtype, c.layout, s.B, s.T, s.HV, s.V), ht = dense(p.N, s.HV, s.K, s.V);
  p.o = o.view();
  p.ht = ht.floats();
  run_forward(p);
  report.compare("o", o, truth.o);
  report.compare("ht", ht, truth.ht);
}

// Sums the value heads of a group and rounds to `dtype`, as the caller of the kernels does.
Tensor fold(const Tensor& from, DType dtype, int64_t H) {
  Tensor to(dtype, Layout::kDense, from.B, from.T, H, from.D);
  kernels().sum_groups(from.floats(), dtype, to.view().data, 0, from.B * from.T * H, from.H / H,
                       from.D);
  return to;
}

void check_training(const Case& c, const Data& data, const Truth& truth, Report& report) {
  const Shape& s = c.shape;
  const int64_t TN = s.T * s.n;
  LinearAttentionGrad g;
  LinearAttention& p = g.in;
  p = describe(c, data);
  p.checkpoint_interval = c.interval;
  p.num_checkpoints = TN / c.interval;
  const Tensor checkpoints = dense(s.B, p.num_checkpoints, s.HV, s.K * s.V);
  const Tensor residual = dense(s.B, s.beta == Beta::kNone ? 0 : TN, s.HV, s.V);
  p.checkpoints = checkpoints.floats();
  p.residual = s.beta == Beta::kNone ? nullptr : residual.floats();
  const Tensor o(c.dtype, c.layout, s.B, s.T, s.HV, s.V), ht = dense(p.N, s.HV, s.K, s.V);
  p.o = o.view();
  p.ht = ht.floats();
  run_forward(p);
  report.compare("o with checkpoints", o, truth.o);
  report.compare("ht with checkpoints", ht, truth.ht);

  const bool grouped = s.HV != s.H, vector_gate = s.gate == Gate::kVector;
  const DType wide = grouped ? DType::kF32 : c.dtype;
  const Layout layout = grouped ? Layout::kDense : c.layout;
  Tensor dq(wide, layout, s.B, s.T, s.HV, s.K), dk(wide, layout, s.B, TN, s.HV, s.K);
  const Tensor dv(c.dtype, c.layout, s.B, TN, s.HV, s.V), dh0 = dense(p.N, s.HV, s.K, s.V);
  Tensor dg(DType::kF32, layout, s.B, s.T, s.HV, vector_gate ? s.K : 1);
  const Tensor dbeta(DType::kF32, c.layout, s.B, TN, s.HV, s.beta == Beta::kVector ? s.V : 1);
  g.d_o = data.d_o.view();
  g.dht = c.dht ? data.dht.floats() : nullptr;
  g.dq = dq.view();
  g.dk = dk.view();
  g.dv = dv.view();
  if (s.gate != Gate::kNone) g.dg = dg.view();
  if (s.beta != Beta::kNone) g.dbeta = dbeta.view();
  g.dh0 = dh0.floats();
  const KernelTable& table = kernels();
  for (int64_t i = 0; i < p.N * p.HV; ++i) {
    const Scratch workspace(table.linear_attention_backward_workspace(p));
    table.linear_attention_backward(g, i / p.HV, i % p.HV, workspace.data());
  }
  if (grouped) {
    dq = fold(dq, c.dtype, s.H);
    dk = fold(dk, c.dtype, s.H);
    if (vector_gate) dg = fold(dg, DType::kF32, s.H);
  }
  report.compare("dq", dq, truth.dq);
  report.compare("dk", dk, truth.dk);
  report.compare("dv", dv, truth.dv);
  if (s.gate != Gate::kNone) report.compare("dg", dg, truth.dg);
  if (s.beta != Beta::kNone) report.compare("dbeta", dbeta, truth.dbeta);
  report.compare("dh0", dh0, truth.dh0);
}

void run_case(const Case& c, uint64_t seed, const Plan& plan, Report& report) {
  Random random(seed);
  const Data data(c, random);
  const Truth truth(c.shape, data);
  on_every_isa(plan, report, name_of(c), [&] {
    check_inference(c, data, truth, report);
    check_training(c, data, truth, report);
  });
}

// Everything that a shape leaves open, drawn at random.
Case draw(int kind, int64_t T, int64_t K, int64_t V, int64_t n, Random& random) {
  Case c;
  Shape& s = c.shape;
  s.T = T;
  s.K = K;
  s.V = V;
  s.n = n;
  s.gate = kKinds[kind].gate;
  s.beta = kKinds[kind].beta;
  s.B = 1 + random.below(2);
  s.H = 1 + random.below(2);
  s.HV = s.H * (random.below(3) == 0 ? 2 : 1);
  s.l2norm = random.coin();
  s.scale = random.coin() ? 1.0f / std::sqrt(static_cast<float>(K)) : 1.0f;
  if (random.below(3) == 0) {
    // Packed: cuts anywhere, some of them twice, so that there are empty sequences.
    s.B = 1;
    s.cu_seqlens = {0, random.below(T + 1), random.below(T + 1), T};
    s.cu_seqlens.push_back(s.cu_seqlens[1]);
    if (random.coin()) s.cu_seqlens.insert(s.cu_seqlens.end(), {0, T});
    std::sort(s.cu_seqlens.begin(), s.cu_seqlens.end());
  }
  const std::vector<DType> dtypes = {DType::kF32, DType::kBF16, DType::kF16};
  c.dtype = random.pick(dtypes);
  c.gate_dtype = random.coin() ? DType::kF32 : c.dtype;
  c.layout = random.pick<Layout>({Layout::kDense, Layout::kPadded, Layout::kHeadFirst});
  c.decay = random.pick<Decay>({Decay::kMild, Decay::kStrong, Decay::kResets});
  c.h0 = random.coin();
  c.dht = random.coin();
  c.interval = random.pick<int64_t>({16, 32, 64});
  return c;
}

}  // namespace

Report test_linear_attention(const Plan& plan) {
  Report report("linear_attention", plan.isas);
  constexpr int64_t kTimes[] = {0, 1, 5, 15, 16, 17, 33, 70, 130};
  constexpr struct {
    int64_t K, V;
  } kWidths[] = {{1, 1},   {16, 16}, {3, 20},  {20, 3},    {1, 130}, {33, 48},
                 {48, 33}, {64, 64}, {16, 64}, {130, 130}, {130, 1}, {70, 144}};
  constexpr struct {
    int64_t n, T;
  } kProducts[] = {{2, 1}, {2, 8},  {2, 17}, {2, 70}, {3, 1},
                   {3, 5}, {3, 16}, {3, 33}, {20, 1}, {20, 7}};
  uint64_t seed = 0;
  const auto run = [&](int kind, int64_t T, int64_t K, int64_t V, int64_t n) {
    ++seed;
    // A sample that leaves out no kind, and the most expensive cases.
    if (plan.quick && (seed % 5 != 0 || T * n * K * V > 600000)) return;
    Random random(seed);
    run_case(draw(kind, T, K, V, n, random), seed, plan, report);
  };
  for (int kind = 0; kind < 7; ++kind) {
    for (const int64_t T : kTimes)
      for (const auto& width : kWidths) run(kind, T, width.K, width.V, 1);
    for (const auto& product : kProducts)
      for (const int64_t width : {16, 33})
        if (kKinds[kind].gate != Gate::kVector) run(kind, product.T, width, 49 - width, product.n);
  }
  return report;
}

}  // namespace seqkern::test
