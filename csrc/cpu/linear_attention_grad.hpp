// SPDX-License-Identifier: Apache-2.0
// linear_attention_grad.hpp - the backward pass of one chunk, given the state S before it and the
// gradient dS of the state after it. The equations stand in linear_attention_bwd.hpp.
#pragma once

#include "linear_attention_fwd.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

struct BackwardWorkspace {
  int64_t Kp, Vp, chunks, state;  // chunks of a segment, at most; floats of a state
  int64_t floats;
  float *q, *k, *a, *P, *R;      // [16][Kp]: rows, and the decays of a vector gate (P with scale)
  float *qT, *kT, *koutT;        // [Kp][16]
  float *kout, *total, *across;  // R k; [Kp]: P_C of a vector gate, sum_V P_C S0 dS
  float *dq, *dk, *dg, *dg_out;  // [16][Kp]
  float* into;                   // [32][Kp]: scale P q, then -P k
  float* words;                  // for the scores
  int64_t* starts;               // [chunks + 1]: where the chunks of a segment begin
  float *u, *e, *beta, *dbeta;   // [16][Vp]
  float *uT, *duT;               // [Vp][16]
  float *dy, *dyT;               // do, then y: rows [32][Vp], columns [Vp][32]
  float *dS, *S;                 // panels by K: one state, `chunks` states

  BackwardWorkspace(const LinearAttention& p, float* base) {
    Kp = padded_width(p.K);
    Vp = padded_width(p.V);
    const int64_t tokens = p.T * p.num_householder;
    const int64_t segment = p.checkpoint_interval < tokens ? p.checkpoint_interval : tokens;
    int64_t length = chunk_length(p, 0);
    if (p.beta_kind != Beta::kNone && length > kShortChunk) length = kShortChunk;
    chunks = segment > length ? (segment + length - 1) / length : 1;
    state = Kp * Vp;
    float* at = base;
    float** const by_k[] = {&q,     &k,  &a,  &P,  &R,      &qT,    &kT,    &kout,
                            &koutT, &dq, &dk, &dg, &dg_out, &total, &across};
    float** const by_v[] = {&u, &e, &beta, &dbeta, &uT, &duT};
    for (float** field : by_k) at = place(field, at, C * Kp);
    for (float** field : by_v) at = place(field, at, C * Vp);
    at = place(&dy, at, 2 * C * Vp);
    at = place(&dyT, at, 2 * C * Vp);
    at = place(&into, at, 2 * C * Kp);
    at = place(&words, at, 3 * C * Kp / 2);
    float* offsets;
    at = place(&offsets, at, 2 * round_up(chunks + 1, 8));
    starts = reinterpret_cast<int64_t*>(offsets);
    at = place(&dS, at, state);
    at = place(&S, at, chunks * state);
    floats = at - base;
  }
};

inline int64_t backward_workspace(const LinearAttention& p) {
  return BackwardWorkspace(p, nullptr).floats * static_cast<int64_t>(sizeof(float));
}

struct BackwardChunk {
  Chunk at;
  ScalarDecay d;
  alignas(64) float A[C][C], G[C][C], Ar[C][C];  // scores [j][r], [j][i]; A again as [r][j]
  alignas(64) float dAT[C][C], dA[C][C];         // gradient of q_r . k_j: [j][r], [r][j]
  alignas(64) float sym[C][C];                   // gradient of k_i . k_j from both sides
  alignas(64) float crossing[C][C];              // [j][i]: A dA + G dG by key positions
  alignas(64) float beta[C], rstd_q[C] = {}, rstd_k[C] = {};
  Prefetch next;
  // Lane sums: dbeta, and the products of state and rows that the gates need.
  struct LaneSums {
    alignas(64) float w_dot_e[C][W], q_in[C][W], k_in[C][W], k_out[C][W], state[W];
  } sums;
};

