// SPDX-License-Identifier: Apache-2.0
// linear_attention_bwd.hpp - backward of linear attention and of the delta rule, one head of one
// sequence.
//
// Maths      From the last chunk to the first, with dS the gradient of the state after the chunk:
//              du_j = sum_r A_rj do_r + R_j dS^T k_j
//              w_i  = du_i - sum_{l>i} G_li y_l,  y_i = beta_i w_i       (delta rule; else y = du)
//              dv_i = y_i,  dbeta_i = w_i . e_i
//              dA_rj = do_r . u_j,  dG_ij = -y_i . u_j
//              dq_r = scale P_{pos r} S0 do_r           + what dA sends to q
//              dk_j = R_j dS u_j - P_j S0 y_j           + what dA and dG send to k
//              dS0  = P_C dS + sum_r (scale P_{pos r} q_r) do_r^T - sum_i (P_i k_i) y_i^T
//            Gate t collects every product that crosses it, j < t <= i, and nothing else:
//              dg_t = P_C <S0, dS> + sum_{i >= t} (from S0 to i) + sum_{j < t} (from j to dS)
//                     + sum_{j < t <= i} (A_ij dA_ij + G_ij dG_ij)
//            There is no difference of large sums, so it stays exact under strong decay.
// States     The forward pass left the state at every checkpoint_interval-th token. The states of a
//            segment are replayed from there into the workspace, then used from the right.
// Layout     S and dS transposed, in panels of PW columns of K, [panel][V][PW].
// Precision  f32 throughout, as the forward pass; gradients of 16-bit inputs are rounded on store.
// Cost       per token 10 K V flops (additive; 2 K V of them replay) or 14 K V (delta rule), and
//            about 5 C (K + V) inside the chunk; S0 of a segment, checkpoint_interval / 16 states,
//            should stay in the second-level cache.
// Limits     as the forward pass.
// Threads    none: the caller splits over sequences and heads.
#pragma once

#include "linear_attention_grad.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

template <Gate kGate, Beta kBeta>
inline void store_gradients(const LinearAttentionGrad& g, int64_t i_hv, BackwardWorkspace& w,
                            BackwardChunk& c, const float* y) {
  const LinearAttention& p = g.in;
  const Chunk& at = c.at;
  if (p.l2norm) {
    normalize_rows_backward(w.dq, w.q, c.rstd_q, at.nq, w.Kp);
    normalize_rows_backward(w.dk, w.k, c.rstd_k, at.n, w.Kp);
  }
  store_rows(g.dq, at.i_b, at.q_at, i_hv, at.nq, p.K, w.Kp, w.dq);
  store_rows(g.dk, at.i_b, at.k_at, i_hv, at.n, p.K, w.Kp, w.dk);
  store_rows(g.dv, at.i_b, at.k_at, i_hv, at.n, p.V, w.Vp, y);
  if constexpr (kBeta == Beta::kVector) {
    store_rows(g.dbeta, at.i_b, at.k_at, i_hv, at.n, p.V, w.Vp, w.dbeta);
  } else if constexpr (kBeta == Beta::kScalar) {
    float* to = static_cast<float*>(g.dbeta.data) + at.i_b * g.dbeta.batch_stride +
                i_hv * g.dbeta.head_stride;
    for (int i = 0; i < at.n; ++i)
      to[(at.k_at + i) * g.dbeta.time_stride] = lane_sum(c.sums.w_dot_e[i]);
  }
  if constexpr (kGate == Gate::kVector) {
    // What was found is the gradient of log |a|, a da.
    if (p.signed_gate)
      for (int64_t x = 0; x < at.n * w.Kp; x += W) store(w.dg + x, load(w.dg + x) / load(w.a + x));
    store_rows(g.dg, at.i_b, at.k_at, i_hv, at.n, p.K, w.Kp, w.dg);
  } else if (p.gate == Gate::kScalar) {
    float dg[C];
    gradient_of_scalar_gate(c, dg);
    float* to =
        static_cast<float*>(g.dg.data) + at.i_b * g.dg.batch_stride + i_hv * g.dg.head_stride;
    for (int i = 0; i < at.n; ++i)
      if (at.g_at[i] >= 0) to[at.g_at[i] * g.dg.time_stride] = dg[i];
  }
}

