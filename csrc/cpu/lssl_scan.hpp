// SPDX-License-Identifier: Apache-2.0
// lssl_scan.hpp - the recurrence of a linear state-space layer in O(N) per step.
//
// Maths      E d_t = F x_{t-1} + g u_t;  x_t = x_{t-1} + d_t;  y_t = C x_t + D u_t   (lssl.h)
// Layout     lanes are features; states [N][lane], in cache from the first step to the last.
// Precision  f32 or f64 throughout; coefficients rounded once from f64. Solving for the step d
//            keeps errors at eps |d| instead of eps |x|.
// Cost       lower triangular (LegS, LagT): 5 + M multiply-adds per state and step, eight steps at
//            a time: row n of step t needs row n of step t - 1 and row n - 1 of both, so a block
//            of steps walks down the rows together and loads every coefficient once. The reorder
//            buffer overlaps the rows, whose steps form a chain.
//            otherwise: 10 + M, for an impulse response one sweep over the rows a step, down and
//            up in turn: substitutes back what the sweep before eliminated, and eliminates for the
//            next step what it leaves behind. The second cache bounds long states: sweeps turn
//            round where the rows used last are. A sequence takes two sweeps a step, one down and
//            one up, for else its bits would depend on where it is cut. Short states take two
//            vectors of features side by side. Shared coefficients: one more, but two thirds of
//            the bytes.
// Limits     no row exchanges: the caller looks at the growth that forward() returns.
// Threads    none: the caller splits sequences and features.
#pragma once

#include "lssl_system.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// What a step does beyond moving the state: read y out, or keep d.
enum class StepMode { kRead, kMove, kKeep };

// What a sweep over the rows does: the first part of a step, the second, or the second of one and
// the first of the next.
enum class Sweep { kBegin, kEnd, kBoth };

// One stretch of steps of one group.
template <class V>
struct Steps {
  typedef typename V::T T;
  T* x = nullptr;        // [N][lane], from before the first step to after the last
  T* z = nullptr;        // [N][lane], scratch
  const T* u = nullptr;  // [count][lane]
  T* y = nullptr;        // [count][M][lane], adds to it
  bool fresh = false;    // y holds nothing yet: write it (one channel only)
  int64_t inputs = 0;    // rows that read u
  T* kept = nullptr;     // where the steps d are kept, by the strides of the group
};

// y[i][m] += C_m x[i] for the S states of one row.
template <class V, int S>
SEQKERN_INLINE void read_out(const typename V::T* out, int64_t M, const typename V::Vec (&x)[S],
                             typename V::T* y) {
  constexpr int kL = V::kLanes;
  for (int64_t m = 0; m < M; ++m) {
    const typename V::Vec c = V::load(out + m * kL);
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i) {
      typename V::T* at = y + (i * M + m) * kL;
      V::store(at, V::fma(c, x[i], V::load(at)));
    }
  }
}

// Rows of a lower triangular system: the first, which nothing lies left of; some that read u; some
// that do not.
enum class Rows { kFirst, kFed, kRest };

// S steps from step t on of a lower triangular system, rows [begin, end).
template <class V, int S, Rows Which, bool One, StepMode Mode>
SEQKERN_INLINE void lower_rows(const Group<V>& s, const Steps<V>& w, int64_t t, int64_t begin,
                               int64_t end, typename V::Vec (&x_left)[S],
                               typename V::Vec (&d_left)[S], typename V::Vec (&y)[S]) {
  typedef typename V::Vec Vec;
  constexpr int kL = V::kLanes;
  const int64_t row = s.kept_row;
  typename V::T* kept = w.kept + begin * row + t * kL;
  for (int64_t n = begin; n < end; ++n, kept += row) {
    const typename V::T* k = s.at(n);
    const Vec below = V::load(k + kBelow * kL), left = V::load(k + kLeft * kL),
              mid = V::load(k + kMid * kL), in = V::load(k + kIn * kL),
              out = V::load(k + kLowerOut * kL);
    Vec x = V::load(w.x + n * kL), after[S];
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i) {
      // d_left last: rows then wait for each other for one operation alone.
      Vec d = Which == Rows::kFirst ? mid * x : V::fma(mid, x, left * x_left[i]);
      if constexpr (Which != Rows::kRest) d = V::fma(in, V::load(w.u + (t + i) * kL), d);
      if constexpr (Which != Rows::kFirst) d = V::fma(below, d_left[i], d);
      x_left[i] = x;
      d_left[i] = d;
      x = x + d;
      if constexpr (One && Mode == StepMode::kRead)
        y[i] = Which == Rows::kFirst ? out * x : V::fma(out, x, y[i]);
      if constexpr (!One) after[i] = x;
      if constexpr (Mode == StepMode::kKeep) V::store(kept + i * kL, d);
    }
    V::store(w.x + n * kL, x);
    if constexpr (!One && Mode == StepMode::kRead)
      read_out<V, S>(k + kLowerOut * kL, s.M, after, w.y + t * s.M * kL);
  }
}

