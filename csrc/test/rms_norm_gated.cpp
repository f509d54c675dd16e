// SPDX-License-Identifier: Apache-2.0
// rms_norm_gated.cpp - the root-mean-square norm, plain and gated, against the equations of
// include/seqkern/rms_norm_gated.h.
#include <cstdio>

#include "../cpu/dispatch.hpp"
#include "checks.hpp"

namespace seqkern::test {
namespace {

struct Case {
  int64_t rows = 1, D = 1;
  DType dtype = DType::kF32, stream_dtype = DType::kF32;
  GateAct act = GateAct::kNone;
  bool weight = false, bias = false, residual = false, dr_out = false;
  Layout layout = Layout::kDense;
  float eps = 1e-5f;
};

std::string name_of(const Case& c) {
  char text[200];
  snprintf(text, sizeof text,
           "rows=%d D=%d act=%d weight=%d bias=%d residual=%d dr_out=%d dtype=%d stream=%d "
           "layout=%d",
           int(c.rows), int(c.D), int(c.act), c.weight, c.bias, c.residual, c.dr_out, int(c.dtype),
           int(c.stream_dtype), int(c.layout));
  return text;
}

Tensor matrix(DType dtype, const Case& c) { return Tensor(dtype, c.layout, 1, c.rows, 1, c.D); }

RowView rows_of(const Tensor& x) { return {x.view().data, x.view().time_stride}; }

struct Data {
  Tensor x, g, residual, dy, r, dr_out, weight, bias, rstd;

