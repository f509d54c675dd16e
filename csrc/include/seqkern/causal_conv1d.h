// SPDX-License-Identifier: Apache-2.0
// causal_conv1d.h - the contract between the bindings and the kernels of the causal depthwise
// convolution.
//
//   z_t = bias + sum_i weight_i h_{t - width + 1 + i}      h: the initial state, then x
//   y_t = act(z_t) + residual_t
#pragma once

#include <stdint.h>

#include "types.h"

namespace seqkern {

constexpr int64_t kConvMaxWidth = 32;
constexpr int64_t kConvRows = 64;              // rows that one call of the kernels takes at least
constexpr int64_t kConvForwardChannels = 512;  // channels that one call takes at most
constexpr int64_t kConvBackwardChannels = 128;
constexpr int64_t kConvMaxItems = 64;  // the sum over all rows has at most so many parts

struct CausalConv1d {
  int64_t N = 0;  // sequences
  int64_t T = 0;  // rows of each sequence, or of all of them when packed
  int64_t D = 0;  // channels
  int64_t width = 0;
  bool silu = false;
  DType dtype = DType::kF32;            // of x, residual, y and the states
  const int64_t* cu_seqlens = nullptr;  // [N + 1], or null: every sequence has T rows
  View x, residual, y;                  // [batch][time][D]; the head stride is not used
  // [width][padded], then [padded] for the bias: what pack() wrote; padded = padded_channels(D).
  const float* taps = nullptr;
  const void* initial_state = nullptr;  // [N][D][width] dense, or null for zeros
  void* final_state = nullptr;          // [N][D][width] dense, or null if nobody asked
};

struct CausalConv1dGrad {
  CausalConv1d in;  // the forward call; residual, y and final_state are not used
  View dy, dx;
  const void* dfinal_state = nullptr;  // [N][D][width] dense, or null for zeros
  void* dinitial_state = nullptr;      // [N][D][width] dense, or null if nobody asked
  float* partial = nullptr;            // [items][width + 1][padded]: weight, then bias
  int64_t items = 0, rows_per_item = 0;
  float* dweight = nullptr;  // [D][width] dense
  float* dbias = nullptr;    // [D], or null
};

// One or a few tokens on top of a state that is updated in place.
struct CausalConv1dUpdate {
  int64_t N = 0, T = 0, D = 0, width = 0;
  int64_t state_width = 0;  // >= width - 1
  bool silu = false;
  DType dtype = DType::kF32;  // of x, residual, y and the state
  View x, residual, y;        // [N][T][D]: the head stride is the channel stride
  void* state = nullptr;      // [N][D][state_width], the latest input last
  int64_t state_n = 0, state_d = 0, state_w = 0;  // strides in elements
  const float* weight = nullptr;                  // [D][width] dense
  const float* bias = nullptr;                    // [D] or null
};

constexpr int64_t padded_channels(int64_t D) { return (D + 15) / 16 * 16; }

constexpr int64_t conv_blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

struct CausalConv1dKernels {
  // weight [D][width] dense and bias [D] or null -> taps.
  void (*pack)(const float* weight, const float* bias, int64_t D, int64_t width, float* taps);
  // Rows [row, row + kConvRows) of all sequences together, channels [channel, channel + 512).
  void (*forward)(const CausalConv1d&, int64_t row, int64_t channel);
  void (*final_state)(const CausalConv1d&, int64_t i_n);
  // Rows of one item, channels [channel, channel + 128): dx and the item's part of dweight, dbias.
  void (*backward)(const CausalConv1dGrad&, int64_t item, int64_t channel);
  void (*backward_state)(const CausalConv1dGrad&, int64_t i_n);
  void (*reduce)(const CausalConv1dGrad&, int64_t channel);
  void (*update)(const CausalConv1dUpdate&, int64_t i_n);
};

}  // namespace seqkern
