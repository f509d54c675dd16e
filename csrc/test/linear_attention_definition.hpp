// SPDX-License-Identifier: Apache-2.0
// linear_attention_definition.hpp - the equations of include/seqkern/linear_attention.h, one token
// after the other, and their gradients by going back through every token.
//
// Layout     every array is dense, [batch, time, head, width]; states are [N, HV, K, V].
// Precision  that of Real throughout.
// Cost       T n K V floats of memory for one head: every state is kept.
#pragma once

#include <cmath>
#include <vector>

#include "../include/seqkern/linear_attention.h"

namespace seqkern::test {

struct Shape {
  int64_t B = 1, T = 1, H = 1, HV = 1, K = 1, V = 1, n = 1;
  Gate gate = Gate::kNone;
  Beta beta = Beta::kNone;
  bool l2norm = false;
  float scale = 1.0f;
  std::vector<int64_t> cu_seqlens;  // empty: B sequences of T tokens

  int64_t sequences() const {
    return cu_seqlens.empty() ? B : static_cast<int64_t>(cu_seqlens.size()) - 1;
  }
};

template <class Real>
struct LinearAttentionValues {
  std::vector<Real> q, k, v, g, beta, h0, d_o, dht;  // absent ones are empty
};

template <class Real>
struct LinearAttentionResults {
  std::vector<Real> o, ht, dq, dk, dv, dg, dbeta, dh0;
  // The largest sum of absolute terms behind one value, where the sum can cancel.
  double dq_terms = 0.0, dk_terms = 0.0, dg_terms = 0.0, dbeta_terms = 0.0;
};

inline void keep_larger(double& largest, double x) {
  if (x > largest) largest = x;
}

// y = x / sqrt(sum x^2 + 1e-6); returns the factor.
template <class Real>
Real normalize(const Real* x, int64_t K, Real* y) {
  Real sum = 0;
  for (int64_t i = 0; i < K; ++i) sum += x[i] * x[i];
  const Real factor = 1 / std::sqrt(sum + Real(1e-6));
  for (int64_t i = 0; i < K; ++i) y[i] = x[i] * factor;
  return factor;
}

// Adds factor (d - y (y . d)) to dx.
template <class Real>
void normalize_back(const Real* d, const Real* y, Real factor, int64_t K, Real* dx, double& terms) {
  Real along = 0;
  for (int64_t i = 0; i < K; ++i) along += d[i] * y[i];
  for (int64_t i = 0; i < K; ++i) {
    dx[i] += factor * (d[i] - y[i] * along);
    keep_larger(terms, std::fabs(factor * d[i]));
  }
}

// One value head of one sequence.
template <class Real>
class LinearAttentionHead {
 public:
  LinearAttentionHead(const Shape& s, const LinearAttentionValues<Real>& x,
                      LinearAttentionResults<Real>& out, int64_t i_n, int64_t i_hv)
      : s_(s), x_(x), out_(out), i_hv_(i_hv), i_h_(i_hv / (s.HV / s.H)), KV_(s.K * s.V) {
    const bool packed = !s.cu_seqlens.empty();
    i_b_ = packed ? 0 : i_n;
    start_ = packed ? s.cu_seqlens[i_n] : 0;
    total_ = (packed ? s.cu_seqlens[i_n + 1] - start_ : s.T) * s.n;
    state_at_ = (i_n * s.HV + i_hv) * KV_;
    states_.assign((total_ + 1) * KV_, Real(0));
    decayed_.resize(KV_);
    e_.resize(total_ * s.V);
  }

  void forward() {
    const int64_t K = s_.K, V = s_.V;
    if (!x_.h0.empty())
      for (int64_t j = 0; j < KV_; ++j) states_[j] = x_.h0[state_at_ + j];
    for (int64_t i = 0; i < total_; ++i) {
      token(i);
      Real* const S = &states_[(i + 1) * KV_];
      for (int64_t v = 0; v < V; ++v) {
        Real read = 0;
        if (s_.beta != Beta::kNone)
          for (int64_t k = 0; k < K; ++k) read += decayed_[k * V + v] * k_[k];
        const Real e = v_[v] - read;
        e_[i * V + v] = e;
        for (int64_t k = 0; k < K; ++k) S[k * V + v] = decayed_[k * V + v] + k_[k] * beta_[v] * e;
      }
      if ((i + 1) % s_.n != 0) continue;
      Real* const o = &out_.o[row(real(i), s_.T, i_hv_, s_.HV, V)];
      for (int64_t v = 0; v < V; ++v) {
        Real sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += S[k * V + v] * q_[k];
        o[v] = s_.scale * sum;
      }
    }
    for (int64_t j = 0; j < KV_; ++j) out_.ht[state_at_ + j] = states_[total_ * KV_ + j];
  }