template <class V, int S, bool One, StepMode Mode>
SEQKERN_INLINE void lower_block(const Group<V>& s, const Steps<V>& w, int64_t t) {
  typedef typename V::Vec Vec;
  Vec x_left[S] = {}, d_left[S] = {}, y[S] = {};
  const int64_t fed = w.inputs > 1 ? w.inputs : 1;
  lower_rows<V, S, Rows::kFirst, One, Mode>(s, w, t, 0, 1, x_left, d_left, y);
  lower_rows<V, S, Rows::kFed, One, Mode>(s, w, t, 1, fed, x_left, d_left, y);
  lower_rows<V, S, Rows::kRest, One, Mode>(s, w, t, fed, s.N, x_left, d_left, y);
  if constexpr (One && Mode == StepMode::kRead)
    for (int i = 0; i < S; ++i) {
      typename V::T* at = w.y + (t + i) * V::kLanes;
      V::store(at, w.fresh ? y[i] : V::load(at) + y[i]);
    }
}

// A sweep over the rows of a tridiagonal system, downwards or upwards. `t` is the step that it
// ends, or the one that it begins if it ends none. `Fed`: there may be rows that read u.
template <class V, bool One, StepMode Mode, bool Fed, bool Down, Sweep What>
inline void sweep(const Group<V>& s, const Steps<V>& w, int64_t t) {
  typedef typename V::T T;
  typedef typename V::Vec Vec;
  constexpr int kL = V::kLanes;
  constexpr bool kBegins = What != Sweep::kEnd, kEnds = What != Sweep::kBegin;
  constexpr int64_t kOn = Down ? 1 : -1;  // to the next row
  const int64_t M = s.M, inputs = kBegins && Fed ? w.inputs : 0, kept_row = s.kept_row;
  const int64_t first = Down ? 0 : s.N - 1, last = Down ? s.N - 1 : 0;
  const auto rows = s.rows();
  T *const w_x = w.x, *const w_z = w.z, *const w_kept = w.kept + t * s.kept_step;
  T* const w_y = w.y + t * M * kL;
  const Vec u = inputs > 0 ? V::load(w.u + (t + (kEnds ? 1 : 0)) * kL) : Vec{};
  Vec d = {}, y = {}, z = {};
  // -E's entry in the row before.
  const auto back = [](const Row<V>& k) __attribute__((always_inline)) {
    return Down ? k.below() : k.above();
  };
  // The state of row n, whose step it ends.
  const auto state = [&](int64_t n, const Row<V>& k, Vec off) __attribute__((always_inline)) {
    Vec x = V::load(w_x + n * kL);
    if constexpr (kEnds) {
      d = V::fma(k.template weigh<!Down>(off), d, V::load(w_z + n * kL));
      x = x + d;
      V::store(w_x + n * kL, x);
      const Vec after[1] = {x};
      if constexpr (One && Mode == StepMode::kRead)
        y = V::fma(V::load(k.out()), x, y);
      else if constexpr (Mode == StepMode::kRead)
        read_out<V, 1>(k.out(), M, after, w_y);
      if constexpr (Mode == StepMode::kKeep) V::store(w_kept + n * kept_row, d);
    }
    return x;
  };
  // Row n of E d = F x + g u, with one operation that waits for the row before.
  const auto eliminate = [&](int64_t n, const Row<V>& k, Vec off, Vec x_behind, Vec x, Vec x_next)
      __attribute__((always_inline)) {
    const Vec coupling = k.template weigh<Down>(off);
    Vec r = k.mid() * x;
    r = V::fma(Down ? k.left() : k.right(), x_behind, r);
    r = V::fma(Down ? k.right() : k.left(), x_next, r);
    if (Fed && n < inputs) r = V::fma(k.in(), u, r);
    z = V::fma(coupling, z, k.template weigh<Down>(r));
    V::store(w_z + n * kL, z);
  };
  Vec off = back(rows[first]), x_behind = {}, x = state(first, rows[first], off);
#pragma GCC unroll 2
  for (int64_t n = first; n != last; n += kOn) {
    const Row<V> next = rows[n + kOn];
    const Vec off_next = back(next), x_next = state(n + kOn, next, off_next);
    if constexpr (kBegins) eliminate(n, rows[n], off, x_behind, x, x_next);
    off = off_next;
    x_behind = x;
    x = x_next;
  }
  if constexpr (kBegins) eliminate(last, rows[last], off, x_behind, x, Vec{});
  if constexpr (kEnds && One && Mode == StepMode::kRead)
    V::store(w_y, w.fresh ? y : V::load(w_y) + y);
}

