// SPDX-License-Identifier: Apache-2.0
// rnn_rows.hpp - the sequences that advance together, where their tokens lie, and the threads that
// share their units.
#pragma once

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif

#include "rnn_math.hpp"
#include "rnn_product.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// A vector of which `left` lanes exist; the others are 0. kPlain: all of them, of float32.
template <bool kPlain = false>
SEQKERN_INLINE vf load_any(DType d, const void* base, int64_t i, int64_t left) {
  if constexpr (kPlain) return load_as<DType::kF32>(base, i);
  if (left <= 0) return vf{};
  if (d == DType::kF32) return load_left<DType::kF32>(base, i, left);
  return d == DType::kBF16 ? load_left<DType::kBF16>(base, i, left)
                           : load_left<DType::kF16>(base, i, left);
}

// Vectors of units that are written together: a cache line where it is written past the caches.
constexpr int kVectorsAtOnce = kStreams ? kLineVectors : 1;

template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

// Past the caches, if `stream`: `p` is aligned then, and nobody reads it for long.
SEQKERN_INLINE void store_or_stream(float* p, vf x, bool stream) {
  if (stream) return seqkern::SEQKERN_ISA::stream(p, x);
  store(p, x);
}

template <bool kPlain = false>
SEQKERN_INLINE void store_any(DType d, void* base, int64_t i, int64_t left, vf x,
                              bool stream = false) {
  if constexpr (kPlain) return store_or_stream(static_cast<float*>(base) + i, x, stream);
  if (left <= 0) return;
  if (d == DType::kF32) return store_left<DType::kF32>(base, i, left, x);
  if (d == DType::kBF16) return store_left<DType::kBF16>(base, i, left, x);
  store_left<DType::kF16>(base, i, left, x);
}

struct RnnRow {
  int64_t n, b, start, length;  // start: its first token within batch row b
};

// The rows of one call, the longest first: those that still run are always the first ones.
struct RnnRows {
  RnnRow row[kRnnMaxRows];
  int64_t count = 0, longest = 0;

  RnnRows(const Rnn& p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t n = p.order == nullptr ? i : p.order[i];
      RnnRow r{n, n, 0, p.T};
      if (p.cu_seqlens != nullptr)
        r = {n, 0, p.cu_seqlens[n], p.cu_seqlens[n + 1] - p.cu_seqlens[n]};
      row[count++] = r;
      longest = r.length > longest ? r.length : longest;
    }
  }
  int64_t running(int64_t step) const {
    int64_t active = count;
    while (active > 0 && row[active - 1].length <= step) --active;
    return active;
  }
};

SEQKERN_INLINE int64_t time_of(const Rnn& p, const RnnRow& r, int64_t step) {
  return r.start + (p.reverse ? r.length - 1 - step : step);
}
SEQKERN_INLINE bool resets(const Rnn& p, const RnnRow& r, int64_t step) {
  return p.reset != nullptr && p.reset[r.b * p.T + time_of(p, r, step)] != 0;
}
SEQKERN_INLINE int64_t element_at(const RnnView& v, int64_t b, int64_t t, int64_t i_h) {
  return b * v.batch_stride + t * v.time_stride + i_h * v.head_stride;
}
// Where a state of a sequence lies in s0, last, dlast and ds0.
SEQKERN_INLINE int64_t state_at(const Rnn& p, int64_t i_s, int64_t n, int64_t i_h) {
  return ((i_s * p.N + n) * p.H + i_h) * p.D;
}
SEQKERN_INLINE float* saved_at(const Rnn& p, int64_t i_h, int64_t b, int64_t t) {
  return p.saved + ((i_h * p.T + t) * p.B + b) * rnn_saved_width(p.cell, p.D, p.half_gates);
}

// A gate in [-1, 1] for float16, which has no number between 0.9995 and 1, while derivatives are
// made of 1 - |x|: beyond 0.51 that is what is kept, 2^17 times and 1 more, so that it is at least
// 1 and has float16's digits down to 1e-7. A mark, 2 or -2, becomes infinite, and itself again.
constexpr float kFolds = 0.51f, kFolded = 0.75f, kFoldScale = 131072.0f;
SEQKERN_INLINE vf folded(vf x) {
  const vf size = magnitude(x);
  const vf distance = less_product(size, splat(kFoldScale), splat(kFoldScale + 1.0f));
  return blend(size > splat(kFolds), with_sign(distance, x), x);
}
SEQKERN_INLINE vf unfolded(vf x) {
  const vf size = magnitude(x),
           most = splat(3.0f * kFoldScale + 1.0f);  // 1 - 3 is -2 but for the sign
  const vf near_one =
      fma(at_most(most, size), splat(-1.0f / kFoldScale), splat(1.0f + 1.0f / kFoldScale));
  return blend(size > splat(kFolded), with_sign(near_one, x), x);
}

