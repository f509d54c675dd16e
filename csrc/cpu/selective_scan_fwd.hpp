// SPDX-License-Identifier: Apache-2.0
// selective_scan_fwd.hpp - the selective scan, whole sequences of up to kScanChannels channels, and
// one decoding step.
//
// Maths      selective_scan.h
// Layout     Vectors run over channels: A and h are [N][W], B_t and C_t are broadcast from [T][N],
//            so that nothing is summed across lanes. u, delta, z and out are brought to [time][W]
//            and back, kScanRows steps at a time, whatever their strides.
// Precision  u, delta, z and out f32, bf16 or f16; everything else and all sums f32.
// Cost       per channel, step and state one exponential (12 operations) and 3 operations more
//            (4 with negative eigenvalues): bound by arithmetic. h stays in the first-level cache.
// Limits     T, D, N any; offsets int64.
// Threads    none: the caller splits batch x channels.
#pragma once

#include "selective_scan_tile.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// What a step does to states n, n + 1, ...: moves them on and returns what they are read as.
template <bool kNegative, bool kConstB, bool kConstC, int k>
SEQKERN_INLINE Side<k> scan_states(const StripStates& state, vf dt, vf du, const float* B,
                                   const float* C, int64_t n, Side<k> y) {
  const Side<k> a = eigenvalue<kNegative>(state.decay<k>(dt, n));
  const Side<k> next =
      fma(a, load_vectors<k>(state.h + n * W), coefficients<kConstB, k>(B, n) * du);
  store_vectors(state.h + n * W, next);
  return fma(coefficients<kConstC, k>(C, n), next, y);
}

// Steps [at, at + rows) of a strip, whose inputs are in x: moves state.h on and leaves x.y.
template <bool kNegative, bool kConstB, bool kConstC>
inline void scan_steps(const SelectiveScan& p, const Strip& s, const StripStates& state,
                       const ScanTiles& x, int64_t at, int64_t rows) {
  const int64_t N = p.N;
  const float* B = rows_at<kConstB>(p, s, p.B, state.B, at);
  const float* C = rows_at<kConstC>(p, s, p.C, state.C, at);
  for (int64_t t = 0; t < rows; ++t) {
    const vf dt = load(x.dt + t * W), du = dt * load(x.u + t * W);
    Side<kScanStates> y = {};
    Side<1> left = {};
    int64_t n = 0;
    for (; n + kScanStates <= N; n += kScanStates)
      y = scan_states<kNegative, kConstB, kConstC>(state, dt, du, B, C, n, y);
    for (; n < N; ++n)
      left = scan_states<kNegative, kConstB, kConstC>(state, dt, du, B, C, n, left);
    store(x.y + t * W, ((y.x[0] + y.x[1]) + (y.x[2] + y.x[3])) + left.x[0]);
    if (!kConstB) B += N;
    if (!kConstC) C += N;
  }
}

// Steps [at, at + R) of a sequence, one strip.
template <bool kNegative, bool kConstB, bool kConstC>
inline void scan_forward_chunk(const SelectiveScan& p, const Strip& s, const StripStates& state,
                               ScanTiles& x, const ScanSequence& q, int64_t at) {
  if (at > 0 && p.checkpoints != nullptr) {
    float* to = checkpoint_at(p, s, q, at);
    for (int64_t n = 0; n < p.N; ++n) store(to + n * kScanLanes, load(state.h + n * W));
  }
  const int64_t rows = smaller(R, q.length - at), first = q.start + at;
  x.load_inputs(p, s, first, rows);
  scan_steps<kNegative, kConstB, kConstC>(p, s, state, x, first, rows);
  const vf skip = load_channels(p.skip, s);
  for (int64_t t = 0; t < rows; t += kScanSteps) {
    Side<kScanSteps> y =
        fma(skip, load_vectors<kScanSteps>(x.u + t * W), load_vectors<kScanSteps>(x.y + t * W));
    if (p.z.data != nullptr) {
      const Side<kScanSteps> z = load_vectors<kScanSteps>(x.z + t * W);
      y = y * (z * sigmoid(z));
    }
    store_vectors(x.y + t * W, y);
  }
  store_tile(p.out, s, first, rows, x.y);
}

// Calls run.template operator()<negative, constant B, constant C>().
template <class Run>
inline void with_scan_kind(const SelectiveScan& p, const Run& run) {
  const int kind = (p.negative ? 4 : 0) + (p.constant_b ? 2 : 0) + (p.constant_c ? 1 : 0);
  switch (kind) {
    case 0:
      return run.template operator()<false, false, false>();
    case 1:
      return run.template operator()<false, false, true>();
    case 2:
      return run.template operator()<false, true, false>();
    case 3:
      return run.template operator()<false, true, true>();
    case 4:
      return run.template operator()<true, false, false>();
    case 5:
      return run.template operator()<true, false, true>();
    case 6:
      return run.template operator()<true, true, false>();
    default:
      return run.template operator()<true, true, true>();
  }
}

inline int64_t selective_scan_forward_workspace(const SelectiveScan& p) {
  return (kStrips * StripStates::floats(p) + ScanTiles::kFloats) * 4;
}

