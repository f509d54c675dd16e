// SPDX-License-Identifier: Apache-2.0
// rnn_bwd.hpp - the recurrence of all cells: backward, all steps of a group of sequences of one
// head.
//
// Maths      from the last step to the first: ds += dout_t; (da, ds) = cell'(ds); dx = da;
//            dh = ds[0] + R^T da;  dR += da h_{t-1}^T;  db += da
// Layout     da and h_{t-1} of up to `history` rows (steps times sequences) are kept: da as blocks
//            of kBlock units, [row][kBlock], A of the product R^T da for one step and of dR for all
//            of them; h as panels of PW units, [row][PW], B of dR. Few sequences take several
//            panels of R^T da side by side.
// Precision  sums f32. dR and db are summed over a history first, dR in parts of kHistoryPart
//            words of its rows. With bf16_dot da and h are rounded to bfloat16 for R^T da and dR.
// Cost       4 gates D^2 flops a token and head; R is read once a step, dR once a history.
// Threads    members of a team own whole panels, and meet once a step.
#pragma once

#include "rnn_cells.hpp"
#include "rnn_rows.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// Rows of a history: enough that reading and writing dR costs little beside the product, few enough
// that they stay in the second-level cache, or, for a wide head, in the third.
SEQKERN_INLINE int64_t rows_of_history(const Rnn& p, int64_t rows) {
  const int64_t wanted = rnn_padded(p.D) > 256 ? 256 : 128;
  return 2 * rows > wanted ? 2 * rows : wanted;
}

struct RnnBackwardMemory {
  int64_t floats;
  int64_t history, steps;            // rows, and the steps that fit
  int64_t gate_blocks, pair_stride;  // blocks of one gate; words from one block to the next
  int64_t pair_blocks, pair_buffer;
  float *da, *h, *carry, *db, *pairs;

  RnnBackwardMemory(const Rnn& p, int64_t rows, float* at) {
    const CellShape shape = cell_shape(p.cell);
    const int64_t width = rnn_padded(p.D);
    history = rows_of_history(p, rows);
    steps = history / rows;
    gate_blocks = blocks_of(width);
    pair_blocks = blocks_of(width / 2);
    pair_stride = rows * kBlock;
    pair_buffer = p.bf16_dot ? shape.recurrent * pair_blocks * pair_stride : 0;
    at = place(&da, at, shape.recurrent * gate_blocks * history * kBlock);
    at = place(&h, at, gate_blocks * history * kBlock);
    at = place(&carry, at, shape.states * rows * width);
    at = place(&db, at, shape.bias * width);
    at = place(&pairs, at, 2 * pair_buffer);
    floats = at - da;
  }
  float* da_block(int64_t i) const { return da + i * history * kBlock; }
  float* h_panel(int64_t u) const { return h + u / PW * history * PW + u % PW; }
};

inline int64_t rnn_backward_shared(const Rnn& p, int64_t rows) {
  static float nowhere[1];
  return RnnBackwardMemory(p, rows, nowhere).floats;
}

constexpr int64_t kRowsAhead = 4;

// Everything about one step that does not depend on the unit.
struct RnnGradRows {
  int64_t active = 0;
  int64_t dx[kRnnMaxRows], dout[kRnnMaxRows], h[kRnnMaxRows];
  const float *saved[kRnnMaxRows], *saved_before[kRnnMaxRows];
  bool starts[kRnnMaxRows];  // the first of its sequence, where s0 is the state before
  bool fresh[kRnnMaxRows];   // nothing before it: reset, or no s0

  void find(const RnnGrad& p, const RnnRows& rows, int64_t i_h, int64_t step) {
    const Rnn& in = p.in;
    active = rows.running(step);
    for (int64_t r = 0; r < active; ++r) {
      const RnnRow& row = rows.row[r];
      const int64_t t = time_of(in, row, step);
      const int64_t before = step > 0 ? time_of(in, row, step - 1) : t;
      dx[r] = element_at(p.dWx, row.b, t, i_h);
      dout[r] = element_at(p.dout, row.b, t, i_h);
      h[r] = element_at(in.out, row.b, before, i_h);
      saved[r] = saved_at(in, i_h, row.b, t);
      saved_before[r] = saved_at(in, i_h, row.b, before);
      starts[r] = step == 0;
      fresh[r] = resets(in, row, step) || (step == 0 && in.s0 == nullptr);
    }
  }
};

