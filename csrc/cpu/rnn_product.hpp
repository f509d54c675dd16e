// SPDX-License-Identifier: Apache-2.0
// rnn_product.hpp - the products of the recurrence, and R packed for them.
//
//   y[m][j] = sum_k A[m][k] B[k][j]      m: sequences, j: units of one panel, k: units or gradients
//
// Layout     A: blocks of kBlock words along k, each [rows][kBlock], so that the addresses of one
//            step differ by constants. B: panels of PW units (the last may have W), each
//            [k][width]; few rows take several side by side, see panels_abreast(). A word is a
//            float, or two bfloat16 numbers of neighboring k where the CPU multiplies those.
// Precision  Sums of float32, cut into parts of kBlock words that are added in their order: the
//            bits of a row do not depend on the rows beside it.
#pragma once

#include "../include/seqkern/rnn.h"
#include "elements.hpp"
#include "tile.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr int64_t kBlock = 64;
// Rows of a tile of NR vectors: as many as there are registers for.
#if defined(__aarch64__)
constexpr int kRowsOfTile = 8;
#else
constexpr int kRowsOfTile = W == 16 ? 8 : 6;
#endif

// A tile of few rows and one panel has too few sums to keep the core busy, for each waits for the
// one before, and asks for too little memory at a time. Up to four panels, or gates of one, go on
// side by side then, as many as there are registers for sums.
constexpr int64_t kSums = kRowsOfTile == 8 ? 16 : 8;
constexpr int64_t kFewRows = kSums / (2 * NR);  // the most for which there are two
SEQKERN_INLINE int64_t panels_abreast(int64_t rows) {
  return rows < 1 || rows > kFewRows ? 1 : smaller(4, kSums / (rows * NR));
}

// Units of a head, padded, as panels.
struct Panels {
  int64_t width, count;
  explicit Panels(int64_t D) : width(rnn_padded(D)), count((width + PW - 1) / PW) {}
  int64_t first(int64_t panel) const { return panel * PW; }
  int vectors(int64_t panel) const { return static_cast<int>(smaller(PW, width - panel * PW) / W); }
};

// Words along k for `units` of them.
SEQKERN_INLINE int64_t words_of(int64_t units, bool bf16_dot) {
  return bf16_dot ? units / 2 : units;
}
SEQKERN_INLINE int64_t blocks_of(int64_t words) { return (words + kBlock - 1) / kBlock; }

// Words along k of one gate: all that lie there, and those that a product reads. The others pad the
// width, and are 0.
constexpr int64_t kWordsAtOnce = 4;
struct Words {
  int64_t all, read;
  Words(int64_t D, bool bf16_dot)
      : all(words_of(rnn_padded(D), bf16_dot)),
        read(round_up(bf16_dot ? (D + 1) / 2 : D, kWordsAtOnce)) {}
};

// Bytes from what a tile reads of B to what it asks for: the panels of a wide head come from the
// third-level cache, every float of them used for a few cycles only.
constexpr int64_t kAhead = 8192;
constexpr int kLine = 16;  // floats of a cache line

// What is done for whoever follows a product, while it goes on: `Ahead` has
//   kWords, during_tile()   called every kWords words of a tile
//   between_tiles()         called before every tile

// Memory that will be read. It is asked for a cache line at a time: rows of a tensor lie too far
// apart for the hardware to foresee, and many requests at once would hold up the product's own.
class Lines {
 public:
  // A panel of the backward pass is asked for in the time of its products.
  static constexpr int kWords = 2;

  // `bytes` bytes from `at` on; what does not fit is left out.
  SEQKERN_INLINE_MEMBER void add(const void* at, int64_t bytes) {
    if (count_ == kMost) return;
    const uintptr_t first = reinterpret_cast<uintptr_t>(at);
    run_[count_].at = first / kBytes * kBytes;
    run_[count_++].end = first + static_cast<uintptr_t>(bytes);
  }
  SEQKERN_INLINE_MEMBER void during_tile() {
    if (at_ >= end_) {
      if (__builtin_expect(next_ == count_, 1)) return;
      at_ = run_[next_].at;
      end_ = run_[next_++].end;
    }
    prefetch(reinterpret_cast<const void*>(at_), 0);
    at_ += kBytes;
  }
  void between_tiles() {}
  void ask_for_all() {
    while (at_ < end_ || next_ < count_) during_tile();
  }

