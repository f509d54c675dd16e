// SPDX-License-Identifier: Apache-2.0
// rnn_fwd.hpp - the recurrence of all cells: forward, all steps of a group of sequences of one
// head.
//
// Maths      a = x + R h + b, (h, ...) = cell(a, (h, ...)); cells in rnn_cells.hpp
// Layout     see rnn.h. h of the running step lies as A of rnn_product.hpp, twice: one is read
//            while the other is written. Per panel of units: the products of all gates,
//            side by side if the sequences are few, then the cell.
// Precision  states and sums f32; with bf16_dot h is rounded to bfloat16 for the product, with
//            half_gates gates to float16 as Saved keeps them, for the backward pass alone.
// Cost       2 gates D^2 flops a token and head; R is read once a step for all rows. Wx is copied
//            while the products run; large outputs are written past the caches, and memory for what
//            a smaller call saves is asked for beside the activations.
// Threads    members of a team own whole panels, and meet once a step.
#pragma once

#include "rnn_cells.hpp"
#include "rnn_rows.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// The inputs of one panel, [row][gate][PW]. The products ask for them a few at a time, for many
// requests at once would hold up their own, and copy them two tiles later. Rows of a tensor are
// often a power of two apart: if all waited in the caches they would drive each other out.
class Inputs {
 public:
  static constexpr int kParts = 4;  // of a row at most
  static constexpr int kWords = 4;

  // A run: a part of a row, from the first unit of the head on.
  void clear() { count_ = 0, places_ = 0; }
  SEQKERN_INLINE_MEMBER void add(const char* at) {
    from_[count_++] = at;
    places_ |= reinterpret_cast<uintptr_t>(at);
  }
  // The next panel: `bytes` bytes, > 0, of every run from `offset` on, and zeros up to `padded`
  // bytes, in the time of a product of so many tiles, each of whole blocks of `words`.
  void start(int64_t offset, int64_t bytes, int64_t padded, int64_t tiles, int64_t words) {
    offset_ = offset;
    bytes_ = bytes;
    padded_ = padded;
    whole_ = bytes == padded && bytes % (W * 4) == 0;
    const bool crosses = places_ % (kLine * 4) != 0;
    lines_ = (bytes > kLine * 4 ? 2 : 1) + (crosses ? 1 : 0);
    asked_ = copied_ = 0;
    for (int& count : before_) count = 0;
    const int64_t per_tile = kWithinTiles ? smaller(kBlock, words) / kWords : 1;
    const int chances = static_cast<int>((tiles > kBehind ? tiles - kBehind : 1) * per_tile);
    each_ = (count_ + chances - 1) / chances;
    pace_ = wait_ = chances > count_ && count_ > 0 ? chances / count_ : 1;
  }
  SEQKERN_INLINE_MEMBER void during_tile() {
    if (kWithinTiles) ask();
  }
  void between_tiles() {
    copy_until(before_[0]);
    if (!kWithinTiles) ask();
    for (int i = 1; i < kBehind; ++i) before_[i - 1] = before_[i];
    before_[kBehind - 1] = asked_;
  }
  // Those that no product had the time for.
  void copy_rest() { copy_until(count_); }
  const char* at(int64_t run) const { return line_ + run * kPitch; }

