// SPDX-License-Identifier: Apache-2.0
// rnn.h - the contract between the bindings and the kernels of the recurrent cells.
//
//   y_t = R h_{t-1}                      head-wise: R is [D_out, D_in] per recurrent gate and head
//   a_t = x_t + y_t + b                  one per bias gate
//   s_t = cell(a_t, s_{t-1})             s: the states, s[0] = h
//
// The gates of a cell form one list: the first `recurrent` of them have a product with R, the last
// `input` of them a part of Wx.
#pragma once

#include <stdint.h>

#include "types.h"

namespace seqkern {

enum class Cell : int32_t { kElman = 0, kElmanRelu = 1, kLstm = 2, kGru = 3, kSlstm = 4, kMgu = 5 };
constexpr int kCells = 6;

constexpr int kRnnMaxRows = 64;  // sequences that advance together at most
constexpr int kRnnMaxStates = 4;
constexpr int kRnnMaxGates = 5;

struct CellShape {
  int states, recurrent, input, bias;
  int saved;  // gates that the backward pass wants to find again, beside the states after h
};

// [batch][time][gate or state][head][D], the last dimension contiguous; null: absent.
struct RnnView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t batch_stride = 0, time_stride = 0, part_stride = 0, head_stride = 0;
};

struct Rnn {
  Cell cell = Cell::kLstm;
  int64_t B = 0, T = 0;                 // of Wx; packed sequences share one batch row
  int64_t N = 0;                        // sequences
  int64_t H = 0, D = 0;                 // heads and their width
  bool reverse = false;                 // every sequence from its last step to its first
  const int64_t* cu_seqlens = nullptr;  // [N + 1], or null: N = B, all of T steps
  const int64_t* order = nullptr;       // [N] sequences, the longest first; null: as they come
  const uint8_t* reset = nullptr;       // [B][T] dense: states are 0 before this step; or null
  float forward_clip = 0.0f;            // h is cut to [-clip, clip]; 0: not at all
  RnnView Wx;
  const float* bias = nullptr;  // [bias gates][H][D] dense, or null
  const float* s0 = nullptr;    // [states][N][H][D] dense, or null for zeros
  float* last = nullptr;        // the same, written
  RnnView out;                  // states of every step, the first `out_states` of them
  int out_states = 0;
  float* saved = nullptr;   // [H][T][B][saved_width], or null at inference
  bool half_gates = false;  // gates are saved as float16
  bool bf16_dot = false;    // products with R read bfloat16 pairs; packed for it
  // Large tensors of float32, all rows of units aligned to 64 bytes: written past the caches.
  bool stream_out = false, stream_saved = false;
  const void* packed = nullptr;  // R as pack() wrote it, one head after the other
};

struct RnnGrad {
  Rnn in;             // the forward call; `bias` and `last` are not read, `out` has at least h
  bool cut = false;   // nothing flows back through R h (R itself has its gradient)
  float clip = 0.0f;  // the gradient handed to the step before is cut to [-clip, clip] in h; 0: not
  RnnView dout;       // gradient of `out`, or absent
  int dout_states = 0;
  const float* dlast = nullptr;  // [states][N][H][D] dense, or null for zeros
  RnnView dWx;                   // written
  bool stream_dWx = false;       // as stream_out
  float* ds0 = nullptr;          // [states][N][H][D] dense, written
};

// What one group of sequences adds to the gradients of R and b of one head.
struct RnnSums {
  float* dR = nullptr;  // [recurrent gates][padded D][padded D]; what pads is undefined
  float* db = nullptr;  // [bias gates][padded D]
};

// Threads that share the units of one head. All of them run the same steps and meet at barriers;
// this one stands for `weight` of the `parts`, from `part` on.
struct RnnTeam {
  int part = 0, weight = 1, parts = 1;
  int* arrived = nullptr;   // kRnnBarrier counters, zero at first
  float* shared = nullptr;  // 64-byte aligned
};
constexpr int kRnnBarrier = 32;

// R as it comes: [gate][head][D_out][D_in], the last dimension contiguous.
struct RnnMatrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t gate_stride = 0, head_stride = 0, row_stride = 0;
};

// One step without gradients: products straight from R.
struct RnnStep {
  Cell cell = Cell::kLstm;
  int64_t B = 0, H = 0, D = 0;
  int64_t first = 0;  // gate g of the cell is gate (g + first) % recurrent of R
  float forward_clip = 0.0f;
  RnnView Wx;  // no time
  RnnMatrix R;
  const float* bias = nullptr;
  const float* s = nullptr;  // [states][B][H][D] dense
  float* out = nullptr;      // the same, written
};

constexpr int64_t rnn_padded(int64_t D) { return (D + 15) / 16 * 16; }

constexpr CellShape kCellShapes[kCells] = {{1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}, {2, 4, 4, 4, 4},
                                           {1, 3, 3, 4, 4}, {4, 4, 4, 4, 5}, {1, 2, 2, 3, 3}};
constexpr CellShape cell_shape(Cell c) { return kCellShapes[static_cast<int>(c)]; }

// Floats of one token and head in `saved`.
constexpr int64_t rnn_saved_width(Cell cell, int64_t D, bool half_gates) {
  const CellShape s = cell_shape(cell);
  return rnn_padded(D) / (half_gates ? 2 : 1) * s.saved + rnn_padded(D) * (s.states - 1);
}

struct RnnKernels {
  bool has_bf16_dot;
  // Bytes of one head's packed R.
  int64_t (*packed_bytes)(Cell, int64_t D, bool bf16_dot);
  // Packs one gate of one head for the forward pass (R h) or the backward pass (R^T da).
  void (*pack)(const RnnMatrix&, Cell, int64_t D, int64_t i_h, int64_t i_g, bool transposed,
               bool bf16_dot, void* head);
  // How many parts one head's units can be split into.
  int64_t (*most_parts)(int64_t D);
  // Floats that a team shares.
  int64_t (*forward_shared)(const Rnn&, int64_t rows);
  int64_t (*backward_shared)(const Rnn&, int64_t rows);
  // One head of the sequences [begin, end) of p.order, at most kRnnMaxRows, all steps.
  void (*forward)(const Rnn&, int64_t i_h, int64_t begin, int64_t end, const RnnTeam&);
  // `add`: onto what `sums` holds; else they are written.
  void (*backward)(const RnnGrad&, int64_t i_h, int64_t begin, int64_t end, const RnnTeam&,
                   const RnnSums& sums, bool add);
  // Units [unit, unit + kRnnStepUnits) of one head, all sequences.
  void (*step)(const RnnStep&, int64_t i_h, int64_t unit);
  // out[i] = sigmoid, tanh or log of the sigmoid (kind 0, 1, 2) of x[i].
  void (*activate)(int kind, const float* x, float* out, int64_t count);
};

constexpr int64_t kRnnStepUnits = 64;

}  // namespace seqkern