// u (and e) of a chunk: v itself, or from the residual that the forward pass left.
template <Beta kBeta>
inline void load_values(const LinearAttention& p, const Chunk& at, int64_t i_hv,
                        BackwardWorkspace& w, float* beta) {
  if constexpr (kBeta == Beta::kNone) {
    load_rows(p.v, at.i_b, at.k_at, i_hv, at.n, p.V, w.Vp, w.u);
  } else {
    load_rows(residual_of(p), at.i_b, at.k_at, i_hv, at.n, p.V, w.Vp, w.e);
    load_beta<kBeta>(p, at, i_hv, w.Vp, beta, w.beta);
    for (int i = 0; i < C; ++i)
      for (int64_t x = 0; x < w.Vp; x += W) {
        const vf b = kBeta == Beta::kVector ? load(w.beta + i * w.Vp + x) : splat(beta[i]);
        store(w.u + i * w.Vp + x, load(w.e + i * w.Vp + x) * b);
      }
  }
}

// k, the decays of the chunk, and kout = R k.
template <Gate kGate, Beta kBeta>
inline void load_keys(const LinearAttention& p, const Sequence& s, int64_t i_h, int64_t i_hv,
                      BackwardWorkspace& w, BackwardChunk& c) {
  load_rows(p.k, c.at.i_b, c.at.k_at, i_h, c.at.n, p.K, w.Kp, w.k);
  if constexpr (kBeta != Beta::kNone) shorten_if_parallel(p, s, w.Kp, w.k, c.at);
  if (p.l2norm) normalize_rows(w.k, c.at.n, w.Kp, c.rstd_k);
  if constexpr (kGate == Gate::kVector) {
    vector_decay(p, c.at, i_h, w.Kp, w.a);
    for (int64_t x = 0; x < w.Kp; x += W) {
      vf running = splat(p.scale);
      for (int i = 0; i < C; ++i) store(w.P + i * w.Kp + x, running *= load(w.a + i * w.Kp + x));
      running = splat(1.0f);
      for (int i = C - 1; i >= 0; --i) {
        store(w.R + i * w.Kp + x, running);
        store(w.kout + i * w.Kp + x, load(w.k + i * w.Kp + x) * running);
        running *= load(w.a + i * w.Kp + x);
      }
      store(w.total + x, running);
    }
  } else {
    scalar_decay(p, c.at, i_hv, c.d);
    for (int i = 0; i < C; ++i)
      for (int64_t x = 0; x < w.Kp; x += W)
        store(w.kout + i * w.Kp + x, load(w.k + i * w.Kp + x) * c.d.R[i]);
  }
}

// q, do, the scores, and what dS will take up: rows scale P q and, for the delta rule, -P k.
template <Gate kGate, Beta kBeta>
inline void load_queries(const LinearAttentionGrad& g, int64_t i_h, int64_t i_hv,
                         BackwardWorkspace& w, BackwardChunk& c) {
  const LinearAttention& p = g.in;
  const Chunk& at = c.at;
  load_rows(p.q, at.i_b, at.q_at, i_h, at.nq, p.K, w.Kp, w.q);
  if (p.l2norm) normalize_rows(w.q, at.nq, w.Kp, c.rstd_q);
  load_rows(g.d_o, at.i_b, at.q_at, i_hv, at.nq, p.V, w.Vp, w.dy);
  transpose_to_tokens(w.dy, w.Vp, w.Vp, w.dyT, 2 * C);
  if constexpr (kGate == Gate::kVector) {
    vector_scores(w.q, w.k, w.a, w.Kp, w.words, c.A);
    scale_scores(p.scale, c.A);
    transpose_to_tokens(w.kout, w.Kp, w.Kp, w.koutT, C);
  } else {
    transpose_to_tokens(w.q, w.Kp, w.Kp, w.qT, C);
    transpose_to_tokens(w.k, w.Kp, w.Kp, w.kT, C);
    scores<kBeta>(p, at, c.d, {w.qT, w.kT, c.rstd_q, c.rstd_k, i_h, w.Kp, w.words}, c.A, c.G);
  }
  transpose_to_tokens(&c.A[0][0], C, C, &c.Ar[0][0], C);
  for (int r = 0; r < at.nq; ++r)
    for (int64_t x = 0; x < w.Kp; x += W) {
      const vf decay =
          kGate == Gate::kVector ? load(w.P + r * w.Kp + x) : splat(p.scale * c.d.Pq[r]);
      store(w.into + r * w.Kp + x, load(w.q + r * w.Kp + x) * decay);
    }
  if constexpr (kBeta != Beta::kNone)
    for (int i = 0; i < at.n; ++i)
      for (int64_t x = 0; x < w.Kp; x += W)
        store(w.into + (at.nq + i) * w.Kp + x, load(w.k + i * w.Kp + x) * -c.d.P[i]);
}

