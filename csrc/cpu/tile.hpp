// SPDX-License-Identifier: Apache-2.0
// tile.hpp - the register tiles that all matrix products of the kernels are made of.
//
//   acc[m][j] += sum_k A[k][m] B[k][j W ...]
//
// A is read one float at a time and broadcast, B a vector at a time. A lies with m contiguous, so
// that all its addresses in one step of k differ by constants; or with k contiguous and a constant
// distance between its rows.
// A chunk has kChunk = 16 tokens, and everything is padded with zeros to whole tiles.
#pragma once

#include "../include/seqkern/linear_attention.h"
#include "simd.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr int C = kChunk;
constexpr int NR = 2;                // vectors across a panel
constexpr int PW = NR * W;           // floats across a panel
constexpr int NC = C / W;            // vectors that hold one value per token of a chunk
constexpr int MR = W == 16 ? 8 : 4;  // rows of a tile over a panel
constexpr int MT = W == 16 ? 16 : (W == 8 ? 4 : 2);  // rows of a tile over the tokens

SEQKERN_INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Widths are padded to whole panels and whole chunks.
SEQKERN_INLINE int64_t padded_width(int64_t x) { return round_up(x, PW > C ? PW : C); }

// Arrays of a workspace follow one another a cache line apart: their rows are powers of two long,
// and without the gap the same row of every array would fall into the same cache sets.
SEQKERN_INLINE float* place(float** field, float* at, int64_t floats) {
  *field = at;
  return at + floats + 16;
}

template <int M, int N>
SEQKERN_INLINE void zero(vf (&acc)[M][N]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[m][j] = vf{};
}

// A sum of n terms one after the other loses about sqrt(n / 6) ulp, and as much again where
// products are rounded before they are added. Longer ones are cut here, and the parts added.
#if SEQKERN_LANES > 4 || defined(__aarch64__)
constexpr int64_t kLongestSum = 32;
#else
constexpr int64_t kLongestSum = 16;
#endif

// What one step of a tile does with a broadcast value, a vector and the sum.
struct MultiplyAdd {
  static SEQKERN_INLINE_MEMBER vf apply(vf x, vf y, vf acc) { return fma(x, y, acc); }
};

#if defined(SEQKERN_BF16_DOT)
// Every lane holds two bfloat16 numbers: two exact products are added to a float32 sum.
struct Bf16Dot {
  static SEQKERN_INLINE_MEMBER vf apply(vf x, vf y, vf acc) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y));
  }
};
#endif

// LDA == 0: A as [k][m], lda apart. LDA > 0: A as [m][k], rows LDA apart; lda is 1.
template <int LDA, class Step = MultiplyAdd, int M, int N>
SEQKERN_INLINE void tile_part(vf (&acc)[M][N], int64_t depth, const float* a, int64_t lda,
                              const float* b, int64_t ldb) {
  for (int64_t k = 0; k < depth; ++k, a += lda, b += ldb) {
    vf row[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) row[j] = load_once(b + j * W);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vf x = splat(a[LDA > 0 ? m * LDA : m]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[m][j] = Step::apply(x, row[j], acc[m][j]);
    }
  }
}

// acc += A B for a depth of at most a chunk or two: no cutting.
template <int M, int N>
SEQKERN_INLINE void tile(vf (&acc)[M][N], int64_t depth, const float* a, int64_t lda,
                         const float* b, int64_t ldb) {
  tile_part<0>(acc, depth, a, lda, b, ldb);
}

// The same from the last step to the first: for sums whose terms decay with k, so that the small
// ones are added while the sum is small.
template <int M, int N>
SEQKERN_INLINE void tile_reversed(vf (&acc)[M][N], int64_t depth, const float* a, int64_t lda,
                                  const float* b, int64_t ldb) {
  tile_part<0>(acc, depth, a + (depth - 1) * lda, -lda, b + (depth - 1) * ldb, -ldb);
}

// acc = A B for any depth.
template <class Step = MultiplyAdd, int M, int N>
SEQKERN_INLINE void tile_long(vf (&acc)[M][N], int64_t depth, const float* a, int64_t lda,
                              const float* b, int64_t ldb) {
  zero(acc);
  alignas(64) float sums[M][N][W];
  for (int64_t k = 0; depth - k > kLongestSum; k += kLongestSum) {
    tile_part<0, Step>(acc, kLongestSum, a + k * lda, lda, b + k * ldb, ldb);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        store(sums[m][j], k == 0 ? acc[m][j] : acc[m][j] + load(sums[m][j]));
        acc[m][j] = vf{};
      }
  }
  const int64_t done = depth > kLongestSum ? (depth - 1) / kLongestSum * kLongestSum : 0;
  tile_part<0, Step>(acc, depth - done, a + done * lda, lda, b + done * ldb, ldb);
  if (done == 0) return;
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[m][j] += load(sums[m][j]);
}

