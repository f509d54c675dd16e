// SPDX-License-Identifier: Apache-2.0
// linear_attention_fwd.hpp - forward of linear attention and of the delta rule, one head of one
// sequence, 16 (virtual) tokens at a time.
//
// Maths      S0: state before the chunk, S1 after it; decays and scores: linear_attention_chunk.hpp
//            e_i = v_i - P_i S0^T k_i - sum_{j<i} G_ij beta_j e_j      (delta rule; else e = v)
//            u_i = beta_i e_i
//            o_r = scale P_{pos r} S0^T q_r + sum_j A_rj u_j
//            S1  = P_C S0 + sum_j (R_j k_j) u_j^T
//            Under the delta rule a chunk of nearly parallel keys has 4 tokens, see
//            shorten_if_parallel. The triangular system for e is solved by substitution, row after
//            row: the inverse that a chunked form usually builds grows with nearly parallel keys,
//            substitution does not.
// Layout     S in panels of PW columns of V, [panel][K][PW]: all work on a panel is independent of
//            the others once the scores are known, and a panel stays in the first-level cache.
// Precision  f32 throughout; 16-bit inputs are widened on load, o is rounded on store. Sums longer
// than
//            kLongestSum are cut, subnormal numbers are flushed to zero.
// Cost       per token 4 K V flops (additive) or 6 K V (delta) and, for a chunk C = 16,
//            C (K + V) or 2 C (K + V) inside the chunk; q, k, v, g read once.
// Limits     any T >= 0, K >= 1, V >= 1; the caller's tensors need no alignment.
// Threads    none: the caller splits over sequences and heads.
#pragma once

#include "linear_attention_chunk.hpp"
#include "linear_attention_step.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

struct ForwardWorkspace {
  int64_t Kp, Vp, floats;
  float* S;        // panels by V
  float *q, *k;    // [16][Kp]
  float *qT, *kT;  // [Kp][16]
  float *v, *o;    // [16][Vp]; e replaces v
  float* a;        // [16][max(Kp, Vp)]: a vector gate, or a vector beta
  float* total;    // [Kp]: P_C of a vector gate
  float* u;        // [16][PW]: one panel
  float* words;    // for the scores

  ForwardWorkspace(const LinearAttention& p, float* base) {
    Kp = padded_width(p.K);
    Vp = padded_width(p.V);
    float** const by_k[] = {&q, &k, &qT, &kT};
    float** const by_v[] = {&v, &o};
    float* at = place(&S, base, Kp * Vp);
    for (float** field : by_k) at = place(field, at, C * Kp);
    for (float** field : by_v) at = place(field, at, C * Vp);
    at = place(&a, at, C * (Kp > Vp ? Kp : Vp));
    at = place(&total, at, Kp);
    at = place(&u, at, C * PW);
    at = place(&words, at, 3 * C * Kp / 2);
    floats = at - base;
  }
};

inline int64_t forward_workspace(const LinearAttention& p) {
  return ForwardWorkspace(p, nullptr).floats * static_cast<int64_t>(sizeof(float));
}

// Solves e_i = r_i - sum_{j<i} G_ij beta_j e_j in place for W columns; writes e, leaves u = beta e.
template <bool kVectorBeta>
SEQKERN_INLINE void substitute(float* u, const float (*G)[C], const float* beta, int64_t ld_beta,
                               float* e, int64_t ld_e) {
  vf x[C];
#pragma GCC unroll 16
  for (int i = 0; i < C; ++i) x[i] = load(u + i * PW);
#pragma GCC unroll 16
  for (int j = 0; j < C; ++j) {
    store(e + j * ld_e, x[j]);
    const vf uj = kVectorBeta ? x[j] * load(beta + j * ld_beta) : x[j] * splat(beta[j]);
    store(u + j * PW, uj);
#pragma GCC unroll 16
    for (int i = j + 1; i < C; ++i) x[i] = fnma(splat(G[j][i]), uj, x[i]);
  }
}

// What the panels of one chunk need besides the rows in the workspace.
struct ForwardChunk {
  Chunk at;
  ScalarDecay d;                       // unused with a vector gate
  alignas(64) float A[C][C], G[C][C];  // [j][r], [j][i]
  alignas(64) float beta[C], rstd_q[C] = {}, rstd_k[C] = {};
  const float* beta_rows;  // [16][Vp] for a vector beta
  Prefetch next;
};

