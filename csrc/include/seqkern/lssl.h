// SPDX-License-Identifier: Apache-2.0
// lssl.h - the contract between the bindings and the kernels of the linear state-space layer.
//
// One system per feature, given by two tridiagonal matrices E and F, a vector g, a readout C and a
// pass-through D:
//
//   E d_t = F x_{t-1} + g u_t;   x_t = x_{t-1} + d_t;   y_t = C x_t + D u_t
//
// Every structured discretisation takes this form (seqkern/ops/_lssl_system.py derives it), and the
// step d, not the next state, is what is solved for: its rounding errors are as small as the step.
#pragma once

#include <stdint.h>

namespace seqkern {

constexpr int64_t kLsslBlock = 16;    // features that are convolved by one task
constexpr int64_t kLsslMaxParts = 8;  // parameter gradients are summed in at most so many parts

// Features that share a block of checkpoints.
inline int64_t lssl_checkpoint_block(int64_t H) { return H > 16 ? 32 : 16; }

// What features share that differ in their time step alone: E = constant + dt slope, F = dt F,
// g = dt g. The unit of dt does not matter.
struct LsslShared {
  const double* constant = nullptr;  // [3][N]
  const double* slope = nullptr;     // [3][N]
  const double* F = nullptr;         // [3][N]
  const double* g = nullptr;         // [N]
  const double* dt = nullptr;        // [H], none of them 0
};

struct LsslSystem {
  int64_t H = 0, N = 0, M = 0;  // features, order, channels
  bool lower = false;           // E and F are known to have nothing above the diagonal
  bool f64 = false;             // element type of everything that is a void*
  const double* E = nullptr;    // [3][H][N]: below, on and above the diagonal; E[0][h][0] and
  const double* F = nullptr;    //   E[2][h][N - 1] are read as 0; F likewise
  const double* g = nullptr;    // [H][N]. Where all three are null, `shared` stands for them.
  const void* C = nullptr;      // [H][M][N]
  const void* D = nullptr;      // [H][M], or null
  const LsslShared* shared = nullptr;  // the same once more, or null
  bool compact = false;                // read coefficients from `shared` at every step; f32 only
};

// Whether the features of a system differ in their time step alone, up to rounding errors of f64.
// If so, `shared` points into `memory`, which holds lssl_share_memory() numbers, and `system`.
bool lssl_share(const LsslSystem& system, double* memory, LsslShared& shared);
inline int64_t lssl_share_memory(const LsslSystem& system) { return 12 * system.N + system.H; }

struct LsslScan {
  LsslSystem system;
  int64_t B = 0, L = 0;
  const void* u = nullptr;  // [B][L][H], features contiguous; null: the impulse 1, 0, 0, ...
  int64_t u_batch = 0, u_time = 0;
  const void* x0 = nullptr;  // [B][H][N], or null for zeros
  void* y = nullptr;         // [B][L][M][H]
  // Write y past the caches, where a task writes whole lines: its rows begin at lines.
  bool stream_output = false;
  void* xt = nullptr;  // [B][H][N], or null
  // The state before every `segment` steps, [B][segments][blocks][N][lssl_checkpoint_block], or
  // null.
  void* checkpoints = nullptr;
  int64_t segment = 0;
  bool stream = false;  // write checkpoints past the caches; they begin at a cache line
};

// Which of dE, dF and dg are wanted: none; all but the entries above the diagonals of E and F,
// where those are zero and stay so; all.
enum class LsslWanted : int32_t { kNone = 0, kLower = 1, kAll = 2 };

struct LsslGrad {
  LsslScan scan;             // y, xt: not read
  const void* dy = nullptr;  // [B][L][M][H], features contiguous
  int64_t dy_batch = 0, dy_time = 0, dy_channel = 0;
  const void* dxt = nullptr;  // [B][H][N], or null
  LsslWanted wanted = LsslWanted::kNone;
  void* du = nullptr;   // [B][L][H], or null
  void* dx0 = nullptr;  // [B][H][N], or null
  // Written by the parts of the batch, part by part:
  double* dE = nullptr;  // [parts][3][H][N]
  double* dF = nullptr;  // [parts][3][H][N]
  double* dg = nullptr;  // [parts][H][N]
  double* dC = nullptr;  // [parts][H][M][N]
  double* dD = nullptr;  // [parts][H][M], or null
  int64_t parts = 1;
};

// A complex Fourier transform of n = radix rest elements; see cpu/lssl_fft.hpp.
struct LsslSpectrum {
  int64_t radix = 0, rest = 0;   // 3 or 4; a power of 2, >= 4
  const void* first = nullptr;   // [rest][2][radix - 1] twiddle factors of the first pass
  const void* passes = nullptr;  // [m / 4][3] for m = rest, rest / 4, ... > 8
};

// The smallest transform that convolves L elements without wrapping round. Its twiddle factors,
// f32 or f64, are computed at the first call of a size and never freed.
LsslSpectrum lssl_spectrum(int64_t L, bool f64);

// y_m = (K_m + D_m delta) * u for t < L, or its gradients.
struct LsslConvolution {
  int64_t B = 0, L = 0, H = 0, M = 0;
  bool f64 = false;
  LsslSpectrum spectrum;
  const void* u = nullptr;  // [B][L][H], features contiguous
  int64_t u_batch = 0, u_time = 0;
  const void* K = nullptr;   // [L][M][H]
  const void* D = nullptr;   // [H][M], or null
  void* y = nullptr;         // [B][L][M][H]
  const void* dy = nullptr;  // [B][L][M][H], features contiguous
  int64_t dy_batch = 0, dy_time = 0, dy_channel = 0;
  void* du = nullptr;  // [B][L][H], or null
  // Written by the parts of the batch, part by part; dD is dK at t = 0.
  void* dK = nullptr;  // [parts][L][M][H], or null
  int64_t parts = 1;
};

struct LsslKernels {
  int64_t (*forward_tasks)(const LsslScan&);
  // Groups of features; a backward task is (part, group).
  int64_t (*groups)(const LsslSystem&);
  // Whether a system of such a shape had better be compact, if its features share coefficients.
  bool (*shares)(const LsslScan&);
  int64_t (*forward_workspace)(const LsslScan&);
  int64_t (*backward_workspace)(const LsslGrad&);
  // Returns how much elimination without row exchanges magnifies rounding errors (about 1 for a
  // well-behaved E; infinite when a pivot vanishes).
  double (*forward)(const LsslScan&, int64_t task, void* workspace);
  void (*backward)(const LsslGrad&, int64_t task, void* workspace);
  // A task is (part of the batch, kLsslBlock features).
  int64_t (*convolution_workspace)(const LsslConvolution&);
  void (*convolve)(const LsslConvolution&, int64_t task, void* workspace);
  void (*convolve_back)(const LsslConvolution&, int64_t task, void* workspace);
};

}  // namespace seqkern
