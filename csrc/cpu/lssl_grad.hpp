// SPDX-License-Identifier: Apache-2.0
// lssl_grad.hpp - the gradients of lssl_scan.hpp, again in O(N) per step.
//
// Maths      a_t: gradient with respect to x_t from y_t and everything later; m_t = E^-T a_t
//              a_t = C^T dy_t + l_t,   l_t-1 = a_t + F^T m_t,   l_L the gradient of the last state
//              dF += m_t x_t-1^T,  dE -= m_t d_t^T,  dg += m_t u_t,  du_t = g^T m_t + D dy_t,
//              dC += dy_t x_t^T,   dD += dy_t u_t
//            The elimination of E transposed has the pivots of E's own. With every row of E
//            divided by p_n, m stands for p_n m_n; where coefficients are shared, for dt m_n.
// Layout     as in lssl_scan.hpp. A segment is recomputed from its checkpoint: to the states before
//            every group.kept steps, unless it is that short, then block by block, the last first,
//            keeping the steps of a block; these stay in the first two caches.
// Precision  f32 or f64. Steps are kept, and states restored by taking the steps back, for the
//            gradient of E wants steps as exact as they were. Sums over time in the same type for
//            kSummed steps, then in f64.
// Cost       the forward pass once or twice again, and per state and step 11 multiply-adds (lower
//            triangular; 13 with the entries above the diagonals) or 18 (19 with shared
//            coefficients), 2 (M - 1) more for the readout. For dC, dD and du alone 6 and 11 (12).
//            lower triangular: eight steps at a time, upwards, as in the forward pass.
//            otherwise: solve sweep by sweep, then add up the steps of a block row by row.
// Threads    none: the caller splits parts of the batch and groups of features. Parts depend on
//            the shape alone.
#pragma once

#include "lssl_scan.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// Sums of a row; dC's channels follow.
enum : int { kDBelow, kDOn, kDAbove, kDLeft, kDMid, kDRight, kDIn, kDOut };

// Steps kept where a step costs so little that long segments pay: these stay in the first cache
// longer.
constexpr int64_t kLeastKept = 8;

// Steps whose sums are added up in the type of the states.
constexpr int64_t kSummed = 128;

template <class V>
struct Adjoint {
  typedef typename V::T T;
  T* flow = nullptr;         // [N][lane], l of the step at hand
  T* v = nullptr;            // [N][lane], scratch
  T* m = nullptr;            // scratch, by the strides of the group, the row behind the last 0
  const T* u = nullptr;      // [count][lane]
  const T* dy = nullptr;     // [count][M][lane]
  T* du = nullptr;           // [count][lane], adds to it
  T* sums = nullptr;         // [N + 1][7 + M][lane], adds to it
  T* x = nullptr;            // [N][lane], the states after the step at hand
  const T* d = nullptr;      // like m
  const T* ahead = nullptr;  // [N][lane], what will be read next, or null
};

template <class V>
SEQKERN_INLINE void add_to(typename V::T* at, typename V::Vec x) {
  V::store(at, V::load(at) + x);
}

// a = flow + C^T dy, and dC += dy x.
template <class V, bool One>
SEQKERN_INLINE typename V::Vec read_in(const typename V::T* out, int64_t M, const typename V::T* dy,
                                       typename V::Vec x, typename V::Vec flow, typename V::T* dout,
                                       typename V::Vec& dout_one) {
  constexpr int kL = V::kLanes;
  if constexpr (One) {
    const typename V::Vec g = V::load(dy);
    dout_one = V::fma(g, x, dout_one);
    return V::fma(V::load(out), g, flow);
  }
  for (int64_t m = 0; m < M; ++m) {
    const typename V::Vec g = V::load(dy + m * kL);
    V::store(dout + m * kL, V::fma(g, x, V::load(dout + m * kL)));
    flow = V::fma(V::load(out + m * kL), g, flow);
  }
  return flow;
}