template <Gate kGate, Beta kBeta>
inline void forward_prepare(const LinearAttention& p, const Sequence& s, int64_t i_h, int64_t i_hv,
                            ForwardWorkspace& w, ForwardChunk& c) {
  load_rows(p.k, c.at.i_b, c.at.k_at, i_h, c.at.n, p.K, w.Kp, w.k);
  if constexpr (kBeta != Beta::kNone) shorten_if_parallel(p, s, w.Kp, w.k, c.at);
  const Chunk& at = c.at;
  load_rows(p.q, at.i_b, at.q_at, i_h, at.nq, p.K, w.Kp, w.q);
  if constexpr (kBeta != Beta::kNone) load_rows(p.v, at.i_b, at.k_at, i_hv, at.n, p.V, w.Vp, w.v);
  if (p.l2norm) {
    normalize_rows(w.k, at.n, w.Kp, c.rstd_k);
    normalize_rows(w.q, at.nq, w.Kp, c.rstd_q);
  }
  if constexpr (kGate == Gate::kVector) {
    vector_decay(p, at, i_h, w.Kp, w.a);
    vector_scores(w.q, w.k, w.a, w.Kp, w.words, c.A);
    scale_scores(p.scale, c.A);
    // q <- scale P q and k <- R k, the forms in which they meet the state.
    for (int64_t x = 0; x < w.Kp; x += W) {
      vf running = splat(p.scale);
      for (int i = 0; i < C; ++i) {
        running *= load(w.a + i * w.Kp + x);
        store(w.q + i * w.Kp + x, load(w.q + i * w.Kp + x) * running);
      }
      running = splat(1.0f);
      for (int i = C - 1; i >= 0; --i) {
        store(w.k + i * w.Kp + x, load(w.k + i * w.Kp + x) * running);
        running *= load(w.a + i * w.Kp + x);
      }
      store(w.total + x, running);
    }
    transpose_to_tokens(w.q, w.Kp, w.Kp, w.qT, C);
    return;
  }
  transpose_to_tokens(w.q, w.Kp, w.Kp, w.qT, C);
  transpose_to_tokens(w.k, w.Kp, w.Kp, w.kT, C);
  scalar_decay(p, at, i_hv, c.d);
  scores<kBeta>(p, at, c.d, {w.qT, w.kT, c.rstd_q, c.rstd_k, i_h, w.Kp, w.words}, c.A, c.G);
}

// The chunk on the panel of the state that begins at column x; i_hv: whose rows of v they are.
template <Gate kGate, Beta kBeta>
inline void forward_panel(const LinearAttention& p, const ForwardWorkspace& w, ForwardChunk& c,
                          int64_t i_hv, int64_t x) {
  const int64_t Vp = w.Vp;
  float *const S = w.S + x * w.Kp, *const o = w.o + x, *const u = w.u;
  if constexpr (kBeta == Beta::kNone) {
    load_columns(p.v, c.at.i_b, c.at.k_at, i_hv, c.at.n, x, p.V, PW, u);
  } else {
    float *const v = w.v + x, *const e = v;  // e takes the place of v, which is not needed any more
    for (int i = 0; i < C; i += MR) {
      vf acc[MR][NR];
      tile_long(acc, p.K, w.kT + i, C, S, PW);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < NR; ++j)
          store(u + (i + m) * PW + j * W,
                fnma(acc[m][j], splat(c.d.P[i + m]), load(v + (i + m) * Vp + j * W)));
    }
    const float* beta = kBeta == Beta::kVector ? c.beta_rows + x : c.beta;
    for (int j = 0; j < PW; j += W)
      substitute<kBeta == Beta::kVector>(u + j, c.G, kBeta == Beta::kVector ? beta + j : beta, Vp,
                                         e + j, Vp);
  }
  for (int r = 0; r < c.at.nq; r += MR) {
    vf acc[MR][NR];
    tile_long(acc, p.K, w.qT + r, C, S, PW);
    if constexpr (kGate != Gate::kVector) {
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < NR; ++j) acc[m][j] *= splat(p.scale * c.d.Pq[r + m]);
    }
    tile(acc, keys_seen(c.at, r, MR), &c.A[0][r], C, u, PW);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) store(o + (r + m) * Vp + j * W, acc[m][j]);
  }
  if constexpr (kGate == Gate::kScalar)
    for (int i = 0; i < c.at.n; ++i)
      for (int j = 0; j < PW; j += W) store(u + i * PW + j, load(u + i * PW + j) * c.d.R[i]);
  c.next.spread(w.Kp / MR * (Vp / PW));
  for (int64_t k = 0; k < w.Kp; k += MR) {
    c.next.step();
    vf acc[MR][NR];
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) {
        acc[m][j] = load(S + (k + m) * PW + j * W);
        if constexpr (kGate == Gate::kScalar) acc[m][j] *= c.d.total;
        if constexpr (kGate == Gate::kVector) acc[m][j] *= w.total[k + m];
      }
    tile(acc, c.at.n, w.k + k, w.Kp, u, PW);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) store(S + (k + m) * PW + j * W, acc[m][j]);
  }
}