// out = P_C in + sum_i rows_i^T with_i over `depth` rows, for one state in panels by K.
// With `other`, the lane sums of <other, in> go to `products` (per column of K with a vector gate).
template <Gate kGate>
inline void update_state(const BackwardWorkspace& w, BackwardChunk& c, int64_t depth,
                         const float* rows, const float* with, const float* in, float* out,
                         const float* other, float* products) {
  c.next.spread(w.Kp / PW * (w.Vp / MR));
  for (int64_t x = 0; x < w.Kp; x += PW) {
    vf product[NR], total[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      product[j] = vf{};
      total[j] = kGate == Gate::kVector ? load(w.total + x + j * W) : splat(c.d.total);
    }
    for (int64_t v = 0; v < w.Vp; v += MR) {
      const int64_t offset = x * w.Vp + v * PW;
      c.next.step();
      vf acc[MR][NR];
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < NR; ++j) {
          acc[m][j] = load(in + offset + m * PW + j * W);
          if (other != nullptr)
            product[j] = fma(acc[m][j], load(other + offset + m * PW + j * W), product[j]);
          acc[m][j] *= total[j];
        }
      // Rows that decay over the chunk come last to first (dS), those that decay back, first to
      // last.
      if (other != nullptr)
        tile_reversed(acc, depth, rows + v, w.Vp, with + x, w.Kp);
      else
        tile(acc, depth, rows + v, w.Vp, with + x, w.Kp);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < NR; ++j) store(out + offset + m * PW + j * W, acc[m][j]);
    }
    if (other == nullptr) continue;
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) {
      float* to = kGate == Gate::kVector ? products + x + j * W : products;
      const vf before = kGate == Gate::kVector ? vf{} : load(products);
      store(to, fma(product[j], total[j], before));
    }
  }
}

// du_j = R_j dS^T k_j + sum_r A_rj do_r, computed with one lane per token, into rows `du`.
template <Gate kGate>
inline void gradient_of_values(const LinearAttention& p, const BackwardWorkspace& w,
                               const BackwardChunk& c, float* du) {
  // With a scalar gate the columns of k itself serve, and R scales the lanes of the result.
  const float* keys = kGate == Gate::kVector ? w.koutT : w.kT;
  for (int64_t v = 0; v < w.Vp; v += MT) {
    vf acc[MT][NC], part[MT][NC];
    zero(acc);
    for (int64_t from = 0; from < p.K; from += kLongestSum) {
      zero(part);
      const int64_t to = p.K - from < kLongestSum ? p.K : from + kLongestSum;
      for (int64_t x = from; x < to; x += PW)
        tile_part<PW>(part, to - x < PW ? to - x : PW, w.dS + x * w.Vp + v * PW, 1, keys + x * C,
                      C);
#pragma GCC unroll 16
      for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
        for (int i = 0; i < NC; ++i) acc[m][i] += part[m][i];
    }
    if constexpr (kGate != Gate::kVector) {
#pragma GCC unroll 16
      for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
        for (int i = 0; i < NC; ++i) acc[m][i] *= load(c.d.R + i * W);
    }
    tile_reversed(acc, c.at.nq, w.dy + v, w.Vp, &c.Ar[0][0], C);
#pragma GCC unroll 16
    for (int m = 0; m < MT; ++m)
#pragma GCC unroll 4
      for (int i = 0; i < NC; ++i) store(w.duT + (v + m) * C + i * W, acc[m][i]);
  }
  transpose_from_tokens(w.duT, C, w.Vp, du, w.Vp);
}

