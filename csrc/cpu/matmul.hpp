// SPDX-License-Identifier: Apache-2.0
// matmul.hpp - the large float32 product behind the projections of the layers.
//
// Maths      c[m][n] = sum_k a[m][k] b[n][k]
// Layout     k goes in slices of kDepth. Of each, b is packed as panels of kPanel rows, [k][row],
//            and the task's rows of a as tiles of kTile rows, [k][row]: packed b lies in the
//            third-level cache, a in the second, and a panel passes through the first once for
//            every tile.
// Precision  sums of float32, cut into parts of kPart products that are added in their order. The
//            bits of a row depend neither on the rows beside it nor on threads.
// Cost       2 M N K flops. What a task needs next of a is asked for while it multiplies; a large c
//            is written past the caches if one slice suffices.
// Threads    none: the caller splits panels of b, then rows of c.
#pragma once

#include "../include/seqkern/matmul.h"
#include "elements.hpp"
#include "tile.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

#if SEQKERN_LANES == 16 || defined(__aarch64__)
constexpr int kTile = 8, kPanelVectors = 3;
#else
constexpr int kTile = 4, kPanelVectors = 2;
#endif
constexpr int kPanel = kPanelVectors * W;
constexpr int64_t kPart = 128;
constexpr int64_t kDepth = 1024;
constexpr int64_t kTaskRows = 64;

// The last panel is only as wide as it must be.
SEQKERN_INLINE int64_t panel_width(const Matmul& p, int64_t n) {
  return smaller(kPanel, round_up(p.N - n, W));
}

// x[i] lane j: k + i of row + j; 0 beyond `depth` and `rows`.
SEQKERN_INLINE void load_square(const MatmulOperand& from, int64_t row, int64_t rows, int64_t k,
                                int64_t depth, vf (&x)[W]) {
  const float* at = from.data + row * from.row_stride + k * from.k_stride;
  const bool whole = rows >= W && depth >= W;
  if (whole && (from.k_stride == 1 || from.row_stride == 1)) {
    const bool by_row = from.k_stride == 1;
    const int64_t stride = by_row ? from.row_stride : from.k_stride;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) x[i] = load(at + i * stride);
    if (by_row) transpose(x);
    return;
  }
  alignas(64) float values[W][W] = {};
  for (int64_t i = 0; i < smaller(W, depth); ++i)
    for (int64_t j = 0; j < smaller(W, rows); ++j)
      values[i][j] = at[i * from.k_stride + j * from.row_stride];
  for (int i = 0; i < W; ++i) x[i] = load(values[i]);
}

// Rows [row, row + W) and k [k, k + W) to `to`: [k][width], kPiece rows in one such array and the
// next in one `stride` further on.
template <int kPiece>
SEQKERN_INLINE void pack_square(const MatmulOperand& from, int64_t row, int64_t rows, int64_t k,
                                int64_t depth, int64_t width, int64_t stride, float* to) {
  vf x[W];
  load_square(from, row, rows, k, depth, x);
  for (int64_t i = 0; i < smaller(W, depth); ++i) {
    alignas(64) float lanes[W];
    store(lanes, x[i]);
#pragma GCC unroll 4
    for (int piece = 0; piece < W; piece += kPiece)
      memcpy(to + piece / kPiece * stride + i * width, lanes + piece, kPiece * sizeof(float));
  }
}

inline int64_t matmul_packed(const Matmul& p, MatmulRange range) {
  return round_up(p.N, W) * (range.end - range.begin);
}

inline int64_t matmul_workspace(const Matmul& p) {
  return round_up(smaller(kTaskRows, p.M), kTile > W ? kTile : W) * smaller(kDepth, p.K);
}

// Packed: [slice][panel][k][width].
inline void matmul_pack(const Matmul& p, MatmulRange range, int64_t n, float* packed) {
  const int64_t width = panel_width(p, n), columns = round_up(p.N, W);
  for (int64_t slice = range.begin; slice < range.end; slice += kDepth) {
    const int64_t depth = smaller(kDepth, range.end - slice);
    float* panel = packed + (slice - range.begin) * columns + n * depth;
    for (int64_t k = 0; k < depth; k += W)
      for (int64_t j = 0; j < width; j += W)
        pack_square<W>(p.b, n + j, p.N - n - j, slice + k, depth - k, width, 0,
                       panel + k * width + j);
  }
}

// Rows [begin, end) of a: [tile][k][kTile].
inline void pack_tiles(const Matmul& p, int64_t slice, int64_t depth, int64_t begin, int64_t end,
                       float* tiles) {
  constexpr int kPiece = kTile < W ? kTile : W;
  const auto pack = [&](int64_t m, int64_t k) {
    const int64_t row = m - begin;
    pack_square<kPiece>(p.a, m, end - m, slice + k, depth - k, kTile, kTile * depth,
                        tiles + row / kTile * kTile * depth + k * kTile + row % kTile);
  };
  // Along memory.
  if (p.a.row_stride == 1) {
    for (int64_t k = 0; k < depth; k += W)
      for (int64_t m = begin; m < end; m += W) pack(m, k);
  } else {
    for (int64_t m = begin; m < end; m += W)
      for (int64_t k = 0; k < depth; k += W) pack(m, k);
  }
}