// Steps t + S - 1 down to t of a lower triangular system, rows [begin, end) upwards. What row n + 1
// owes to the states of row n is added here, where those are at hand. `x_behind` is the state of
// row n + 1 after the steps.
template <class V, int S, bool Input, bool One, LsslWanted Wanted, bool Fed>
SEQKERN_INLINE void lower_grad_rows(const Group<V>& s, const Adjoint<V>& w, int64_t t,
                                    int64_t begin, int64_t end, typename V::Vec (&m_below)[S],
                                    typename V::Vec (&du)[S], typename V::Vec& x_behind) {
  typedef typename V::Vec Vec;
  constexpr int kL = V::kLanes;
  constexpr bool kSystem = Wanted != LsslWanted::kNone, kAll = Wanted == LsslWanted::kAll;
  const int64_t width = (kDOut + s.M) * kL, row = s.kept_row;
  const typename V::T* at = w.d + end * row + t * kL;
  for (int64_t n = end - 1; n >= begin; --n) {
    const typename V::T* const behind = at;
    at -= row;
    const typename V::T *k = s.at(n), *next = s.at(n + 1);
    const Vec below = V::load(next + kBelow * kL), left = V::load(next + kLeft * kL);
    const Vec mid = V::load(k + kMid * kL), in = V::load(k + kIn * kL);
    typename V::T *sums = w.sums + n * width, *sums_below = sums + width;
    Vec flow = V::load(w.flow + n * kL), x = V::load(w.x + n * kL), x_next = x_behind;
    Vec d_below = {}, d_on = {}, d_above = {}, d_left = {}, d_mid = {}, d_right = {};
    Vec d_in = {}, d_out = {};
    x_behind = x;
#pragma GCC unroll 8
    for (int i = S - 1; i >= 0; --i) {
      const Vec a = read_in<V, One>(k + kLowerOut * kL, s.M, w.dy + (t + i) * s.M * kL, x, flow,
                                    sums + kDOut * kL, d_out);
      const Vec m = V::fma(below, m_below[i], a);
      flow = V::fma(mid, m, V::fma(left, m_below[i], a));
      if constexpr (Input) du[i] = V::fma(in, m, du[i]);
      const Vec d = V::load(at + i * kL);
      x = x - d;
      if constexpr (kSystem) {
        d_mid = V::fma(m, x, d_mid);
        d_on = V::fma(m, d, d_on);
        d_left = V::fma(m_below[i], x, d_left);
        d_below = V::fma(m_below[i], d, d_below);
      }
      if constexpr (kSystem && Fed) d_in = V::fma(m, V::load(w.u + (t + i) * kL), d_in);
      if constexpr (kAll) {
        const Vec d_next = V::load(behind + i * kL);
        x_next = x_next - d_next;
        d_right = V::fma(m, x_next, d_right);
        d_above = V::fma(m, d_next, d_above);
      }
      m_below[i] = m;
    }
    V::store(w.flow + n * kL, flow);
    V::store(w.x + n * kL, x);
    if constexpr (One) add_to<V>(sums + kDOut * kL, d_out);
    if constexpr (kSystem) {
      add_to<V>(sums + kDMid * kL, d_mid);
      add_to<V>(sums + kDOn * kL, d_on);
      add_to<V>(sums_below + kDLeft * kL, d_left);
      add_to<V>(sums_below + kDBelow * kL, d_below);
    }
    if constexpr (kSystem && Fed) add_to<V>(sums + kDIn * kL, d_in);
    if constexpr (kAll) {
      add_to<V>(sums + kDRight * kL, d_right);
      add_to<V>(sums + kDAbove * kL, d_above);
    }
  }
}

