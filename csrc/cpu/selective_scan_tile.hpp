// SPDX-License-Identifier: Apache-2.0
// selective_scan_tile.hpp - what forward and backward of the selective scan share: the decay, the
// softplus, and strips of W channels whose time steps are brought to [time][W] and back.
#pragma once

#include "../include/seqkern/selective_scan.h"
#include "elements.hpp"
#include "side.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr int64_t R = kScanRows;
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;
constexpr float kLog2ELow = 1.92596299e-8f;  // what the first leaves out

// A log2(e), and what its rounding leaves out.
struct ScaledA {
  vf high, low;
};

// Beyond 2.3e38 the product would overflow, and its rest be NaN: A is cut to that, which forgets a
// state as well.
SEQKERN_INLINE ScaledA scaled(vf A) {
  A = at_least(splat(-2.3e38f), at_most(splat(2.3e38f), A));
  const vf high = A * splat(kLog2E);
  return {high, fma(A, splat(kLog2ELow), fma(A, splat(kLog2E), -high))};
}

#if SEQKERN_LANES == 16
SEQKERN_INLINE vf nearest(vf x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x where its magnitude is not above `limit`, else something as small.
SEQKERN_INLINE vf small(vf x, vf limit) { return _mm512_range_ps(x, limit, 2); }
SEQKERN_BESIDE(nearest)
SEQKERN_BESIDE(small)
#endif

// exp(dt A) = 2^(dt (high + low)), at most 1.5 ulp from the truth, or 100 from 2^127.5 on; NaN
// stays NaN. Fused, the fraction of the exponent is that of the exact product: a long exponent
// costs no digits.
template <class V>
SEQKERN_INLINE V exp_product(V dt, V high, V low) {
#if SEQKERN_LANES == 16
  const V n = nearest(dt * high);
  // Where the product is beyond 2^23 the fraction means nothing, but must stay small. Else it may
  // be a little over a half, for n comes from the rounded product.
  const V r = small(fma(dt, low, fma(dt, high, -n)), splat(0.75f));
#else
  // Adding 1.5 * 2^23 rounds to the nearest integer, n. Above 127 the fraction grows instead, up to
  // infinity.
  const vf magic = splat(12582912.0f + 127.0f);
  const V shifted = at_least(splat(-127.0f), at_most(splat(127.0f), dt * high)) + magic;
  const V n = shifted - magic, power = power_of_shifted(shifted);
  const V r = at_least(splat(-0.75f), fma(dt, low, fma(dt, high, -n)));
#endif
  V p = fma(splat(1.534581243e-4f), r, splat(1.33999309e-3f));
  p = fma(p, r, splat(9.618489072e-3f));
  p = fma(p, r, splat(5.550328642e-2f));
  p = fma(p, r, splat(2.402264625e-1f));
  p = fma(p, r, splat(6.931471825e-1f));
  p = fma(p, r, splat(1.0f));
#if SEQKERN_LANES == 16
  return scale_by_power(p, n);
#else
  return p * power;
#endif
}

// log(1 + exp(x)) to about 2 ulp, for every x: with y = exp(-|x|) and s = y / (2 + y) it is
// max(x, 0) + 2 artanh(s), which keeps its digits where it is small.
template <class V>
SEQKERN_INLINE V softplus(V x) {
  const V y = exp(-magnitude(x));
  const V s = y / (y + 2.0f), w = s * s;
  V p = fma(splat(1.408916712e-1f), w, splat(1.398030072e-1f));
  p = fma(p, w, splat(2.001245469e-1f));
  p = fma(p, w, splat(3.333315849e-1f));
  const V tail = fma(p * w, s, s);
  return at_least(vf{}, x) + (tail + tail);
}

// The eigenvalue that e = exp(dt A) makes: itself, or 2 e - 1.
template <bool kNegative, class V>
SEQKERN_INLINE V eigenvalue(V e) {
  if constexpr (kNegative)
    return fma(splat(2.0f), e, splat(-1.0f));
  else
    return e;
}

// The strip of channels [channel, channel + count) of one batch entry, count <= W.
struct Strip {
  int64_t i_b, i_g, channel, count;
  int64_t block, lane;  // where it lies in a checkpoint
};

// The strips of task i: its first, and where its channels end.
struct ScanTask {
  int64_t i_b, i_g, part, begin, end;
};

inline ScanTask scan_task(const SelectiveScan& p, int64_t i) {
  const int64_t parts = scan_parts(p), width = p.D / p.G;
  const int64_t i_b = i / (p.G * parts), i_g = i / parts % p.G, part = i % parts;
  const int64_t begin = i_g * width + part * kScanChannels;
  return {i_b, i_g, part, begin, smaller(begin + kScanChannels, (i_g + 1) * width)};
}

inline Strip strip_at(const SelectiveScan& p, const ScanTask& t, int64_t channel) {
  const int64_t width = p.D / p.G, inside = channel - t.i_g * width;
  return {t.i_b,
          t.i_g,
          channel,
          smaller(W, t.end - channel),
          t.i_g * scan_blocks(width, kScanLanes) + inside / kScanLanes,
          inside % kScanLanes};
}

// Steps [start, end) of the batch entry; which state they begin from.
struct ScanSequence {
  int64_t i_n, start, length;
};

inline int64_t sequences_in_entry(const SelectiveScan& p) {
  return p.cu_seqlens == nullptr ? 1 : p.sequences;
}

inline ScanSequence scan_sequence(const SelectiveScan& p, int64_t i_b, int64_t i) {
  if (p.cu_seqlens == nullptr) return {i_b, 0, p.T};
  return {i, p.cu_seqlens[i], p.cu_seqlens[i + 1] - p.cu_seqlens[i]};
}

// The state before step `at` > 0 of a sequence, a multiple of kScanRows: [N][16] from lane on.
inline float* checkpoint_at(const SelectiveScan& p, const Strip& s, const ScanSequence& q,
                            int64_t at) {
  const int64_t slots = p.T / kScanRows, slot = q.start / kScanRows + at / kScanRows - 1;
  const int64_t block = (s.i_b * slots + slot) * scan_lane_blocks(p) + s.block;
  return p.checkpoints + block * p.N * kScanLanes + s.lane;
}

template <DType E>
inline void load_tile_as(const ScanView& v, const Strip& s, int64_t at, int64_t rows, float* tile) {
  const Element<E>* from = static_cast<const Element<E>*>(v.data) + s.i_b * v.batch_stride +
                           s.channel * v.channel_stride + at * v.time_stride;
  if (v.channel_stride == 1) {
    for (int64_t t = 0; t < rows; ++t)
      store(tile + t * W, load_left<E>(from, t * v.time_stride, s.count));
    return;
  }
  if (v.time_stride == 1) {
    for (int64_t t = 0; t < rows; t += W) {
      vf x[W];
      for (int64_t l = 0; l < W; ++l)
        x[l] = l < s.count ? load_left<E>(from, l * v.channel_stride + t, rows - t) : vf{};
      transpose(x);
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) store(tile + (t + l) * W, x[l]);
    }
    return;
  }
  for (int64_t t = 0; t < rows; ++t)
    store(tile + t * W, gather<E>(from, t * v.time_stride, v.channel_stride, s.count));
}