SEQKERN_BESIDE(folded)

// A gate as float16 holds it.
template <class V>
SEQKERN_INLINE V shortened(const V& x, bool bounded) {
  return bounded ? folded(x) : at_most(splat(65504.0f), at_least(splat(-65504.0f), x));
}

// What is saved of one token and head: for every kSavedUnits of them the gates, then the states
// after h; all that is written at a time lies together, and a page of memory is opened once for it.
// Gates in float16: those in [-1, 1] folded, others cut to its range.
template <class Float>
struct Saved {
  static constexpr int64_t kSavedUnits = 32;

  Float* base;    // of the group of units
  int64_t units;  // in it
  int64_t unit;   // within it
  int64_t gates;  // floats that they take
  bool half;

  SEQKERN_INLINE_MEMBER Saved(Float* token, CellShape shape, bool half_gates, int64_t width,
                              int64_t u)
      : half(half_gates) {
    const int64_t first = u / kSavedUnits * kSavedUnits;
    units = smaller(kSavedUnits, width - first);
    unit = u - first;
    gates = half ? units / 2 * shape.saved : units * shape.saved;
    base =
        token + (half ? first / 2 * shape.saved : first * shape.saved) + first * (shape.states - 1);
  }
  // Where gate i lies, for a request alone.
  const void* gate(int i) const {
    return half ? base + i * (units / 2) + unit / 2 : base + i * units + unit;
  }
  // State i + 1.
  Float* state(int i) const { return base + gates + i * units + unit; }
  int64_t floats(CellShape shape) const { return gates + units * (shape.states - 1); }

  // `bounded`: in [-1, 1].
  SEQKERN_INLINE_MEMBER vf load_gate(int g, bool bounded) const {
    if (!half) return load(base + g * units + unit);
    const vf x = load_as<DType::kF16>(base, g * units + unit);
    return bounded ? unfolded(x) : x;
  }
  // Vector v from the unit on; in float16 as shortened() made it.
  SEQKERN_INLINE_MEMBER void store_gate(int g, int v, vf x, bool stream) const {
    const int64_t at = g * units + unit + v * W;
    if (!half) return store_or_stream(base + at, x, stream);
    store_as<DType::kF16>(base, at, x);
  }
};

// The panels of a team's member.
struct OwnPanels {
  int64_t begin, end;
  OwnPanels(const Panels& panels, const RnnTeam& team)
      : begin(panels.count * team.part / team.parts),
        end(panels.count * (team.part + team.weight) / team.parts) {}
};

// Sleeps until *at is no longer `value`, or a little less long.
inline void wait_while(int* at, int value) {
#if defined(__linux__)
  syscall(SYS_futex, at, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#elif defined(__unix__) || defined(__APPLE__)
  (void)at, (void)value;
  sched_yield();
#endif
}

inline void wake_all(int* at) {
#if defined(__linux__)
  syscall(SYS_futex, at, FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
#else
  (void)at;
#endif
}

// Returns when all parts have come here. Parts take equally long, so that a short wait is the rule.
// Where others want the cores, a part may be off its own for long: who waits for it sleeps, and is
// then among the first to be let on again; spinning on would use up its share of the time.
inline void meet(const RnnTeam& team) {
  if (team.weight == team.parts) return;
  int* const count = team.arrived;
  int* const round = team.arrived + 16;
  int* const asleep = team.arrived + 17;
  const int now = __atomic_load_n(round, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(count, team.weight, __ATOMIC_ACQ_REL) == team.parts) {
    __atomic_store_n(count, 0, __ATOMIC_RELAXED);
    __atomic_store_n(round, now + 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(asleep, __ATOMIC_SEQ_CST) > 0) wake_all(round);
    return;
  }
  constexpr int kSpins = 1000;
  for (int spins = 0; spins < kSpins; ++spins) {
    if (__atomic_load_n(round, __ATOMIC_ACQUIRE) != now) return;
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
  __atomic_add_fetch(asleep, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(round, __ATOMIC_SEQ_CST) == now) wait_while(round, now);
  __atomic_sub_fetch(asleep, 1, __ATOMIC_SEQ_CST);
}

// Writes the words of W units from `u` on of one row into the blocks of a product's A.
SEQKERN_INLINE void store_words(bool bf16_dot, float* blocks, int64_t block_stride, int64_t row,
                                int64_t u, vf x) {
#if defined(SEQKERN_BF16_DOT)
  if (bf16_dot) {
    const int64_t word = u / 2;
    float* at = blocks + word / kBlock * block_stride + row * kBlock + word % kBlock;
    return store_as<DType::kBF16>(at, 0, x);
  }
#endif
  (void)bf16_dot;
  store(blocks + u / kBlock * block_stride + row * kBlock + u % kBlock, x);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
