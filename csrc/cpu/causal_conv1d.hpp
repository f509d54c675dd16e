// SPDX-License-Identifier: Apache-2.0
// causal_conv1d.hpp - causal depthwise convolution along time: forward, backward, one step.
//
// Maths      z_t = bias + sum_i w_i h_{t-width+1+i},  y_t = act(z_t) + residual_t
//            dz_t = dy_t act'(z_t);  dw_i = sum_t dz_t h_{t-width+1+i};  dbias = sum_t dz_t
//            dx_t = sum_i w_i dz_{t+width-1-i} (within the sequence) + the final state's gradient
// Layout     x, y, dx: [time][D] with any time stride; vectors run over channels. The taps are
//            [width][padded D] float32, so that every load of a vector is contiguous.
// Precision  x, y and the states f32, bf16 or f16; taps and all sums f32. Every output adds its
//            terms oldest input first, whatever block it falls into.
// Cost       forward: each row read once from memory and width times from L1. backward: z again
//            for the rows of a block and the width - 1 after it; nothing is saved by the forward.
// Limits     1 <= width <= kConvMaxWidth; D, T, N any; offsets int64.
// Threads    none: the caller splits rows x channels. Sums over rows go to one buffer an item;
//            items depend on the shape alone, and reduce() adds them in their order.
#pragma once

#include "../include/seqkern/causal_conv1d.h"
#include "elements.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr int64_t kGroup = 4;  // rows that share one load of their common inputs

template <DType E>
SEQKERN_INLINE Element<E>* row_of(const View& v, int64_t i_b, int64_t t, int64_t channel) {
  return static_cast<Element<E>*>(v.data) + i_b * v.batch_stride + t * v.time_stride + channel;
}

// A sequence, and `count` channels of it from `channel` on.
struct ConvPart {
  int64_t i_n, i_b, start, length;  // start: row of its batch entry where the sequence begins
  int64_t channel, count, padded;
};

inline ConvPart conv_part(const CausalConv1d& p, int64_t i_n, int64_t channel, int64_t channels) {
  const int64_t count = smaller(channels, p.D - channel), padded = padded_channels(p.D);
  if (p.cu_seqlens == nullptr) return {i_n, i_n, 0, p.T, channel, count, padded};
  const int64_t start = p.cu_seqlens[i_n];
  return {i_n, 0, start, p.cu_seqlens[i_n + 1] - start, channel, count, padded};
}

// The sequence that holds `row`, counted over all of them; empty ones hold none.
inline int64_t sequence_at(const CausalConv1d& p, int64_t row) {
  if (p.cu_seqlens == nullptr) return row / p.T;
  int64_t low = 0, high = p.N;
  while (high - low > 1) {
    const int64_t mid = (low + high) / 2;
    if (p.cu_seqlens[mid] <= row)
      low = mid;
    else
      high = mid;
  }
  return low;
}

// The inputs of a part by their time, those before the sequence included.
template <DType E>
struct ConvHistory {
  const Element<E>* first;  // time 0
  int64_t stride;
  const Element<E>* before;  // [width - 1][channels], time -(width - 1) first
  int64_t before_stride, width;

  const Element<E>* at(int64_t t) const {
    return t >= 0 ? first + t * stride : before + (t + width - 1) * before_stride;
  }
};

// `before` has room for (width - 1) rows of `before_stride` elements; it is filled only if a row
// from `from` on looks that far back.
template <DType E>
inline ConvHistory<E> conv_history(const CausalConv1d& p, const ConvPart& s, int64_t from,
                                   Element<E>* before, int64_t before_stride) {
  if (from < p.width - 1) {
    memset(before, 0, (p.width - 1) * before_stride * sizeof(Element<E>));
    if (p.initial_state != nullptr) {
      const Element<E>* state =
          static_cast<const Element<E>*>(p.initial_state) + (s.i_n * p.D + s.channel) * p.width;
      for (int64_t c = 0; c < s.count; ++c)
        for (int64_t i = 1; i < p.width; ++i)
          before[(i - 1) * before_stride + c] = state[c * p.width + i];
    }
  }
  return {row_of<E>(p.x, s.i_b, s.start, s.channel), p.x.time_stride, before, before_stride,
          p.width};
}