template <DType E>
inline void store_tile_as(const ScanView& v, const Strip& s, int64_t at, int64_t rows,
                          const float* tile) {
  Element<E>* to = static_cast<Element<E>*>(v.data) + s.i_b * v.batch_stride +
                   s.channel * v.channel_stride + at * v.time_stride;
  if (v.channel_stride == 1) {
    for (int64_t t = 0; t < rows; ++t)
      store_left<E>(to, t * v.time_stride, s.count, load(tile + t * W));
    return;
  }
  if (v.time_stride == 1) {
    for (int64_t t = 0; t < rows; t += W) {
      vf x[W];
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) x[l] = load(tile + (t + l) * W);
      transpose(x);
      for (int64_t l = 0; l < s.count; ++l)
        store_left<E>(to, l * v.channel_stride + t, rows - t, x[l]);
    }
    return;
  }
  for (int64_t t = 0; t < rows; ++t)
    scatter<E>(to, t * v.time_stride, v.channel_stride, s.count, load(tile + t * W));
}

// tile[t][lane], t < R: steps [at, at + rows) of a strip as float32. Missing lanes are 0; the rows
// after the last may hold anything.
inline void load_tile(const ScanView& v, const Strip& s, int64_t at, int64_t rows, float* tile) {
  if (v.dtype == DType::kF32) return load_tile_as<DType::kF32>(v, s, at, rows, tile);
  if (v.dtype == DType::kBF16) return load_tile_as<DType::kBF16>(v, s, at, rows, tile);
  load_tile_as<DType::kF16>(v, s, at, rows, tile);
}

inline void store_tile(const ScanView& v, const Strip& s, int64_t at, int64_t rows,
                       const float* tile) {
  if (v.dtype == DType::kF32) return store_tile_as<DType::kF32>(v, s, at, rows, tile);
  if (v.dtype == DType::kBF16) return store_tile_as<DType::kBF16>(v, s, at, rows, tile);
  store_tile_as<DType::kF16>(v, s, at, rows, tile);
}