// What the chunk before `at` reads and writes.
template <Beta kBeta>
inline void backward_prefetch(const LinearAttentionGrad& g, const Sequence& s, const Chunk& at,
                              int64_t i_h, int64_t i_hv, Prefetch& next) {
  const LinearAttention& p = g.in;
  const int64_t nh = p.num_householder, q_first = s.start, k_first = s.start * nh;
  const int64_t k_end = at.k_at, k_at = k_end - C, q_end = at.q_at, q_at = q_end - C;
  next.clear();
  next.add(p.k, at.i_b, k_at, k_first, k_end, i_h, p.K);
  next.add(kBeta == Beta::kNone ? p.v : residual_of(p), at.i_b, k_at, k_first, k_end, i_hv, p.V);
  next.add(p.q, at.i_b, q_at, q_first, q_end, i_h, p.K);
  next.add(g.d_o, at.i_b, q_at, q_first, q_end, i_hv, p.V);
  next.add(g.dq, at.i_b, q_at, q_first, q_end, i_hv, p.K);
  next.add(g.dk, at.i_b, k_at, k_first, k_end, i_hv, p.K);
  next.add(g.dv, at.i_b, k_at, k_first, k_end, i_hv, p.V);
  if (p.gate == Gate::kVector) {
    next.add(p.g, at.i_b, q_at, q_first, q_end, i_h, p.K);
    next.add(g.dg, at.i_b, q_at, q_first, q_end, i_hv, p.K);
  }
}

// One chunk: reads S before it and dS after it, writes all gradients of its tokens and leaves in dS
// the gradient of the state before it.
template <Gate kGate, Beta kBeta>
inline void backward_chunk(const LinearAttentionGrad& g, int64_t i_h, int64_t i_hv,
                           BackwardWorkspace& w, BackwardChunk& c, const Sequence& s,
                           const float* S) {
  const LinearAttention& p = g.in;
  load_keys<kGate, kBeta>(p, s, i_h, i_hv, w, c);
  load_values<kBeta>(p, c.at, i_hv, w, c.beta);
  load_queries<kGate, kBeta>(g, i_h, i_hv, w, c);
  memset(&c.sums, 0, sizeof c.sums);
  float* const y = w.dy + c.at.nq * w.Vp;
  gradient_of_values<kGate>(p, w, c, y);
  transpose_to_tokens(w.u, w.Vp, w.Vp, w.uT, C);
  if constexpr (kBeta != Beta::kNone) {
    for (int64_t x = 0; x < w.Vp; x += W)
      substitute_back<kBeta>(y + x, w.Vp, c.G, kBeta == Beta::kVector ? w.beta + x : c.beta,
                             w.e + x, c.sums.w_dot_e, w.dbeta + x);
    transpose_to_tokens(y, w.Vp, w.Vp, w.dyT + C, 2 * C);
  }
  gradient_of_scores<kGate, kBeta>(p, w, c);
  for (int64_t x = 0; x < w.Kp; x += PW) {
    gradient_of_queries<kGate>(p, w, c, S + x * w.Vp, x);
    gradient_of_keys<kGate, kBeta>(p, w, c, S + x * w.Vp, w.dS + x * w.Vp, x);
  }
  backward_prefetch<kBeta>(g, s, c.at, i_h, i_hv, c.next);
  const int64_t depth = c.at.nq + (kBeta == Beta::kNone ? 0 : c.at.n);
  float* products = kGate == Gate::kVector ? w.across : c.sums.state;
  update_state<kGate>(w, c, depth, w.dy, w.into, w.dS, w.dS, S, products);
  if constexpr (kGate == Gate::kVector) gradient_through_vector_scores(w, c);
  store_gradients<kGate, kBeta>(g, i_hv, w, c, y);
}