template <class V, int S, bool One, LsslWanted Wanted, bool Fed>
inline void lower_grad_block(const Group<V>& s, const Adjoint<V>& w, int64_t t) {
  typename V::Vec m_below[S] = {}, du[S] = {}, behind = {};
  const int64_t inputs = Fed ? s.inputs : 0;
  lower_grad_rows<V, S, false, One, Wanted, Fed>(s, w, t, inputs, s.N, m_below, du, behind);
  if constexpr (!Fed) return;
  lower_grad_rows<V, S, true, One, Wanted, Fed>(s, w, t, 0, inputs, m_below, du, behind);
  for (int i = 0; i < S; ++i) add_to<V>(w.du + (t + i) * V::kLanes, du[i]);
}

// A sweep over the rows of a tridiagonal system, downwards or upwards, which undoes step t, or
// begins to if it undoes none. Leaves m of the step in w.m.
template <class V, bool One, bool Fed, bool Down, Sweep What>
inline void undo_sweep(const Group<V>& s, const Adjoint<V>& w, int64_t t) {
  typedef typename V::T T;
  typedef typename V::Vec Vec;
  constexpr int kL = V::kLanes;
  constexpr bool kBegins = What != Sweep::kEnd, kEnds = What != Sweep::kBegin;
  constexpr int64_t kOn = Down ? 1 : -1;  // to the next row
  const int64_t M = s.M, kept_row = s.kept_row;
  const int64_t first = Down ? 0 : s.N - 1, last = Down ? s.N - 1 : 0;
  const auto rows = s.rows();
  const T* const dy = w.dy + (t - (kEnds ? 1 : 0)) * M * kL;  // of the step that is begun
  T *const flow = w.flow, *const w_v = w.v, *const w_m = w.m + t * s.kept_step;
  const Vec dy_one = kBegins ? V::load(dy) : Vec{};
  Vec m = {}, ended = {}, side = {}, v = {}, begun = {}, du = {};
  // -E^T's entry in row n's column of the next row.
  const auto on = [&](const Row<V>& k) __attribute__((always_inline)) {
    return Down ? k.above() : k.below();
  };
  // Row n of E^T m = l + C^T dy, stored in place of l.
  const auto eliminate = [&](int64_t n, Vec a) __attribute__((always_inline)) {
    const Row<V> k = rows[n];
    if constexpr (One)
      a = V::fma(V::load(k.out()), dy_one, a);
    else
      for (int64_t c = 0; c < M; ++c)
        a = V::fma(V::load(k.out() + c * kL), V::load(dy + c * kL), a);
    V::store(flow + n * kL, a);
    v = V::fma(begun, v, a);
    V::store(w_v + n * kL, v);
    begun = k.template weigh<Down>(on(k));
  };
  const auto leave = [&](int64_t n, Vec l) __attribute__((always_inline)) {
    if constexpr (kBegins)
      eliminate(n, l);
    else
      V::store(flow + n * kL, l);
  };
  // m of row n, weighed.
  const auto solve = [&](int64_t n, const Row<V>& k) __attribute__((always_inline)) {
    m = V::fma(ended, m, V::load(w_v + n * kL));
    ended = k.template weigh<!Down>(on(k));
    const Vec weighed = k.template weigh<!Down>(m);
    V::store(w_m + n * kept_row, weighed);
    if constexpr (Fed) du = V::fma(k.in(), weighed, du);
    return weighed;
  };
  // F^T m reaches a row from those around it; this is what it gets from itself and the row before.
  const auto most = [&](int64_t n, const Row<V>& k, Vec weighed) __attribute__((always_inline)) {
    const Vec l = V::fma(k.mid(), weighed, V::load(flow + n * kL) + side);
    side = (Down ? k.right() : k.left()) * weighed;
    return l;
  };
  if constexpr (!kEnds) {
    for (int64_t n = first; n != last + kOn; n += kOn) leave(n, V::load(flow + n * kL));
    return;
  }
  Vec l = most(first, rows[first], solve(first, rows[first]));
#pragma GCC unroll 2
  for (int64_t n = first; n != last; n += kOn) {
    const Row<V> next = rows[n + kOn];
    const Vec weighed = solve(n + kOn, next);
    const Vec whole = V::fma(Down ? next.left() : next.right(), weighed, l);
    l = most(n + kOn, next, weighed);
    leave(n, whole);
  }
  leave(last, l);
  if constexpr (Fed) add_to<V>(w.du + t * kL, du);
}

