// SPDX-License-Identifier: Apache-2.0
// causal_conv1d.cpp - forward, backward and single-step update of the causal depthwise convolution
// against the equations of include/seqkern/causal_conv1d.h.
#include <cstdio>

#include "../cpu/dispatch.hpp"
#include "checks.hpp"

namespace seqkern::test {
namespace {

struct Case {
  int64_t B = 1, T = 1, D = 1, width = 1;
  bool silu = false, bias = false, residual = false, initial = false, dfinal = false;
  DType dtype = DType::kF32;
  Layout layout = Layout::kDense;
  std::vector<int64_t> cu_seqlens;
  int64_t state_width = 1;  // of the update

  int64_t N() const { return cu_seqlens.empty() ? B : static_cast<int64_t>(cu_seqlens.size()) - 1; }
  int64_t start(int64_t n) const { return cu_seqlens.empty() ? 0 : cu_seqlens[n]; }
  int64_t length(int64_t n) const { return cu_seqlens.empty() ? T : cu_seqlens[n + 1] - start(n); }
  int64_t batch(int64_t n) const { return cu_seqlens.empty() ? n : 0; }
};

std::string name_of(const Case& c) {
  char text[200];
  snprintf(text, sizeof text,
           "B=%d T=%d D=%d width=%d N=%d silu=%d bias=%d residual=%d initial=%d dfinal=%d dtype=%d "
           "layout=%d",
           int(c.B), int(c.T), int(c.D), int(c.width), int(c.N()), c.silu, c.bias, c.residual,
           c.initial, c.dfinal, int(c.dtype), int(c.layout));
  return text;
}

struct Data {
  Tensor x, residual, dy, weight, bias, initial, dfinal;

  Data(const Case& c, Random& random) {
    const auto normal = [&] { return random.normal(); };
    fill(x = Tensor(c.dtype, c.layout, c.B, c.T, 1, c.D), normal);
    fill(residual = Tensor(c.dtype, c.layout, c.B, c.T, 1, c.D), normal);
    fill(dy = Tensor(c.dtype, c.layout, c.B, c.T, 1, c.D), normal);
    fill(weight = dense(1, 1, c.D, c.width), normal);
    fill(bias = dense(1, 1, 1, c.D), normal);
    fill(initial = Tensor(c.dtype, Layout::kDense, 1, c.N(), c.D, c.width), normal);
    fill(dfinal = Tensor(c.dtype, Layout::kDense, 1, c.N(), c.D, c.width), normal);
  }
};

template <class Real>
Real sigmoid(Real x) {
  return 1 / (1 + std::exp(-x));
}

// One channel of one sequence: inputs h (the initial state, then x) and gradients.
template <class Real>
struct Channel {
  std::vector<Real> h, z, dh;