template <Beta kBeta>
inline void load_beta(const LinearAttention& p, const Chunk& at, int64_t i_hv, int64_t Vp,
                      float* beta, float* rows) {
  if constexpr (kBeta == Beta::kVector) {
    load_rows(p.beta, at.i_b, at.k_at, i_hv, at.n, p.V, Vp, rows);
  } else if constexpr (kBeta == Beta::kScalar) {
    const int64_t base = at.i_b * p.beta.batch_stride + i_hv * p.beta.head_stride;
    for (int i = 0; i < C; ++i)
      beta[i] = i < at.n
                    ? load_one(p.beta.dtype, p.beta.data, base + (at.k_at + i) * p.beta.time_stride)
                    : 0.0f;
  }
}

// What the chunk after `at` reads and writes.
inline void forward_prefetch(const LinearAttention& p, const Sequence& s, const Chunk& at,
                             int64_t i_h, int64_t i_hv, Prefetch& next) {
  const int64_t nh = p.num_householder, end = s.start + s.length;
  const int64_t k_at = at.k_at + at.n, q_at = at.q_at + at.nq;
  next.clear();
  next.add(p.k, at.i_b, k_at, k_at, end * nh, i_h, p.K);
  next.add(p.q, at.i_b, q_at, q_at, end, i_h, p.K);
  next.add(p.v, at.i_b, k_at, k_at, end * nh, i_hv, p.V);
  next.add(p.o, at.i_b, q_at, q_at, end, i_hv, p.V);
  if (p.gate == Gate::kVector) next.add(p.g, at.i_b, q_at, q_at, end, i_h, p.K);
  if (p.residual != nullptr) next.add(residual_of(p), at.i_b, k_at, k_at, end * nh, i_hv, p.V);
}

template <Gate kGate, Beta kBeta>
inline void forward_head(const LinearAttention& p, int64_t i_n, int64_t i_hv, void* workspace) {
  ForwardWorkspace w(p, static_cast<float*>(workspace));
  const Sequence s = sequence_of(p, i_n);
  const int64_t i_h = i_hv / (p.HV / p.H), nh = p.num_householder, total = s.length * nh;
  const int64_t state = (i_n * p.HV + i_hv) * p.K * p.V;
  panels_by_v(p.h0 ? p.h0 + state : nullptr, p.K, p.V, w.Kp, w.S);
  ForwardChunk c;
  // A vector beta borrows the rows of the vector gate, which the delta rule does not have.
  c.beta_rows = w.a;
  for (int64_t at = 0; at < total; at += c.at.n) {
    c.at = chunk_of(p, s, at, chunk_length(p, at));
    if (p.checkpoint_interval > 0 && at > 0 && at % p.checkpoint_interval == 0) {
      const int64_t slot = s.start * nh / p.checkpoint_interval + at / p.checkpoint_interval - 1;
      dense_from_v(w.S, p.K, p.V, w.Kp,
                   p.checkpoints + ((s.i_b * p.num_checkpoints + slot) * p.HV + i_hv) * p.K * p.V);
    }
    forward_prepare<kGate, kBeta>(p, s, i_h, i_hv, w, c);
    load_beta<kBeta>(p, c.at, i_hv, w.Vp, c.beta, w.a);
    forward_prefetch(p, s, c.at, i_h, i_hv, c.next);
    for (int64_t x = 0; x < w.Vp; x += PW) forward_panel<kGate, kBeta>(p, w, c, i_hv, x);
    store_rows(p.o, c.at.i_b, c.at.q_at, i_hv, c.at.nq, p.V, w.Vp, w.o);
    if (kBeta != Beta::kNone && p.residual != nullptr)
      store_rows(residual_of(p), c.at.i_b, c.at.k_at, i_hv, c.at.n, p.V, w.Vp, w.v);
  }
  if (p.ht != nullptr) dense_from_v(w.S, p.K, p.V, w.Kp, p.ht + state);
}

inline void linear_attention_forward(const LinearAttention& p, int64_t i_n, int64_t i_hv,
                                     void* workspace) {
  const FlushSubnormals flush;
  const Sequence s = sequence_of(p, i_n);
  if (is_step(p, s.length)) return linear_attention_step(p, s, i_n, i_hv, workspace);
  if (p.gate == Gate::kVector)
    return forward_head<Gate::kVector, Beta::kNone>(p, i_n, i_hv, workspace);
  if (p.beta_kind == Beta::kNone)
    return forward_head<Gate::kScalar, Beta::kNone>(p, i_n, i_hv, workspace);
  if (p.beta_kind == Beta::kScalar)
    return forward_head<Gate::kScalar, Beta::kScalar>(p, i_n, i_hv, workspace);
  forward_head<Gate::kScalar, Beta::kVector>(p, i_n, i_hv, workspace);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