// The steps [begin, end) of a tridiagonal system. `apart`: each has the bits that it would have
// alone.
template <class V, bool One, StepMode Mode, bool Fed>
inline void tridiagonal_steps(const Group<V>& s, const Steps<V>& w, int64_t begin, int64_t end,
                              bool apart) {
  int64_t t = begin;
  for (; t < end && apart; ++t) {
    sweep<V, One, Mode, Fed, true, Sweep::kBegin>(s, w, t);
    sweep<V, One, Mode, Fed, false, Sweep::kEnd>(s, w, t);
  }
  if (t >= end) return;
  sweep<V, One, Mode, Fed, true, Sweep::kBegin>(s, w, t);
  for (; t + 2 < end; t += 2) {
    sweep<V, One, Mode, Fed, false, Sweep::kBoth>(s, w, t);
    sweep<V, One, Mode, Fed, true, Sweep::kBoth>(s, w, t + 1);
  }
  if (t + 1 == end) return sweep<V, One, Mode, Fed, false, Sweep::kEnd>(s, w, t);
  sweep<V, One, Mode, Fed, false, Sweep::kBoth>(s, w, t);
  sweep<V, One, Mode, Fed, true, Sweep::kEnd>(s, w, t + 1);
}

// The steps [begin, end); `apart` as above.
template <class V, bool One, StepMode Mode>
inline void run_steps(const Group<V>& s, const Steps<V>& w, int64_t begin, int64_t end,
                      bool apart) {
  if constexpr (!V::kTwice && !V::kShared)
    if (s.lower) {
      int64_t t = begin;
      for (; t + kSteps <= end; t += kSteps) lower_block<V, kSteps, One, Mode>(s, w, t);
      for (; t < end; ++t) lower_block<V, 1, One, Mode>(s, w, t);
      return;
    }
  // Without a branch in it the loop over the rows is unrolled.
  if (One && w.inputs == 0)
    tridiagonal_steps<V, One, Mode, !One>(s, w, begin, end, apart);
  else
    tridiagonal_steps<V, One, Mode, true>(s, w, begin, end, apart);
}

// Steps of the first `count` that an impulse is handed to, as zeros but for the first: those of one
// block, for a step alone takes as long.
inline int64_t fed_by_impulse(int64_t count) { return count < kSteps ? count : kSteps; }