  Channel(const Case& c, const Data& data, int64_t n, int64_t d) {
    for (int64_t i = 0; i < c.width; ++i)
      h.push_back(c.initial ? static_cast<Real>(data.initial.at(0, n, d, i)) : Real(0));
    for (int64_t t = 0; t < c.length(n); ++t)
      h.push_back(static_cast<Real>(data.x.at(c.batch(n), c.start(n) + t, 0, d)));
    for (int64_t t = 0; t < c.length(n); ++t) {
      Real sum = c.bias ? static_cast<Real>(data.bias.at(0, 0, 0, d)) : Real(0);
      for (int64_t i = 0; i < c.width; ++i)
        sum += static_cast<Real>(data.weight.at(0, 0, d, i)) * h[t + 1 + i];
      z.push_back(sum);
    }
    dh.assign(h.size(), Real(0));
  }
};

template <class Real>
struct Results {
  std::vector<Real> y, final_state, dx, dinitial, dweight, dbias;
};

template <class Real>
Results<Real> define(const Case& c, const Data& data) {
  Results<Real> out;
  out.y.assign(c.B * c.T * c.D, Real(0));
  out.dx = out.y;
  out.final_state.assign(c.N() * c.D * c.width, Real(0));
  out.dinitial = out.final_state;
  out.dweight.assign(c.D * c.width, Real(0));
  out.dbias.assign(c.D, Real(0));
  for (int64_t n = 0; n < c.N(); ++n)
    for (int64_t d = 0; d < c.D; ++d) {
      Channel<Real> s(c, data, n, d);
      const int64_t length = c.length(n), state = (n * c.D + d) * c.width;
      const auto at = [&](int64_t t) { return (c.batch(n) * c.T + c.start(n) + t) * c.D + d; };
      for (int64_t t = 0; t < length; ++t) {
        const Real z = s.z[t], gate = sigmoid(z);
        const Real rest = c.residual ? Real(data.residual.at(c.batch(n), c.start(n) + t, 0, d)) : 0;
        out.y[at(t)] = (c.silu ? z * gate : z) + rest;
        const Real dy = static_cast<Real>(data.dy.at(c.batch(n), c.start(n) + t, 0, d));
        const Real dz = c.silu ? dy * gate * (1 + z * (1 - gate)) : dy;
        out.dbias[d] += dz;
        for (int64_t i = 0; i < c.width; ++i) {
          out.dweight[d * c.width + i] += dz * s.h[t + 1 + i];
          s.dh[t + 1 + i] += dz * static_cast<Real>(data.weight.at(0, 0, d, i));
        }
      }
      for (int64_t i = 0; i < c.width; ++i) {
        out.final_state[state + i] = s.h[length + i];
        if (c.dfinal) s.dh[length + i] += static_cast<Real>(data.dfinal.at(0, n, d, i));
      }
      for (int64_t i = 0; i < c.width; ++i) out.dinitial[state + i] = s.dh[i];
      for (int64_t t = 0; t < length; ++t) out.dx[at(t)] = s.dh[c.width + t];
    }
  return out;
}

CausalConv1d describe(const Case& c, const Data& data, const Tensor& taps) {
  CausalConv1d p;
  p.N = c.N();
  p.T = c.T;
  p.D = c.D;
  p.width = c.width;
  p.silu = c.silu;
  p.dtype = c.dtype;
  p.cu_seqlens = c.cu_seqlens.empty() ? nullptr : c.cu_seqlens.data();
  p.x = data.x.view();
  p.taps = taps.floats();
  if (c.initial) p.initial_state = data.initial.view().data;
  return p;
}

void check_forward(CausalConv1d p, const Case& c, const Data& data, const Results<double>& exact,
                   const Results<float>& rough, Report& report) {
  const CausalConv1dKernels& table = kernels().causal_conv1d;
  const Tensor y(c.dtype, c.layout, c.B, c.T, 1, c.D);
  const Tensor final_state(c.dtype, Layout::kDense, 1, p.N, c.D, c.width);
  p.y = y.view();
  if (c.residual) p.residual = data.residual.view();
  p.final_state = final_state.view().data;
  for (int64_t row = 0; row < c.B * c.T; row += kConvRows)
    for (int64_t channel = 0; channel < c.D; channel += kConvForwardChannels)
      table.forward(p, row, channel);
  for (int64_t n = 0; n < p.N; ++n) table.final_state(p, n);
  report.compare("y", y, {exact.y, rough.y});
  report.compare("final_state", final_state, {exact.final_state, rough.final_state});
}

void check_backward(const CausalConv1d& p, const Case& c, const Data& data,
                    const Results<double>& exact, const Results<float>& rough, Report& report) {
  const CausalConv1dKernels& table = kernels().causal_conv1d;
  CausalConv1dGrad g;
  g.in = p;
  const int64_t blocks = std::max<int64_t>(1, conv_blocks(c.B * c.T, kConvRows));
  g.rows_per_item = conv_blocks(blocks, kConvMaxItems) * kConvRows;
  g.items = conv_blocks(c.B * c.T, g.rows_per_item);
  const Tensor partial = dense(1, g.items, c.width + 1, padded_channels(c.D));
  const Tensor dx(c.dtype, c.layout, c.B, c.T, 1, c.D);
  const Tensor dinitial(c.dtype, Layout::kDense, 1, p.N, c.D, c.width);
  const Tensor dweight = dense(1, 1, c.D, c.width), dbias = dense(1, 1, 1, c.D);
  g.dy = data.dy.view();
  g.dx = dx.view();
  if (c.dfinal) g.dfinal_state = data.dfinal.view().data;
  if (c.initial) g.dinitial_state = dinitial.view().data;
  g.partial = partial.floats();
  g.dweight = dweight.floats();
  g.dbias = c.bias ? dbias.floats() : nullptr;
  for (int64_t item = 0; item < g.items; ++item)
    for (int64_t channel = 0; channel < c.D; channel += kConvBackwardChannels)
      table.backward(g, item, channel);
  for (int64_t channel = 0; channel < c.D; channel += kConvBackwardChannels)
    table.reduce(g, channel);
  report.compare("dx", dx, {exact.dx, rough.dx});
  report.compare("dweight", dweight, {exact.dweight, rough.dweight});
  if (c.bias) report.compare("dbias", dbias, {exact.dbias, rough.dbias});
  if (!c.initial) return;
  for (int64_t n = 0; n < p.N; ++n) table.backward_state(g, n);
  report.compare("dinitial_state", dinitial, {exact.dinitial, rough.dinitial});
}

// The state of the update may have any strides: here [state_width] is the slowest but one.
void check_update(const Case& c, const Data& data, Random& random, Report& report) {
  const bool strided = c.layout != Layout::kDense;
  Tensor state(c.dtype, c.layout, c.B, strided ? c.state_width : c.D, 1,
               strided ? c.D : c.state_width);
  fill(state, [&] { return random.normal(); });
  CausalConv1dUpdate p;
  p.N = c.B;
  p.T = c.T;
  p.D = c.D;
  p.width = c.width;
  p.state_width = c.state_width;
  p.silu = c.silu;
  p.dtype = c.dtype;
  const View view = state.view();
  p.state = view.data;
  p.state_n = view.batch_stride;
  p.state_d = strided ? 1 : view.time_stride;
  p.state_w = strided ? view.time_stride : 1;
  p.weight = data.weight.floats();
  if (c.bias) p.bias = data.bias.floats();
  const Tensor y(c.dtype, c.layout, c.B, c.T, 1, c.D);
  p.x = data.x.view();
  p.y = y.view();
  if (c.residual) p.residual = data.residual.view();
  for (View* rows : {&p.x, &p.y, &p.residual}) rows->head_stride = 1;

  // The definition runs on (state, x) as one sequence whose first outputs nobody asked for.
  Case longer = c;
  longer.T = c.T + c.width;
  longer.initial = longer.dfinal = longer.residual = false;
  longer.layout = Layout::kDense;
  Data history(longer, random);
  const auto state_at = [&](int64_t n, int64_t d, int64_t w) {
    return strided ? state.at(n, w, 0, d) : state.at(n, d, 0, w);
  };
  Expected y_want, state_want;
  for (int64_t n = 0; n < c.B; ++n)
    for (int64_t d = 0; d < c.D; ++d)
      for (int64_t t = 0; t < longer.T; ++t) {
        const int64_t from = c.state_width - c.width + t;
        const double x = t >= c.width ? data.x.at(n, t - c.width, 0, d)
                                      : (from >= 0 ? state_at(n, d, from) : 0.0);
        history.x.set(n, t, 0, d, x);
      }
  for (int64_t d = 0; d < c.D; ++d) {
    history.bias.set(0, 0, 0, d, data.bias.at(0, 0, 0, d));
    for (int64_t i = 0; i < c.width; ++i)
      history.weight.set(0, 0, d, i, data.weight.at(0, 0, d, i));
  }
  const auto exact = define<double>(longer, history).y;
  const auto rough = define<float>(longer, history).y;
  for (int64_t n = 0; n < c.B; ++n)
    for (int64_t t = 0; t < c.T; ++t)
      for (int64_t d = 0; d < c.D; ++d) {
        const int64_t at = (n * longer.T + t + c.width) * c.D + d;
        const double rest = c.residual ? data.residual.at(n, t, 0, d) : 0.0;
        y_want.exact.push_back(exact[at] + rest);
        y_want.rough.push_back(rough[at] + static_cast<float>(rest));
      }
  for (int64_t n = 0; n < c.B; ++n)
    for (int64_t slow = 0; slow < state.T; ++slow)
      for (int64_t fast = 0; fast < state.D; ++fast) {
        const int64_t d = strided ? fast : slow, w = (strided ? slow : fast) + c.T;
        const double x =
            w < c.state_width ? state_at(n, d, w) : data.x.at(n, w - c.state_width, 0, d);
        state_want.exact.push_back(x);
        state_want.rough.push_back(static_cast<float>(x));
      }
  for (int64_t n = 0; n < c.B; ++n) kernels().causal_conv1d.update(p, n);
  report.compare("y of the update", y, y_want);
  report.compare("state of the update", state, state_want);
}

void run_case(const Case& c, uint64_t seed, const Plan& plan, Report& report) {
  Random random(seed);
  const Data data(c, random);
  const auto exact = define<double>(c, data);
  const auto rough = define<float>(c, data);
  on_every_isa(plan, report, name_of(c), [&] {
    const Tensor taps = dense(1, 1, c.width + 1, padded_channels(c.D));
    kernels().causal_conv1d.pack(data.weight.floats(), c.bias ? data.bias.floats() : nullptr, c.D,
                                 c.width, taps.floats());
    const CausalConv1d p = describe(c, data, taps);
    check_forward(p, c, data, exact, rough, report);
    check_backward(p, c, data, exact, rough, report);
    if (c.cu_seqlens.empty()) check_update(c, data, random, report);
  });
}

Case draw(int64_t T, int64_t D, int64_t width, Random& random) {
  Case c;
  c.T = T;
  c.D = D;
  c.width = width;
  c.B = 1 + random.below(2);
  c.silu = random.coin();
  c.bias = random.coin();
  c.residual = random.coin();
  c.initial = random.coin();
  c.dfinal = random.coin();
  c.dtype = random.pick<DType>({DType::kF32, DType::kBF16, DType::kF16});
  c.layout = random.pick<Layout>({Layout::kDense, Layout::kPadded});
  c.state_width = std::max<int64_t>(1, width - 1 + random.below(3));
  if (random.below(3) == 0) {
    c.B = 1;
    c.cu_seqlens = {0, 0, random.below(T + 1), random.below(T + 1), T, T};
    std::sort(c.cu_seqlens.begin(), c.cu_seqlens.end());
  }
  return c;
}

}  // namespace

Report test_causal_conv1d(const Plan& plan) {
  Report report("causal_conv1d", plan.isas);
  uint64_t seed = 1000;
  const auto run = [&](int64_t T, int64_t D, int64_t width) {
    ++seed;
    if (plan.quick && (seed % 5 != 0 || T * D > 10000)) return;
    Random random(seed);
    run_case(draw(T, D, width, random), seed, plan, report);
  };
  for (const int64_t width : {1, 2, 3, 4, 5, 9, 32})
    for (const int64_t T : {0, 1, 2, 3, 7, 63, 64, 65, 131})
      for (const int64_t D : {1, 3, 15, 16, 17, 33, 130}) run(T, D, width);
  // More channels than one call takes, and more rows than one item takes.
  for (const int64_t width : {3, 4, 7}) run(70, 523, width);
  for (const int64_t width : {2, 4, 6}) run(4200, 3, width);
  return report;
}

}  // namespace seqkern::test