 private:
  static constexpr int kMost = 512;
  static constexpr uintptr_t kBytes = kLine * 4;
  struct Run {
    uintptr_t at, end;
  };
  int count_ = 0, next_ = 0;
  uintptr_t at_ = 0, end_ = 0;
  Run run_[kMost];
};

// Panels of a product side by side: their parts of B, and their sums [rows][PW], so many floats
// apart.
struct Abreast {
  const float* b;
  float* y;
  int64_t b_apart = 0, y_apart = 0;
};

// M rows and S panels of N vectors. What several panels read is not asked for: the core itself
// follows so many streams, and lines asked for so early drive out others before they are read.
template <class Step, class Ahead, int M, int S, int N>
SEQKERN_INLINE void product_tile(int64_t depth, const float* a, const float* b0, int64_t b_apart,
                                 float* y, int64_t y_apart, bool add, Ahead& ahead) {
  vf acc[M][S * N];
  zero(acc);
  constexpr int kWords = Ahead::kWords;
  static_assert(kWordsAtOnce % kWords == 0);
  const float* b[S];
  for (int s = 0; s < S; ++s) b[s] = b0 + s * b_apart;
  for (int64_t turn = 0; turn < depth; turn += kWords, a += kWords) {
    ahead.during_tile();
#pragma GCC unroll 8
    for (int k = 0; k < kWords; ++k) {
      vf row[S * N];
#pragma GCC unroll 8
      for (int j = 0; j < S * N; ++j) {
        const float* const at = b[j / N] + (k * N + j % N) * W;
        row[j] = M == 1 ? load(at) : S == 1 ? load_once(at) : in_register(load(at));
        if (S == 1 && (k * N + j) * W % kLine == 0) prefetch(at, kAhead);
      }
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const vf x = splat(a[m * kBlock + k]);
#pragma GCC unroll 8
        for (int j = 0; j < S * N; ++j) acc[m][j] = Step::apply(x, row[j], acc[m][j]);
      }
    }
    for (int s = 0; s < S; ++s) b[s] += kWords * N * W;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int j = 0; j < S * N; ++j) {
      float* at = y + j / N * y_apart + m * PW + j % N * W;
      store(at, add ? load(at) + acc[m][j] : acc[m][j]);
    }
}

// Tiles of a product: of `rows` rows, one gate and so many words.
SEQKERN_INLINE int64_t tiles_of(int64_t rows, int64_t words) {
  return blocks_of(words) * ((rows + kRowsOfTile - 1) / kRowsOfTile);
}

// A tile of `rows` rows, M of them at most.
template <class Step, class Ahead, int M, int S, int N, class... Rest>
SEQKERN_INLINE void product_tile_of(int64_t rows, Rest&&... rest) {
  if constexpr (S > 1 && M * S * NR > kSums)
    product_tile_of<Step, Ahead, M - 1, S, N>(rows, rest...);
  else if (M == 1 || rows == M)
    product_tile<Step, Ahead, M, S, N>(rest...);
  else
    product_tile_of<Step, Ahead, (M > 1 ? M - 1 : 1), S, N>(rows, rest...);
}

// What whole tiles leave is halved, for a tile of one row takes as long as one of four.
template <class Step, class Ahead, int S, int N>
SEQKERN_INLINE void product_rows(int64_t rows, int64_t depth, const float* a, const float* b,
                                 int64_t b_apart, float* y, int64_t y_apart, bool add,
                                 Ahead& ahead) {
  if constexpr (S == 1)
    while (rows == kRowsOfTile || rows >= 2 * kRowsOfTile - 1) {
      ahead.between_tiles();
      product_tile<Step, Ahead, kRowsOfTile, S, N>(depth, a, b, b_apart, y, y_apart, add, ahead);
      rows -= kRowsOfTile;
      a += kRowsOfTile * kBlock;
      y += kRowsOfTile * PW;
    }
  while (rows > 0) {
    const int64_t count = rows > kRowsOfTile ? (rows + 1) / 2 : rows;
    ahead.between_tiles();
    product_tile_of<Step, Ahead, kRowsOfTile - 1, S, N>(count, depth, a, b, b_apart, y, y_apart,
                                                        add, ahead);
    rows -= count;
    a += count * kBlock;
    y += count * PW;
  }
}

