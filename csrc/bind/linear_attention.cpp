// SPDX-License-Identifier: Apache-2.0
// Torch ops of linear attention and the delta rule. Shapes are those of linear_attention.h; the
// Python side has checked them with kinder words, so the checks here only guard the memory.
#include "../include/seqkern/linear_attention.h"

#include <cstring>
#include <tuple>

#include "../cpu/dispatch.hpp"
#include "tensors.hpp"

namespace seqkern::bind {
namespace {

struct Inputs {
  Tensor q, k, v;
  OptionalTensor g, beta, h0, cu_seqlens;
};

void check(bool ok, const char* what) { STD_TORCH_CHECK(ok, "seqkern::linear_attention: ", what); }

OptionalTensor contiguous(const OptionalTensor& x) {
  return x ? OptionalTensor(torch::stable::contiguous(*x)) : x;
}

LinearAttention describe(Inputs& x, double scale, int64_t num_householder, bool l2norm,
                         int64_t checkpoint_interval, bool signed_gate) {
  check(x.q.dim() == 4 && x.k.dim() == 4 && x.v.dim() == 4, "q, k, v must have 4 dimensions");
  const int64_t B = x.q.size(0);
  LinearAttention p;
  p.T = x.q.size(1);
  p.H = x.q.size(2);
  p.K = x.q.size(3);
  p.HV = x.v.size(2);
  p.V = x.v.size(3);
  p.num_householder = num_householder;
  p.scale = static_cast<float>(scale);
  p.l2norm = l2norm;
  const int64_t TN = p.T * num_householder;
  check(num_householder >= 1, "num_householder must be at least 1");
  check(checkpoint_interval >= 0 && checkpoint_interval % kChunk == 0,
        "checkpoint_interval must be a multiple of 16");
  check(x.k.size(0) == B && x.k.size(1) == TN && x.k.size(2) == p.H && x.k.size(3) == p.K,
        "k must be [B, T n, H, K]");
  check(x.v.size(0) == B && x.v.size(1) == TN, "v must be [B, T n, HV, V]");
  check(p.H > 0 ? p.HV % p.H == 0 : p.HV == 0, "HV must be a multiple of H");
  check(p.K >= 1 && p.V >= 1, "K and V must be at least 1");
  x.q = with_contiguous_rows(x.q);
  x.k = with_contiguous_rows(x.k);
  x.v = with_contiguous_rows(x.v);
  p.q = view_of(x.q, "q");
  p.k = view_of(x.k, "k");
  p.v = view_of(x.v, "v");
  if (x.g) {
    p.gate = x.g->dim() == 4 ? Gate::kVector : Gate::kScalar;
    const bool vector = p.gate == Gate::kVector;
    check(x.g->size(0) == B && x.g->size(1) == p.T && x.g->size(2) == (vector ? p.H : p.HV),
          "g must be [B, T, HV] or [B, T, H, K]");
    check(!vector || (x.g->size(3) == p.K && !x.beta && num_householder == 1),
          "a vector gate must be [B, T, H, K] and goes with the additive rule alone");
    if (vector) x.g = with_contiguous_rows(*x.g);
    p.g = view_of(*x.g, "g");
  }
  if (x.beta) {
    p.beta_kind = x.beta->dim() == 4 ? Beta::kVector : Beta::kScalar;
    const bool vector = p.beta_kind == Beta::kVector;
    check(x.beta->size(0) == B && x.beta->size(1) == TN && x.beta->size(2) == p.HV &&
              (!vector || x.beta->size(3) == p.V),
          "beta must be [B, T n, HV] or [B, T n, HV, V]");
    if (vector) x.beta = with_contiguous_rows(*x.beta);
    p.beta = view_of(*x.beta, "beta");
  }
  check(!signed_gate || p.gate == Gate::kVector, "a signed gate must be [B, T, H, K]");
  p.signed_gate = signed_gate;
  p.N = B;
  if (x.cu_seqlens) {
    check(B == 1, "cu_seqlens needs a batch of 1");
    check(x.cu_seqlens->dim() == 1 && x.cu_seqlens->size(0) >= 1 &&
              x.cu_seqlens->scalar_type() == ScalarType::Long && x.cu_seqlens->is_cpu(),
          "cu_seqlens must be int64 [N + 1] on the CPU");
    x.cu_seqlens = contiguous(x.cu_seqlens);
    p.N = x.cu_seqlens->size(0) - 1;
    p.cu_seqlens = static_cast<const int64_t*>(x.cu_seqlens->data_ptr());
    bool rising = p.cu_seqlens[0] == 0 && p.cu_seqlens[p.N] == p.T;
    for (int64_t i = 0; i < p.N; ++i) rising = rising && p.cu_seqlens[i] <= p.cu_seqlens[i + 1];
    check(rising, "cu_seqlens must start at 0, never fall, and end at T");
  }
  if (x.h0) {
    check(x.h0->dim() == 4 && x.h0->size(0) == p.N && x.h0->size(1) == p.HV &&
              x.h0->size(2) == p.K && x.h0->size(3) == p.V &&
              x.h0->scalar_type() == ScalarType::Float,
          "h0 must be float32 [N, HV, K, V]");
    x.h0 = contiguous(x.h0);
    p.h0 = static_cast<const float*>(x.h0->data_ptr());
  }
  p.checkpoint_interval = checkpoint_interval;
  p.num_checkpoints = checkpoint_interval > 0 ? TN / checkpoint_interval : 0;
  return p;
}

float* floats(const Tensor& x) { return static_cast<float*>(x.data_ptr()); }

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(Tensor q, Tensor k, Tensor v, OptionalTensor g,
                                                   OptionalTensor beta, OptionalTensor h0,
                                                   OptionalTensor cu_seqlens, double scale,
                                                   int64_t num_householder, bool l2norm,
                                                   int64_t checkpoint_interval, bool signed_gate) {
  Inputs x{q, k, v, g, beta, h0, cu_seqlens};
  LinearAttention p = describe(x, scale, num_householder, l2norm, checkpoint_interval, signed_gate);
  const int64_t B = q.size(0), TN = p.T * num_householder;
  Tensor o = new_empty({B, p.T, p.HV, p.V}, q.scalar_type());
  Tensor ht = new_empty({p.N, p.HV, p.K, p.V}, ScalarType::Float);
  const bool save = checkpoint_interval > 0;
  const std::vector<int64_t> none{0};
  Tensor residual =
      new_empty(save && beta ? std::vector<int64_t>{B, TN, p.HV, p.V} : none, ScalarType::Float);
  Tensor checkpoints = new_empty(
      save ? std::vector<int64_t>{B, p.num_checkpoints, p.HV, p.K, p.V} : none, ScalarType::Float);
  p.o = view_of(o, "o");
  p.ht = floats(ht);
  if (save) {
    p.residual = beta ? floats(residual) : nullptr;
    p.checkpoints = floats(checkpoints);
    // Sequences of a packed batch leave some slots unused.
    if (p.cu_seqlens != nullptr && checkpoints.numel() > 0)
      std::memset(p.checkpoints, 0, checkpoints.numel() * sizeof(float));
  }
  const KernelTable& table = kernels();
  parallel_tasks(p.N * p.HV, table.linear_attention_forward_workspace(p),
                 [&](int64_t i, void* workspace) {
                   table.linear_attention_forward(p, i / p.HV, i % p.HV, workspace);
                 });
  return {o, ht, residual, checkpoints};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor d_o, OptionalTensor dht, Tensor q, Tensor k, Tensor v, OptionalTensor g,
    OptionalTensor beta, OptionalTensor h0, OptionalTensor cu_seqlens, Tensor residual,
    Tensor checkpoints, double scale, int64_t num_householder, bool l2norm,
    int64_t checkpoint_interval, bool signed_gate) {
  Inputs x{q, k, v, g, beta, h0, cu_seqlens};
  LinearAttentionGrad p;
  p.in = describe(x, scale, num_householder, l2norm, checkpoint_interval, signed_gate);
  const LinearAttention& in = p.in;
  const int64_t B = q.size(0), TN = in.T * num_householder;
  check(checkpoint_interval > 0, "the backward pass needs a forward pass that saved checkpoints");
  check(d_o.dim() == 4 && d_o.size(0) == B && d_o.size(1) == in.T && d_o.size(2) == in.HV &&
            d_o.size(3) == in.V,
        "do must be [B, T, HV, V]");
  check(checkpoints.numel() == B * in.num_checkpoints * in.HV * in.K * in.V &&
            residual.numel() == (beta ? B * TN * in.HV * in.V : 0) &&
            checkpoints.scalar_type() == ScalarType::Float && checkpoints.is_contiguous() &&
            residual.scalar_type() == ScalarType::Float && residual.is_contiguous(),
        "residual and checkpoints must be those of the forward pass");
  const Tensor rows_of_do = with_contiguous_rows(d_o);
  p.d_o = view_of(rows_of_do, "do");
  p.in.residual = floats(residual);
  p.in.checkpoints = floats(checkpoints);
  const OptionalTensor dense_dht = contiguous(dht);
  if (dense_dht) {
    check(dense_dht->numel() == in.N * in.HV * in.K * in.V &&
              dense_dht->scalar_type() == ScalarType::Float,
          "dht must be float32 [N, HV, K, V]");
    p.dht = floats(*dense_dht);
  }
  // A group of value heads shares q, k and a vector gate: their gradients are summed at the end,
  // in float32 and in the order of the heads.
  const bool grouped = in.HV != in.H;
  const ScalarType wide = grouped ? ScalarType::Float : q.scalar_type();
  Tensor dq = new_empty({B, in.T, in.HV, in.K}, wide);
  Tensor dk = new_empty({B, TN, in.HV, in.K}, wide);
  Tensor dv = new_empty(sizes_of(v), v.scalar_type());
  const bool vector_gate = in.gate == Gate::kVector;
  Tensor dg = new_empty(!g            ? std::vector<int64_t>{0}
                        : vector_gate ? std::vector<int64_t>{B, in.T, in.HV, in.K}
                                      : std::vector<int64_t>{B, in.T, in.HV},
                        ScalarType::Float);
  Tensor dbeta = new_empty(beta ? sizes_of(*beta) : std::vector<int64_t>{0}, ScalarType::Float);
  Tensor dh0 = new_empty({in.N, in.HV, in.K, in.V}, ScalarType::Float);
  p.dq = view_of(dq, "dq");
  p.dk = view_of(dk, "dk");
  p.dv = view_of(dv, "dv");
  if (g) p.dg = view_of(dg, "dg");
  if (beta) p.dbeta = view_of(dbeta, "dbeta");
  p.dh0 = floats(dh0);
  const KernelTable& table = kernels();
  parallel_tasks(in.N * in.HV, table.linear_attention_backward_workspace(in),
                 [&](int64_t i, void* workspace) {
                   table.linear_attention_backward(p, i / in.HV, i % in.HV, workspace);
                 });
  if (grouped) {
    const int64_t group = in.HV / (in.H > 0 ? in.H : 1);
    auto fold = [&](const Tensor& x, ScalarType dtype) {
      const int64_t rows = x.size(0) * x.size(1), width = x.size(3);
      Tensor out = new_empty({x.size(0), x.size(1), in.H, width}, dtype);
      const int64_t source[] = {in.HV * width, width};
      const float* from = floats(x);
      void* to = out.data_ptr();
      torch::stable::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
        table.sum_groups(from + begin * source[0], dtype_of(out, "dq"), to, begin * in.H * width,
                         (end - begin) * in.H, group, width);
      });
      return out;
    };
    dq = fold(dq, q.scalar_type());
    dk = fold(dk, k.scalar_type());
    if (vector_gate) dg = fold(dg, ScalarType::Float);
  }
  return {dq, dk, dv, dg, dbeta, dh0};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      "linear_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor? g, Tensor? beta, Tensor? h0, "
      "Tensor? cu_seqlens, float scale, int num_householder, bool l2norm, "
      "int checkpoint_interval, bool signed_gate=False) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "linear_attention_bwd(Tensor do, Tensor? dht, Tensor q, Tensor k, Tensor v, Tensor? g, "
      "Tensor? beta, Tensor? h0, Tensor? cu_seqlens, Tensor residual, Tensor checkpoints, "
      "float scale, int num_householder, bool l2norm, int checkpoint_interval, "
      "bool signed_gate=False) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("linear_attention_fwd", TORCH_BOX(&forward));
  m.impl("linear_attention_bwd", TORCH_BOX(&backward));
}

}  // namespace seqkern::bind
