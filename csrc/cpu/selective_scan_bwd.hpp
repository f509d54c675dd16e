// SPDX-License-Identifier: Apache-2.0
// selective_scan_bwd.hpp - backward of the selective scan.
//
// Maths      From the last step to the first, with g the gradient of h_t and dy that of y_t:
//              g    = C_t dy + (a_{t+1} g of the step after)
//              dC_t = sum_D dy h_t;  dB_t = sum_D g dt u;  d(dt u) = sum_N g B_t
//              dx   = g h_{t-1} e^x, x = dt A (with negative eigenvalues, a = 2 e^x - 1, twice it)
//              ddt  = sum_N dx A + d(dt u) u;  dA = sum_t dx dt;  du = d(dt u) dt + skip dy
//            There h_t - dt u B would not do for h_{t-1}, nor a + 1 for e^x, whose digits it has
//            lost where a is near -1.
// States     The forward pass left h at every kScanRows-th step. A chunk is replayed from there,
//            its states and exponentials kept, then walked backwards.
// Layout     as the forward pass; dB and dC are summed across the lanes, 16 states at a time.
// Precision  f32; gradients of 16-bit inputs are rounded on store.
// Cost       per channel, step and state the forward pass again and 9 operations, and 6 for the
//            sums across lanes. 2 kScanRows N vectors of a chunk stay in the second-level cache.
// Threads    none: the caller splits batch x channels; dB and dC are partial sums of a task.
#pragma once

#include "selective_scan_fwd.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// What the way back keeps of a strip besides, [N][W] each; dB and dC when constant. Then [W] each.
struct StripGradients {
  float *g, *dA, *dB, *dC, *dskip, *dbias;

  static int64_t floats(const SelectiveScan& p) { return 4 * p.N * W + 2 * W; }
  void place(const SelectiveScan& p, float* at) {
    float** const fields[] = {&g, &dA, &dB, &dC};
    for (float** field : fields) *field = at, at += p.N * W;
    dskip = at;
    dbias = at + W;
    for (int64_t n = 0; n < 4 * p.N + 2; ++n) store(g + n * W, vf{});
  }
};

// What it keeps of one chunk of a strip.
struct ScanReplay {
  ScanTiles x;
  float *dy, *du, *ddt;    // [R][W]
  float *sums_b, *sums_c;  // [N rounded up][W]: terms of one step, to be summed across lanes
  float *dA, *dB, *dC;     // [N][W]: sums over the chunk; dB, dC when constant
  float *states, *decays;  // [R + 1][N][W], [R][N][W]

  static int64_t rounded(int64_t N) { return (N + W - 1) / W * W; }
  static int64_t floats(const SelectiveScan& p) {
    return ScanTiles::kFloats + 3 * R * W + 2 * rounded(p.N) * W + (2 * R + 4) * p.N * W;
  }
  void place(const SelectiveScan& p, float* at) {
    x.place(at);
    at += ScanTiles::kFloats;
    float** const tiles[] = {&dy, &du, &ddt};
    float** const sums[] = {&sums_b, &sums_c};
    for (float** field : tiles) *field = at, at += R * W;
    for (float** field : sums) {
      *field = at;
      for (int64_t n = 0; n < rounded(p.N); ++n, at += W) store(at, vf{});
    }
    float** const over_chunk[] = {&dA, &dB, &dC};
    for (float** field : over_chunk) *field = at, at += p.N * W;
    states = at;
    decays = states + (R + 1) * p.N * W;
  }
};