 private:
  static constexpr int kMost = kRnnMaxRows * kParts;
  static constexpr int kBehind = 2;  // tiles
  // Of wide vectors a product has few tiles: what one would have to ask for at once is much.
  static constexpr bool kWithinTiles = W == 16;
  static constexpr int64_t kPitch = PW * 4;
  SEQKERN_INLINE_MEMBER void ask() {
    if (--wait_ > 0) return;
    wait_ = pace_;
    const int asked = asked_, end = asked + each_ < count_ ? asked + each_ : count_;
    const int64_t offset = offset_, bytes = bytes_;
    for (int i = asked; i < end; ++i) prefetch(from_[i], offset);
    if (lines_ > 1) {
      for (int i = asked; i < end; ++i) prefetch(from_[i], offset + bytes - 1);
      if (lines_ > 2)
        for (int i = asked; i < end; ++i) prefetch(from_[i], offset + kLine * 4);
    }
    asked_ = end;
  }
  void copy_until(int end) {
    if (!whole_) return copy_ragged(end);
    const int64_t offset = offset_, bytes = bytes_;
    for (int i = copied_; i < end; ++i)
      for (int64_t j = 0; j < bytes; j += W * 4)
        memcpy(line_ + i * kPitch + j, from_[i] + offset + j, W * 4);
    if (end > copied_) copied_ = end;
  }
  // noinline: the ragged end of a width is rare, and the rest of the product is not.
  __attribute__((noinline)) void copy_ragged(int end) {
    const int64_t offset = offset_, bytes = bytes_, padded = padded_;
    for (int i = copied_; i < end; ++i)
      for (int64_t j = 0; j < padded; j += W * 4)
        copy_vector(line_ + i * kPitch + j, from_[i] + offset + j, bytes - j);
    if (end > copied_) copied_ = end;
  }
  // A vector of which `bytes` bytes exist, an even number; the others become 0.
  static SEQKERN_INLINE_MEMBER void copy_vector(char* to, const char* from, int64_t bytes) {
    const int64_t exist = bytes > 0 ? smaller(bytes, W * 4) : 0;
    store(reinterpret_cast<float*>(to), load_some<DType::kF32>(from, 0, exist / 4));
    // The last of an odd number of 16-bit values.
    if (exist % 4 != 0) memcpy(to + exist - 2, from + exist - 2, 2);
  }
  int count_ = 0, asked_ = 0, copied_ = 0, each_ = 0, pace_ = 1, wait_ = 1;
  int before_[kBehind] = {};  // asked before the last tiles
  int64_t offset_ = 0, bytes_ = 0, padded_ = 0;
  bool whole_ = false;
  uintptr_t places_ = 0;  // the bits of all runs' addresses
  int lines_ = 1;         // of the cache, at most, that a part of a run lies in
  const char* from_[kMost];
  alignas(64) char line_[kMost * kPitch];
};

struct RnnForwardMemory {
  int64_t block_stride, buffer, floats;
  float *h, *states;  // h: two buffers; states: [state][row][width]
  RnnForwardMemory(const Rnn& p, int64_t rows, float* begin) {
    const int64_t width = rnn_padded(p.D);
    block_stride = rows * kBlock;
    buffer = blocks_of(words_of(width, p.bf16_dot)) * block_stride + 16;
    float* end = place(&h, begin, 2 * buffer);
    end = place(&states, end, cell_shape(p.cell).states * rows * width);
    floats = end - begin;
  }
};

inline int64_t rnn_forward_shared(const Rnn& p, int64_t rows) {
  static float nowhere[1];
  return RnnForwardMemory(p, rows, nowhere).floats;
}

// Everything about one step that does not depend on the unit.
struct RnnStepRows {
  int64_t active = 0;
  int64_t x[kRnnMaxRows], out[kRnnMaxRows];
  float* saved[kRnnMaxRows];
  bool ends[kRnnMaxRows], fresh_next[kRnnMaxRows];

  RnnStepRows(const Rnn& p, const RnnRows& rows, int64_t i_h, int64_t step) {
    active = rows.running(step);
    for (int64_t r = 0; r < active; ++r) {
      const RnnRow& row = rows.row[r];
      const int64_t t = time_of(p, row, step);
      x[r] = element_at(p.Wx, row.b, t, i_h);
      out[r] = element_at(p.out, row.b, t, i_h);
      saved[r] = p.saved == nullptr ? nullptr : saved_at(p, i_h, row.b, t);
      ends[r] = step + 1 == row.length;
      fresh_next[r] = !ends[r] && resets(p, row, step + 1);
    }
  }
};

