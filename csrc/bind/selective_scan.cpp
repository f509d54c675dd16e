// SPDX-License-Identifier: Apache-2.0
// selective_scan.cpp - schema, checks, allocation and threads of the selective scan. The Python
// side has checked the arguments with kinder words; the checks here only guard the memory.
#include "../include/seqkern/selective_scan.h"

#include "../cpu/dispatch.hpp"
#include "elementwise.hpp"

namespace seqkern::bind {
namespace {

void check(bool ok, const char* what) { STD_TORCH_CHECK(ok, "seqkern::selective_scan: ", what); }

bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  int64_t i = 0;
  for (const int64_t n : shape) same = same && t.size(i++) == n;
  return same;
}

// [batch, D, T], any strides.
ScanView scan_view(const Tensor& x, const SelectiveScan& p, const char* name) {
  check_cpu(x, name);
  check(has_shape(x, {p.batch, p.D, p.T}), "u, delta, z and their gradients must be [B, D, T]");
  return {x.data_ptr(), dtype_of(x, name), x.stride(0), x.stride(1), x.stride(2)};
}

// A new [batch, D, T], with the channels side by side if `time_major`.
Tensor new_rows(const SelectiveScan& p, ScalarType dtype, bool time_major) {
  if (!time_major) return new_empty({p.batch, p.D, p.T}, dtype);
  return torch::stable::transpose(new_empty({p.batch, p.T, p.D}, dtype), 1, 2);
}

// The tensors of a call, in the form that the kernels take, and what keeps them alive.
struct Call {
  SelectiveScan p;
  Tensor A, B, C;
  OptionalTensor skip, delta_bias, h0, cu_seqlens;