  void backward() {
    std::vector<Real> dS(KV_, Real(0));
    if (!x_.dht.empty())
      for (int64_t j = 0; j < KV_; ++j) dS[j] = x_.dht[state_at_ + j];
    for (int64_t i = total_ - 1; i >= 0; --i) {
      token(i);
      if ((i + 1) % s_.n == 0) read_back(i, dS);
      write_back(i, dS);
      if (s_.gate != Gate::kNone && i % s_.n == 0) gate_back(i, dS);
    }
    for (int64_t j = 0; j < KV_; ++j) out_.dh0[state_at_ + j] = dS[j];
  }

 private:
  int64_t row(int64_t t, int64_t T, int64_t h, int64_t H, int64_t width) const {
    return ((i_b_ * T + t) * H + h) * width;
  }
  int64_t real(int64_t i) const { return start_ + i / s_.n; }
  int64_t virtual_row(int64_t i, int64_t h, int64_t H, int64_t width) const {
    return row(start_ * s_.n + i, s_.T * s_.n, h, H, width);
  }

  // Reads token i: q_, k_ (normalised if asked for), v_, beta_, a_ and diag(a) S.
  void token(int64_t i) {
    const int64_t K = s_.K, V = s_.V;
    const Real* const q = &x_.q[row(real(i), s_.T, i_h_, s_.H, K)];
    const Real* const k = &x_.k[virtual_row(i, i_h_, s_.H, K)];
    const Real* const v = &x_.v[virtual_row(i, i_hv_, s_.HV, V)];
    q_.assign(q, q + K);
    k_.assign(k, k + K);
    v_.assign(v, v + V);
    if (s_.l2norm) {
      q_factor_ = normalize(q, K, q_.data());
      k_factor_ = normalize(k, K, k_.data());
    }
    beta_.assign(V, Real(1));
    for (int64_t j = 0; j < V; ++j) {
      if (s_.beta == Beta::kScalar) beta_[j] = x_.beta[virtual_row(i, i_hv_, s_.HV, 1)];
      if (s_.beta == Beta::kVector) beta_[j] = x_.beta[virtual_row(i, i_hv_, s_.HV, V) + j];
    }
    a_.assign(K, Real(1));
    for (int64_t j = 0; j < K && i % s_.n == 0; ++j) {
      if (s_.gate == Gate::kScalar) a_[j] = std::exp(x_.g[row(real(i), s_.T, i_hv_, s_.HV, 1)]);
      if (s_.gate == Gate::kVector) a_[j] = std::exp(x_.g[row(real(i), s_.T, i_h_, s_.H, K) + j]);
    }
    for (int64_t j = 0, at = 0; j < K; ++j)
      for (const int64_t end = at + V; at < end; ++at) decayed_[at] = a_[j] * states_[i * KV_ + at];
  }

  // o = scale S^T q
  void read_back(int64_t i, std::vector<Real>& dS) {
    const int64_t K = s_.K, V = s_.V;
    const Real* const S = &states_[(i + 1) * KV_];
    const Real* const d_o = &x_.d_o[row(real(i), s_.T, i_hv_, s_.HV, V)];
    std::vector<Real> d(K, Real(0));
    for (int64_t k = 0; k < K; ++k)
      for (int64_t v = 0; v < V; ++v) {
        d[k] += s_.scale * S[k * V + v] * d_o[v];
        dS[k * V + v] += s_.scale * q_[k] * d_o[v];
      }
    store_rows(d, q_, q_factor_, &out_.dq[row(real(i), s_.T, i_h_, s_.H, K)], out_.dq_terms);
  }