// Where a step's da of W units goes, [row][kBlock], and h_{t-1}, [row][PW].
struct RnnHistory {
  float *da, *h, *pairs;
  int64_t gate_stride;  // from the da of one gate to that of the next
};

// The gates and the states before and after one step of one row and W units; `now` without h.
template <class P, bool kPlain>
SEQKERN_INLINE void load_saved(const RnnGrad& p, const RnnRows& rows, const RnnGradRows& step,
                               int64_t i_h, int64_t r, int64_t u, vf* g, vf* prev, vf* now) {
  constexpr CellShape shape = cell_shape(P::kId);
  const Rnn& in = p.in;
  const int64_t width = rnn_padded(in.D), left = in.D - u;
  const Saved after(step.saved[r], shape, !kPlain && in.half_gates, width, u);
#pragma GCC unroll 5
  for (int i = 0; i < shape.saved; ++i) g[i] = after.load_gate(i, i != P::kFreeGate);
  now[0] = vf{};
#pragma GCC unroll 4
  for (int i = 1; i < shape.states; ++i) now[i] = load(after.state(i - 1));
  if (step.fresh[r]) {
    for (int i = 0; i < shape.states; ++i) prev[i] = vf{};
  } else if (step.starts[r]) {
    for (int i = 0; i < shape.states; ++i)
      prev[i] = load_any<kPlain>(DType::kF32, in.s0, state_at(in, i, rows.row[r].n, i_h) + u, left);
  } else {
    const Saved before(step.saved_before[r], shape, !kPlain && in.half_gates, width, u);
    prev[0] = load_any<kPlain>(in.out.dtype, in.out.data, step.h[r] + u, left);
#pragma GCC unroll 4
    for (int i = 1; i < shape.states; ++i) prev[i] = load(before.state(i - 1));
  }
}