// What forward_gates() will read of Wx in one step.
template <class P>
inline void find_inputs(const Rnn& p, const RnnStepRows& step, Inputs& inputs) {
  static_assert(cell_shape(P::kId).input <= Inputs::kParts);
  const int64_t bytes = element_bytes(p.Wx.dtype);
  inputs.clear();
  for (int64_t r = 0; r < step.active; ++r)
    for (int i = 0; i < cell_shape(P::kId).input; ++i)
      inputs.add(static_cast<const char*>(p.Wx.data) + (step.x[r] + i * p.Wx.part_stride) * bytes);
}

// Rows whose activations, and vectors whose states, go on side by side.
constexpr int kRowsAbreast = W == 16 ? 2 : 4;

// Of a vector of units and kRows rows from `first` on: the pre-activations, and where what the cell
// makes of them goes, in place of the products y: [gate][row][PW].
template <class P, bool kPlain, int kRows>
struct GatesOfRows {
  const vf* bias;  // one per bias gate
  const Inputs& inputs;
  DType type;
  int64_t first, count, lane;
  float* y;

  SEQKERN_INLINE_MEMBER Side<kRows> pre_activation(int gate) const {
    constexpr CellShape shape = cell_shape(P::kId);
    const int input = gate - (shape.bias - shape.input);
    return side<kRows>([&](int row) __attribute__((always_inline)) {
      vf x = bias[gate];
      if (input >= 0)
        x += load_any<kPlain>(type, inputs.at((first + row) * shape.input + input), lane, W);
      if (gate < shape.recurrent) x += load(at(gate, row));
      return x;
    });
  }
  SEQKERN_INLINE_MEMBER void keep(int gate, const Side<kRows>& x) const {
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) store(at(gate, row), x.x[row]);
  }
  SEQKERN_INLINE_MEMBER float* at(int gate, int row) const {
    return y + (gate * count + first + row) * PW;
  }
};

// Asks for what the step saves of a row and the cache line of unit u: it is written soon.
template <class P>
SEQKERN_INLINE void ask_for_saved(const Rnn& p, const RnnStepRows& step, int64_t r, int64_t u) {
  constexpr CellShape shape = cell_shape(P::kId);
  const Saved saved(step.saved[r], shape, p.half_gates, rnn_padded(p.D), u);
#pragma GCC unroll 5
  for (int i = 0; i < shape.saved; ++i) prefetch_to_write(saved.gate(i));
#pragma GCC unroll 4
  for (int i = 1; i < shape.states; ++i) prefetch_to_write(saved.state(i - 1));
}

// `lane`: the first unit within the panel.
template <class P, bool kPlain>
inline void forward_gates(const Rnn& p, const RnnRows& rows, const RnnStepRows& step,
                          const Inputs& inputs, int64_t i_h, int64_t u, int64_t lane, float* y) {
  constexpr CellShape shape = cell_shape(P::kId);
  const bool saves = p.saved != nullptr && !p.stream_saved && u % kLine == 0;
  const int64_t left = p.D - u;
  vf bias[shape.bias];
  for (int g = 0; g < shape.bias; ++g)
    bias[g] = p.bias == nullptr
                  ? vf{}
                  : load_any<kPlain>(DType::kF32, p.bias, (g * p.H + i_h) * p.D + u, left);
  // Of its own, so that all registers are for it.
  const auto gates_of = [&]<int kRows>(int64_t first, Constant<kRows>) __attribute__((noinline)) {
    const GatesOfRows<P, kPlain, kRows> of{bias, inputs, p.Wx.dtype, first, rows.count, lane, y};
    P::gates(
        [&](int gate) __attribute__((always_inline)) { return of.pre_activation(gate); },
        [&](int gate, const Side<kRows>& x) __attribute__((always_inline)) { of.keep(gate, x); });
  };
  const auto ask = [&](int64_t from, int64_t to) {
    if (saves)
      for (int64_t r = from; r < to; ++r) ask_for_saved<P>(p, step, r, u);
  };
  int64_t r = 0;
  for (; r + kRowsAbreast <= step.active; r += kRowsAbreast) {
    ask(r, r + kRowsAbreast);
    gates_of(r, Constant<kRowsAbreast>{});
  }
  ask(r, step.active);
  for (; r < step.active; ++r) gates_of(r, Constant<1>{});
}

