// SPDX-License-Identifier: Apache-2.0
// lssl_shared.cpp - finds out whether the features of a system share all but their time step.
//
// Maths      With F_0 of the first feature, F_h = dt_h F_0 gives dt_h, in units of dt_0. E is a
//            line in dt, through the features of the smallest and the largest dt: in between it is
//            as exact as these. All rows are then compared, in the scale of each.
// Cost       about 6 ns per feature and row.
#include <algorithm>
#include <cmath>

#include "../include/seqkern/lssl.h"

namespace seqkern {
namespace {

// Differences that count as rounding errors, relative to a row: far below those of f32.
constexpr double kRounding = 1e-10;

// How much larger than a row the two parts of its E may be: added up in f32 they lose digits.
constexpr double kCancelled = 8.0;

// One feature's matrix, and what it should be: constant + dt slope.
struct Compared {
  const double* matrix;  // [3][N], planes apart
  int64_t plane;
  const double *constant, *slope;  // [3][N]
  double dt;
  int64_t N;

  // How many of the rows [begin, end) differ, into which the diagonals [First, Last) reach.
  template <int First, int Last>
  int64_t differences(int64_t begin, int64_t end) const {
    int64_t count = 0;
    for (int64_t n = begin; n < end; ++n) {
      double size = 0.0, parts = 0.0, off = 0.0;
      for (int k = First; k < Last; ++k) {
        const double x = matrix[k * plane + n], c = constant[k * N + n], d = dt * slope[k * N + n];
        size += std::fabs(x);
        parts += std::fabs(c) + std::fabs(d);
        off += std::fabs(c + d - x);
      }
      // NaN counts.
      count += off * (1.0 / kRounding) + parts * (1.0 / kCancelled) <= size ? 0 : 1;
    }
    return count;
  }

  bool same() const {
    if (N == 1) return differences<1, 2>(0, 1) == 0;
    return differences<1, 3>(0, 1) + differences<0, 3>(1, N - 1) + differences<0, 2>(N - 1, N) == 0;
  }
};

}  // namespace

bool lssl_share(const LsslSystem& system, double* memory, LsslShared& shared) {
  const int64_t H = system.H, N = system.N, plane = H * N;
  if (H < 1) return false;
  double *constant = memory, *slope = constant + 3 * N, *F = slope + 3 * N, *zeros = F + 3 * N;
  double* const dt = zeros + 3 * N;
  std::fill(zeros, dt, 0.0);
  int64_t largest = plane;  // on the diagonal, where it is never outside
  for (int64_t n = 0; n < N; ++n) {
    for (int k = 0; k < 3; ++k) F[k * N + n] = system.F[k * plane + n];
    if (std::fabs(system.F[plane + n]) > std::fabs(system.F[largest])) largest = plane + n;
  }
  int64_t least = 0, most = 0;
  for (int64_t h = 0; h < H; ++h) {
    dt[h] = system.F[largest + h * N] / system.F[largest];
    if (!(dt[h] > 0.0 && std::isfinite(dt[h]))) return false;
    if (dt[h] < dt[least]) least = h;
    if (dt[h] > dt[most]) most = h;
  }
  for (int64_t n = 0; n < N; ++n)
    for (int k = 0; k < 3; ++k) {
      const double *E = system.E + k * plane + n, low = E[least * N], high = E[most * N];
      const double step = dt[most] - dt[least], rise = step > 0.0 ? (high - low) / step : 0.0;
      slope[k * N + n] = rise;
      constant[k * N + n] = low - dt[least] * rise;
    }
  for (int64_t h = 0; h < H; ++h) {
    if (!Compared{system.F + h * N, plane, zeros, F, dt[h], N}.same()) return false;
    if (!Compared{system.E + h * N, plane, constant, slope, dt[h], N}.same()) return false;
    int64_t differences = 0;
    for (int64_t n = 0; n < N; ++n) {
      const double in = system.g[h * N + n];
      differences += !(std::fabs(dt[h] * system.g[n] - in) <= kRounding * std::fabs(in));
    }
    if (differences > 0) return false;
  }
  shared = {constant, slope, F, system.g, dt};
  return true;
}

}  // namespace seqkern
