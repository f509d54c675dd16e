// SPDX-License-Identifier: Apache-2.0
// linear_scan.cpp - schema, checks, allocation and threads of the diagonal linear scan. Complex
// tensors come as pairs of float32, [B, T, 2 D], and say so.
#include "../include/seqkern/linear_scan.h"

#include "../cpu/dispatch.hpp"
#include "elementwise.hpp"

namespace seqkern::bind {
namespace {

void check(bool ok, const char* what) { STD_TORCH_CHECK(ok, "seqkern::linear_scan: ", what); }

View rows_of(const Tensor& x, const LinearScan& p, DType dtype, const char* name) {
  check_cpu(x, name);
  check(x.dim() == 3 && x.size(0) == p.batch && x.size(1) == p.T && x.size(2) == p.D,
        "a, b and their gradients must be [B, T, D]");
  check(dtype_of(x, name) == dtype, "a, b and their gradients must share one dtype");
  return {x.data_ptr(), dtype, x.stride(0), x.stride(1), 0};
}

bool past_caches(const View& v, const Tensor& x) {
  return bind::past_caches(v.data, v.dtype, x.numel(), {v.batch_stride, v.time_stride});
}

struct Call {
  LinearScan p;
  Tensor a;
  OptionalTensor h0, cu_seqlens;
};

Call prepare(const Tensor& a, const OptionalTensor& h0, const OptionalTensor& cu_seqlens,
             bool complex) {
  check(a.dim() == 3, "a must be [B, T, D]");
  Call call{LinearScan{}, with_contiguous_rows(a), {}, {}};
  LinearScan& p = call.p;
  p.batch = a.size(0);
  p.T = a.size(1);
  p.D = a.size(2);
  p.complex = complex;
  p.a = rows_of(call.a, p, dtype_of(a, "a"), "a");
  check(!complex || (p.a.dtype == DType::kF32 && p.D % 2 == 0), "pairs must be float32");
  p.sequences = p.batch;
  if (cu_seqlens) {
    call.cu_seqlens = checked_cu_seqlens(*cu_seqlens, p.batch, p.T);
    p.cu_seqlens = call.cu_seqlens->const_data_ptr<int64_t>();
    p.sequences = call.cu_seqlens->size(0) - 1;
  }
  if (h0) {
    check(h0->dim() == 2 && h0->size(0) == p.sequences && h0->size(1) == p.D, "h0 must be [N, D]");
    call.h0 = as_float(*h0, "h0");
    p.h0 = call.h0->const_data_ptr<float>();
  }
  return call;
}

template <class Run>
void each_part(const LinearScan& p, const Run& run) {
  const int64_t blocks = (p.D + kLinearScanChannels - 1) / kLinearScanChannels;
  constexpr int64_t kElements = 32768;
  const int64_t each = p.T * (p.D < kLinearScanChannels ? p.D : kLinearScanChannels);
  torch::stable::parallel_for(0, p.sequences * blocks, each > 0 ? 1 + kElements / each : 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i)
                                  run(i / blocks, i % blocks * kLinearScanChannels);
                              });
}

Tensor linear_scan_fwd(const Tensor& a, const Tensor& b, const OptionalTensor& h0,
                       const OptionalTensor& cu_seqlens, bool complex) {
  Call call = prepare(a, h0, cu_seqlens, complex);
  LinearScan& p = call.p;
  const Tensor b_rows = with_contiguous_rows(b), x = dense_like(a, a.scalar_type());
  p.b = rows_of(b_rows, p, p.a.dtype, "b");
  p.x = rows_of(x, p, p.a.dtype, "x");
  p.stream = past_caches(p.x, x);
  const LinearScanKernels& kernels = seqkern::kernels().linear_scan;
  each_part(p, [&](int64_t i_n, int64_t channel) { kernels.forward(p, i_n, channel); });
  return x;
}

std::tuple<Tensor, Tensor, Tensor> linear_scan_bwd(const Tensor& dx, const Tensor& a,
                                                   const Tensor& x, const OptionalTensor& h0,
                                                   const OptionalTensor& cu_seqlens, bool complex) {
  const Call call = prepare(a, h0, cu_seqlens, complex);
  LinearScanGrad d;
  d.in = call.p;
  LinearScan& p = d.in;
  const Tensor dx_rows = with_contiguous_rows(dx), x_rows = with_contiguous_rows(x);
  const Tensor da = dense_like(a, a.scalar_type()), db = dense_like(a, a.scalar_type());
  const Tensor dh0 =
      float_empty(h0 ? std::vector<int64_t>{p.sequences, p.D} : std::vector<int64_t>{0});
  p.x = rows_of(x_rows, p, p.a.dtype, "x");
  d.dx = rows_of(dx_rows, p, p.a.dtype, "dx");
  d.da = rows_of(da, p, p.a.dtype, "da");
  d.db = rows_of(db, p, p.a.dtype, "db");
  d.stream = past_caches(d.da, da) && past_caches(d.db, db);
  if (h0) d.dh0 = dh0.mutable_data_ptr<float>();
  const LinearScanKernels& kernels = seqkern::kernels().linear_scan;
  each_part(p, [&](int64_t i_n, int64_t channel) { kernels.backward(d, i_n, channel); });
  return {da, db, dh0};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      "linear_scan_fwd(Tensor a, Tensor b, Tensor? h0, Tensor? cu_seqlens, bool pairs) -> Tensor");
  m.def(
      "linear_scan_bwd(Tensor dx, Tensor a, Tensor x, Tensor? h0, Tensor? cu_seqlens, "
      "bool pairs) -> (Tensor da, Tensor db, Tensor dh0)");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("linear_scan_fwd", TORCH_BOX(&linear_scan_fwd));
  m.impl("linear_scan_bwd", TORCH_BOX(&linear_scan_bwd));
}

}  // namespace seqkern::bind