// The steps [begin, end), the last first.
template <class V, bool One, bool Fed>
inline void tridiagonal_solve(const Group<V>& s, const Adjoint<V>& w, int64_t begin, int64_t end) {
  int64_t t = end - 1;
  undo_sweep<V, One, Fed, true, Sweep::kBegin>(s, w, t);
  for (; t - 1 > begin; t -= 2) {
    undo_sweep<V, One, Fed, false, Sweep::kBoth>(s, w, t);
    undo_sweep<V, One, Fed, true, Sweep::kBoth>(s, w, t - 1);
  }
  if (t == begin) return undo_sweep<V, One, Fed, false, Sweep::kEnd>(s, w, t);
  undo_sweep<V, One, Fed, false, Sweep::kBoth>(s, w, t);
  undo_sweep<V, One, Fed, true, Sweep::kEnd>(s, w, t - 1);
}

// The sums of the steps [begin, end), whose m are known: row n is met by m of the rows around it.
template <class V, bool One, LsslWanted Wanted, bool Fed>
inline void tridiagonal_sums(const Group<V>& s, const Adjoint<V>& w, int64_t begin, int64_t end) {
  typedef typename V::Vec Vec;
  constexpr int kL = V::kLanes;
  const int64_t width = (kDOut + s.M) * kL, row = s.kept_row, step = s.kept_step;
  for (int64_t n = 0; n < s.N; ++n) {
    const typename V::T *at = w.d + n * row, *on = w.m + n * row;
    const typename V::T* before = n > 0 ? on - row : w.m + s.N * row;  // a row of zeros
    typename V::T* sums = w.sums + n * width;
    Vec d_below = {}, d_on = {}, d_above = {}, d_left = {}, d_mid = {}, d_right = {};
    Vec d_in = {}, d_out = {}, x = V::load(w.x + n * kL);
    if (w.ahead != nullptr) __builtin_prefetch(w.ahead + n * kL);
#pragma GCC unroll 4
    for (int64_t i = end - 1; i >= begin; --i) {
      if constexpr (One)
        d_out = V::fma(V::load(w.dy + i * kL), x, d_out);
      else
        for (int64_t c = 0; c < s.M; ++c)
          V::store(sums + (kDOut + c) * kL,
                   V::fma(V::load(w.dy + (i * s.M + c) * kL), x, V::load(sums + (kDOut + c) * kL)));
      const Vec d = V::load(at + i * step);
      x = x - d;
      if constexpr (Wanted != LsslWanted::kNone) {
        const Vec m = V::load(on + i * step);
        const Vec m_above = V::load(before + i * step);
        const Vec m_below = V::load(on + row + i * step);
        d_mid = V::fma(m, x, d_mid);
        d_on = V::fma(m, d, d_on);
        d_right = V::fma(m_above, x, d_right);
        d_above = V::fma(m_above, d, d_above);
        d_left = V::fma(m_below, x, d_left);
        d_below = V::fma(m_below, d, d_below);
        if constexpr (Fed) d_in = V::fma(m, V::load(w.u + i * kL), d_in);
      }
    }
    V::store(w.x + n * kL, x);
    if constexpr (One) add_to<V>(sums + kDOut * kL, d_out);
    if constexpr (Wanted != LsslWanted::kNone) {
      add_to<V>(sums + kDMid * kL, d_mid);
      add_to<V>(sums + kDOn * kL, d_on);
      add_to<V>(sums + width + kDLeft * kL, d_left);
      add_to<V>(sums + width + kDBelow * kL, d_below);
      if constexpr (Fed) add_to<V>(sums + kDIn * kL, d_in);
      if (n == 0) continue;
      add_to<V>(sums - width + kDRight * kL, d_right);
      add_to<V>(sums - width + kDAbove * kL, d_above);
    }
  }
}