inline void selective_scan_forward(const SelectiveScan& p, int64_t i, void* workspace) {
  const FlushSubnormals flush;
  const ScanTask task = scan_task(p, i);
  const int64_t N = p.N;
  float* at = static_cast<float*>(workspace);
  ScanTiles x;
  x.place(at);
  at += ScanTiles::kFloats;
  Strip s[kStrips];
  StripStates state[kStrips];
  int strips = 0;
  for (int64_t channel = task.begin; channel < task.end; channel += W, ++strips) {
    s[strips] = strip_at(p, task, channel);
    state[strips].place(p, at + strips * StripStates::floats(p));
    state[strips].begin(p, s[strips]);
  }
  const int together = strips_together(p, strips);
  for (int64_t j = 0; j < sequences_in_entry(p); ++j) {
    const ScanSequence q = scan_sequence(p, task.i_b, j);
    const int64_t dense = q.i_n * p.D * N;
    for (int k = 0; k < strips; ++k)
      load_states(p.h0 != nullptr ? p.h0 + dense : nullptr, s[k], N, state[k].h);
    with_scan_kind(p, [&]<bool kNegative, bool kConstB, bool kConstC>() {
      for (int from = 0; from < strips; from += together)
        for (int64_t t = 0; t < q.length; t += R)
          for (int k = from; k < from + together; ++k)
            scan_forward_chunk<kNegative, kConstB, kConstC>(p, s[k], state[k], x, q, t);
    });
    for (int k = 0; k < strips && p.ht != nullptr; ++k)
      store_states(p.ht + dense, s[k], N, state[k].h);
  }
}

// The channels of a strip at one step.
template <DType E>
SEQKERN_INLINE vf load_step_as(const ScanView& v, const Strip& s) {
  const Element<E>* from = static_cast<const Element<E>*>(v.data) + s.i_b * v.batch_stride +
                           s.channel * v.channel_stride;
  return v.channel_stride == 1 ? load_left<E>(from, 0, s.count)
                               : gather<E>(from, 0, v.channel_stride, s.count);
}

template <DType E>
SEQKERN_INLINE void store_step_as(const ScanView& v, const Strip& s, vf x) {
  Element<E>* to =
      static_cast<Element<E>*>(v.data) + s.i_b * v.batch_stride + s.channel * v.channel_stride;
  if (v.channel_stride == 1)
    store_left<E>(to, 0, s.count, x);
  else
    scatter<E>(to, 0, v.channel_stride, s.count, x);
}

inline vf load_step(const ScanView& v, const Strip& s) {
  if (v.dtype == DType::kF32) return load_step_as<DType::kF32>(v, s);
  if (v.dtype == DType::kBF16) return load_step_as<DType::kBF16>(v, s);
  return load_step_as<DType::kF16>(v, s);
}

inline void store_step(const ScanView& v, const Strip& s, vf x) {
  if (v.dtype == DType::kF32) return store_step_as<DType::kF32>(v, s, x);
  if (v.dtype == DType::kBF16) return store_step_as<DType::kBF16>(v, s, x);
  store_step_as<DType::kF16>(v, s, x);
}

// One decoding step: vectors run over the states of a channel, which lie side by side in memory,
// and the read-outs of W channels are summed across lanes at once.
template <bool kNegative>
inline void scan_step_group(const SelectiveScanStep& p, int64_t i_b, const Strip& s) {
  const int64_t N = p.N;
  alignas(64) float dt[W], du[W];
  const vf u = load_step(p.u, s), raw = load_step(p.delta, s) + load_channels(p.delta_bias, s);
  const vf step = p.softplus ? softplus(raw) : raw;
  store(dt, step);
  store(du, step * u);
  vf sums[W];
  for (int64_t l = 0; l < W; ++l) {
    sums[l] = vf{};
    if (l >= s.count) continue;
    const int64_t channel = s.channel + l, row = channel * N;
    const int64_t shared = (i_b * p.G + channel / (p.D / p.G)) * N;
    const float* A = p.A + row;
    const float* B = p.B + (p.constant_b ? row : shared);
    const float* C = p.C + (p.constant_c ? row : shared);
    float* h = p.state + i_b * p.D * N + row;
    for (int64_t n = 0; n < N; n += W) {
      const int64_t left = N - n;
      const ScaledA scale = scaled(load_left<DType::kF32>(A, n, left));
      const vf a = eigenvalue<kNegative>(exp_product(splat(dt[l]), scale.high, scale.low));
      const vf next = fma(a, load_left<DType::kF32>(h, n, left),
                          splat(du[l]) * load_left<DType::kF32>(B, n, left));
      store_left<DType::kF32>(h, n, left, next);
      sums[l] = fma(load_left<DType::kF32>(C, n, left), next, sums[l]);
    }
  }
  vf y = fma(load_channels(p.skip, s), u, sum_each(sums));
  if (p.z.data != nullptr) {
    const vf z = load_step(p.z, s);
    y *= z * sigmoid(z);
  }
  store_step(p.out, s, y);
}

// Channels [channel, channel + count) of batch entry i_b.
inline void selective_scan_step(const SelectiveScanStep& p, int64_t i_b, int64_t channel,
                                int64_t count) {
  const FlushSubnormals flush;
  for (int64_t end = channel + count; channel < end; channel += W) {
    const Strip s{i_b, 0, channel, smaller(W, end - channel), 0, 0};
    if (p.negative)
      scan_step_group<true>(p, i_b, s);
    else
      scan_step_group<false>(p, i_b, s);
  }
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