// The cache lines of a that will be packed next, asked for a few at a time.
class NextTiles {
 public:
  NextTiles(const Matmul& p, int64_t slice, int64_t depth, int64_t begin, int64_t end) {
    const MatmulOperand& a = p.a;
    const bool by_row = a.k_stride == 1;
    if ((!by_row && a.row_stride != 1) || begin >= end) return;
    at_ = a.data + begin * a.row_stride + slice * a.k_stride;
    stride_ = by_row ? a.row_stride : a.k_stride;
    runs_ = by_row ? end - begin : depth;
    length_ = by_row ? depth : end - begin;
  }
  int64_t lines() const { return runs_ * ((length_ + kLine - 1) / kLine); }
  SEQKERN_INLINE_MEMBER void ask_for(int64_t lines) {
    for (; lines > 0 && runs_ > 0; --lines) {
      __builtin_prefetch(at_ + done_, 0, 2);
      done_ += kLine;
      if (done_ < length_) continue;
      done_ = 0;
      at_ += stride_;
      --runs_;
    }
  }

 private:
  static constexpr int64_t kLine = 16;  // floats
  const float* at_ = nullptr;
  int64_t stride_ = 0, runs_ = 0, length_ = 0, done_ = 0;
};

enum class Store { kWrite, kStream, kAdd };

// acc = A B in parts, asking for `lines` of `next` after each.
template <int N>
SEQKERN_INLINE void multiply_tile(vf (&acc)[kTile][N], int64_t depth, const float* a,
                                  const float* b, NextTiles& next, int64_t lines) {
  alignas(64) float sums[kTile][N][W];
  zero(acc);
  int64_t k = 0;
  for (; depth - k > kPart; k += kPart, a += kPart * kTile, b += kPart * N * W) {
    tile_part<0>(acc, kPart, a, kTile, b, N * W);
    next.ask_for(lines);
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        store(sums[i][j], k == 0 ? acc[i][j] : acc[i][j] + load(sums[i][j]));
        acc[i][j] = vf{};
      }
  }
  tile_part<0>(acc, depth - k, a, kTile, b, N * W);
  next.ask_for(lines);
  if (k == 0) return;
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[i][j] += load(sums[i][j]);
}

// `rows` and `columns` of a tile of c exist.
template <int N>
SEQKERN_INLINE void store_tile(const vf (&acc)[kTile][N], float* c, int64_t ldc, int64_t rows,
                               int64_t columns, Store how) {
  if (rows >= kTile && columns == N * W) {
#pragma GCC unroll 8
    for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) {
        float* at = c + i * ldc + j * W;
        if (how == Store::kStream)
          stream(at, acc[i][j]);
        else
          store(at, how == Store::kAdd ? load(at) + acc[i][j] : acc[i][j]);
      }
    return;
  }
  // Indices that are no constants would keep acc in memory, from the sums on.
  alignas(64) float values[kTile][N * W];
#pragma GCC unroll 8
  for (int i = 0; i < kTile; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) store(values[i] + j * W, acc[i][j]);
  for (int i = 0; i < smaller(kTile, rows); ++i)
    for (int64_t j = 0; j < columns; ++j) {
      float& to = c[i * ldc + j];
      to = how == Store::kAdd ? to + values[i][j] : values[i][j];
    }
}

// `rows` of c and the columns of one panel.
template <int N>
inline void multiply_panel(int64_t rows, int64_t depth, const float* a, const float* b, float* c,
                           int64_t ldc, int64_t columns, Store how, NextTiles& next,
                           int64_t lines) {
  for (int64_t m = 0; m < rows; m += kTile, a += kTile * depth, c += kTile * ldc) {
    if (how != Store::kStream)
      for (int64_t i = 0; i < smaller(kTile, rows - m); ++i)
        for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(c + i * ldc + j, 1);
    vf acc[kTile][N];
    multiply_tile(acc, depth, a, b, next, lines);
    store_tile(acc, c, ldc, rows - m, columns, how);
  }
}

inline void multiply_slice(const Matmul& p, int64_t slice, int64_t depth, int64_t begin,
                           int64_t end, const float* tiles, const float* panels, NextTiles& next) {
  const int64_t parts = (end - begin + kTile - 1) / kTile * ((p.N + kPanel - 1) / kPanel) *
                        ((depth + kPart - 1) / kPart);
  const int64_t lines = (next.lines() + parts - 1) / parts;
  const Store how = slice > 0 ? Store::kAdd : p.stream ? Store::kStream : Store::kWrite;
  for (int64_t n = 0; n < p.N; n += kPanel) {
    const auto multiply = [&](auto multiply_columns) {
      multiply_columns(end - begin, depth, tiles, panels + n * depth, p.c + begin * p.N + n, p.N,
                       smaller(kPanel, p.N - n), how, next, lines);
    };
    const int64_t vectors = panel_width(p, n) / W;
    if (vectors == kPanelVectors)
      multiply(multiply_panel<kPanelVectors>);
    else if (vectors == 2)
      multiply(multiply_panel<2>);
    else
      multiply(multiply_panel<1>);
  }
}

inline void matmul_multiply(const Matmul& p, MatmulRange range, int64_t begin, int64_t end,
                            const float* packed, float* workspace) {
  const int64_t columns = round_up(p.N, W);
  for (int64_t slice = range.begin; slice < range.end; slice += kDepth) {
    const int64_t depth = smaller(kDepth, range.end - slice), after = slice + depth;
    pack_tiles(p, slice, depth, begin, end, workspace);
    // The next slice of the same rows, or the first of the rows that probably follow.
    const bool last = after == range.end;
    NextTiles next(
        p, last ? range.begin : after,
        last ? smaller(kDepth, range.end - range.begin) : smaller(kDepth, range.end - after),
        last ? end : begin, last ? smaller(p.M, 2 * end - begin) : end);
    multiply_slice(p, slice, depth, begin, end, workspace, packed + (slice - range.begin) * columns,
                   next);
  }
  if (p.stream) stream_end();
}

constexpr MatmulKernels matmul_kernels = {
    kDepth, kTaskRows, kPanel, &matmul_packed, &matmul_workspace, &matmul_pack, &matmul_multiply};

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