// z of one row, one vector of channels from c on.
template <DType E>
SEQKERN_INLINE vf conv_at(const CausalConv1d& p, const ConvPart& s, const ConvHistory<E>& h,
                          int64_t t, int64_t c) {
  const float* taps = p.taps + s.channel + c;
  vf z = load(taps + p.width * s.padded);
  for (int64_t i = 0; i < p.width; ++i)
    z = fma(load(taps + i * s.padded), load_left<E>(h.at(t - p.width + 1 + i), c, s.count - c), z);
  return z;
}

// z of kGroup rows from t on; leaves their inputs, oldest first, in `x`.
template <DType E, int K>
SEQKERN_INLINE void conv_group_at(const CausalConv1d& p, const ConvPart& s,
                                  const Element<E>* const (&rows)[kGroup + K - 1], int64_t c,
                                  vf (&x)[kGroup + K - 1], vf (&z)[kGroup]) {
  const float* taps = p.taps + s.channel + c;
  const int64_t left = s.count - c;
#pragma GCC unroll 8
  for (int i = 0; i < kGroup + K - 1; ++i) x[i] = load_left<E>(rows[i], c, left);
  const vf bias = load(taps + K * s.padded);
#pragma GCC unroll 8
  for (int r = 0; r < kGroup; ++r) z[r] = bias;
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    const vf w = load(taps + i * s.padded);
#pragma GCC unroll 8
    for (int r = 0; r < kGroup; ++r) z[r] = fma(w, x[r + i], z[r]);
  }
}

template <DType E, int K>
SEQKERN_INLINE void group_rows(const ConvHistory<E>& h, int64_t t,
                               const Element<E>* (&rows)[kGroup + K - 1]) {
  for (int i = 0; i < kGroup + K - 1; ++i) rows[i] = h.at(t - K + 1 + i);
}

template <DType E>
SEQKERN_INLINE void conv_finish(const CausalConv1d& p, const ConvPart& s, int64_t t, int64_t c,
                                vf z) {
  const int64_t left = s.count - c, row = s.start + t;
  if (p.silu) z = z * sigmoid(z);
  if (p.residual.data != nullptr)
    z = z + load_left<E>(row_of<E>(p.residual, s.i_b, row, s.channel), c, left);
  store_left<E>(row_of<E>(p.y, s.i_b, row, s.channel), c, left, z);
}

// Rows [t, end) of a part, K = width known to the compiler; returns where it stopped.
template <DType E, int K>
inline int64_t conv_forward_groups(const CausalConv1d& p, const ConvPart& s,
                                   const ConvHistory<E>& h, int64_t t, int64_t end) {
  for (; t + kGroup <= end; t += kGroup) {
    const Element<E>* rows[kGroup + K - 1];
    group_rows<E, K>(h, t, rows);
    for (int64_t c = 0; c < s.count; c += W) {
      vf x[kGroup + K - 1], z[kGroup];
      conv_group_at<E, K>(p, s, rows, c, x, z);
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) conv_finish<E>(p, s, t + r, c, z[r]);
    }
  }
  return t;
}

template <DType E>
inline void conv_forward_part(const CausalConv1d& p, const ConvPart& s, int64_t t, int64_t end) {
  Element<E> before[(kConvMaxWidth - 1) * kConvForwardChannels];
  const ConvHistory<E> h = conv_history<E>(p, s, t, before, kConvForwardChannels);
  if (p.width == 4) t = conv_forward_groups<E, 4>(p, s, h, t, end);
  if (p.width == 3) t = conv_forward_groups<E, 3>(p, s, h, t, end);
  if (p.width == 2) t = conv_forward_groups<E, 2>(p, s, h, t, end);
  for (; t < end; ++t)
    for (int64_t c = 0; c < s.count; c += W) conv_finish<E>(p, s, t, c, conv_at<E>(p, s, h, t, c));
}