// One step of N vectors of units, all rows: the carry, the history and dWx.
template <class P, bool kPlain, int N>
inline void backward_units(const RnnGrad& p, const RnnRows& rows, const RnnGradRows& step,
                           int64_t i_h, int64_t u, const RnnBackwardMemory& m,
                           const RnnHistory& to) {
  constexpr CellShape shape = cell_shape(P::kId);
  constexpr int kFirstInput = shape.bias - shape.input;
  const Rnn& in = p.in;
  const int64_t width = rnn_padded(in.D), plane = rows.count * width;
  const bool streams = kStreams && p.stream_dWx;
  const int64_t ahead = (in.reverse ? 1 : -1) * p.dWx.time_stride;
  vi exist[N];  // units
  for (int v = 0; v < N; ++v) exist[v] = first_lanes(in.D - u - v * W);
  vf db[N][shape.bias];
  for (int v = 0; v < N; ++v)
    for (int g = 0; g < shape.bias; ++g) db[v][g] = load(m.db + g * width + u + v * W);
  for (int64_t r = 0; r < step.active; ++r) {
    vf da[N][shape.bias];
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) {
      const int64_t left = in.D - u - v * W, row = r * kBlock + v * W;
      vf g[shape.saved], prev[shape.states], now[shape.states], ds[shape.states];
      load_saved<P, kPlain>(p, rows, step, i_h, r, u + v * W, g, prev, now);
      float* carry = m.carry + r * width + u + v * W;
#pragma GCC unroll 4
      for (int i = 0; i < shape.states; ++i) {
        ds[i] = load(carry + i * plane);
        if (i >= p.dout_states) continue;
        const int64_t at = step.dout[r] + i * p.dout.part_stride + u + v * W;
        ds[i] += load_any<kPlain>(p.dout.dtype, p.dout.data, at, left);
      }
      if (in.forward_clip > 0.0f) ds[0] = blend(g[P::kClipGate] == splat(kClipped), vf{}, ds[0]);
      P::backward(g, prev, now, ds, da[v]);
      if (!kPlain)
        for (vf& x : da[v]) x = only(exist[v], x);
#pragma GCC unroll 4
      for (int i = 0; i < shape.states; ++i) store(carry + i * plane, ds[i]);
      // The history is larger than the first-level cache: its next rows are asked for.
      store(to.h + r * PW + v * W, prev[0]);
      prefetch_to_write(to.h + (r + kRowsAhead) * PW + v * W);
#pragma GCC unroll 4
      for (int i = 0; i < shape.recurrent; ++i) {
        store(to.da + i * to.gate_stride + row, da[v][i]);
        prefetch_to_write(to.da + i * to.gate_stride + row + kRowsAhead * kBlock);
        if (!kPlain && in.bf16_dot)
          store_words(true, to.pairs + i * m.pair_blocks * m.pair_stride, m.pair_stride, r,
                      u + v * W, da[v][i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < shape.bias; ++i) {
      const int64_t at = step.dx[r] + (i - kFirstInput) * p.dWx.part_stride + u;
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) {
        db[v][i] += da[v][i];
        if (i >= kFirstInput)
          store_any<kPlain>(p.dWx.dtype, p.dWx.data, at + v * W, in.D - u - v * W, da[v][i],
                            streams);
      }
      if (i >= kFirstInput && !streams)
        prefetch(p.dWx.data, (at + ahead) * (kPlain ? 4 : element_bytes(p.dWx.dtype)));
    }
  }
  for (int v = 0; v < N; ++v) {
    for (int64_t r = step.active; r < rows.count; ++r) {
      store(to.h + r * PW + v * W, vf{});
      for (int i = 0; i < shape.recurrent; ++i)
        store(to.da + i * to.gate_stride + r * kBlock + v * W, vf{});
    }
    for (int g = 0; g < shape.bias; ++g) store(m.db + g * width + u + v * W, db[v][g]);
  }
}

template <class P>
inline void backward_panel(const RnnGrad& p, const RnnRows& rows, const RnnGradRows& step,
                           int64_t i_h, const Panels& panels, int64_t panel, int64_t slot,
                           const RnnBackwardMemory& m, float* pairs) {
  const bool floats = p.in.Wx.dtype == DType::kF32;
  for (int v = 0; v < panels.vectors(panel); v += kVectorsAtOnce) {
    const int64_t u = panels.first(panel) + v * W;
    if (u >= p.in.D) break;
    const int64_t first = slot * rows.count;
    const RnnHistory to{m.da_block(u / kBlock) + first * kBlock + u % kBlock,
                        m.h_panel(u) + first * PW, pairs, m.gate_blocks * m.history * kBlock};
    if (floats && u + kVectorsAtOnce * W <= p.in.D)
      backward_units<P, true, kVectorsAtOnce>(p, rows, step, i_h, u, m, to);
    else
      backward_units<P, false, kVectorsAtOnce>(p, rows, step, i_h, u, m, to);
  }
}

// What backward_panel() will read of one panel in `step`.
template <class P>
inline void find_saved(const RnnGrad& p, const RnnGradRows& step, const Panels& panels,
                       int64_t panel, Lines& lines) {
  constexpr CellShape shape = cell_shape(P::kId);
  const Rnn& in = p.in;
  const int64_t unit = panels.first(panel), units = panels.vectors(panel) * W;
  const auto add = [&](const RnnView& v, int64_t at) {
    const int64_t bytes = element_bytes(v.dtype);
    lines.add(static_cast<const char*>(v.data) + (at + unit) * bytes, units * bytes);
  };
  for (int64_t r = 0; r < step.active; ++r) {
    for (int64_t u = unit; u < unit + units; u += Saved<const float>::kSavedUnits) {
      const Saved now(step.saved[r], shape, in.half_gates, panels.width, u);
      const Saved before(step.saved_before[r], shape, in.half_gates, panels.width, u);
      lines.add(now.base, now.gates * 4);
      // The states of the step itself were read by the step after it.
      lines.add(before.state(0), before.units * (shape.states - 1) * 4);
    }
    add(in.out, step.h[r]);
    for (int i = 0; i < p.dout_states; ++i) add(p.dout, step.dout[r] + i * p.dout.part_stride);
  }
}

// carry[0] of one panel: what the step before receives. y: R^T da.
inline void carry_panel(const RnnGrad& p, const RnnRows& rows, int64_t active, int64_t step,
                        const Panels& panels, int64_t panel, const float* y,
                        const RnnBackwardMemory& m) {
  const int64_t width = panels.width;
  const int states = cell_shape(p.in.cell).states;
  const vf limit = splat(p.clip);
  for (int64_t r = 0; r < active; ++r) {
    const bool fresh = resets(p.in, rows.row[r], step);
    for (int v = 0; v < panels.vectors(panel); ++v) {
      float* carry = m.carry + r * width + panels.first(panel) + v * W;
      vf dh = load(carry);
      if (!p.cut) dh += load(y + r * PW + v * W);
      if (p.clip > 0.0f) dh = at_most(limit, at_least(-limit, dh));
      store(carry, dh);
      if (fresh)
        for (int i = 0; i < states; ++i) store(carry + i * rows.count * width, vf{});
    }
  }
}

// What the step before `s`, of which `before` tells, receives of S panels.
template <class P, int S>
inline void carry_panels(const RnnGrad& p, const RnnRows& rows, const RnnGradRows& step,
                         const RnnGradRows* before, int64_t i_h, int64_t s, const Panels& panels,
                         int64_t panel, const float* a, int64_t block_stride,
                         const RnnBackwardMemory& m) {
  constexpr CellShape shape = cell_shape(P::kId);
  constexpr int64_t kRows = S > 1 ? kFewRows : kRnnMaxRows;
  const Rnn& in = p.in;
  const Words words(in.D, in.bf16_dot);
  const float* packed =
      static_cast<const float*>(in.packed) + i_h * packed_bytes(in.cell, in.D, in.bf16_dot) / 4;
  alignas(64) float y[S * kRows * PW];
  Lines lines;
  if (before != nullptr)
    for (int i = 0; i < S; ++i) find_saved<P>(p, *before, panels, panel + i, lines);
  if (!p.cut)
    product_of_panels<S>(in.bf16_dot, panels.vectors(panel), step.active, shape.recurrent, words, a,
                         block_stride,
                         {packed + packed_at(panels, shape.recurrent, 0, panel, words.all, true), y,
                          shape.recurrent * PW * words.all, kRows * PW},
                         lines);
  lines.ask_for_all();
  for (int i = 0; i < S; ++i)
    carry_panel(p, rows, step.active, s, panels, panel + i, y + i * kRows * PW, m);
}

#if defined(SEQKERN_BF16_DOT)
// Rows of floats become words of two neighboring rows' bfloat16 numbers, in place:
// [rows][kPitch] to [(rows + 1) / 2][kPitch]. One vector of columns.
template <int64_t kPitch>
inline void pair_rows(float* column, int64_t rows) {
  const auto rounded = [](vf x) {
    return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  };
  for (int64_t r = 0; r < rows; r += 2) {
    const vf even = load(column + r * kPitch);
    const vf odd = r + 1 < rows ? load(column + (r + 1) * kPitch) : vf{};
    const __m512i words = _mm512_or_si512(rounded(even), _mm512_slli_epi32(rounded(odd), 16));
    store(column + r / 2 * kPitch, _mm512_castsi512_ps(words));
  }
}
#endif

// The history of a member's units, ready for the products of dR; returns the words along its rows.
inline int64_t pair_history(const RnnGrad& p, const Panels& panels, const OwnPanels& own,
                            int64_t used, const RnnBackwardMemory& m) {
#if defined(SEQKERN_BF16_DOT)
  if (p.in.bf16_dot) {
    const int64_t end = smaller(panels.first(own.end), panels.width);
    for (int64_t u = panels.first(own.begin); u < end; u += W) {
      pair_rows<PW>(m.h_panel(u), used);
      for (int g = 0; g < cell_shape(p.in.cell).recurrent; ++g)
        pair_rows<kBlock>(m.da_block(g * m.gate_blocks + u / kBlock) + u % kBlock, used);
    }
    return (used + 1) / 2;
  }
#endif
  (void)p, (void)panels, (void)own, (void)m;
  return used;
}

constexpr int64_t kHistoryPart = 128;                     // words
constexpr int kRowsOfWeights = kRowsOfTile == 8 ? 8 : 4;  // divides every width

template <class Step, int M, int N>
SEQKERN_INLINE void weight_tile(int64_t depth, const float* da, const float* h, float* dR,
                                int64_t ld, bool add) {
  vf acc[M][N];
  // Of a wide head dR lies in the third-level cache: the tile below is asked for.
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) prefetch_to_write(dR + (M + i) * ld + j * W);
  zero(acc);
  tile_part<0, Step>(acc, depth, da, kBlock, h, PW);
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      float* at = dR + i * ld + j * W;
      store(at, add ? load(at) + acc[i][j] : acc[i][j]);
    }
}