  int64_t tasks() const { return p.batch * p.G * scan_parts(p); }
  std::vector<int64_t> state_shape() const { return {p.sequences, p.D, p.N}; }
  std::vector<int64_t> checkpoint_shape() const {
    return {p.batch, p.T / kScanRows, scan_lane_blocks(p), p.N, kScanLanes};
  }
};

const float* channels(const OptionalTensor& x, OptionalTensor& kept, int64_t D, const char* name) {
  if (!x) return nullptr;
  check(has_shape(*x, {D}), "D and delta_bias must be [D]");
  kept = as_float(*x, name);
  return kept->const_data_ptr<float>();
}

// B or C: [batch, G, T, N], or [D, N] for one that does not change over time.
bool is_constant(const Tensor& x, SelectiveScan& p) {
  if (x.dim() == 2) {
    check(has_shape(x, {p.D, p.N}), "a constant B or C must be [D, N]");
    return true;
  }
  check(x.dim() == 4, "B and C must be [B, G, T, N] or [D, N]");
  p.G = x.size(1);
  return false;
}

Call prepare(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
             const Tensor& C, const OptionalTensor& skip, const OptionalTensor& z,
             const OptionalTensor& delta_bias, const OptionalTensor& h0,
             const OptionalTensor& cu_seqlens, bool softplus, bool negative) {
  Call call{SelectiveScan{}, as_float(A, "A"), as_float(B, "B"), as_float(C, "C"), {}, {}, {}, {}};
  SelectiveScan& p = call.p;
  check(u.dim() == 3 && A.dim() == 2, "u must be [B, D, T] and A [D, N]");
  p.batch = u.size(0);
  p.D = u.size(1);
  p.T = u.size(2);
  p.N = A.size(1);
  p.softplus = softplus;
  p.negative = negative;
  check(has_shape(A, {p.D, p.N}), "A must be [D, N]");
  p.constant_b = is_constant(B, p);
  p.constant_c = is_constant(C, p);
  check(p.G >= 1 && p.D % p.G == 0, "the number of groups must divide D");
  check(p.constant_b || has_shape(B, {p.batch, p.G, p.T, p.N}), "B must be [B, G, T, N]");
  check(p.constant_c || has_shape(C, {p.batch, p.G, p.T, p.N}), "C must be [B, G, T, N]");
  p.u = scan_view(u, p, "u");
  p.delta = scan_view(delta, p, "delta");
  if (z) p.z = scan_view(*z, p, "z");
  p.A = call.A.const_data_ptr<float>();
  p.B = call.B.const_data_ptr<float>();
  p.C = call.C.const_data_ptr<float>();
  p.skip = channels(skip, call.skip, p.D, "D");
  p.delta_bias = channels(delta_bias, call.delta_bias, p.D, "delta_bias");
  p.sequences = p.batch;
  if (cu_seqlens) {
    call.cu_seqlens = checked_cu_seqlens(*cu_seqlens, p.batch, p.T);
    p.cu_seqlens = call.cu_seqlens->const_data_ptr<int64_t>();
    p.sequences = call.cu_seqlens->size(0) - 1;
  }
  if (h0) {
    check(has_shape(*h0, {p.sequences, p.D, p.N}), "the initial state must be [N, D, N]");
    call.h0 = as_float(*h0, "initial_state");
    p.h0 = call.h0->const_data_ptr<float>();
  }
  return call;
}

std::tuple<Tensor, Tensor, Tensor> selective_scan_fwd(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const OptionalTensor& skip, const OptionalTensor& z, const OptionalTensor& delta_bias,
    const OptionalTensor& h0, const OptionalTensor& cu_seqlens, bool softplus, bool negative,
    bool time_major, bool output_state, bool save) {
  Call call = prepare(u, delta, A, B, C, skip, z, delta_bias, h0, cu_seqlens, softplus, negative);
  SelectiveScan& p = call.p;
  const std::vector<int64_t> none{0};
  const Tensor out = new_rows(p, u.scalar_type(), time_major);
  const Tensor ht = float_empty(output_state ? call.state_shape() : none);
  const Tensor checkpoints = float_empty(save ? call.checkpoint_shape() : none);
  p.out = scan_view(out, p, "out");
  if (output_state) p.ht = ht.mutable_data_ptr<float>();
  if (save) {
    p.checkpoints = checkpoints.mutable_data_ptr<float>();
    // Sequences of a packed batch leave some slots unused, and groups some lanes.
    const bool gaps = p.cu_seqlens != nullptr || p.D / p.G % kScanLanes != 0;
    if (gaps && checkpoints.numel() > 0)
      std::memset(p.checkpoints, 0, checkpoints.numel() * sizeof(float));
  }
  const SelectiveScanKernels& kernels = seqkern::kernels().selective_scan;
  parallel_tasks(call.tasks(), kernels.forward_workspace(p),
                 [&](int64_t i, void* workspace) { kernels.forward(p, i, workspace); });
  return {out, ht, checkpoints};
}

// Adds up `parts` neighbouring blocks of `width` floats, `rows` times.
Tensor summed(const Tensor& from, const std::vector<int64_t>& shape, int64_t rows, int64_t parts) {
  const Tensor to = float_empty(shape);
  const int64_t width = rows > 0 ? to.numel() / rows : 0;
  if (width > 0)
    seqkern::kernels().sum_groups(from.const_data_ptr<float>(), DType::kF32, to.mutable_data_ptr(),
                                  0, rows, parts, width);
  return to;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
selective_scan_bwd(const Tensor& dout, const OptionalTensor& dht, const Tensor& u,
                   const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
                   const OptionalTensor& skip, const OptionalTensor& z,
                   const OptionalTensor& delta_bias, const OptionalTensor& h0,
                   const OptionalTensor& cu_seqlens, const Tensor& checkpoints, bool softplus,
                   bool negative, bool time_major) {
  Call call = prepare(u, delta, A, B, C, skip, z, delta_bias, h0, cu_seqlens, softplus, negative);
  const std::vector<int64_t> none{0};
  SelectiveScanGrad d;
  d.in = call.p;
  SelectiveScan& p = d.in;
  int64_t saved = 1;
  for (const int64_t n : call.checkpoint_shape()) saved *= n;
  check(checkpoints.numel() == saved && checkpoints.scalar_type() == ScalarType::Float &&
            checkpoints.is_contiguous(),
        "the checkpoints must be those of the forward pass");
  p.checkpoints = checkpoints.mutable_data_ptr<float>();
  d.dout = scan_view(dout, p, "dout");
  OptionalTensor dense_dht;
  if (dht) {
    check(has_shape(*dht, {p.sequences, p.D, p.N}), "dht must be [N, D, N]");
    dense_dht = as_float(*dht, "dht");
    d.dht = dense_dht->const_data_ptr<float>();
  }
  const Tensor du = new_rows(p, u.scalar_type(), time_major);
  const Tensor ddelta = new_rows(p, delta.scalar_type(), time_major);
  const Tensor dz =
      z ? new_rows(p, z->scalar_type(), time_major) : new_empty(none, u.scalar_type());
  d.du = scan_view(du, p, "du");
  d.ddelta = scan_view(ddelta, p, "ddelta");
  if (z) d.dz = scan_view(dz, p, "dz");
  const int64_t batch = p.batch, parts = scan_parts(p), sums = batch * p.G * parts * p.T * p.N;
  const Tensor dh0 = float_empty(h0 ? call.state_shape() : none);
  const Tensor dA = float_empty({batch * p.D * p.N});
  const Tensor dB = float_empty({p.constant_b ? batch * p.D * p.N : sums});
  const Tensor dC = float_empty({p.constant_c ? batch * p.D * p.N : sums});
  const Tensor dskip = float_empty({skip ? batch * p.D : 0});
  const Tensor dbias = float_empty({delta_bias ? batch * p.D : 0});
  d.dA = dA.mutable_data_ptr<float>();
  d.dB = dB.mutable_data_ptr<float>();
  d.dC = dC.mutable_data_ptr<float>();
  if (h0) d.dh0 = dh0.mutable_data_ptr<float>();
  if (skip) d.dskip = dskip.mutable_data_ptr<float>();
  if (delta_bias) d.ddelta_bias = dbias.mutable_data_ptr<float>();
  const SelectiveScanKernels& kernels = seqkern::kernels().selective_scan;
  parallel_tasks(call.tasks(), kernels.backward_workspace(p),
                 [&](int64_t i, void* workspace) { kernels.backward(d, i, workspace); });
  const auto coefficient = [&](const Tensor& from, bool constant) {
    return constant ? summed(from, {p.D, p.N}, 1, batch)
                    : summed(from, {batch, p.G, p.T, p.N}, batch * p.G, parts);
  };
  return {du,
          ddelta,
          summed(dA, {p.D, p.N}, 1, batch),
          coefficient(dB, p.constant_b),
          coefficient(dC, p.constant_c),
          summed(dskip, {skip ? p.D : 0}, 1, batch),
          dz,
          summed(dbias, {delta_bias ? p.D : 0}, 1, batch),
          dh0};
}

// One step: [B, D] tensors, B and C [B, G, N] or [D, N].
Tensor selective_scan_step(const Tensor& state, const Tensor& u, const Tensor& delta,
                           const Tensor& A, const Tensor& B, const Tensor& C,
                           const OptionalTensor& skip, const OptionalTensor& z,
                           const OptionalTensor& delta_bias, bool softplus, bool negative) {
  SelectiveScanStep p;
  check(u.dim() == 2 && A.dim() == 2, "u must be [B, D] and A [D, N]");
  const int64_t batch = u.size(0);
  p.D = u.size(1);
  p.N = A.size(1);
  p.softplus = softplus;
  p.negative = negative;
  const auto view = [&](const Tensor& x, const char* name) {
    check_cpu(x, name);
    check(has_shape(x, {batch, p.D}), "u, delta and z must be [B, D]");
    return ScanView{x.data_ptr(), dtype_of(x, name), x.stride(0), x.stride(1), 0};
  };
  check(has_shape(A, {p.D, p.N}), "A must be [D, N]");
  check(has_shape(state, {batch, p.D, p.N}) && state.scalar_type() == ScalarType::Float &&
            state.is_contiguous() && state.is_cpu(),
        "the state must be float32 [B, D, N], dense");
  p.state = state.mutable_data_ptr<float>();
  p.constant_b = B.dim() == 2;
  p.constant_c = C.dim() == 2;
  if (!p.constant_b) p.G = B.size(1);
  if (!p.constant_c) p.G = C.size(1);
  check(p.G >= 1 && p.D % p.G == 0, "the number of groups must divide D");
  check(p.constant_b ? has_shape(B, {p.D, p.N}) : has_shape(B, {batch, p.G, p.N}),
        "B must be [B, G, N] or [D, N]");
  check(p.constant_c ? has_shape(C, {p.D, p.N}) : has_shape(C, {batch, p.G, p.N}),
        "C must be [B, G, N] or [D, N]");
  const Tensor A32 = as_float(A, "A"), B32 = as_float(B, "B"), C32 = as_float(C, "C");
  p.A = A32.const_data_ptr<float>();
  p.B = B32.const_data_ptr<float>();
  p.C = C32.const_data_ptr<float>();
  OptionalTensor kept_skip, kept_bias;
  p.skip = channels(skip, kept_skip, p.D, "D");
  p.delta_bias = channels(delta_bias, kept_bias, p.D, "delta_bias");
  p.u = view(u, "u");
  p.delta = view(delta, "delta");
  if (z) p.z = view(*z, "z");
  const Tensor out = new_empty({batch, p.D}, u.scalar_type());
  p.out = view(out, "out");
  const SelectiveScanKernels& kernels = seqkern::kernels().selective_scan;
  constexpr int64_t kElements = 65536;  // from which on a second thread is worth waking
  const int64_t blocks = scan_blocks(p.D, kScanChannels), tasks = batch * blocks;
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t channel = i % blocks * kScanChannels, rest = p.D - channel;
      kernels.step(p, i / blocks, channel, rest < kScanChannels ? rest : kScanChannels);
    }
  };
  if (batch * p.D * p.N <= kElements)
    run(0, tasks);
  else
    torch::stable::parallel_for(0, tasks, 1 + kElements / 2 / (kScanChannels * p.N), run);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      "selective_scan_fwd(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, "
      "Tensor? z, Tensor? delta_bias, Tensor? h0, Tensor? cu_seqlens, bool softplus, "
      "bool negative, bool time_major, bool output_state, bool save) "
      "-> (Tensor out, Tensor ht, Tensor checkpoints)");
  m.def(
      "selective_scan_bwd(Tensor dout, Tensor? dht, Tensor u, Tensor delta, Tensor A, Tensor B, "
      "Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, Tensor? h0, Tensor? cu_seqlens, "
      "Tensor checkpoints, bool softplus, bool negative, bool time_major) "
      "-> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, Tensor dC, Tensor dD, Tensor dz, "
      "Tensor ddelta_bias, Tensor dh0)");
  m.def(
      "selective_scan_step(Tensor(a!) state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
      "Tensor? D, Tensor? z, Tensor? delta_bias, bool softplus, bool negative) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("selective_scan_fwd", TORCH_BOX(&selective_scan_fwd));
  m.impl("selective_scan_bwd", TORCH_BOX(&selective_scan_bwd));
  m.impl("selective_scan_step", TORCH_BOX(&selective_scan_step));
}

}  // namespace seqkern::bind