template <DType E>
inline void conv_forward(const CausalConv1d& p, int64_t row, int64_t channel) {
  const int64_t rows = p.cu_seqlens == nullptr ? p.N * p.T : p.T;
  const int64_t end = smaller(row + kConvRows, rows);
  while (row < end) {
    const ConvPart s = conv_part(p, sequence_at(p, row), channel, kConvForwardChannels);
    const int64_t t = row - s.start - s.i_b * p.T;
    const int64_t stop = smaller(t + end - row, s.length);
    conv_forward_part<E>(p, s, t, stop);
    row += stop - t;
  }
}

// The last `width` of (initial state, x), time last.
template <DType E>
inline void conv_final_state(const CausalConv1d& p, int64_t i_n) {
  const ConvPart s = conv_part(p, i_n, 0, p.D);
  const int64_t width = p.width;
  Element<E>* out = static_cast<Element<E>*>(p.final_state) + i_n * p.D * width;
  const Element<E>* state = static_cast<const Element<E>*>(p.initial_state);
  for (int64_t i = 0; i < width; ++i) {
    const int64_t t = s.length - width + i;
    if (t >= 0) {
      const Element<E>* x = row_of<E>(p.x, s.i_b, s.start + t, 0);
      for (int64_t d = 0; d < p.D; ++d) out[d * width + i] = x[d];
    } else {
      for (int64_t d = 0; d < p.D; ++d)
        out[d * width + i] =
            state == nullptr ? Element<E>{} : state[(i_n * p.D + d) * width + t + width];
    }
  }
}

SEQKERN_INLINE vf silu_backward(vf dy, vf z) {
  const vf s = sigmoid(z);
  return dy * s * fma(z, 1.0f - s, splat(1.0f));
}

constexpr int64_t kMaxDzRows = kConvRows + kConvMaxWidth - 1;

// What backward keeps of one block of rows: dz of the block and of the rows after it that still
// see its inputs, and the block's sums for the taps and the bias.
struct ConvBlock {
  float dz[kMaxDzRows][kConvBackwardChannels];
  float sums[kConvMaxWidth + 1][kConvBackwardChannels];
};

// dz of row t; rows of the block itself also enter the sums.
template <DType E>
inline void conv_dz_row(const CausalConv1dGrad& g, const ConvPart& s, const ConvHistory<E>& h,
                        int64_t t, float* dz, bool counts, ConvBlock& block) {
  const CausalConv1d& p = g.in;
  const Element<E>* dy = row_of<E>(g.dy, s.i_b, s.start + t, s.channel);
  for (int64_t c = 0; c < s.count; c += W) {
    vf d = load_left<E>(dy, c, s.count - c);
    if (p.silu) d = silu_backward(d, conv_at<E>(p, s, h, t, c));
    store(dz + c, d);
    if (!counts) continue;
    for (int64_t i = 0; i < p.width; ++i) {
      float* sum = block.sums[i] + c;
      const vf x = load_left<E>(h.at(t - p.width + 1 + i), c, s.count - c);
      store(sum, fma(d, x, load(sum)));
    }
    float* sum = block.sums[p.width] + c;
    store(sum, load(sum) + d);
  }
}

// The same for kGroup rows of the block at a time; returns where it stopped.
template <DType E, int K>
inline int64_t conv_dz_groups(const CausalConv1dGrad& g, const ConvPart& s, const ConvHistory<E>& h,
                              int64_t begin, int64_t end, ConvBlock& block) {
  int64_t t = begin;
  for (; t + kGroup <= end; t += kGroup) {
    const Element<E>* rows[kGroup + K - 1];
    group_rows<E, K>(h, t, rows);
    for (int64_t c = 0; c < s.count; c += W) {
      vf x[kGroup + K - 1], z[kGroup], sum[K + 1];
      conv_group_at<E, K>(g.in, s, rows, c, x, z);
#pragma GCC unroll 8
      for (int i = 0; i <= K; ++i) sum[i] = load(block.sums[i] + c);
#pragma GCC unroll 8
      for (int r = 0; r < kGroup; ++r) {
        const Element<E>* dy = row_of<E>(g.dy, s.i_b, s.start + t + r, s.channel);
        vf d = load_left<E>(dy, c, s.count - c);
        if (g.in.silu) d = silu_backward(d, z[r]);
        store(block.dz[t + r - begin] + c, d);
#pragma GCC unroll 8
        for (int i = 0; i < K; ++i) sum[i] = fma(d, x[r + i], sum[i]);
        sum[K] = sum[K] + d;
      }
#pragma GCC unroll 8
      for (int i = 0; i <= K; ++i) store(block.sums[i] + c, sum[i]);
    }
  }
  return t;
}