// dR of one gate and the units [begin, end) from `words` of history.
template <class Step>
inline void add_weights(const RnnBackwardMemory& m, int g, int64_t begin, int64_t end,
                        int64_t width, int64_t words, float* dR, bool add) {
  for (int64_t d0 = begin; d0 < end; d0 = (d0 / kBlock + 1) * kBlock) {
    const int64_t d1 = smaller((d0 / kBlock + 1) * kBlock, end);
    const float* da = m.da_block(g * m.gate_blocks + d0 / kBlock);
    for (int64_t p0 = 0; p0 < width; p0 += kBlock) {
      const int64_t p1 = smaller(p0 + kBlock, width);
      for (int64_t word = 0; word < words; word += kHistoryPart) {
        const int64_t depth = smaller(kHistoryPart, words - word);
        const bool more = add || word > 0;
        for (int64_t i = p0; i < p1; i += PW)
          for (int64_t d = d0; d < d1; d += kRowsOfWeights) {
            const float* a = da + word * kBlock + d % kBlock;
            const float* b = m.h_panel(i) + word * PW;
            float* to = dR + (g * width + d) * width + i;
            if (i + PW <= p1)
              weight_tile<Step, kRowsOfWeights, NR>(depth, a, b, to, width, more);
            else
              weight_tile<Step, kRowsOfWeights, 1>(depth, a, b, to, width, more);
          }
      }
    }
  }
}