// dst[c][r] = src[r][c] for 16 rows r and `width` columns c, a multiple of 16; ld_dst >= 16.
inline void transpose_to_tokens(const float* src, int64_t ld_src, int64_t width, float* dst,
                                int64_t ld_dst) {
  for (int64_t c = 0; c < width; c += W)
#pragma GCC unroll 4
    for (int r = 0; r < C; r += W) {
      vf x[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) x[i] = load(src + (r + i) * ld_src + c);
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(dst + (c + i) * ld_dst + r, x[i]);
    }
}

// dst[r][c] = src[c][r]: the way back.
inline void transpose_from_tokens(const float* src, int64_t ld_src, int64_t width, float* dst,
                                  int64_t ld_dst) {
  for (int64_t c = 0; c < width; c += W)
#pragma GCC unroll 4
    for (int r = 0; r < C; r += W) {
      vf x[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) x[i] = load(src + (c + i) * ld_src + r);
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(dst + (r + i) * ld_dst + c, x[i]);
    }
}

// The state in memory is [K, V]; a kernel keeps it as panels of PW columns, each [rows][PW], so
// that one panel is contiguous and stays in the first-level cache.
//   by V: panels over V, rows = K  (forward)      by K: panels over K, rows = V  (backward)

inline void panels_by_v(const float* dense, int64_t K, int64_t V, int64_t rows, float* panels) {
  const int64_t padded = padded_width(V);
  for (int64_t v = 0; v < padded; v += PW, panels += rows * PW)
    for (int64_t k = 0; k < rows; ++k) {
      float* row = panels + k * PW;
      const int64_t count = dense == nullptr || k >= K ? 0 : (V - v < PW ? V - v : PW);
      if (count == PW) {
        for (int j = 0; j < PW; j += W) store(row + j, load(dense + k * V + v + j));
        continue;
      }
      memset(row, 0, PW * sizeof(float));
      if (count > 0) memcpy(row, dense + k * V + v, count * sizeof(float));
    }
}

inline void dense_from_v(const float* panels, int64_t K, int64_t V, int64_t rows, float* dense) {
  for (int64_t v = 0; v < V; v += PW, panels += rows * PW)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t count = V - v < PW ? V - v : PW;
      if (count == PW) {
        for (int j = 0; j < PW; j += W) store(dense + k * V + v + j, load(panels + k * PW + j));
      } else {
        memcpy(dense + k * V + v, panels + k * PW, count * sizeof(float));
      }
    }
}

inline void panels_by_k(const float* dense, int64_t K, int64_t V, int64_t rows, float* panels) {
  const int64_t padded = padded_width(K);
  memset(panels, 0, padded * rows * sizeof(float));
  if (dense == nullptr) return;
  for (int64_t k0 = 0; k0 < padded; k0 += W) {
    float* panel = panels + k0 / PW * rows * PW + k0 % PW;
    const int64_t ks = K - k0 < W ? K - k0 : W;
    int64_t v = 0;
    for (; ks == W && v + W <= V; v += W) {
      vf x[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) x[i] = load(dense + (k0 + i) * V + v);
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(panel + (v + i) * PW, x[i]);
    }
    for (; v < V; ++v)
      for (int64_t i = 0; i < ks; ++i) panel[v * PW + i] = dense[(k0 + i) * V + v];
  }
}

inline void dense_from_k(const float* panels, int64_t K, int64_t V, int64_t rows, float* dense) {
  for (int64_t k0 = 0; k0 < K; k0 += W) {
    const float* panel = panels + k0 / PW * rows * PW + k0 % PW;
    const int64_t ks = K - k0 < W ? K - k0 : W;
    int64_t v = 0;
    for (; ks == W && v + W <= V; v += W) {
      vf x[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) x[i] = load(panel + (v + i) * PW);
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) store(dense + (k0 + i) * V + v, x[i]);
    }
    for (; v < V; ++v)
      for (int64_t i = 0; i < ks; ++i) dense[(k0 + i) * V + v] = panel[v * PW + i];
  }
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