// dx of the rows [begin, end): the gradients of the rows that saw them, oldest first.
template <DType E>
inline void conv_dx(const CausalConv1dGrad& g, const ConvPart& s, int64_t begin, int64_t end,
                    const ConvBlock& block) {
  const int64_t width = g.in.width, first_kept = s.length - width;
  const Element<E>* dstate = static_cast<const Element<E>*>(g.dfinal_state);
  for (int64_t t = begin; t < end; ++t) {
    Element<E>* dx = row_of<E>(g.dx, s.i_b, s.start + t, s.channel);
    const int64_t seen = smaller(width, s.length - t);
    for (int64_t c = 0; c < s.count; c += W) {
      const float* taps = g.in.taps + s.channel + c;
      vf d = vf{};
      for (int64_t lag = 0; lag < seen; ++lag)
        d = fma(load(taps + (width - 1 - lag) * s.padded), load(block.dz[t - begin + lag] + c), d);
      if (dstate != nullptr && t >= first_kept)
        d = d + gather<E>(dstate, (s.i_n * g.in.D + s.channel + c) * width + t - first_kept, width,
                          smaller(W, s.count - c));
      store_left<E>(dx, c, s.count - c, d);
    }
  }
}

template <DType E>
inline void conv_backward_part(const CausalConv1dGrad& g, const ConvPart& s, int64_t begin,
                               int64_t end, ConvBlock& block) {
  const int64_t width = g.in.width;
  Element<E> before[(kConvMaxWidth - 1) * kConvBackwardChannels];
  const ConvHistory<E> h = conv_history<E>(g.in, s, begin, before, kConvBackwardChannels);
  int64_t t = begin;
  if (width == 4) t = conv_dz_groups<E, 4>(g, s, h, begin, end, block);
  if (width == 3) t = conv_dz_groups<E, 3>(g, s, h, begin, end, block);
  if (width == 2) t = conv_dz_groups<E, 2>(g, s, h, begin, end, block);
  const int64_t seen = smaller(end + width - 1, s.length);
  for (; t < seen; ++t) conv_dz_row<E>(g, s, h, t, block.dz[t - begin], t < end, block);
  conv_dx<E>(g, s, begin, end, block);
}

// Adds the sums of one block to those of its item and clears them.
inline void flush_sums(const CausalConv1dGrad& g, int64_t channel, int64_t count, float* partial,
                       ConvBlock& block) {
  const int64_t padded = padded_channels(g.in.D);
  for (int64_t i = 0; i <= g.in.width; ++i) {
    float* sum = block.sums[i];
    for (int64_t c = 0; c < count; c += W) {
      float* to = partial + i * padded + channel + c;
      store(to, load(to) + load(sum + c));
      store(sum + c, vf{});
    }
  }
}

template <DType E>
inline void conv_backward(const CausalConv1dGrad& g, int64_t item, int64_t channel) {
  const CausalConv1d& p = g.in;
  const int64_t rows = p.cu_seqlens == nullptr ? p.N * p.T : p.T;
  const int64_t padded = padded_channels(p.D);
  const int64_t count = smaller(kConvBackwardChannels, p.D - channel);
  float* partial = g.partial + item * (p.width + 1) * padded;
  ConvBlock block;
  memset(block.sums, 0, sizeof block.sums);
  for (int64_t i = 0; i <= p.width; ++i)
    for (int64_t c = 0; c < count; c += W) store(partial + i * padded + channel + c, vf{});
  int64_t row = item * g.rows_per_item;
  const int64_t end = smaller(row + g.rows_per_item, rows);
  while (row < end) {
    const int64_t block_end = smaller(row + kConvRows, end);
    while (row < block_end) {
      const ConvPart s = conv_part(p, sequence_at(p, row), channel, kConvBackwardChannels);
      const int64_t t = row - s.start - s.i_b * p.T;
      const int64_t stop = smaller(t + block_end - row, s.length);
      conv_backward_part<E>(g, s, t, stop, block);
      row += stop - t;
    }
    flush_sums(g, channel, count, partial, block);
  }
}