// Where the states of one step go.
template <class P, bool kPlain, int N>
struct StatesOfStep {
  static constexpr CellShape kShape = cell_shape(P::kId);
  // Copies: the compiler must assume that stores of vectors change what lies behind a reference.
  const RnnView out;
  const int out_states;
  const bool streams, stream_saved, half_gates, bf16_dot;
  const int64_t left, ahead, width, plane, block_stride, u;
  float *const states, *const h_next;
  vi exist[N];  // units: of the others, h must not be infinite
  const Rnn& p;
  const RnnRows& rows;
  const RnnStepRows& step;
  const int64_t i_h;

  StatesOfStep(const Rnn& p, const RnnRows& rows, const RnnStepRows& step, int64_t i_h, int64_t u,
               const RnnForwardMemory& m, float* h_next)
      : out(p.out),
        out_states(p.out_states),
        streams(kStreams && p.stream_out),
        stream_saved(p.stream_saved),
        half_gates(!kPlain && p.half_gates && p.saved != nullptr),
        bf16_dot(!kPlain && p.bf16_dot),
        left(p.D - u),
        ahead((p.reverse ? -2 : 2) * p.out.time_stride),
        width(rnn_padded(p.D)),
        plane(rows.count * width),
        block_stride(m.block_stride),
        u(u),
        states(m.states),
        h_next(h_next),
        p(p),
        rows(rows),
        step(step),
        i_h(i_h) {
    for (int v = 0; v < N; ++v) exist[v] = first_lanes(left - v * W);
  }

  SEQKERN_INLINE_MEMBER float* state(int64_t r) const { return states + r * width + u; }

  // N vectors of the states s and the gates g of row r, from vector `first` of theirs on.
  template <int kVectors>
  SEQKERN_INLINE_MEMBER void keep(int64_t r, int first, const Side<kVectors>* s,
                                  const Side<kVectors>* g) const {
    for (int i = 0; i < out_states; ++i) {
      const int64_t at = step.out[r] + i * out.part_stride + u;
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v)
        store_any<kPlain>(out.dtype, out.data, at + v * W, left - v * W, s[i].x[first + v],
                          streams);
      if (!streams) prefetch(out.data, (at + ahead) * (kPlain ? 4 : element_bytes(out.dtype)));
    }
    if (step.saved[r] != nullptr) {
      const Saved saved(step.saved[r], kShape, half_gates, width, u);
#pragma GCC unroll 5
      for (int i = 0; i < kShape.saved; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) saved.store_gate(i, v, g[i].x[first + v], stream_saved);
#pragma GCC unroll 4
      for (int i = 1; i < kShape.states; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v)
          store_or_stream(saved.state(i - 1) + v * W, s[i].x[first + v], stream_saved);
    }
    if (__builtin_expect(step.ends[r], 0)) keep_last(r, first, s);
    const bool fresh = step.fresh_next[r];
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) {
#pragma GCC unroll 4
      for (int i = 0; i < kShape.states; ++i)
        store(state(r) + i * plane + v * W, fresh ? vf{} : s[i].x[first + v]);
      const vf h = fresh ? vf{} : s[0].x[first + v];
      store_words(bf16_dot, h_next, block_stride, r, u + v * W, kPlain ? h : only(exist[v], h));
    }
  }
  template <int kVectors>
  SEQKERN_INLINE_MEMBER void keep_last(int64_t r, int first, const Side<kVectors>* s) const {
    for (int v = 0; v < N; ++v)
      for (int i = 0; i < kShape.states; ++i)
        store_any(DType::kF32, p.last, state_at(p, i, rows.row[r].n, i_h) + u + v * W, left - v * W,
                  s[i].x[first + v]);
  }
};