// Replays a chunk from w.states[0], keeping states and exponentials; x.y only where z needs it.
template <bool kNegative, bool kConstB, bool kConstC>
inline void replay_steps(const SelectiveScan& p, const Strip& s, const StripStates& state,
                         const ScanReplay& w, int64_t at, int64_t rows) {
  const int64_t N = p.N;
  const ScanTiles& x = w.x;
  const float* B = rows_at<kConstB>(p, s, p.B, state.B, at);
  const float* C = rows_at<kConstC>(p, s, p.C, state.C, at);
  const bool read = p.z.data != nullptr;
  for (int64_t t = 0; t < rows; ++t) {
    const vf dt = load(x.dt + t * W), du = dt * load(x.u + t * W);
    const float* h = w.states + t * N * W;
    float *next = w.states + (t + 1) * N * W, *decay = w.decays + t * N * W;
    const auto replay = [&]<int k>(int64_t n) __attribute__((always_inline)) {
      const Side<k> e = state.decay<k>(dt, n);
      store_vectors(decay + n * W, e);
      store_vectors(next + n * W, fma(eigenvalue<kNegative>(e), load_vectors<k>(h + n * W),
                                      coefficients<kConstB, k>(B, n) * du));
    };
    int64_t n = 0;
    for (; n + kScanStates <= N; n += kScanStates) replay.template operator()<kScanStates>(n);
    for (; n < N; ++n) replay.template operator()<1>(n);
    if (read) {
      vf y[2] = {};
      n = 0;
      for (; n + 2 <= N; n += 2) {
        y[0] = fma(coefficient<kConstC>(C, n), load(next + n * W), y[0]);
        y[1] = fma(coefficient<kConstC>(C, n + 1), load(next + (n + 1) * W), y[1]);
      }
      if (n < N) y[0] = fma(coefficient<kConstC>(C, n), load(next + n * W), y[0]);
      store(x.y + t * W, y[0] + y[1]);
    }
    if (!kConstB) B += N;
    if (!kConstC) C += N;
  }
}