template <class V, bool One, LsslWanted Wanted, bool Fed>
inline void undo_steps(const Group<V>& s, const Adjoint<V>& w, int64_t begin, int64_t end) {
  int64_t t = end;
  if constexpr (!V::kTwice && !V::kShared)
    if (s.lower) {
      for (; t - begin >= kSteps; t -= kSteps)
        lower_grad_block<V, kSteps, One, Wanted, Fed>(s, w, t - kSteps);
      for (; t > begin; --t) lower_grad_block<V, 1, One, Wanted, Fed>(s, w, t - 1);
      return;
    }
  if (begin >= end) return;
  tridiagonal_solve<V, One, Fed>(s, w, begin, end);
  tridiagonal_sums<V, One, Wanted, Fed>(s, w, begin, end);
}

template <class V, bool One, bool Fed>
inline void undo_stretch(const Group<V>& s, const Adjoint<V>& w, int64_t begin, int64_t end,
                         LsslWanted wanted) {
  if (wanted == LsslWanted::kNone)
    undo_steps<V, One, LsslWanted::kNone, Fed>(s, w, begin, end);
  else if (wanted == LsslWanted::kLower && s.lower)
    undo_steps<V, One, LsslWanted::kLower, Fed>(s, w, begin, end);
  else
    undo_steps<V, One, LsslWanted::kAll, Fed>(s, w, begin, end);
}

// `count` steps, the last first. Only those before `fed` have an input.
template <class V>
inline void retreat(const Group<V>& s, const Adjoint<V>& w, int64_t count, LsslWanted wanted,
                    int64_t fed) {
  if (s.M == 1) {
    undo_stretch<V, true, false>(s, w, fed, count, wanted);
    undo_stretch<V, true, true>(s, w, 0, fed, wanted);
  } else {
    undo_stretch<V, false, false>(s, w, fed, count, wanted);
    undo_stretch<V, false, true>(s, w, 0, fed, wanted);
  }
}

template <class V>
struct GradMemory {
  typedef typename V::T T;
  int64_t used = 0;
  ScanMemory<V> scan;
  Adjoint<V> adjoint;
  T *d, *starts, *dy, *du, *sums;
  double *totals, *pass;

  GradMemory(const LsslGrad& p, int64_t group, void* workspace) {
    constexpr int kL = V::kLanes;
    used = scan.carve(p.scan, group, workspace);
    const int64_t N = p.scan.system.N, M = p.scan.system.M, S = p.scan.segment;
    Carver carver(workspace == nullptr ? nullptr : static_cast<unsigned char*>(workspace) + used);
    d = carver.take<T>(scan.group.kept_size());
    starts = carver.take<T>((S + kLeastKept - 1) / kLeastKept * N * kL);
    dy = carver.take<T>(S * M * kL);
    du = carver.take<T>(S * kL);
    adjoint.flow = carver.take<T>(N * kL);
    adjoint.v = carver.take<T>(N * kL);
    adjoint.m = carver.take<T>(scan.group.kept_size());
    sums = carver.take<T>((N + 1) * (kDOut + M) * kL);
    totals = carver.take<double>(N * (kDOut + M) * kL);
    pass = carver.take<double>(M * kL);
    adjoint.dy = dy;
    adjoint.du = du;
    adjoint.sums = sums;
    adjoint.u = scan.u;
    adjoint.d = scan.steps.kept = d;
    adjoint.x = scan.steps.x;
    used += carver.used();
  }

  // The arguments of the steps from step j of the segment on.
  Steps<V> steps_from(int64_t j) const {
    Steps<V> w = scan.steps;
    w.u += j * V::kLanes;
    return w;
  }
  Adjoint<V> adjoint_from(int64_t j) const {
    Adjoint<V> w = adjoint;
    w.u += j * V::kLanes;
    w.du += j * V::kLanes;
    w.dy += j * scan.group.M * V::kLanes;
    return w;
  }
};

