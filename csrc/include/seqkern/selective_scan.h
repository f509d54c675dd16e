// SPDX-License-Identifier: Apache-2.0
// selective_scan.h - the contract between the bindings and the kernels of the selective scan.
//
//   dt_t = act(delta_t + delta_bias)                   act: softplus, or nothing
//   a_t  = exp(dt_t A)          or, with negative eigenvalues,  a_t = 2 exp(dt_t A) - 1
//   h_t  = a_t h_{t-1} + dt_t u_t B_t                   h: [D, N], every product by element
//   y_t  = sum_N C_t h_t + skip u_t
//   out_t = y_t silu(z_t)                               with z; else out_t = y_t
#pragma once

#include <stdint.h>

#include "types.h"

namespace seqkern {

constexpr int64_t kScanRows = 32;      // time steps of one chunk: the states at its start are saved
constexpr int64_t kScanChannels = 64;  // channels of one task; the partial sums follow from it
constexpr int64_t kScanLanes = 16;     // channels that lie side by side in a checkpoint

// A [batch, channel, time] tensor, strides in elements. data == nullptr: the tensor is absent.
struct ScanView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t batch_stride = 0, channel_stride = 0, time_stride = 0;
};

struct SelectiveScan {
  int64_t batch = 0;
  int64_t T = 0;                        // steps of each sequence, or of all of them when packed
  int64_t D = 0, N = 0;                 // channels, states per channel
  int64_t G = 1;                        // groups of channels that share B and C; divides D
  int64_t sequences = 0;                // batch, or as many as are packed
  const int64_t* cu_seqlens = nullptr;  // [sequences + 1], or null
  bool softplus = false, negative = false;
  bool constant_b = false, constant_c = false;
  ScanView u, delta, z, out;
  const float* A = nullptr;           // [D][N] dense
  const float* B = nullptr;           // [batch][G][T][N] dense, or [D][N] when constant
  const float* C = nullptr;           // the same
  const float* skip = nullptr;        // [D] or null
  const float* delta_bias = nullptr;  // [D] or null
  const float* h0 = nullptr;          // [sequences][D][N] dense, or null for zeros
  float* ht = nullptr;                // [sequences][D][N] dense, or null if nobody asked
  // h at every kScanRows-th step of a sequence but its first, [batch][slots][lane blocks][N][16],
  // slots = T / kScanRows; null at inference.
  float* checkpoints = nullptr;
};

struct SelectiveScanGrad {
  SelectiveScan in;  // the forward call; out and ht are not used
  ScanView dout, du, ddelta, dz;
  const float* dht = nullptr;  // [sequences][D][N] dense, or null for zeros
  float* dh0 = nullptr;        // [sequences][D][N] dense, or null if nobody asked
  // Sums over time, one for every batch entry; the caller adds them up.
  float* dA = nullptr;           // [batch][D][N]
  float* dskip = nullptr;        // [batch][D], or null
  float* ddelta_bias = nullptr;  // [batch][D], or null
  // Constant: [batch][D][N]. Else sums over the channels of a task,
  // [batch][G][tasks of a group][T][N].
  float *dB = nullptr, *dC = nullptr;
};

// One step of every channel of one batch entry, on a state that is updated in place.
struct SelectiveScanStep {
  int64_t D = 0, N = 0, G = 1;
  bool softplus = false, negative = false;
  ScanView u, delta, z, out;               // [batch, channel]: the time stride is not used
  const float* A = nullptr;                // [D][N] dense
  const float *B = nullptr, *C = nullptr;  // [batch][G][N] dense, or [D][N] when constant
  bool constant_b = false, constant_c = false;
  const float* skip = nullptr;
  const float* delta_bias = nullptr;
  float* state = nullptr;  // [batch][D][N] dense
};

constexpr int64_t scan_blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }
constexpr int64_t scan_lane_blocks(const SelectiveScan& p) {
  return p.G * scan_blocks(p.G > 0 ? p.D / p.G : 0, kScanLanes);
}
// Tasks of one group of channels.
constexpr int64_t scan_parts(const SelectiveScan& p) {
  return p.G > 0 ? scan_blocks(p.D / p.G, kScanChannels) : 0;
}

struct SelectiveScanKernels {
  // Task i of batch * G * scan_parts; `workspace` is 64-byte aligned and holds *_workspace() bytes.
  void (*forward)(const SelectiveScan&, int64_t i, void* workspace);
  int64_t (*forward_workspace)(const SelectiveScan&);
  void (*backward)(const SelectiveScanGrad&, int64_t i, void* workspace);
  int64_t (*backward_workspace)(const SelectiveScan&);
  void (*step)(const SelectiveScanStep&, int64_t i_b, int64_t channel, int64_t count);
};

}  // namespace seqkern
