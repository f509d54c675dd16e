// SPDX-License-Identifier: Apache-2.0
// rms_norm_gated.cpp - schema, checks, allocation and threads of the root-mean-square norm.
#include "../include/seqkern/rms_norm_gated.h"

#include "../cpu/dispatch.hpp"
#include "elementwise.hpp"

namespace seqkern::bind {
namespace {

// The distance between rows of a tensor [..., D] whose leading dimensions fold into one, or -1.
int64_t row_stride(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  if (t.size(last) > 1 && t.stride(last) != 1) return -1;
  int64_t stride = -1, expected = -1;
  for (int64_t i = last - 1; i >= 0; --i) {
    if (t.size(i) == 1) continue;
    if (stride < 0) stride = t.stride(i);
    if (expected >= 0 && t.stride(i) != expected) return -1;
    expected = t.stride(i) * t.size(i);
  }
  return stride < 0 ? t.size(last) : stride;
}

// A tensor whose rows a kernel can walk, and the view of them.
struct Rows {
  Tensor kept;
  RowView view;
};

Rows rows_of(const Tensor& t, const Tensor& like, DType dtype, const char* name) {
  check_cpu(t, name);
  STD_TORCH_CHECK(dtype_of(t, name) == dtype, "rms_norm_gated: `", name, "` has the wrong dtype");
  bool same = t.dim() == like.dim();
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == like.size(i);
  STD_TORCH_CHECK(same, "rms_norm_gated: `", name, "` must have the shape of `x`");
  const int64_t stride = row_stride(t);
  if (stride >= 0) return {t, {t.mutable_data_ptr(), stride}};
  const Tensor dense = torch::stable::contiguous(t);
  return {dense, {dense.mutable_data_ptr(), t.size(t.dim() - 1)}};
}

GateAct act_of(int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 2, "rms_norm_gated: unknown activation");
  return static_cast<GateAct>(activation);
}

int64_t rows_in(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1, "rms_norm_gated: `x` must be [..., D]");
  const int64_t D = x.size(x.dim() - 1);
  return D == 0 ? 0 : x.numel() / D;
}

OptionalTensor per_channel(const OptionalTensor& t, int64_t D, const char* name) {
  if (!t) return std::nullopt;
  STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == D, "rms_norm_gated: `", name, "` must be [D]");
  return as_float(*t, name);
}