// Solves w_i = du_i - sum_{l>i} G_li beta_l w_l for W columns: y = beta w replaces du, w e is the
// gradient of beta (per column, or as lane sums).
template <Beta kBeta>
SEQKERN_INLINE void substitute_back(float* du, int64_t ld, const float (*G)[C], const float* beta,
                                    const float* e, float (*w_dot_e)[W], float* dbeta) {
  vf x[C];
#pragma GCC unroll 16
  for (int i = 0; i < C; ++i) x[i] = load(du + i * ld);
#pragma GCC unroll 16
  for (int l = C - 1; l >= 0; --l) {
    const vf we = x[l] * load(e + l * ld);
    const vf y = kBeta == Beta::kVector ? x[l] * load(beta + l * ld) : x[l] * splat(beta[l]);
    if constexpr (kBeta == Beta::kVector)
      store(dbeta + l * ld, we);
    else
      store(w_dot_e[l], load(w_dot_e[l]) + we);
    store(du + l * ld, y);
#pragma GCC unroll 16
    for (int i = 0; i < l; ++i) x[i] = fnma(splat(G[i][l]), y, x[i]);
  }
}

// dA, dAT, sym and, for the gates, crossing. Columns of u, do and y are ready.
template <Gate kGate, Beta kBeta>
inline void gradient_of_scores(const LinearAttention& p, const BackwardWorkspace& w,
                               BackwardChunk& c) {
  if constexpr (kGate == Gate::kVector) {
    masked_scores(w.uT, w.dyT, 2 * C, p.V, p.scale, kTriangle.x, c.dAT);
  } else {
    alignas(64) float raw[C][C];
    masked_scores(w.uT, w.dyT, 2 * C, p.V, p.scale, c.d.Dq, c.dAT, raw);
    memset(c.crossing, 0, sizeof c.crossing);
    for (int j = 0; j < C; ++j)
      for (int r = 0; r < c.at.nq; ++r) c.crossing[j][c.at.pos[r]] = c.A[j][r] * raw[j][r];
    if constexpr (kBeta != Beta::kNone) {
      alignas(64) float dG[C][C], dGT[C][C];
      masked_scores(w.uT, w.dyT + C, 2 * C, p.V, -1.0f, c.d.D, dG, raw);
      for (int j = 0; j < C; ++j) {
        dG[j][j] = 0.0f;
        for (int i = 0; i < C; i += W)
          store(c.crossing[j] + i,
                fnma(load(c.G[j] + i), load(raw[j] + i), load(c.crossing[j] + i)));
      }
      transpose_to_tokens(&dG[0][0], C, C, &dGT[0][0], C);
      for (int j = 0; j < C; ++j)
        for (int i = 0; i < C; i += W) store(c.sym[j] + i, load(dG[j] + i) + load(dGT[j] + i));
    }
  }
  transpose_to_tokens(&c.dAT[0][0], C, C, &c.dA[0][0], C);
}