template <Gate kGate, Beta kBeta>
inline void backward_head(const LinearAttentionGrad& g, int64_t i_n, int64_t i_hv,
                          void* workspace) {
  const FlushSubnormals flush;
  const LinearAttention& p = g.in;
  BackwardWorkspace w(p, static_cast<float*>(workspace));
  const Sequence s = sequence_of(p, i_n);
  const int64_t i_h = i_hv / (p.HV / p.H), nh = p.num_householder, total = s.length * nh;
  const int64_t interval = p.checkpoint_interval, KV = p.K * p.V;
  const int64_t dense = (i_n * p.HV + i_hv) * KV;
  panels_by_k(g.dht ? g.dht + dense : nullptr, p.K, p.V, w.Vp, w.dS);
  BackwardChunk c;
  const int64_t segments = (total + interval - 1) / interval;
  for (int64_t segment = segments - 1; segment >= 0; --segment) {
    const int64_t start = segment * interval;
    const int64_t end = start + interval < total ? start + interval : total;
    const int64_t slot = s.start * nh / interval + segment - 1;
    const float* checkpoint =
        segment > 0 ? p.checkpoints + ((s.i_b * p.num_checkpoints + slot) * p.HV + i_hv) * KV
                    : (p.h0 ? p.h0 + dense : nullptr);
    panels_by_k(checkpoint, p.K, p.V, w.Vp, w.S);
    float* S = w.S;
    int64_t at = start, count = 0;
    for (;; S += w.state) {
      c.at = chunk_of(p, s, at, chunk_length(p, at));
      load_keys<kGate, kBeta>(p, s, i_h, i_hv, w, c);
      w.starts[count++] = at;
      at += c.at.n;
      if (at >= end) break;
      load_values<kBeta>(p, c.at, i_hv, w, c.beta);
      c.next.clear();
      const int64_t k_at = c.at.k_at + c.at.n, k_end = s.start * nh + end;
      c.next.add(p.k, s.i_b, k_at, k_at, k_end, i_h, p.K);
      c.next.add(kBeta == Beta::kNone ? p.v : residual_of(p), s.i_b, k_at, k_at, k_end, i_hv, p.V);
      if (kGate == Gate::kVector) c.next.add(p.g, s.i_b, k_at, k_at, k_end, i_h, p.K);
      update_state<kGate>(w, c, c.at.n, w.u, w.kout, S, S + w.state, nullptr, nullptr);
    }
    w.starts[count] = end;
    for (int64_t i = count - 1; i >= 0; --i, S -= w.state) {
      c.at = chunk_of(p, s, w.starts[i], w.starts[i + 1] - w.starts[i]);
      backward_chunk<kGate, kBeta>(g, i_h, i_hv, w, c, s, S);
    }
  }
  dense_from_k(w.dS, p.K, p.V, w.Vp, g.dh0 + dense);
}

inline void linear_attention_backward(const LinearAttentionGrad& g, int64_t i_n, int64_t i_hv,
                                      void* workspace) {
  const LinearAttention& p = g.in;
  if (p.gate == Gate::kVector)
    return backward_head<Gate::kVector, Beta::kNone>(g, i_n, i_hv, workspace);
  if (p.beta_kind == Beta::kNone)
    return backward_head<Gate::kScalar, Beta::kNone>(g, i_n, i_hv, workspace);
  if (p.beta_kind == Beta::kScalar)
    return backward_head<Gate::kScalar, Beta::kScalar>(g, i_n, i_hv, workspace);
  backward_head<Gate::kScalar, Beta::kVector>(g, i_n, i_hv, workspace);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
