// SPDX-License-Identifier: Apache-2.0
// linear_attention_step.hpp - one token of linear attention or the delta rule on top of a state:
// the step of decoding.
//
// Maths      u = beta (v - (a S)^T k) or v;  S' = a S + k u^T;  o = scale S'^T q
//            once per virtual token; the gate acts at the first, the read-out follows the last.
// Layout     the dense [K, V] state is read and written where it lies, kColumns columns at a time.
// Precision  f32; sums over K are cut as in tile.hpp.
// Cost       6 K V flops (4 K V additive); the state is read twice (once), written once. The bytes
// of
//            the state are the floor.
// Limits     one real token, V a multiple of W; the chunked kernel takes the rest.
// Threads    none.
#pragma once

#include "linear_attention_chunk.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr int kStepVectors = W == 16 ? 8 : 4;
constexpr int kColumns = kStepVectors * W;

struct StepWorkspace {
  float *q, *k, *a, *v, *beta, *o;
  StepWorkspace(const LinearAttention& p, float* base) {
    const int64_t Kp = round_up(p.K, W);
    q = base;
    k = q + Kp;
    a = k + Kp;
    v = a + Kp;
    beta = v + p.V;
    o = beta + p.V;
  }
};

SEQKERN_INLINE bool is_step(const LinearAttention& p, int64_t length) {
  return length == 1 && p.V % W == 0 && p.checkpoint_interval == 0 && p.ht != nullptr;
}

// u <- beta (v - S^T (a k)) for N vectors of columns.
template <int N>
SEQKERN_INLINE void step_correct(const StepWorkspace& w, int64_t K, int64_t V, const float* S,
                                 vf (&u)[N], const float* beta) {
  vf total[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) total[j] = vf{};
  for (int64_t from = 0; from < K; from += kLongestSum) {
    vf part[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) part[j] = vf{};
    const int64_t to = K - from < kLongestSum ? K : from + kLongestSum;
    for (int64_t k = from; k < to; ++k) {
      const vf x = splat(w.k[k] * w.a[k]);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) part[j] = fma(x, load(S + k * V + j * W), part[j]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) total[j] += part[j];
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) u[j] = (u[j] - total[j]) * load(beta + j * W);
}

// out = a S + k u^T and o = out^T q for N vectors of columns; S == nullptr is a zero state.
template <int N, bool kZero, bool kRead>
SEQKERN_INLINE void step_update(const StepWorkspace& w, int64_t K, int64_t V, const float* S,
                                float* out, const vf (&u)[N], float* o) {
  vf total[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) total[j] = vf{};
  for (int64_t from = 0; from < K; from += kLongestSum) {
    vf part[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) part[j] = vf{};
    const int64_t to = K - from < kLongestSum ? K : from + kLongestSum;
    for (int64_t k = from; k < to; ++k) {
      const vf x = splat(w.k[k]), a = splat(w.a[k]), q = splat(w.q[k]);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        const vf next = kZero ? x * u[j] : fma(x, u[j], load(S + k * V + j * W) * a);
        store(out + k * V + j * W, next);
        if constexpr (kRead) part[j] = fma(q, next, part[j]);
      }
    }
    if constexpr (kRead) {
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) total[j] += part[j];
    }
  }
  if constexpr (kRead) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) store(o + j * W, total[j]);
  }
}

template <int N>
inline void step_columns(const LinearAttention& p, const StepWorkspace& w, const float* S,
                         float* out, int64_t at, bool read) {
  vf u[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) u[j] = load(w.v + at + j * W);
  if (p.beta_kind != Beta::kNone) {
    if (S != nullptr) {
      step_correct<N>(w, p.K, p.V, S + at, u, w.beta + at);
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) u[j] *= load(w.beta + at + j * W);
    }
  }
  if (S == nullptr && read)
    step_update<N, true, true>(w, p.K, p.V, nullptr, out + at, u, w.o + at);
  else if (S == nullptr)
    step_update<N, true, false>(w, p.K, p.V, nullptr, out + at, u, nullptr);
  else if (read)
    step_update<N, false, true>(w, p.K, p.V, S + at, out + at, u, w.o + at);
  else
    step_update<N, false, false>(w, p.K, p.V, S + at, out + at, u, nullptr);
}

inline void linear_attention_step(const LinearAttention& p, const Sequence& s, int64_t i_n,
                                  int64_t i_hv, void* workspace) {
  const StepWorkspace w(p, static_cast<float*>(workspace));
  const int64_t i_h = i_hv / (p.HV / p.H), nh = p.num_householder, Kp = round_up(p.K, W);
  const int64_t state = (i_n * p.HV + i_hv) * p.K * p.V;
  const float* S = p.h0 != nullptr ? p.h0 + state : nullptr;
  float rstd[1];
  load_row(p.q.dtype, p.q.data,
           s.i_b * p.q.batch_stride + s.start * p.q.time_stride + i_h * p.q.head_stride, p.K, Kp,
           w.q);
  if (p.l2norm) normalize_rows(w.q, 1, Kp, rstd);
  for (int64_t x = 0; x < Kp; x += W) store(w.q + x, load(w.q + x) * p.scale);
  for (int64_t i = 0; i < nh; ++i) {
    const int64_t at = s.start * nh + i;
    const int64_t k_base = s.i_b * p.k.batch_stride + at * p.k.time_stride;
    load_row(p.k.dtype, p.k.data, k_base + i_h * p.k.head_stride, p.K, Kp, w.k);
    if (p.l2norm) normalize_rows(w.k, 1, Kp, rstd);
    load_row(p.v.dtype, p.v.data,
             s.i_b * p.v.batch_stride + at * p.v.time_stride + i_hv * p.v.head_stride, p.V, p.V,
             w.v);
    const int64_t g_base = s.i_b * p.g.batch_stride + s.start * p.g.time_stride;
    if (p.gate == Gate::kVector && i == 0) {
      load_row(p.g.dtype, p.g.data, g_base + i_h * p.g.head_stride, p.K, Kp, w.a);
      for (int64_t x = 0; x < Kp; x += W)
        store(w.a + x, p.signed_gate ? load(w.a + x) : exp(load(w.a + x)));
    } else {
      const bool acts = p.gate == Gate::kScalar && i == 0;
      const vf a = acts ? exp(splat(load_one(p.g.dtype, p.g.data, g_base + i_hv * p.g.head_stride)))
                        : splat(1.0f);
      for (int64_t x = 0; x < Kp; x += W) store(w.a + x, a);
    }
    const int64_t b_base =
        s.i_b * p.beta.batch_stride + at * p.beta.time_stride + i_hv * p.beta.head_stride;
    if (p.beta_kind == Beta::kVector) {
      load_row(p.beta.dtype, p.beta.data, b_base, p.V, p.V, w.beta);
    } else if (p.beta_kind == Beta::kScalar) {
      const vf b = splat(load_one(p.beta.dtype, p.beta.data, b_base));
      for (int64_t x = 0; x < p.V; x += W) store(w.beta + x, b);
    }
    const bool read = i + 1 == nh;
    int64_t x = 0;
    for (; x + kColumns <= p.V; x += kColumns)
      step_columns<kStepVectors>(p, w, S, p.ht + state, x, read);
    for (; x < p.V; x += W) step_columns<1>(p, w, S, p.ht + state, x, read);
    S = p.ht + state;
  }
  store_row(p.o.dtype, p.o.data,
            s.i_b * p.o.batch_stride + s.start * p.o.time_stride + i_hv * p.o.head_stride, p.V,
            w.o);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