// dh_i = sum_{t < i} w_{i-1-t} dz_t, and what the final state of a short sequence still holds of
// it.
template <DType E>
inline void conv_backward_state(const CausalConv1dGrad& g, int64_t i_n) {
  const CausalConv1d& p = g.in;
  const int64_t width = p.width;
  const Element<E>* dstate = static_cast<const Element<E>*>(g.dfinal_state);
  ConvBlock block;
  for (int64_t channel = 0; channel < p.D; channel += kConvBackwardChannels) {
    const ConvPart s = conv_part(p, i_n, channel, kConvBackwardChannels);
    Element<E> before[(kConvMaxWidth - 1) * kConvBackwardChannels];
    const ConvHistory<E> h = conv_history<E>(p, s, 0, before, kConvBackwardChannels);
    const int64_t rows = smaller(width - 1, s.length);
    for (int64_t t = 0; t < rows; ++t) conv_dz_row<E>(g, s, h, t, block.dz[t], false, block);
    for (int64_t i = 0; i < width; ++i)
      for (int64_t c = 0; c < s.count; c += W) {
        const float* taps = p.taps + channel + c;
        vf d = vf{};
        for (int64_t t = 0; t < smaller(i, rows); ++t)
          d = fma(load(taps + (i - 1 - t) * s.padded), load(block.dz[t] + c), d);
        const int64_t lanes = smaller(W, s.count - c);
        const int64_t at = (i_n * p.D + channel + c) * width + i;
        if (dstate != nullptr && i >= s.length)
          d = d + gather<E>(dstate, at - s.length, width, lanes);
        scatter<E>(static_cast<Element<E>*>(g.dinitial_state), at, width, lanes, d);
      }
  }
}

inline void conv_reduce(const CausalConv1dGrad& g, int64_t channel) {
  const int64_t width = g.in.width, padded = padded_channels(g.in.D);
  const int64_t end = smaller(channel + kConvBackwardChannels, g.in.D);
  for (int64_t c = channel; c < end; c += W)
    for (int64_t i = 0; i <= width; ++i) {
      vf total = vf{};
      for (int64_t item = 0; item < g.items; ++item)
        total = total + load(g.partial + (item * (width + 1) + i) * padded + c);
      const int64_t lanes = smaller(W, end - c);
      if (i == width) {
        if (g.dbias != nullptr) store_left<DType::kF32>(g.dbias, c, lanes, total);
      } else {
        for (int64_t l = 0; l < lanes; ++l) g.dweight[(c + l) * width + i] = total[l];
      }
    }
}

inline void conv_pack(const float* weight, const float* bias, int64_t D, int64_t width,
                      float* taps) {
  const int64_t padded = padded_channels(D);
  memset(taps, 0, (width + 1) * padded * sizeof(float));
  for (int64_t d = 0; d < D; ++d)
    for (int64_t i = 0; i < width; ++i) taps[i * padded + d] = weight[d * width + i];
  if (bias != nullptr) memcpy(taps + width * padded, bias, D * sizeof(float));
}

// z of channel d for the input x; moves its state on by one. K = width = state_width of a dense
// state, known to the compiler, or 0.
template <DType E, int K>
SEQKERN_INLINE float conv_step(const CausalConv1dUpdate& p, Element<E>* state, const Element<E>* x,
                               int64_t d) {
  const int64_t last = (K ? K : p.width) - 1, S = K ? K : p.state_width;
  const int64_t step = K ? 1 : p.state_w;
  const float* w = p.weight + d * (last + 1);
  float z = p.bias == nullptr ? 0.0f : p.bias[d];
#pragma GCC unroll 8
  for (int64_t i = 0; i < last; ++i)
    z = fma_one(w[i], load_one(E, state, (S - last + i) * step), z);
  z = fma_one(w[last], load_one(E, x, 0), z);
#pragma GCC unroll 8
  for (int64_t i = 0; i + 1 < S; ++i) state[i * step] = state[(i + 1) * step];
  if (S > 0) state[(S - 1) * step] = *x;
  return z;
}