// dy of `count` steps from t on, [count][M][lane].
template <class V>
inline void load_cotangent(const LsslGrad& p, const Group<V>& s, int64_t b, int64_t t,
                           int64_t count, typename V::T* dy) {
  const typename V::T* from =
      static_cast<const typename V::T*>(p.dy) + b * p.dy_batch + t * p.dy_time + s.first;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t m = 0; m < s.M; ++m)
      load_lanes<V>(dy + (i * s.M + m) * V::kLanes, from + i * p.dy_time + m * p.dy_channel,
                    s.lanes);
}

// du = D dy and dD += dy u.
template <class V>
inline void pass_back(const GradMemory<V>& memory, int64_t count) {
  constexpr int kL = V::kLanes;
  const Group<V>& s = memory.scan.group;
  for (int64_t i = 0; i < count; ++i) {
    typename V::Vec du = {};
    for (int64_t m = 0; m < s.M; ++m)
      du = V::fma(V::load(s.pass + m * kL), V::load(memory.dy + (i * s.M + m) * kL), du);
    V::store(memory.du + i * kL, du);
  }
  for (int64_t m = 0; m < s.M; ++m) {
    typename V::Vec sum = {};
    for (int64_t i = 0; i < count; ++i)
      sum = V::fma(V::load(memory.dy + (i * s.M + m) * kL), V::load(memory.scan.u + i * kL), sum);
    for (int l = 0; l < kL; ++l) memory.pass[m * kL + l] += static_cast<double>(sum[l]);
  }
}

template <class V>
inline void undo_segment(const LsslGrad& p, GradMemory<V>& memory, int64_t b, int64_t i) {
  typedef typename V::T T;
  constexpr int kL = V::kLanes;
  const LsslScan& q = p.scan;
  const Group<V>& s = memory.scan.group;
  const int64_t t = i * q.segment, count = q.L - t < q.segment ? q.L - t : q.segment;
  memcpy(memory.scan.steps.x, checkpoint_of(q, s, b, i), s.N * kL * sizeof(T));
  load_input(q, s, b, t, count, memory.scan.u);
  load_cotangent(p, s, b, t, count, memory.dy);
  pass_back(memory, count);
  const int64_t state = s.N * kL;
  // Forwards once for the states in between, then block by block from the last.
  const bool impulse = q.u == nullptr;
  for (int64_t j = 0; j < count && count > s.kept; j += s.kept) {
    memcpy(memory.starts + j / s.kept * state, memory.scan.steps.x, state * sizeof(T));
    const int64_t steps = count - j <= s.kept ? 0 : s.kept;
    advance<V, StepMode::kMove>(s, memory.steps_from(j), steps, impulse, t + j == 0);
  }
  for (int64_t j = (count - 1) / s.kept * s.kept; j >= 0; j -= s.kept) {
    if (count > s.kept)
      memcpy(memory.scan.steps.x, memory.starts + j / s.kept * state, state * sizeof(T));
    const int64_t steps = count - j < s.kept ? count - j : s.kept;
    advance<V, StepMode::kKeep>(s, memory.steps_from(j), steps, impulse, t + j == 0);
    const int64_t fed = !impulse ? steps : (t + j == 0 ? fed_by_impulse(steps) : 0);
    Adjoint<V> adjoint = memory.adjoint_from(j);
    // The state that the next call begins with, so that it is at hand by then.
    adjoint.ahead = j == 0 && i > 0 ? checkpoint_of(q, s, b, i - 1) : nullptr;
    retreat(s, adjoint, steps, p.wanted, fed);
  }
  if (p.du == nullptr) return;
  T* to = static_cast<T*>(p.du) + (b * q.L + t) * q.system.H + s.first;
  for (int64_t j = 0; j < count; ++j)
    store_lanes<V>(to + j * q.system.H, memory.du + j * kL, s.lanes);
}