// dq of the chunk on one panel of K, and its share of the gate's gradient.
template <Gate kGate>
inline void gradient_of_queries(const LinearAttention& p, const BackwardWorkspace& w,
                                BackwardChunk& c, const float* S, int64_t x) {
  for (int r = 0; r < c.at.nq; r += MR) {
    vf acc[MR][NR];
    tile_long(acc, p.V, w.dyT + r, 2 * C, S, PW);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) {
        const int64_t i = (r + m) * w.Kp + x + j * W;
        const vf q = load(w.q + i);
        if constexpr (kGate == Gate::kVector) {
          acc[m][j] *= load(w.P + i);
          store(w.dg + i, acc[m][j] * q);
        } else {
          acc[m][j] *= splat(p.scale * c.d.Pq[r + m]);
          store(c.sums.q_in[r + m], fma(acc[m][j], q, load(c.sums.q_in[r + m])));
        }
      }
    if constexpr (kGate != Gate::kVector)
      tile(acc, keys_seen(c.at, r, MR), &c.dAT[0][r], C, w.k + x, w.Kp);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) store(w.dq + (r + m) * w.Kp + x + j * W, acc[m][j]);
  }
}

// dk of the chunk on one panel of K, and its share of the gate's gradient.
template <Gate kGate, Beta kBeta>
inline void gradient_of_keys(const LinearAttention& p, const BackwardWorkspace& w, BackwardChunk& c,
                             const float* S, const float* dS, int64_t x) {
  for (int i = 0; i < C; i += MR) {
    vf acc[MR][NR];
    if constexpr (kBeta != Beta::kNone) {
      tile_long(acc, p.V, w.dyT + C + i, 2 * C, S, PW);
#pragma GCC unroll 16
      for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < NR; ++j) {
          const int64_t at = (i + m) * w.Kp + x + j * W;
          acc[m][j] *= splat(-c.d.P[i + m]);
          store(c.sums.k_in[i + m], fma(acc[m][j], load(w.k + at), load(c.sums.k_in[i + m])));
          store(w.dk + at, acc[m][j]);
        }
    }
    tile_long(acc, p.V, w.uT + i, C, dS, PW);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) {
        const int64_t at = (i + m) * w.Kp + x + j * W;
        const vf k = load(w.k + at);
        if constexpr (kGate == Gate::kVector) {
          acc[m][j] *= load(w.R + at);
          store(w.dg_out + at, acc[m][j] * k);
        } else {
          acc[m][j] *= splat(c.d.R[i + m]);
          store(c.sums.k_out[i + m], fma(acc[m][j], k, load(c.sums.k_out[i + m])));
        }
        if constexpr (kBeta != Beta::kNone) acc[m][j] += load(w.dk + at);
      }
    if constexpr (kGate != Gate::kVector) {
      const int r = first_seeing(c.at, i);
      tile_reversed(acc, c.at.nq - r, &c.dA[r][i], C, w.q + r * w.Kp + x, w.Kp);
    }
    if constexpr (kBeta != Beta::kNone) tile(acc, c.at.n, &c.sym[0][i], C, w.k + x, w.Kp);
#pragma GCC unroll 16
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) store(w.dk + (i + m) * w.Kp + x + j * W, acc[m][j]);
  }
}

// Queries [r, r + kQueries) of one vector of columns, through the scores of a vector gate. For
// every query, `left` runs from the left (what the keys up to j send to it) and `right` from the
// right (the query decayed back to t). Several queries at a time, for the latency of the two
// recurrences.
constexpr int kQueries = 4;

SEQKERN_INLINE void gradient_of_vector_queries(const float* q, const float* k, const float* a,
                                               int64_t ld, const float (*dA)[C], int r, float* dq,
                                               vf (&dk)[C], vf (&dg)[C]) {
  vf left[kQueries], right[kQueries], carried[C][kQueries];
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) {
    left[i] = load(k) * dA[r + i][0];
    right[i] = load(q + (r + i) * ld);
  }
  for (int j = 1; j <= r; ++j) {
    const vf aj = load(a + j * ld), kj = load(k + j * ld);
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      carried[j][i] = left[i] * aj;
      left[i] = fma(kj, splat(dA[r + i][j]), carried[j][i]);
    }
  }