const float* data_or_null(const OptionalTensor& t) {
  return t ? t->const_data_ptr<float>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> rms_norm_gated_fwd(const Tensor& x, const OptionalTensor& g,
                                                      const OptionalTensor& weight,
                                                      const OptionalTensor& bias,
                                                      const OptionalTensor& residual,
                                                      int64_t activation, bool residual_in_fp32,
                                                      double eps) {
  RmsNormGated p;
  p.rows = rows_in(x);
  p.D = x.size(x.dim() - 1);
  p.dtype = p.stream_dtype = dtype_of(x, "x");
  if (residual)
    p.stream_dtype = dtype_of(*residual, "residual");
  else if (residual_in_fp32)
    p.stream_dtype = DType::kF32;
  STD_TORCH_CHECK(p.stream_dtype == p.dtype || p.stream_dtype == DType::kF32,
                  "rms_norm_gated: `residual` must have the dtype of `x`, or float32");
  p.act = g ? act_of(activation) : GateAct::kNone;
  p.eps = static_cast<float>(eps);
  const OptionalTensor w = per_channel(weight, p.D, "weight");
  const OptionalTensor b = per_channel(bias, p.D, "bias");
  p.weight = data_or_null(w);
  p.bias = data_or_null(b);
  const Rows x_rows = rows_of(x, x, p.dtype, "x");
  p.x = x_rows.view;
  std::optional<Rows> g_rows, residual_rows;
  if (g) p.g = g_rows.emplace(rows_of(*g, x, p.dtype, "g")).view;
  if (residual)
    p.residual = residual_rows.emplace(rows_of(*residual, x, p.stream_dtype, "residual")).view;
  const Tensor y = dense_like(x, x.scalar_type());
  p.y = {y.mutable_data_ptr(), p.D};
  const bool has_stream = residual || p.stream_dtype != p.dtype;
  const ScalarType stream = p.stream_dtype == p.dtype ? x.scalar_type() : ScalarType::Float;
  const std::vector<int64_t> none{0};
  const Tensor residual_out = has_stream ? dense_like(x, stream) : new_empty(none, stream);
  if (has_stream) p.residual_out = {residual_out.mutable_data_ptr(), p.D};
  const Tensor rstd = float_empty({p.rows});
  p.rstd = rstd.mutable_data_ptr<float>();
  const RmsNormGatedKernels& kernels = seqkern::kernels().rms_norm_gated;
  constexpr int64_t kElements = 32768;
  if (p.rows * p.D <= kElements)
    kernels.forward(p, 0, p.rows);
  else
    torch::stable::parallel_for(0, p.rows, 1 + kElements / p.D, [&](int64_t begin, int64_t end) {
      kernels.forward(p, begin, end);
    });
  return {y, residual_out, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rms_norm_gated_bwd(
    const Tensor& dy, const OptionalTensor& dresidual_out, const Tensor& r, const OptionalTensor& g,
    const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& rstd,
    int64_t activation) {
  RmsNormGatedGrad p;
  p.rows = rows_in(r);
  p.D = r.size(r.dim() - 1);
  p.dtype = dtype_of(dy, "dy");
  p.stream_dtype = dtype_of(r, "r");
  STD_TORCH_CHECK(p.stream_dtype == p.dtype || p.stream_dtype == DType::kF32,
                  "rms_norm_gated: the residual stream must have the dtype of `dy`, or float32");
  p.act = g ? act_of(activation) : GateAct::kNone;
  const OptionalTensor w = per_channel(weight, p.D, "weight");
  const OptionalTensor b = per_channel(bias, p.D, "bias");
  p.weight = data_or_null(w);
  p.bias = data_or_null(b);
  STD_TORCH_CHECK(
      rstd.scalar_type() == ScalarType::Float && rstd.is_contiguous() && rstd.numel() == p.rows,
      "rms_norm_gated: `rstd` must be float32 [rows]");
  p.rstd = rstd.const_data_ptr<float>();
  const Rows r_rows = rows_of(r, r, p.stream_dtype, "r");
  const Rows dy_rows = rows_of(dy, r, p.dtype, "dy");
  p.r = r_rows.view;
  p.dy = dy_rows.view;
  std::optional<Rows> g_rows, stream_rows;
  const std::vector<int64_t> none{0};
  if (g) p.g = g_rows.emplace(rows_of(*g, r, p.dtype, "g")).view;
  if (dresidual_out)
    p.dr_out =
        stream_rows.emplace(rows_of(*dresidual_out, r, p.stream_dtype, "dresidual_out")).view;
  const Tensor dr = dense_like(r, r.scalar_type());
  p.dr = {dr.mutable_data_ptr(), p.D};
  const Tensor dg = g ? dense_like(*g, g->scalar_type()) : new_empty(none, dy.scalar_type());
  p.dg = {dg.mutable_data_ptr(), p.D};
  const Tensor dweight = float_empty({weight ? p.D : 0});
  const Tensor dbias = float_empty({bias ? p.D : 0});
  if (weight) p.dweight = dweight.mutable_data_ptr<float>();
  if (bias) p.dbias = dbias.mutable_data_ptr<float>();
  const int64_t blocks = p.rows > 0 ? (p.rows + kNormRows - 1) / kNormRows : 1;
  p.rows_per_item = (blocks + kNormMaxItems - 1) / kNormMaxItems * kNormRows;
  p.items = (p.rows + p.rows_per_item - 1) / p.rows_per_item;
  const Tensor partial = float_empty({p.items * kNormItemBuffers * p.D});
  p.partial = partial.mutable_data_ptr<float>();
  const RmsNormGatedKernels& kernels = seqkern::kernels().rms_norm_gated;
  const int64_t each = p.rows_per_item * p.D;
  torch::stable::parallel_for(0, p.items, each > 0 && each < 32768 ? 32768 / each : 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) kernels.backward(p, i);
                              });
  kernels.reduce(p);
  return {dr, dg, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      "rms_norm_gated_fwd(Tensor x, Tensor? g, Tensor? weight, Tensor? bias, Tensor? residual, "
      "int activation, bool residual_in_fp32, float eps) "
      "-> (Tensor y, Tensor residual_out, Tensor rstd)");
  m.def(
      "rms_norm_gated_bwd(Tensor dy, Tensor? dresidual_out, Tensor r, Tensor? g, Tensor? weight, "
      "Tensor? bias, Tensor rstd, int activation) "
      "-> (Tensor dr, Tensor dg, Tensor dweight, Tensor dbias)");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("rms_norm_gated_fwd", TORCH_BOX(&rms_norm_gated_fwd));
  m.impl("rms_norm_gated_bwd", TORCH_BOX(&rms_norm_gated_bwd));
}

}  // namespace seqkern::bind