// Moves the sums to their totals.
template <class V>
inline void add_up(GradMemory<V>& memory) {
  const Group<V>& s = memory.scan.group;
  const int64_t width = s.N * (kDOut + s.M) * V::kLanes;
  for (int64_t j = 0; j < width; ++j) memory.totals[j] += static_cast<double>(memory.sums[j]);
  memset(memory.sums, 0, width * sizeof(typename V::T));
}

// The sums of one part, in the layout of the outputs.
template <class V>
inline void store_sums(const LsslGrad& p, const GradMemory<V>& memory, int64_t part) {
  constexpr int kL = V::kLanes;
  const Group<V>& s = memory.scan.group;
  const int64_t N = s.N, M = s.M, H = s.p->H, plane = H * N, width = (kDOut + M) * kL;
  for (int64_t l = 0; l < s.lanes; ++l) {
    const int64_t h = s.first + l;
    for (int64_t n = 0; n < N; ++n) {
      const double* sums = memory.totals + n * width + l;
      // What m was carried with.
      const double r = V::kShared ? 1.0 / s.p->shared->dt[h] : s.inverse[n * kL + l];
      if (p.wanted != LsslWanted::kNone) {
        for (int k = 0; k < 3; ++k) {
          const int64_t at = (part * 3 + k) * plane + h * N + n;
          p.dE[at] = -r * sums[(kDBelow + k) * kL];
          p.dF[at] = r * sums[(kDLeft + k) * kL];
        }
        p.dg[part * plane + h * N + n] = r * sums[kDIn * kL];
      }
      for (int64_t m = 0; m < M; ++m)
        p.dC[((part * H + h) * M + m) * N + n] = sums[(kDOut + m) * kL];
    }
    for (int64_t m = 0; m < M && p.dD != nullptr; ++m)
      p.dD[(part * H + h) * M + m] = memory.pass[m * kL + l];
  }
}

template <class V>
inline void scan_grad(const LsslGrad& p, int64_t task, void* workspace) {
  typedef typename V::T T;
  constexpr int kL = V::kLanes;
  const LsslScan& q = p.scan;
  const int64_t groups = group_count<V>(q.system), part = task / groups;
  GradMemory<V> memory(p, task % groups, workspace);
  Group<V>& s = memory.scan.group;
  s.fold();
  if (s.lower && q.segment > s.kept) s.keep(kLeastKept);
  s.clear_row_behind(memory.d);
  s.clear_row_behind(memory.adjoint.m);
  memset(memory.totals, 0, s.N * (kDOut + s.M) * kL * sizeof(double));
  memset(memory.sums, 0, s.N * (kDOut + s.M) * kL * sizeof(T));
  memset(memory.pass, 0, s.M * kL * sizeof(double));
  const int64_t segments = (q.L + q.segment - 1) / q.segment;
  for (int64_t b = part * q.B / p.parts; b < (part + 1) * q.B / p.parts; ++b) {
    load_state(s, p.dxt, b, memory.adjoint.flow);
    for (int64_t i = segments - 1, added = 0; i >= 0; --i) {
      undo_segment(p, memory, b, i);
      added += q.segment;
      if (added < kSummed && i > 0) continue;
      add_up(memory);
      added = 0;
    }
    store_state(s, p.dx0, b, memory.adjoint.flow);
  }
  store_sums(p, memory, part);
}

inline int64_t lssl_backward_workspace(const LsslGrad& p) {
  return with_vectors(p.scan.system,
                      [&](auto v) { return GradMemory<decltype(v)>(p, 0, nullptr).used; });
}

inline void lssl_backward(const LsslGrad& p, int64_t task, void* workspace) {
  const FlushSubnormals flush;
  with_vectors(p.scan.system, [&](auto v) { scan_grad<decltype(v)>(p, task, workspace); });
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