  Data(const Case& c, Random& random) {
    const auto normal = [&] { return random.normal(); };
    fill(x = matrix(c.dtype, c), normal);
    fill(g = matrix(c.dtype, c), normal);
    fill(dy = matrix(c.dtype, c), normal);
    for (Tensor* t : {&residual, &r, &dr_out}) fill(*t = matrix(c.stream_dtype, c), normal);
    for (Tensor* t : {&weight, &bias}) fill(*t = dense(1, 1, 1, c.D), normal);
    // What a forward pass over r would have saved.
    rstd = dense(1, 1, 1, c.rows);
    for (int64_t row = 0; row < c.rows; ++row) {
      double squares = 0.0;
      for (int64_t d = 0; d < c.D; ++d) squares += r.at(0, row, 0, d) * r.at(0, row, 0, d);
      rstd.set(0, 0, 0, row, 1.0 / std::sqrt(squares / c.D + c.eps));
    }
  }
};

// act(g) and its derivative.
template <class Real>
struct Activation {
  Real value = 1, slope = 0;
  Activation(GateAct act, Real g) {
    const Real s = 1 / (1 + std::exp(-g));
    if (act == GateAct::kSigmoid) {
      value = s;
      slope = s * (1 - s);
    } else if (act == GateAct::kSwish) {
      value = g * s;
      slope = s * (1 + g * (1 - s));
    }
  }
};

template <class Real>
struct Results {
  std::vector<Real> y, residual_out, rstd, dr, dg, dweight, dbias;
  double dr_terms = 0.0;
};

template <class Real>
Results<Real> define(const Case& c, const Data& data) {
  Results<Real> out;
  out.dweight.assign(c.D, Real(0));
  out.dbias.assign(c.D, Real(0));
  std::vector<Real> r(c.D), n(c.D), dn(c.D);
  for (int64_t row = 0; row < c.rows; ++row) {
    const auto at = [&](const Tensor& t, int64_t d) {
      return static_cast<Real>(t.at(0, row, 0, d));
    };
    const auto of = [&](bool there, const Tensor& t, int64_t d, Real absent) {
      return there ? static_cast<Real>(t.at(0, 0, 0, d)) : absent;
    };
    Real squares = 0;
    for (int64_t d = 0; d < c.D; ++d) {
      r[d] = at(data.x, d) + (c.residual ? at(data.residual, d) : Real(0));
      squares += r[d] * r[d];
    }
    const Real rstd = 1 / std::sqrt(squares / static_cast<Real>(c.D) + Real(c.eps));
    out.rstd.push_back(rstd);
    for (int64_t d = 0; d < c.D; ++d) {
      const Real z = r[d] * rstd * of(c.weight, data.weight, d, 1) + of(c.bias, data.bias, d, 0);
      out.y.push_back(z * Activation<Real>(c.act, at(data.g, d)).value);
      out.residual_out.push_back(r[d]);
    }
    // The gradients are those of a row whose residual stream is data.r.
    const Real given = static_cast<Real>(data.rstd.at(0, 0, 0, row));
    Real mean = 0;
    for (int64_t d = 0; d < c.D; ++d) {
      const Activation<Real> gate(c.act, at(data.g, d));
      const Real w = of(c.weight, data.weight, d, 1), dy = at(data.dy, d);
      n[d] = at(data.r, d) * given;
      const Real dz = dy * gate.value;
      out.dg.push_back(dy * (n[d] * w + of(c.bias, data.bias, d, 0)) * gate.slope);
      out.dweight[d] += dz * n[d];
      out.dbias[d] += dz;
      dn[d] = dz * w;
      mean += dn[d] * n[d] / static_cast<Real>(c.D);
    }
    for (int64_t d = 0; d < c.D; ++d) {
      const Real stream = c.dr_out ? at(data.dr_out, d) : Real(0);
      out.dr.push_back((dn[d] - n[d] * mean) * given + stream);
      out.dr_terms = std::max<double>(out.dr_terms, std::fabs(dn[d] * given));
    }
  }
  return out;
}

void check_forward(const Case& c, const Data& data, const Results<double>& exact,
                   const Results<float>& rough, Report& report) {
  RmsNormGated p;
  p.rows = c.rows;
  p.D = c.D;
  p.dtype = c.dtype;
  p.stream_dtype = c.stream_dtype;
  p.act = c.act;
  p.eps = c.eps;
  p.x = rows_of(data.x);
  if (c.act != GateAct::kNone) p.g = rows_of(data.g);
  if (c.residual) p.residual = rows_of(data.residual);
  const Tensor y = matrix(c.dtype, c), residual_out = matrix(c.stream_dtype, c);
  const Tensor rstd = dense(1, 1, 1, c.rows);
  p.y = rows_of(y);
  p.residual_out = rows_of(residual_out);
  p.rstd = rstd.floats();
  if (c.weight) p.weight = data.weight.floats();
  if (c.bias) p.bias = data.bias.floats();
  const int64_t half = c.rows / 2;
  kernels().rms_norm_gated.forward(p, 0, half);
  kernels().rms_norm_gated.forward(p, half, c.rows);
  report.compare("y", y, {exact.y, rough.y});
  report.compare("residual_out", residual_out, {exact.residual_out, rough.residual_out});
  report.compare("rstd", rstd, {exact.rstd, rough.rstd});
}

void check_backward(const Case& c, const Data& data, const Results<double>& exact,
                    const Results<float>& rough, Report& report) {
  RmsNormGatedGrad p;
  p.rows = c.rows;
  p.D = c.D;
  p.dtype = c.dtype;
  p.stream_dtype = c.stream_dtype;
  p.act = c.act;
  p.r = rows_of(data.r);
  p.dy = rows_of(data.dy);
  if (c.act != GateAct::kNone) p.g = rows_of(data.g);
  if (c.dr_out) p.dr_out = rows_of(data.dr_out);
  const Tensor dr = matrix(c.stream_dtype, c), dg = matrix(c.dtype, c);
  const Tensor dweight = dense(1, 1, 1, c.D), dbias = dense(1, 1, 1, c.D);
  p.dr = rows_of(dr);
  if (c.act != GateAct::kNone) p.dg = rows_of(dg);
  p.rstd = data.rstd.floats();
  if (c.weight) {
    p.weight = data.weight.floats();
    p.dweight = dweight.floats();
  }
  if (c.bias) {
    p.bias = data.bias.floats();
    p.dbias = dbias.floats();
  }
  const int64_t blocks = std::max<int64_t>(1, (c.rows + kNormRows - 1) / kNormRows);
  p.rows_per_item = (blocks + kNormMaxItems - 1) / kNormMaxItems * kNormRows;
  p.items = (c.rows + p.rows_per_item - 1) / p.rows_per_item;
  const Tensor partial = dense(1, p.items, kNormItemBuffers, c.D);
  p.partial = partial.floats();
  for (int64_t item = 0; item < p.items; ++item) kernels().rms_norm_gated.backward(p, item);
  kernels().rms_norm_gated.reduce(p);
  report.compare("dr", dr, {exact.dr, rough.dr, exact.dr_terms});
  if (c.act != GateAct::kNone) report.compare("dg", dg, {exact.dg, rough.dg});
  if (c.weight) report.compare("dweight", dweight, {exact.dweight, rough.dweight});
  if (c.bias) report.compare("dbias", dbias, {exact.dbias, rough.dbias});
}

Case draw(int64_t rows, int64_t D, GateAct act, Random& random) {
  Case c;
  c.rows = rows;
  c.D = D;
  c.act = act;
  c.weight = random.coin();
  c.bias = random.coin();
  c.residual = random.coin();
  c.dr_out = random.coin();
  c.dtype = random.pick<DType>({DType::kF32, DType::kBF16, DType::kF16});
  c.stream_dtype = random.coin() ? DType::kF32 : c.dtype;
  c.layout = random.pick<Layout>({Layout::kDense, Layout::kPadded});
  return c;
}

}  // namespace

Report test_rms_norm_gated(const Plan& plan) {
  Report report("rms_norm_gated", plan.isas);
  uint64_t seed = 2000;
  const auto run = [&](int64_t rows, int64_t D, GateAct act) {
    ++seed;
    if (plan.quick && (seed % 5 != 0 || rows * D > 10000)) return;
    Random random(seed);
    const Case c = draw(rows, D, act, random);
    const Data data(c, random);
    const auto exact = define<double>(c, data);
    const auto rough = define<float>(c, data);
    on_every_isa(plan, report, name_of(c), [&] {
      check_forward(c, data, exact, rough, report);
      check_backward(c, data, exact, rough, report);
    });
  };
  for (const GateAct act : {GateAct::kNone, GateAct::kSwish, GateAct::kSigmoid}) {
    for (const int64_t rows : {0, 1, 2, 31, 32, 33, 100})
      for (const int64_t D : {1, 3, 15, 16, 17, 33, 64, 130, 523}) run(rows, D, act);
    run(2100, 5, act);  // more than one item's rows
  }
  return report;
}

}  // namespace seqkern::test