  // S = decayed + k u^T,  u = beta (v - decayed^T k) or v
  void write_back(int64_t i, std::vector<Real>& dS) {
    const int64_t K = s_.K, V = s_.V;
    const bool delta = s_.beta != Beta::kNone;
    std::vector<Real> d(K, Real(0));
    double dbeta_terms = 0.0;
    for (int64_t v = 0; v < V; ++v) {
      Real du = 0;
      for (int64_t k = 0; k < K; ++k) du += dS[k * V + v] * k_[k];
      const Real e = e_[i * V + v], de = beta_[v] * du;
      for (int64_t k = 0; k < K; ++k) {
        d[k] += dS[k * V + v] * beta_[v] * e;
        if (!delta) continue;
        d[k] -= decayed_[k * V + v] * de;
        dS[k * V + v] -= k_[k] * de;
      }
      out_.dv[virtual_row(i, i_hv_, s_.HV, V) + v] = de;
      dbeta_terms = (s_.beta == Beta::kScalar ? dbeta_terms : 0.0) + std::fabs(du * e);
      keep_larger(out_.dbeta_terms, dbeta_terms);
      if (s_.beta == Beta::kScalar) out_.dbeta[virtual_row(i, i_hv_, s_.HV, 1)] += du * e;
      if (s_.beta == Beta::kVector) out_.dbeta[virtual_row(i, i_hv_, s_.HV, V) + v] = du * e;
    }
    store_rows(d, k_, k_factor_, &out_.dk[virtual_row(i, i_h_, s_.H, K)], out_.dk_terms);
  }

  // decayed = diag(exp g) S
  void gate_back(int64_t i, std::vector<Real>& dS) {
    const int64_t K = s_.K, V = s_.V;
    const Real* const S = &states_[i * KV_];
    double terms = 0.0;
    for (int64_t k = 0; k < K; ++k) {
      Real dg = 0;
      if (s_.gate == Gate::kVector) terms = 0.0;
      for (int64_t v = 0; v < V; ++v) {
        dS[k * V + v] *= a_[k];
        dg += dS[k * V + v] * S[k * V + v];
        terms += std::fabs(dS[k * V + v] * S[k * V + v]);
      }
      keep_larger(out_.dg_terms, terms);
      if (s_.gate == Gate::kScalar)
        out_.dg[row(real(i), s_.T, i_hv_, s_.HV, 1)] += dg;
      else
        out_.dg[row(real(i), s_.T, i_h_, s_.H, K) + k] += dg;
    }
  }

  // Value heads of a group share the row, so it is added to.
  void store_rows(const std::vector<Real>& d, const std::vector<Real>& y, Real factor, Real* to,
                  double& terms) {
    if (s_.l2norm) return normalize_back(d.data(), y.data(), factor, s_.K, to, terms);
    for (int64_t k = 0; k < s_.K; ++k) to[k] += d[k];
  }

  const Shape& s_;
  const LinearAttentionValues<Real>& x_;
  LinearAttentionResults<Real>& out_;
  int64_t i_hv_, i_h_, KV_, i_b_, start_, total_, state_at_;
  Real q_factor_ = 1, k_factor_ = 1;
  std::vector<Real> states_, decayed_, e_;  // [total + 1][K][V], [K][V], [total][V]
  std::vector<Real> q_, k_, v_, beta_, a_;  // one token
};

template <class Real>
LinearAttentionResults<Real> define_linear_attention(const Shape& s,
                                                     const LinearAttentionValues<Real>& x) {
  LinearAttentionResults<Real> out;
  const int64_t states = s.sequences() * s.HV * s.K * s.V;
  out.o.assign(x.d_o.size(), Real(0));
  out.ht.assign(states, Real(0));
  out.dh0.assign(states, Real(0));
  out.dq.assign(x.q.size(), Real(0));
  out.dk.assign(x.k.size(), Real(0));
  out.dv.assign(x.v.size(), Real(0));
  out.dg.assign(x.g.size(), Real(0));
  out.dbeta.assign(x.beta.size(), Real(0));
  for (int64_t i_n = 0; i_n < s.sequences(); ++i_n)
    for (int64_t i_hv = 0; i_hv < s.HV; ++i_hv) {
      LinearAttentionHead<Real> head(s, x, out, i_n, i_hv);
      head.forward();
      head.backward();
    }
  return out;
}

}  // namespace seqkern::test
