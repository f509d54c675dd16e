// SPDX-License-Identifier: Apache-2.0
// linear_scan.h - the contract between the bindings and the kernels of the diagonal linear scan.
//
//   x_t = a_t x_{t-1} + b_t
#pragma once

#include <stdint.h>

#include "types.h"

namespace seqkern {

// Channels of one task: whole kilobytes of a row, for the memory's sake.
constexpr int64_t kLinearScanChannels = 1024;

struct LinearScan {
  int64_t batch = 0;
  int64_t T = 0;  // steps of each sequence, or of all of them when packed
  int64_t D = 0;  // floats of a row: a complex channel has two, side by side
  int64_t sequences = 0;
  const int64_t* cu_seqlens = nullptr;  // [sequences + 1], or null
  bool complex = false;
  View a, b, x;               // [batch][time][D]; the head stride is not used
  bool stream = false;        // x is float32, large, its rows aligned: written past the caches
  const float* h0 = nullptr;  // [sequences][D] dense, or null for zeros
};

struct LinearScanGrad {
  LinearScan in;  // the forward call with its result; b is not used
  View dx, da, db;
  bool stream = false;   // da and db, as the forward call's x
  float* dh0 = nullptr;  // [sequences][D] dense, or null if nobody asked
};

struct LinearScanKernels {
  // Channels [channel, channel + kLinearScanChannels) of one sequence.
  void (*forward)(const LinearScan&, int64_t i_n, int64_t channel);
  void (*backward)(const LinearScanGrad&, int64_t i_n, int64_t channel);
};

}  // namespace seqkern