// dR and db of the member's own units from the first `used` rows of the history.
inline void add_history(const RnnGrad& p, const Panels& panels, const OwnPanels& own,
                        const RnnTeam& team, int64_t used, const RnnBackwardMemory& m,
                        const RnnSums& sums, bool add) {
  const CellShape shape = cell_shape(p.in.cell);
  const int64_t width = panels.width;
  const int64_t begin = panels.first(own.begin), end = smaller(panels.first(own.end), width);
  const int64_t units = smaller(end, round_up(p.in.D, kRowsOfWeights));  // others only pad
  const int64_t words = pair_history(p, panels, own, used, m);
  if (p.in.bf16_dot) meet(team);  // everybody's h
  for (int g = 0; g < shape.bias; ++g)
    for (int64_t u = begin; u < end; u += W) {
      float* to = sums.db + g * width + u;
      store(to, add ? load(to) + load(m.db + g * width + u) : load(m.db + g * width + u));
      store(m.db + g * width + u, vf{});
    }
  for (int g = 0; g < shape.recurrent; ++g) {
#if defined(SEQKERN_BF16_DOT)
    if (p.in.bf16_dot) {
      add_weights<Bf16Dot>(m, g, begin, units, width, words, sums.dR, add);
      continue;
    }
#endif
    add_weights<MultiplyAdd>(m, g, begin, units, width, words, sums.dR, add);
  }
}

// The gradient [sequences][H][D] of the rows that `step` is the last of, into the carry; a
// step of -1 stands for the sequences without steps, whose gradient goes on to ds0.
inline void load_dlast(const RnnGrad& p, const RnnRows& rows, int64_t i_h, int64_t step,
                       const Panels& panels, const OwnPanels& own, const RnnBackwardMemory& m) {
  const int states = cell_shape(p.in.cell).states;
  for (int64_t r = 0; r < rows.count; ++r) {
    if (rows.row[r].length - 1 != step) continue;
    for (int64_t u = panels.first(own.begin); u < smaller(panels.first(own.end), panels.width);
         u += W)
      for (int i = 0; i < states; ++i) {
        vf x = vf{};
        if (p.dlast != nullptr && u < p.in.D)
          x = load_any(DType::kF32, p.dlast, state_at(p.in, i, rows.row[r].n, i_h) + u, p.in.D - u);
        store(m.carry + (i * rows.count + r) * panels.width + u, x);
      }
  }
}