// `count` steps. An impulse enters with the first step alone. A sequence may be cut anywhere and
// keeps its bits, an impulse response is always whole.
template <class V, StepMode Mode>
inline void advance(const Group<V>& s, Steps<V> w, int64_t count, bool impulse, bool first) {
  const auto run = [&](int64_t begin, int64_t end) {
    if (s.M == 1)
      run_steps<V, true, Mode>(s, w, begin, end, !impulse);
    else
      run_steps<V, false, Mode>(s, w, begin, end, !impulse);
  };
  w.inputs = impulse && !first ? 0 : s.inputs;
  const int64_t with_input = impulse && first ? fed_by_impulse(count) : 0;
  run(0, with_input);
  if (impulse) w.inputs = 0;
  run(with_input, count);
}

// y[i][m] = D_m u[i] for `count` steps.
template <class V>
inline void pass_through(const Group<V>& s, const typename V::T* u, int64_t count,
                         typename V::T* y) {
  constexpr int kL = V::kLanes;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t m = 0; m < s.M; ++m)
      V::store(y + (i * s.M + m) * kL, V::load(s.pass + m * kL) * V::load(u + i * kL));
}

template <class V>
struct ScanMemory {
  Group<V> group;
  Steps<V> steps;
  typename V::T *u = nullptr, *y = nullptr;

  // Returns the bytes of workspace that it takes.
  int64_t carve(const LsslScan& p, int64_t group_index, void* workspace) {
    Carver carver(workspace);
    group.carve(carver, p.system, group_index);
    steps.x = carver.take<typename V::T>(p.system.N * V::kLanes);
    steps.z = carver.take<typename V::T>(p.system.N * V::kLanes);
    u = carver.take<typename V::T>(p.segment * V::kLanes);
    y = carver.take<typename V::T>(p.segment * p.system.M * V::kLanes);
    steps.u = u;
    steps.y = y;
    return carver.used();
  }
};

// Writes checkpoint i; the last group also what no feature of its block uses.
template <class V>
inline void save_state(const LsslScan& p, const Group<V>& s, int64_t b, int64_t i,
                       const typename V::T* x) {
  constexpr int kL = V::kLanes;
  typename V::T* const saved = checkpoint_of(p, s, b, i);
  for (int64_t n = 0; n < s.N; ++n) {
    const typename V::Vec state = V::load(x + n * kL);
    p.stream ? V::stream(saved + n * kL, state) : V::store(saved + n * kL, state);
  }
  const int64_t width = lssl_checkpoint_block(s.p->H), used = s.first % width + kL;
  if (s.first + kL >= s.p->H)
    memset(saved + s.N * kL, 0, (width - used) * s.N * sizeof(typename V::T));
}

// Groups of features that a task runs in turn, stretch by stretch, to write whole cache lines:
// where that leaves tasks enough.
template <class V>
constexpr int64_t most_groups =
    V::kLanes * sizeof(typename V::T) < 64 ? 64 / (V::kLanes * sizeof(typename V::T)) : 1;
template <class V>
inline int64_t groups_of_task(const LsslScan& p) {
  constexpr int64_t kFewestTasks = 4;
  const int64_t most = most_groups<V>;
  return p.B * group_count<V>(p.system) >= kFewestTasks * most ? most : 1;
}

template <class V>
inline int64_t scan_tasks(const LsslScan& p) {
  const int64_t groups = groups_of_task<V>(p);
  return p.B * ((group_count<V>(p.system) + groups - 1) / groups);
}

// Stretch i of one group: `count` steps from t on, y of which is left in memory.y.
template <class V>
inline void scan_stretch(const LsslScan& p, ScanMemory<V>& memory, int64_t b, int64_t i, int64_t t,
                         int64_t count) {
  const Group<V>& s = memory.group;
  if (p.checkpoints != nullptr) save_state(p, s, b, i, memory.steps.x);
  if (p.u != nullptr || i < 2) load_input(p, s, b, t, count, memory.u);  // zeros stay zeros
  if (!memory.steps.fresh) pass_through(s, memory.u, count, memory.y);
  advance<V, StepMode::kRead>(s, memory.steps, count, p.u == nullptr, t == 0);
}