// to[n] += the sum over the lanes of terms[n], n < N.
inline void add_lane_sums(const float* terms, int64_t N, float* to) {
  for (int64_t n = 0; n < N; n += W) {
    vf x[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = load(terms + (n + i) * W);
    const vf total = sum_each(x) + load_left<DType::kF32>(to, n, N - n);
    store_left<DType::kF32>(to, n, N - n, total);
  }
}

// From the last step of a chunk to its first. dB, dC: rows of the task's sums from `at` on.
template <bool kNegative, bool kConstB, bool kConstC>
inline void scan_steps_back(const SelectiveScan& p, const Strip& s, const StripStates& state,
                            const StripGradients& d, const ScanReplay& w, int64_t at, int64_t rows,
                            float* dB, float* dC) {
  const int64_t N = p.N;
  const ScanTiles& x = w.x;
  const float* B = rows_at<kConstB>(p, s, p.B, state.B, at);
  const float* C = rows_at<kConstC>(p, s, p.C, state.C, at);
  for (int64_t n = 0; n < 3 * N; ++n) store(w.dA + n * W, vf{});
  for (int64_t t = rows - 1; t >= 0; --t) {
    const vf dt = load(x.dt + t * W), u = load(x.u + t * W), dy = load(w.dy + t * W);
    const vf du = dt * u;
    const float *h = w.states + t * N * W, *next = h + N * W, *decay = w.decays + t * N * W;
    const float *b = kConstB ? B : B + t * N, *c = kConstC ? C : C + t * N;
    vf ddu[2] = {}, ddt[2] = {};
    const auto back = [&](int64_t n, int i) __attribute__((always_inline)) {
      const vf e = load(decay + n * W), a = eigenvalue<kNegative>(e);
      const vf g = fma(coefficient<kConstC>(c, n), dy, load(d.g + n * W));
      const vf read = dy * load(next + n * W), write = g * du;
      if constexpr (kConstC)
        store(w.dC + n * W, load(w.dC + n * W) + read);
      else
        store(w.sums_c + n * W, read);
      if constexpr (kConstB)
        store(w.dB + n * W, load(w.dB + n * W) + write);
      else
        store(w.sums_b + n * W, write);
      ddu[i] = fma(g, coefficient<kConstB>(b, n), ddu[i]);
      const vf carried = g * a;
      const vf dx = (kNegative ? (e + e) * g : carried) * load(h + n * W);
      ddt[i] = fma(dx, load(state.A + n * W), ddt[i]);
      store(w.dA + n * W, fma(dx, dt, load(w.dA + n * W)));
      store(d.g + n * W, carried);
    };
    int64_t n = 0;
    for (; n + 2 <= N; n += 2) {
      back(n, 0);
      back(n + 1, 1);
    }
    if (n < N) back(n, 0);
    const vf both = ddu[0] + ddu[1];
    store(w.du + t * W, fma(both, dt, load(w.du + t * W)));
    store(w.ddt + t * W, fma(ddt[0] + ddt[1], splat(kLn2), both * u));
    if constexpr (!kConstC) add_lane_sums(w.sums_c, N, dC + t * N);
    if constexpr (!kConstB) add_lane_sums(w.sums_b, N, dB + t * N);
  }
  // Chunk by chunk: a sum over all steps, one after the other, would lose digits with their number.
  for (int64_t n = 0; n < N; ++n) {
    store(d.dA + n * W, load(d.dA + n * W) + load(w.dA + n * W));
    if constexpr (kConstB) store(d.dB + n * W, load(d.dB + n * W) + load(w.dB + n * W));
    if constexpr (kConstC) store(d.dC + n * W, load(d.dC + n * W) + load(w.dC + n * W));
  }
}

// dy of a chunk, and the part of du that goes past the scan; leaves dz in x.z.
inline void gate_back(const SelectiveScan& p, const Strip& s, const ScanReplay& w, int64_t rows,
                      float* sum) {
  const vf skip = load_channels(p.skip, s);
  vf dskip = vf{};
  for (int64_t t = 0; t < rows; ++t) {
    vf dy = load(w.dy + t * W);
    const vf u = load(w.x.u + t * W);
    if (p.z.data != nullptr) {
      const vf z = load(w.x.z + t * W), gate = sigmoid(z);
      const vf y = fma(skip, u, load(w.x.y + t * W));
      store(w.x.z + t * W, dy * y * gate * fma(z, 1.0f - gate, splat(1.0f)));
      dy *= z * gate;
      store(w.dy + t * W, dy);
    }
    dskip = fma(dy, u, dskip);
    store(w.du + t * W, dy * skip);
  }
  store(sum, load(sum) + dskip);
}

// Steps [at, at + R) of a sequence, one strip.
template <bool kNegative, bool kConstB, bool kConstC>
inline void scan_backward_chunk(const SelectiveScanGrad& d, const Strip& s,
                                const StripStates& state, const StripGradients& sums, ScanReplay& w,
                                const ScanSequence& q, int64_t at, float* dB, float* dC) {
  const SelectiveScan& p = d.in;
  const int64_t N = p.N, rows = smaller(R, q.length - at), first = q.start + at;
  if (at > 0) {
    const float* from = checkpoint_at(p, s, q, at);
    for (int64_t n = 0; n < N; ++n) store(w.states + n * W, load(from + n * kScanLanes));
  } else {
    load_states(p.h0 != nullptr ? p.h0 + q.i_n * p.D * N : nullptr, s, N, w.states);
  }
  w.x.load_inputs(p, s, first, rows);
  load_tile(d.dout, s, first, rows, w.dy);
  replay_steps<kNegative, kConstB, kConstC>(p, s, state, w, first, rows);
  gate_back(p, s, w, rows, sums.dskip);
  if (p.z.data != nullptr) store_tile(d.dz, s, first, rows, w.x.z);
  scan_steps_back<kNegative, kConstB, kConstC>(p, s, state, sums, w, first, rows,
                                               kConstB ? nullptr : dB + first * N,
                                               kConstC ? nullptr : dC + first * N);
  vf dbias = vf{};
  for (int64_t t = 0; t < rows; ++t) {
    vf ddt = load(w.ddt + t * W);
    if (p.softplus) ddt *= sigmoid(load(w.x.raw + t * W));
    dbias += ddt;
    store(w.ddt + t * W, ddt);
  }
  store(sums.dbias, load(sums.dbias) + dbias);
  store_tile(d.du, s, first, rows, w.du);
  store_tile(d.ddelta, s, first, rows, w.ddt);
}

inline int64_t selective_scan_backward_workspace(const SelectiveScan& p) {
  return (kStrips * (StripStates::floats(p) + StripGradients::floats(p)) + ScanReplay::floats(p)) *
         4;
}

// The sums over time of a strip.
inline void store_strip_sums(const SelectiveScanGrad& d, const Strip& s,
                             const StripGradients& sums) {
  const SelectiveScan& p = d.in;
  const int64_t entry = s.i_b * p.D;
  store_states(d.dA + entry * p.N, s, p.N, sums.dA);
  if (p.constant_b) store_states(d.dB + entry * p.N, s, p.N, sums.dB);
  if (p.constant_c) store_states(d.dC + entry * p.N, s, p.N, sums.dC);
  if (d.dskip != nullptr)
    store_left<DType::kF32>(d.dskip, entry + s.channel, s.count, load(sums.dskip));
  if (d.ddelta_bias != nullptr)
    store_left<DType::kF32>(d.ddelta_bias, entry + s.channel, s.count, load(sums.dbias));
}

inline void selective_scan_backward(const SelectiveScanGrad& d, int64_t i, void* workspace) {
  const FlushSubnormals flush;
  const SelectiveScan& p = d.in;
  const ScanTask task = scan_task(p, i);
  const int64_t N = p.N, rows = p.T * N;
  float* const dB = p.constant_b ? nullptr : d.dB + i * rows;
  float* const dC = p.constant_c ? nullptr : d.dC + i * rows;
  if (dB != nullptr) memset(dB, 0, rows * sizeof(float));
  if (dC != nullptr) memset(dC, 0, rows * sizeof(float));
  float* at = static_cast<float*>(workspace);
  ScanReplay w;
  w.place(p, at);
  at += ScanReplay::floats(p);
  Strip s[kStrips];
  StripStates state[kStrips];
  StripGradients sums[kStrips];
  int strips = 0;
  for (int64_t channel = task.begin; channel < task.end; channel += W, ++strips) {
    s[strips] = strip_at(p, task, channel);
    state[strips].place(p, at);
    state[strips].begin(p, s[strips]);
    at += StripStates::floats(p);
    sums[strips].place(p, at);
    at += StripGradients::floats(p);
  }
  const int together = strips_together(p, strips);
  for (int64_t j = sequences_in_entry(p) - 1; j >= 0; --j) {
    const ScanSequence q = scan_sequence(p, task.i_b, j);
    const int64_t dense = q.i_n * p.D * N;
    for (int k = 0; k < strips; ++k)
      load_states(d.dht != nullptr ? d.dht + dense : nullptr, s[k], N, sums[k].g);
    with_scan_kind(p, [&]<bool kNegative, bool kConstB, bool kConstC>() {
      for (int from = 0; from < strips; from += together)
        for (int64_t t = scan_blocks(q.length, R) * R - R; t >= 0; t -= R)
          for (int k = from; k < from + together; ++k)
            scan_backward_chunk<kNegative, kConstB, kConstC>(d, s[k], state[k], sums[k], w, q, t,
                                                             dB, dC);
    });
    for (int k = 0; k < strips && d.dh0 != nullptr; ++k)
      store_states(d.dh0 + dense, s[k], N, sums[k].g);
  }
  for (int k = 0; k < strips; ++k) store_strip_sums(d, s[k], sums[k]);
}

constexpr SelectiveScanKernels selective_scan_kernels = {
    &selective_scan_forward, &selective_scan_forward_workspace, &selective_scan_backward,
    &selective_scan_backward_workspace, &selective_scan_step};

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