template <class P>
inline void backward_steps(const RnnGrad& p, const RnnRows& rows, int64_t i_h, const RnnTeam& team,
                           const RnnSums& sums, bool add) {
  constexpr CellShape shape = cell_shape(P::kId);
  const Rnn& in = p.in;
  const Panels panels(in.D);
  const OwnPanels own(panels, team);
  const RnnBackwardMemory m(in, rows.count, team.shared);
  // The padding beyond D stays zero.
  if (team.part == 0) memset(team.shared, 0, static_cast<size_t>(m.floats) * sizeof(float));
  meet(team);
  load_dlast(p, rows, i_h, -1, panels, own, m);
  int64_t slot = 0;
  // Of the running step and, so that its memory can be asked for, of the one to follow.
  RnnGradRows found[2];
  if (rows.longest > 0) found[(rows.longest - 1) % 2].find(p, rows, i_h, rows.longest - 1);
  for (int64_t s = rows.longest - 1; s >= 0; --s) {
    const RnnGradRows& step = found[s % 2];
    RnnGradRows& next = found[(s + 1) % 2];
    if (s > 0) next.find(p, rows, i_h, s - 1);
    float* const pairs = m.pairs + (s % 2) * m.pair_buffer;
    const float* const a = in.bf16_dot ? pairs : m.da + slot * rows.count * kBlock;
    const int64_t block_stride = in.bf16_dot ? m.pair_stride : m.history * kBlock;
    load_dlast(p, rows, i_h, s, panels, own, m);
    for (int64_t panel = own.begin; panel < own.end; ++panel)
      backward_panel<P>(p, rows, step, i_h, panels, panel, slot, m, pairs);
    meet(team);
    const auto carry = [&]<int S>(int64_t panel, Constant<S>) __attribute__((always_inline)) {
      carry_panels<P, S>(p, rows, step, s > 0 ? &next : nullptr, i_h, s, panels, panel, a,
                         block_stride, m);
    };
    int64_t panel = own.begin;
    const int64_t whole = own.end - (panels.vectors(own.end - 1) < NR);
    const int64_t abreast = panels_abreast(step.active);
    if (abreast >= 4)
      for (; panel + 4 <= whole; panel += 4) carry(panel, Constant<4>{});
    if (abreast >= 2)
      for (; panel + 2 <= whole; panel += 2) carry(panel, Constant<2>{});
    for (; panel < own.end; ++panel) carry(panel, Constant<1>{});
    if (++slot == m.steps || s == 0) {
      add_history(p, panels, own, team, slot * rows.count, m, sums, add);
      add = true;
      slot = 0;
      meet(team);
    }
  }
  if (!add) add_history(p, panels, own, team, rows.count, m, sums, false);
  const int64_t end = smaller(panels.first(own.end), in.D);
  for (int64_t r = 0; r < rows.count; ++r)
    for (int i = 0; i < shape.states; ++i)
      for (int64_t u = panels.first(own.begin); u < end; u += W)
        store_any(DType::kF32, p.ds0, state_at(in, i, rows.row[r].n, i_h) + u, in.D - u,
                  load(m.carry + (i * rows.count + r) * panels.width + u));
  meet(team);
  stream_end();
}

template <class... P>
inline void backward_cell(CellList<P...>, const RnnGrad& p, const RnnRows& rows, int64_t i_h,
                          const RnnTeam& team, const RnnSums& sums, bool add) {
  constexpr void (*run[])(const RnnGrad&, const RnnRows&, int64_t, const RnnTeam&, const RnnSums&,
                          bool) = {&backward_steps<P>...};
  run[static_cast<int>(p.in.cell)](p, rows, i_h, team, sums, add);
}

inline void rnn_backward(const RnnGrad& p, int64_t i_h, int64_t begin, int64_t end,
                         const RnnTeam& team, const RnnSums& sums, bool add) {
  const FlushSubnormals flush;
  backward_cell(Cells{}, p, RnnRows(p.in, begin, end), i_h, team, sums, add);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