template <class V>
inline double scan(const LsslScan& p, int64_t task, void* workspace) {
  typedef typename V::T T;
  constexpr int kL = V::kLanes;
  const int64_t all = group_count<V>(p.system), most = groups_of_task<V>(p);
  const int64_t tasks = scan_tasks<V>(p) / p.B, b = task / tasks, first = task % tasks * most;
  const int64_t groups = all - first < most ? all - first : most;
  const int64_t M = p.system.M, H = p.system.H;
  ScanMemory<V> memory[most_groups<V>];
  unsigned char* at = static_cast<unsigned char*>(workspace);
  for (int64_t g = 0; g < groups; ++g) {
    at += memory[g].carve(p, first + g, at);
    memory[g].group.fold();
    load_state(memory[g].group, p.x0, b, memory[g].steps.x);
    memory[g].steps.fresh = M == 1 && p.system.D == nullptr;
  }
  const bool lines = p.stream_output && groups == most_groups<V> && memory[groups - 1].group.full();
  for (int64_t t = 0, i = 0; t < p.L; t += p.segment, ++i) {
    const int64_t count = p.L - t < p.segment ? p.L - t : p.segment;
    for (int64_t g = 0; g < groups; ++g) scan_stretch(p, memory[g], b, i, t, count);
    T* to = static_cast<T*>(p.y) + (b * p.L + t) * M * H + first * kL;
    // The rows of the next stretch are asked for: a store to each would wait for its line alone.
    const int64_t ahead = p.segment * M * H * static_cast<int64_t>(sizeof(T));
    for (int64_t j = 0; j < count * M && lines; ++j, to += H)
      for (int64_t g = 0; g < most_groups<V>; ++g)
        V::stream(to + g * kL, V::load(memory[g].y + j * kL));
    for (int64_t j = 0; j < count * M && !lines; ++j, to += H) {
      for (int64_t g = 0; g < groups; ++g)
        store_lanes<V>(to + g * kL, memory[g].y + j * kL, memory[g].group.lanes);
      prefetch_to_write(to, ahead);
    }
  }
  if (p.stream || lines) stream_end();
  double growth = 0.0;
  for (int64_t g = 0; g < groups; ++g) {
    store_state(memory[g].group, p.xt, b, memory[g].steps.x);
    growth = larger(growth, memory[g].group.growth);
  }
  return growth;
}

// f(vectors) with the kind of vectors that suits the system.
template <class F>
SEQKERN_INLINE auto with_vectors(const LsslSystem& p, const F& f) {
  if (p.f64) return takes_twice<Doubles>(p) ? f(Twice<Doubles>()) : f(Doubles());
  if (p.compact && !p.lower) return f(Shared<Floats>());
  return takes_twice<Floats>(p) ? f(Twice<Floats>()) : f(Floats());
}

// Whether Shared<Floats> is faster: where a record for every feature does not fit into the first
// cache, with the state and z beside it, and there are steps enough to pay for looking.
inline bool lssl_shares(const LsslScan& p) {
  constexpr int64_t kCache = 48 << 10, kRow = 8 * W * sizeof(float), kFewest = 256;
  const LsslSystem& s = p.system;
  return !s.f64 && !s.lower && s.N * kRow > kCache && p.B * p.L >= kFewest;
}

inline int64_t lssl_groups(const LsslSystem& p) {
  return with_vectors(p, [&](auto v) { return group_count<decltype(v)>(p); });
}

inline int64_t lssl_forward_tasks(const LsslScan& p) {
  return with_vectors(p.system, [&](auto v) { return scan_tasks<decltype(v)>(p); });
}

inline int64_t lssl_forward_workspace(const LsslScan& p) {
  return with_vectors(p.system, [&](auto v) {
    typedef decltype(v) V;
    return groups_of_task<V>(p) * ScanMemory<V>().carve(p, 0, nullptr);
  });
}

inline double lssl_forward(const LsslScan& p, int64_t task, void* workspace) {
  const FlushSubnormals flush;
  return with_vectors(p.system, [&](auto v) { return scan<decltype(v)>(p, task, workspace); });
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