// The states of N vectors of units, from what forward_gates() left. noinline: all registers for it.
template <class P, bool kPlain, int N>
__attribute__((noinline)) inline void forward_update(const Rnn& p, const RnnRows& rows,
                                                     const RnnStepRows& step, int64_t i_h,
                                                     int64_t u, const float* y,
                                                     const RnnForwardMemory& m, float* h_next) {
  constexpr CellShape shape = cell_shape(P::kId);
  const StatesOfStep<P, kPlain, N> to(p, rows, step, i_h, u, m, h_next);
  const int64_t count = rows.count;
  const float clip = p.forward_clip;
  const auto update = [&]<int kRows>(int64_t first, Constant<kRows>)
      __attribute__((always_inline)) {
    Side<kRows * N> s[shape.states], g[shape.saved];
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 2
      for (int v = 0; v < N; ++v) {
        const int64_t r = first + row;
#pragma GCC unroll 5
        for (int i = 0; i < shape.saved; ++i)
          g[i].x[row * N + v] = load(y + (i * count + r) * PW + v * W);
#pragma GCC unroll 4
        for (int i = 0; i < shape.states; ++i)
          s[i].x[row * N + v] = load(to.state(r) + i * to.plane + v * W);
      }
    P::update(s, g);
    if (clip > 0.0f) {
      const vf limit = splat(clip);
      auto& gate = g[P::kClipGate];
      gate = blend(magnitude(s[0]) > limit, splat(kClipped), gate);
      s[0] = at_most(limit, at_least(-limit, s[0]));
    }
    if (!kPlain && to.half_gates) {
#pragma GCC unroll 5
      for (int i = 0; i < shape.saved; ++i) g[i] = shortened(g[i], i != P::kFreeGate);
    }
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) to.keep(first + row, row * N, s, g);
  };
  constexpr int kRows = kRowsAbreast > N ? kRowsAbreast / N : 1;
  int64_t r = 0;
  for (; r + kRows <= step.active; r += kRows) update(r, Constant<kRows>{});
  for (; r < step.active; ++r) update(r, Constant<1>{});
}

// States before the first step; what has no steps ends here.
inline void forward_start(const Rnn& p, const RnnRows& rows, int64_t i_h, const Panels& panels,
                          const OwnPanels& own, const RnnForwardMemory& m) {
  const int states = cell_shape(p.cell).states;
  for (int64_t panel = own.begin; panel < own.end; ++panel)
    for (int v = 0; v < panels.vectors(panel); ++v)
      for (int64_t r = 0; r < rows.count; ++r) {
        const int64_t u = panels.first(panel) + v * W, left = p.D - u;
        const RnnRow& row = rows.row[r];
        const bool fresh = row.length > 0 && resets(p, row, 0);
        for (int i = 0; i < states; ++i) {
          const int64_t at = state_at(p, i, row.n, i_h) + u;
          vf s = vf{};
          if (p.s0 != nullptr && left > 0) s = load_any(DType::kF32, p.s0, at, left);
          if (row.length == 0 && left > 0) store_any(DType::kF32, p.last, at, left, s);
          if (fresh) s = vf{};
          store(m.states + (i * rows.count + r) * panels.width + u, s);
          // Both buffers: the padding beyond D is not written again.
          if (i == 0)
            for (int buffer = 0; buffer < 2; ++buffer)
              store_words(p.bf16_dot, m.h + buffer * m.buffer, m.block_stride, r, u, s);
        }
      }
}