// y [rows][PW] = A B of S panels; A: `gates` times blocks_of(words.all) blocks, block_stride apart.
// noinline: all registers for it.
template <class Step, class Ahead, int S, int N>
__attribute__((noinline)) inline void product(int64_t rows, int64_t gates, const Words& words,
                                              const float* a, int64_t block_stride,
                                              const Abreast& to, Ahead& ahead) {
  const int64_t b_apart = to.b_apart, y_apart = to.y_apart;
  const float* b = to.b;
  float* const y = to.y;
  const int64_t all = words.all, read = words.read;
  bool add = false;
  for (int64_t g = 0; g < gates; ++g)
    for (int64_t k = 0; k < all; k += kBlock, a += block_stride) {
      product_rows<Step, Ahead, S, N>(rows, smaller(kBlock, read - k), a, b, b_apart, y, y_apart,
                                      add, ahead);
      b += smaller(kBlock, all - k) * N * W;
      add = true;
    }
}

// S: panels_abreast(rows) at most.
template <int S, class Ahead>
inline void product_of_panels(bool bf16_dot, int vectors, int64_t rows, int64_t gates,
                              const Words& words, const float* a, int64_t block_stride,
                              const Abreast& to, Ahead& ahead) {
#if defined(SEQKERN_BF16_DOT)
  if (bf16_dot) {
    if (vectors == NR)
      return product<Bf16Dot, Ahead, S, NR>(rows, gates, words, a, block_stride, to, ahead);
    return product<Bf16Dot, Ahead, S, 1>(rows, gates, words, a, block_stride, to, ahead);
  }
#endif
  (void)bf16_dot;
  if (vectors == NR)
    return product<MultiplyAdd, Ahead, S, NR>(rows, gates, words, a, block_stride, to, ahead);
  product<MultiplyAdd, Ahead, S, 1>(rows, gates, words, a, block_stride, to, ahead);
}

// One head's packed R.
//   forward   [gate][panel of d][k = p][width]
//   backward  [panel of p][gate][k = d][width]
inline int64_t packed_bytes(Cell cell, int64_t D, bool bf16_dot) {
  const int64_t width = rnn_padded(D);
  return cell_shape(cell).recurrent * width * width * (bf16_dot ? 2 : 4);
}

// Where a gate's part of a panel begins, in words.
SEQKERN_INLINE int64_t packed_at(const Panels& panels, int64_t gates, int64_t i_g, int64_t panel,
                                 int64_t words, bool transposed) {
  const int64_t width = panels.vectors(panel) * W, before = panels.first(panel);
  if (!transposed) return (i_g * panels.width + before) * words;
  return (before * gates + i_g * width) * words;
}

SEQKERN_INLINE int64_t element_bytes(DType d) { return d == DType::kF32 ? 4 : 2; }

inline void pack(const RnnMatrix& R, Cell cell, int64_t D, int64_t i_h, int64_t i_g,
                 bool transposed, bool bf16_dot, void* head) {
  const Panels panels(D);
  const int64_t words = words_of(panels.width, bf16_dot), gates = cell_shape(cell).recurrent;
  const unsigned char* from = static_cast<const unsigned char*>(R.data) +
                              (i_g * R.gate_stride + i_h * R.head_stride) * element_bytes(R.dtype);
  // B[k][j] is R[d][p] with j = d, k = p, or with j = p, k = d. W x W numbers at a time.
  for (int64_t panel = 0; panel < panels.count; ++panel) {
    const int64_t width = panels.vectors(panel) * W;
    float* to = static_cast<float*>(head) + packed_at(panels, gates, i_g, panel, words, transposed);
    for (int64_t j = 0; j < width; j += W)
      for (int64_t k = 0; k < panels.width; k += W) {
        const int64_t unit = panels.first(panel) + j;
        const int64_t row = transposed ? k : unit, column = transposed ? unit : k;
        vf x[W];
        for (int i = 0; i < W; ++i) {
          alignas(64) float line[W] = {};
          const int64_t left = smaller(W, D - column);
          if (row + i < D && left > 0)
            load_row(R.dtype, from, (row + i) * R.row_stride + column, left, W, line);
          x[i] = load(line);
        }
        if (!transposed) transpose(x);
        if (!bf16_dot) {
          for (int i = 0; i < W; ++i) store(to + (k + i) * width + j, x[i]);
          continue;
        }
#if defined(SEQKERN_BF16_DOT)
        for (int i = 0; i < W; i += 2) {
          // Lane l: k in the low half, k + 1 in the high one.
          const vu low = reinterpret_cast<vu>(x[i]) >> 16, high = reinterpret_cast<vu>(x[i + 1]);
          store(to + (k + i) / 2 * width + j, reinterpret_cast<vf>(low | (high & 0xffff0000u)));
        }
#endif
      }
  }
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