#pragma GCC unroll 4
  for (int d = 1; d < kQueries; ++d) {
    const vf aj = load(a + (r + d) * ld), kj = load(k + (r + d) * ld);
#pragma GCC unroll 4
    for (int i = d; i < kQueries; ++i) {
      carried[r + d][i] = left[i] * aj;
      left[i] = fma(kj, splat(dA[r + i][r + d]), carried[r + d][i]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) store(dq + (r + i) * ld, load(dq + (r + i) * ld) + left[i]);
#pragma GCC unroll 4
  for (int d = kQueries - 1; d > 0; --d) {
    const vf at = load(a + (r + d) * ld);
#pragma GCC unroll 4
    for (int i = d; i < kQueries; ++i) {
      dk[r + d] = fma(right[i], splat(dA[r + i][r + d]), dk[r + d]);
      dg[r + d] = fma(carried[r + d][i], right[i], dg[r + d]);
      right[i] *= at;
    }
  }
  for (int t = r; t > 0; --t) {
    const vf at = load(a + t * ld);
    vf dkt = dk[t], dgt = dg[t];
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
      dkt = fma(right[i], splat(dA[r + i][t]), dkt);
      dgt = fma(carried[t][i], right[i], dgt);
      right[i] *= at;
    }
    dk[t] = dkt;
    dg[t] = dgt;
  }
#pragma GCC unroll 4
  for (int i = 0; i < kQueries; ++i) dk[0] = fma(right[i], splat(dA[r + i][0]), dk[0]);
}

// Adds what the scores of a vector gate send to q and k, and completes the gate's own gradient.
inline void gradient_through_vector_scores(const BackwardWorkspace& w, const BackwardChunk& c) {
  const int64_t Kp = w.Kp;
  for (int64_t x = 0; x < Kp; x += W) {
    // Across the chunk's borders: suffix sums of what came in, prefix sums of what goes out.
    vf dg[C], dk[C];
    vf running = load(w.across + x);
    for (int t = 0; t < C; ++t) {
      dg[t] = running;
      dk[t] = load(w.dk + t * Kp + x);
      running += load(w.dg_out + t * Kp + x);
    }
    running = vf{};
    for (int t = c.at.n - 1; t >= 0; --t) dg[t] += running += load(w.dg + t * Kp + x);
    for (int r = 0; r < c.at.n; r += kQueries)
      gradient_of_vector_queries(w.q + x, w.k + x, w.a + x, Kp, c.dA, r, w.dq + x, dk, dg);
    for (int t = 0; t < C; ++t) {
      store(w.dk + t * Kp + x, dk[t]);
      store(w.dg + t * Kp + x, dg[t]);
    }
  }
}

SEQKERN_INLINE float lane_sum(const float* lanes) { return sum(load(lanes)); }

// The scalar gate's gradient of a chunk, one value per key position.
inline void gradient_of_scalar_gate(const BackwardChunk& c, float* dg) {
  float outside[C];  // across the chunk's borders
  float running = lane_sum(c.sums.state);
  for (int t = 0; t < C; ++t) {
    outside[t] = running;
    running += lane_sum(c.sums.k_out[t]);
  }
  float in[C];
  for (int t = 0; t < C; ++t) in[t] = lane_sum(c.sums.k_in[t]);
  for (int r = 0; r < c.at.nq; ++r) in[c.at.pos[r]] += lane_sum(c.sums.q_in[r]);
  running = 0.0f;
  for (int t = C - 1; t >= 0; --t) {
    running += in[t];
    dg[t] = outside[t] + running;
  }
  // Within the chunk: sum over j < t <= i.
  vf columns[NC];
#pragma GCC unroll 4
  for (int i = 0; i < NC; ++i) columns[i] = vf{};
  for (int t = 1; t < C; ++t) {
    vf masked = vf{};
#pragma GCC unroll 4
    for (int i = 0; i < NC; ++i) {
      columns[i] += load(c.crossing[t - 1] + i * W);
      masked = fma(columns[i], load(kTriangle.x[t] + i * W), masked);
    }
    dg[t] += sum(masked);
  }
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