template <DType E, int K>
inline void conv_update_as(const CausalConv1dUpdate& p, int64_t i_n) {
  constexpr int64_t kStep = 64;  // channels whose z waits for the vectors of the activation
  Element<E>* state = static_cast<Element<E>*>(p.state) + i_n * p.state_n;
  for (int64_t t = 0; t < p.T; ++t) {
    const Element<E>* x = row_of<E>(p.x, i_n, t, 0);
    const Element<E>* residual =
        p.residual.data == nullptr ? nullptr : row_of<E>(p.residual, i_n, t, 0);
    for (int64_t begin = 0; begin < p.D; begin += kStep) {
      const int64_t count = smaller(kStep, p.D - begin);
      float z[kStep] = {};
      for (int64_t c = 0; c < count; ++c)
        z[c] = conv_step<E, K>(p, state + (begin + c) * p.state_d,
                               x + (begin + c) * p.x.head_stride, begin + c);
      for (int64_t c = 0; c < count; c += W) {
        const int64_t lanes = smaller(W, count - c), stride = p.residual.head_stride;
        vf y = load(z + c);
        if (p.silu) y = y * sigmoid(y);
        if (residual != nullptr) y = y + gather<E>(residual, (begin + c) * stride, stride, lanes);
        store_left<E>(row_of<E>(p.y, i_n, t, begin), c, lanes, y);
      }
    }
  }
}

template <DType E>
inline void conv_update(const CausalConv1dUpdate& p, int64_t i_n) {
  const bool known = p.width == 4 && p.state_width == 4 && p.state_w == 1;
  return known ? conv_update_as<E, 4>(p, i_n) : conv_update_as<E, 0>(p, i_n);
}

inline void causal_conv1d_forward(const CausalConv1d& p, int64_t row, int64_t channel) {
  if (p.dtype == DType::kF32) return conv_forward<DType::kF32>(p, row, channel);
  if (p.dtype == DType::kBF16) return conv_forward<DType::kBF16>(p, row, channel);
  conv_forward<DType::kF16>(p, row, channel);
}

inline void causal_conv1d_final_state(const CausalConv1d& p, int64_t i_n) {
  if (p.dtype == DType::kF32) return conv_final_state<DType::kF32>(p, i_n);
  conv_final_state<DType::kBF16>(p, i_n);  // bits are copied: any 16-bit type is as good
}

inline void causal_conv1d_backward(const CausalConv1dGrad& g, int64_t item, int64_t channel) {
  if (g.in.dtype == DType::kF32) return conv_backward<DType::kF32>(g, item, channel);
  if (g.in.dtype == DType::kBF16) return conv_backward<DType::kBF16>(g, item, channel);
  conv_backward<DType::kF16>(g, item, channel);
}

inline void causal_conv1d_backward_state(const CausalConv1dGrad& g, int64_t i_n) {
  if (g.in.dtype == DType::kF32) return conv_backward_state<DType::kF32>(g, i_n);
  if (g.in.dtype == DType::kBF16) return conv_backward_state<DType::kBF16>(g, i_n);
  conv_backward_state<DType::kF16>(g, i_n);
}

inline void causal_conv1d_update(const CausalConv1dUpdate& p, int64_t i_n) {
  if (p.dtype == DType::kF32) return conv_update<DType::kF32>(p, i_n);
  if (p.dtype == DType::kBF16) return conv_update<DType::kBF16>(p, i_n);
  conv_update<DType::kF16>(p, i_n);
}

constexpr CausalConv1dKernels causal_conv1d_kernels = {&conv_pack,
                                                       &causal_conv1d_forward,
                                                       &causal_conv1d_final_state,
                                                       &causal_conv1d_backward,
                                                       &causal_conv1d_backward_state,
                                                       &conv_reduce,
                                                       &causal_conv1d_update};

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