template <class P>
inline void forward_steps(const Rnn& p, const RnnRows& rows, int64_t i_h, const RnnTeam& team) {
  constexpr CellShape shape = cell_shape(P::kId);
  const Panels panels(p.D);
  const OwnPanels own(panels, team);
  const RnnForwardMemory m(p, rows.count, team.shared);
  const Words words(p.D, p.bf16_dot);
  const int64_t bytes = element_bytes(p.Wx.dtype);
  const float* packed =
      static_cast<const float*>(p.packed) + i_h * packed_bytes(p.cell, p.D, p.bf16_dot) / 4;
  constexpr int kPlanes = shape.saved > shape.recurrent ? shape.saved : shape.recurrent;
  alignas(64) float y[kPlanes * kRnnMaxRows * PW];
  Inputs inputs;
  forward_start(p, rows, i_h, panels, own, m);
  meet(team);
  for (int64_t s = 0; s < rows.longest; ++s) {
    const RnnStepRows step(p, rows, i_h, s);
    const float* h = m.h + (s % 2) * m.buffer;
    float* h_next = m.h + ((s + 1) % 2) * m.buffer;
    const int64_t abreast = panels_abreast(step.active);
    const int64_t tiles =
        (shape.recurrent + abreast - 1) / abreast * tiles_of(step.active, words.read);
    find_inputs<P>(p, step, inputs);
    for (int64_t turn = own.begin; turn < own.end; ++turn) {
      // To and fro: of an R that a cache does not hold, it then has the end.
      const int64_t panel = abreast > 1 && s % 2 != 0 ? own.begin + own.end - 1 - turn : turn;
      const int64_t first = panels.first(panel);
      if (first >= p.D) continue;  // padding alone
      const int64_t units = panels.vectors(panel) * W;
      inputs.start(first * bytes, smaller(units, p.D - first) * bytes, units * bytes, tiles,
                   words.read);
      const auto gates = [&]<int S>(int g, Constant<S>) __attribute__((always_inline)) {
        product_of_panels<S>(
            p.bf16_dot, panels.vectors(panel), step.active, 1, words, h, m.block_stride,
            {packed + packed_at(panels, shape.recurrent, g, panel, words.all, false),
             y + g * rows.count * PW, panels.width * words.all, rows.count * PW},
            inputs);
      };
      int gate = 0;
      if (abreast >= shape.recurrent) {
        gates(0, Constant<shape.recurrent>{});
        gate = shape.recurrent;
      }
      if (abreast >= 2)
        for (; gate + 2 <= shape.recurrent; gate += 2) gates(gate, Constant<2>{});
      for (; gate < shape.recurrent; ++gate) gates(gate, Constant<1>{});
      inputs.copy_rest();
      for (int v = 0; v < panels.vectors(panel); v += kVectorsAtOnce) {
        const int64_t u = first + v * W;
        if (u >= p.D) break;
        const auto units = [&](auto plain) {
          for (int i = 0; i < kVectorsAtOnce; ++i)
            forward_gates<P, plain.value>(p, rows, step, inputs, i_h, u + i * W, (v + i) * W,
                                          y + (v + i) * W);
          forward_update<P, plain.value, kVectorsAtOnce>(p, rows, step, i_h, u, y + v * W, m,
                                                         h_next);
        };
        if (p.Wx.dtype == DType::kF32 && u + kVectorsAtOnce * W <= p.D)
          units(Constant<true>{});
        else
          units(Constant<false>{});
      }
    }
    meet(team);
  }
  stream_end();
}

template <class... P>
inline void forward_cell(CellList<P...>, const Rnn& p, const RnnRows& rows, int64_t i_h,
                         const RnnTeam& team) {
  constexpr void (*run[])(const Rnn&, const RnnRows&, int64_t,
                          const RnnTeam&) = {&forward_steps<P>...};
  run[static_cast<int>(p.cell)](p, rows, i_h, team);
}

inline void rnn_forward(const Rnn& p, int64_t i_h, int64_t begin, int64_t end,
                        const RnnTeam& team) {
  const FlushSubnormals flush;
  forward_cell(Cells{}, p, RnnRows(p, begin, end), i_h, team);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