// to[n][lane] = from[lane][n], a [channels][N] tensor; missing lanes are 0, and all of them
// without a tensor.
inline void load_states(const float* from, const Strip& s, int64_t N, float* to) {
  for (int64_t n = 0; n < N; ++n) store(to + n * W, vf{});
  if (from == nullptr) return;
  from += s.channel * N;
  for (int64_t l = 0; l < s.count; ++l)
    for (int64_t n = 0; n < N; ++n) to[n * W + l] = from[l * N + n];
}

inline void store_states(float* to, const Strip& s, int64_t N, const float* from) {
  to += s.channel * N;
  for (int64_t l = 0; l < s.count; ++l)
    for (int64_t n = 0; n < N; ++n) to[l * N + n] = from[n * W + l];
}

// [channels] or null.
SEQKERN_INLINE vf load_channels(const float* from, const Strip& s) {
  return from == nullptr ? vf{} : load_left<DType::kF32>(from, s.channel, s.count);
}

// B or C at one step: one value for all channels of a group, or one vector for all steps.
template <bool kConstant>
SEQKERN_INLINE vf coefficient(const float* x, int64_t n) {
  return kConstant ? load(x + n * W) : splat(x[n]);
}
template <bool kConstant, int k>
SEQKERN_INLINE Side<k> coefficients(const float* x, int64_t n) {
  return side<k>([&](int i)
                     __attribute__((always_inline)) { return coefficient<kConstant>(x, n + i); });
}

constexpr int kStrips = kScanChannels / W;

// How many strips go through time side by side: all of them where channels are neighbours in
// memory, one after the other where steps are.
inline int strips_together(const SelectiveScan& p, int strips) {
  return p.u.channel_stride == 1 ? strips : 1;
}

// What both passes keep of a strip, [N][W] each; B and C when constant.
struct StripStates {
  float *A, *A_low, *h, *B, *C;  // A: scaled

  static int64_t floats(const SelectiveScan& p) { return 5 * p.N * W; }
  void place(const SelectiveScan& p, float* at) {
    float** const fields[] = {&A, &A_low, &h, &B, &C};
    for (float** field : fields) *field = at, at += p.N * W;
  }
  void begin(const SelectiveScan& p, const Strip& s) {
    load_states(p.A, s, p.N, A);
    for (int64_t n = 0; n < p.N; ++n) {
      const ScaledA x = scaled(load(A + n * W));
      store(A + n * W, x.high);
      store(A_low + n * W, x.low);
    }
    if (p.constant_b) load_states(p.B, s, p.N, B);
    if (p.constant_c) load_states(p.C, s, p.N, C);
  }
  // exp(dt A) of states n, n + 1, ...
  template <int k>
  SEQKERN_INLINE_MEMBER Side<k> decay(vf dt, int64_t n) const {
    return exp_product(side<k>([&](int) __attribute__((always_inline)) { return dt; }),
                       load_vectors<k>(A + n * W), load_vectors<k>(A_low + n * W));
  }
};

// States, and time steps, whose formulas go on side by side.
constexpr int kScanStates = 4, kScanSteps = 4;

// The inputs of one chunk of a strip and what becomes of them, [R][W] each.
struct ScanTiles {
  float *u, *raw, *dt, *z, *y;  // raw: delta + bias

  static constexpr int64_t kFloats = 5 * R * W;
  void place(float* at) {
    float** const fields[] = {&u, &raw, &dt, &z, &y};
    for (float** field : fields) *field = at, at += R * W;
  }
  // Brings steps [at, at + rows) here.
  void load_inputs(const SelectiveScan& p, const Strip& s, int64_t at, int64_t rows) {
    load_tile(p.u, s, at, rows, u);
    load_tile(p.delta, s, at, rows, raw);
    if (p.z.data != nullptr) load_tile(p.z, s, at, rows, z);
    const vf bias = load_channels(p.delta_bias, s);
    for (int64_t t = 0; t < rows; t += kScanSteps) {
      const Side<kScanSteps> x = load_vectors<kScanSteps>(raw + t * W) + bias;
      store_vectors(raw + t * W, x);
      store_vectors(dt + t * W, p.softplus ? softplus(x) : x);
    }
  }
};

// Rows of B or C from step `at` on, or the constant vectors of the strip.
template <bool kConstant>
SEQKERN_INLINE const float* rows_at(const SelectiveScan& p, const Strip& s, const float* varying,
                                    const float* constant, int64_t at) {
  return kConstant ? constant : varying + ((s.i_b * p.G + s.i_g) * p.T + at) * p.N;
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
