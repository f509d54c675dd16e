// SPDX-License-Identifier: Apache-2.0
// lssl_system.hpp - the coefficients of a linear state-space layer, one feature per lane.
//
// Maths      E is eliminated from above and from below, in turn: what one step substitutes back
//            upwards, the next may eliminate upwards at once, so that a step takes one sweep over
//            the rows. Pivots
//              p_n = E_nn - E_n,n-1 E_n-1,n / p_n-1 from above,
//              q_n = E_nn - E_n,n+1 E_n+1,n / q_n+1 from below.
//            Every row of E, F and g is divided by p_n beforehand, which makes the first all 1.
//            Where E is lower triangular, p_n = E_nn and only the first is needed.
// Layout     records of vectors per n, and one more of zeros behind the last. Where features differ
//            in their time step alone (Shared): 2 + M vectors, dt / p_n, dt / q_n and C, and 8
//            numbers, of which a step makes the others: long states are bound by the second cache.
// Precision  folded in f64, stored in the type of the states (f32 or f64).
// Threads    none: the caller splits features into groups of V::kLanes.
#pragma once

#include "../include/seqkern/lssl.h"
#include "simd.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// Vectors of a record, C's channels behind them: -E_n,n-1, F_n,n-1, F_nn and g_n; unless E and F
// are lower triangular also -E_n,n+1, F_n,n+1 and p_n / q_n.
enum : int { kBelow, kLeft, kMid, kIn, kLowerOut, kAbove = kLowerOut, kRight, kUp, kOut };

// The same where features share them: vectors, dt / p_n and dt / q_n, and numbers, by which a row
// stands for the true one over dt: -E = kBelow / dt + kBelowSlope.
enum : int { kSharedDown, kSharedUp, kSharedOut };
enum : int { kBelowSlope = kRight + 1, kAboveSlope, kCommon };

// Vectors of float and of double behind one interface.
struct Floats {
  typedef float T;
  typedef vf Vec;
  static constexpr int kLanes = W;
  static constexpr bool kTwice = false, kShared = false;
  SEQKERN_INLINE_MEMBER static Vec load(const T* p) { return SEQKERN_ISA::load(p); }
  SEQKERN_INLINE_MEMBER static void store(T* p, Vec x) { SEQKERN_ISA::store(p, x); }
  SEQKERN_INLINE_MEMBER static void stream(T* p, Vec x) { SEQKERN_ISA::stream(p, x); }
  SEQKERN_INLINE_MEMBER static Vec fma(Vec a, Vec b, Vec c) { return SEQKERN_ISA::fma(a, b, c); }
  SEQKERN_INLINE_MEMBER static Vec splat(T x) { return SEQKERN_ISA::splat(x); }
};

struct Doubles {
  typedef double T;
  typedef double Vec __attribute__((vector_size(4 * W)));
  typedef double Unaligned __attribute__((vector_size(4 * W), aligned(8), may_alias));
  static constexpr int kLanes = W / 2;
  static constexpr bool kTwice = false, kShared = false;
  SEQKERN_INLINE_MEMBER static Vec load(const T* p) {
    return *reinterpret_cast<const Unaligned*>(p);
  }
  SEQKERN_INLINE_MEMBER static void store(T* p, Vec x) { *reinterpret_cast<Unaligned*>(p) = x; }
  SEQKERN_INLINE_MEMBER static void stream(T* p, Vec x) {
#if SEQKERN_LANES == 16
    _mm512_stream_pd(p, x);
#elif SEQKERN_LANES == 8
    _mm256_stream_pd(p, x);
#else
    store(p, x);
#endif
  }
  SEQKERN_INLINE_MEMBER static Vec fma(Vec a, Vec b, Vec c) {
#if SEQKERN_LANES == 16
    return _mm512_fmadd_pd(a, b, c);
#elif SEQKERN_LANES == 8
    return _mm256_fmadd_pd(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f64(c, a, b);
#else
    return a * b + c;
#endif
  }
  SEQKERN_INLINE_MEMBER static Vec splat(T x) {
#if SEQKERN_LANES == 16
    return _mm512_set1_pd(x);
#elif SEQKERN_LANES == 8
    return _mm256_set1_pd(x);
#else
    return x - Vec{};
#endif
  }
};

typedef int64_t DoubleBits __attribute__((vector_size(4 * W)));

SEQKERN_INLINE Doubles::Vec magnitude(Doubles::Vec x) {
  return reinterpret_cast<Doubles::Vec>(reinterpret_cast<DoubleBits>(x) & INT64_MAX);
}

// The larger of two, of which NaN is the largest.
inline double larger(double a, double b) { return a != a || a > b ? a : b; }

SEQKERN_INLINE void store_rounded(double* p, Doubles::Vec x) { Doubles::store(p, x); }
SEQKERN_INLINE void store_rounded(float* p, Doubles::Vec x) {
  typedef float Half __attribute__((vector_size(2 * W)));
  typedef float HalfUnaligned __attribute__((vector_size(2 * W), aligned(4), may_alias));
  *reinterpret_cast<HalfUnaligned*>(p) = __builtin_convertvector(x, Half);
}

// to[i][j] = from[j][i] for i, j < 4.
SEQKERN_INLINE void transpose_four(const double* from, int64_t from_row, double* to,
                                   int64_t to_row) {
  typedef double Four __attribute__((vector_size(32), aligned(8), may_alias));
  const auto row = [&](int64_t i) __attribute__((always_inline)) {
    return *reinterpret_cast<const Four*>(from + i * from_row);
  };
  const Four a = row(0), b = row(1), c = row(2), d = row(3);
  const Four even = __builtin_shufflevector(a, b, 0, 4, 2, 6);
  const Four odd = __builtin_shufflevector(a, b, 1, 5, 3, 7);
  const Four even_low = __builtin_shufflevector(c, d, 0, 4, 2, 6);
  const Four odd_low = __builtin_shufflevector(c, d, 1, 5, 3, 7);
  const Four rows[4] = {__builtin_shufflevector(even, even_low, 0, 1, 4, 5),
                        __builtin_shufflevector(odd, odd_low, 0, 1, 4, 5),
                        __builtin_shufflevector(even, even_low, 2, 3, 6, 7),
                        __builtin_shufflevector(odd, odd_low, 2, 3, 6, 7)};
  for (int i = 0; i < 4; ++i) *reinterpret_cast<Four*>(to + i * to_row) = rows[i];
}

// Two vectors as one: two chains of dependent operations instead of one.
template <class V>
struct Twice {
  typedef typename V::T T;
  struct Vec {
    typename V::Vec low, high;
    SEQKERN_INLINE_MEMBER Vec operator+(const Vec& b) const { return {low + b.low, high + b.high}; }
    SEQKERN_INLINE_MEMBER Vec operator-(const Vec& b) const { return {low - b.low, high - b.high}; }
    SEQKERN_INLINE_MEMBER Vec operator*(const Vec& b) const { return {low * b.low, high * b.high}; }
    SEQKERN_INLINE_MEMBER T operator[](int64_t l) const {
      return l < V::kLanes ? low[l] : high[l - V::kLanes];
    }
  };
  static constexpr int kLanes = 2 * V::kLanes;
  static constexpr bool kTwice = true, kShared = false;
  SEQKERN_INLINE_MEMBER static Vec load(const T* p) { return {V::load(p), V::load(p + V::kLanes)}; }
  SEQKERN_INLINE_MEMBER static void store(T* p, const Vec& x) {
    V::store(p, x.low);
    V::store(p + V::kLanes, x.high);
  }
  SEQKERN_INLINE_MEMBER static void stream(T* p, const Vec& x) {
    V::stream(p, x.low);
    V::stream(p + V::kLanes, x.high);
  }
  SEQKERN_INLINE_MEMBER static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return {V::fma(a.low, b.low, c.low), V::fma(a.high, b.high, c.high)};
  }
};

// Whether a system is solved with Twice<V>: one step of a tridiagonal system is a chain, and two go
// side by side as long as what they read stays in the first cache.
template <class V>
inline bool takes_twice(const LsslSystem& p) {
  return !p.lower && p.H > V::kLanes && p.N <= 36;
}

// Vectors of features that share all but their time step.
template <class V>
struct Shared : V {
  static constexpr bool kShared = true;
};

// The coefficients of row n of a system that is not lower triangular.
template <class V>
class Row {
 public:
  typedef typename V::T T;
  typedef typename V::Vec Vec;

  SEQKERN_INLINE_MEMBER explicit Row(const T* at) : at_(at) {}
  SEQKERN_INLINE_MEMBER Vec below() const { return vector(kBelow); }
  SEQKERN_INLINE_MEMBER Vec above() const { return vector(kAbove); }
  SEQKERN_INLINE_MEMBER Vec left() const { return vector(kLeft); }
  SEQKERN_INLINE_MEMBER Vec mid() const { return vector(kMid); }
  SEQKERN_INLINE_MEMBER Vec right() const { return vector(kRight); }
  SEQKERN_INLINE_MEMBER Vec in() const { return vector(kIn); }
  // What is to be multiplied by the inverse pivot of elimination downwards, or upwards.
  template <bool Down>
  SEQKERN_INLINE_MEMBER Vec weigh(const Vec& x) const {
    if constexpr (Down) return x;
    return x * vector(kUp);
  }
  SEQKERN_INLINE_MEMBER const T* out() const { return at_ + kOut * V::kLanes; }

 private:
  SEQKERN_INLINE_MEMBER Vec vector(int k) const { return V::load(at_ + k * V::kLanes); }
  const T* at_;
};

template <class V>
class Row<Shared<V>> {
 public:
  typedef typename V::T T;
  typedef typename V::Vec Vec;

  SEQKERN_INLINE_MEMBER Row(const T* at, const T* common, Vec rate)
      : at_(at), common_(common), rate_(rate) {}
  SEQKERN_INLINE_MEMBER Vec below() const {
    return V::fma(rate_, number(kBelow), number(kBelowSlope));
  }
  SEQKERN_INLINE_MEMBER Vec above() const {
    return V::fma(rate_, number(kAbove), number(kAboveSlope));
  }
  SEQKERN_INLINE_MEMBER Vec left() const { return number(kLeft); }
  SEQKERN_INLINE_MEMBER Vec mid() const { return number(kMid); }
  SEQKERN_INLINE_MEMBER Vec right() const { return number(kRight); }
  SEQKERN_INLINE_MEMBER Vec in() const { return number(kIn); }
  template <bool Down>
  SEQKERN_INLINE_MEMBER Vec weigh(const Vec& x) const {
    return x * V::load(at_ + (Down ? kSharedDown : kSharedUp) * V::kLanes);
  }
  SEQKERN_INLINE_MEMBER const T* out() const { return at_ + kSharedOut * V::kLanes; }

 private:
  SEQKERN_INLINE_MEMBER Vec number(int k) const { return V::splat(common_[k]); }
  const T *at_, *common_;
  Vec rate_;
};

// Steps taken at a time where the system is lower triangular.
#if SEQKERN_LANES == 16 || defined(__aarch64__)
constexpr int kSteps = 8;
#else
constexpr int kSteps = 4;
#endif

// Steps that are kept at a time, of a backward pass that runs steps again: as many as the second
// cache holds of long states.
template <class V>
constexpr int64_t most_kept = 64 / sizeof(typename V::T);
static_assert(most_kept<Doubles> % kSteps == 0);

// Hands out consecutive pieces of a workspace, each aligned to 64 bytes; with a null base it only
// counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <class X>
  X* take(int64_t count) {
    unsigned char* const at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * static_cast<int64_t>(sizeof(X)) + 63) / 64 * 64;
    return reinterpret_cast<X*>(at);
  }
  int64_t used() const { return used_; }

 private:
  unsigned char* base_;
  int64_t used_ = 0;
};

template <class V>
inline int64_t group_count(const LsslSystem& p) {
  return (p.H + V::kLanes - 1) / V::kLanes;
}

// The system of one group of features.
template <class V>
struct Group {
  typedef typename V::T T;
  static constexpr int kL = V::kLanes;

  const LsslSystem* p = nullptr;
  int64_t first = 0, lanes = 0;  // features [first, first + lanes)
  int64_t N = 0, M = 0, record = 0;
  bool lower = true;          // E and F have nothing above the diagonal
  int64_t out = 0;            // where C lies in a record, in vectors
  T* coef = nullptr;          // [N + 1][out + M][kL]
  T* common = nullptr;        // [N][kCommon], if V::kShared
  T* rate = nullptr;          // [kL], 1 / dt, if V::kShared
  double* inverse = nullptr;  // [N][kL], 1 / p_n
  T* pass = nullptr;          // [M][kL], D
  int64_t inputs = 0;         // rows from here on have g_n = 0
  int64_t kept = most_kept<V>;
  // Elements between the rows and between the steps of what is kept of `kept` steps.
  int64_t kept_row = 0, kept_step = 0;
  double growth = 1.0;

  bool full() const { return lanes == kL; }
  SEQKERN_INLINE_MEMBER const T* at(int64_t n) const { return coef + n * record; }

  // All rows. A copy, for a store of a vector may change whatever is in memory.
  struct Rows {
    const T *coef, *common;
    int64_t record;
    typename V::Vec rate;
    SEQKERN_INLINE_MEMBER Row<V> operator[](int64_t n) const {
      if constexpr (V::kShared)
        return Row<V>(coef + n * record, common + n * kCommon, rate);
      else
        return Row<V>(coef + n * record);
    }
  };
  SEQKERN_INLINE_MEMBER Rows rows() const {
    Rows r = {coef, common, record, {}};
    if constexpr (V::kShared) r.rate = V::load(rate);
    return r;
  }

  void carve(Carver& carver, const LsslSystem& system, int64_t group) {
    p = &system;
    first = group * kL;
    lanes = system.H - first < kL ? system.H - first : kL;
    N = system.N;
    M = system.M;
    lower = system.lower;
    out = lower ? int{kLowerOut} : (V::kShared ? int{kSharedOut} : int{kOut});
    record = (out + M) * kL;
    coef = carver.take<T>((N + 1) * record);
    inverse = carver.take<double>(N * kL);
    pass = carver.take<T>(M * kL);
    common = carver.take<T>(V::kShared ? N * kCommon : 0);
    rate = carver.take<T>(V::kShared ? kL : 0);
    keep(most_kept<V>);
  }

  // Sets what lies where of `steps` steps. A block of a lower triangular system walks down the
  // rows, all steps of each; otherwise step after step is written, and then a row of all of them
  // read: an odd number of cache lines apart.
  void keep(int64_t steps) {
    constexpr int64_t kLine = 64 / sizeof(T);
    kept = steps;
    kept_row = lower ? kept * kL : kL;
    kept_step = lower ? kL : (((N + 1) * kL + kLine - 1) / kLine | 1) * kLine;
  }
  // Elements of all that is kept, a row of zeros behind the last one included.
  int64_t kept_size() const { return lower ? (N + 1) * kept_row : kept * kept_step; }
  void clear_row_behind(T* all) const {
    for (int64_t i = 0; i < kept; ++i)
      memset(all + N * kept_row + i * kept_step, 0, kL * sizeof(T));
  }

  void fold() {
    // Where all lanes hold features, every row but the last, of zeros, is written whole below.
    const int64_t first_zero = lanes == kL ? N * record : 0;
    memset(coef + first_zero, 0, ((N + 1) * record - first_zero) * sizeof(T));
    memset(pass, 0, M * kL * sizeof(T));
    for (int64_t l = 0; l < kL && p->shared != nullptr; ++l)
      steps[l] = p->shared->dt[first + (l < lanes ? l : 0)];
    fold_rows<true>();
    if (!lower) fold_rows<false>();
    if constexpr (V::kShared) fold_common();
    find_inputs();
    const T *C = static_cast<const T*>(p->C) + first * M * N, *D = static_cast<const T*>(p->D);
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n)
          coef[n * record + (out + m) * kL + l] = C[(l * M + m) * N + n];
        if (D != nullptr) pass[m * kL + l] = D[(first + l) * M + m];
      }
  }

 private:
  typedef Doubles::Vec Wide;
  static constexpr int kWide = Doubles::kLanes;
  typedef double Values[kL];
  Values steps = {};  // time steps, where features share the rest

  // Eight columns of the planes of E and F and of g, feature by feature as they lie in memory: the
  // rows of many features are a power of 2 apart and would drive each other out of the cache.
  static constexpr int kColumns = 8;
  typedef double Eight[kColumns][kL];
  struct Columns {
    Eight on, below, above, mid, left, right, in;
  };

  void columns(const double* plane, int64_t n, double other, Eight& to) const {
    const int64_t count = N - n < kColumns ? N - n : kColumns;
    int64_t l = 0;
    for (; l + 4 <= lanes && count == kColumns; l += 4)
      for (int64_t i = 0; i < kColumns; i += 4)
        transpose_four(plane + (first + l) * N + n + i, N, &to[i][l], kL);
    for (; l < kL; ++l) {
      const double* from = plane + (first + l) * N + n;
      for (int64_t i = 0; i < count; ++i) to[i][l] = l < lanes ? from[i] : other;
    }
  }

  // The same of one diagonal, or of g, of coefficients that features share.
  void columns(const double* constant, const double* slope, int64_t n, Eight& to) const {
    const int64_t count = N - n < kColumns ? N - n : kColumns;
    Wide step[kL / kWide];
    for (int l = 0; l < kL; l += kWide) step[l / kWide] = Doubles::load(steps + l);
    for (int64_t i = 0; i < count; ++i) {
      const Wide fixed = Doubles::splat(constant == nullptr ? 0.0 : constant[n + i]);
      const Wide rise = Doubles::splat(slope[n + i]);
      for (int l = 0; l < kL; l += kWide)
        Doubles::store(&to[i][l], Doubles::fma(step[l / kWide], rise, fixed));
    }
  }

  void load_shared_columns(int64_t n, bool all, Columns& c) const {
    const LsslShared& s = *p->shared;
    columns(s.constant, s.slope, n, c.below);
    columns(s.constant + N, s.slope + N, n, c.on);
    if (!lower) columns(s.constant + 2 * N, s.slope + 2 * N, n, c.above);
    if (!all) return;
    columns(nullptr, s.F, n, c.left);
    columns(nullptr, s.F + N, n, c.mid);
    if (!lower) columns(nullptr, s.F + 2 * N, n, c.right);
    columns(nullptr, s.g, n, c.in);
  }

  // The columns that begin with n: of E, and if they are wanted of F and g.
  void load_columns(int64_t n, bool all, Columns& c) const {
    const int64_t plane = p->H * N;
    if (p->E == nullptr) {
      load_shared_columns(n, all, c);
    } else {
      columns(p->E, n, 0.0, c.below);
      columns(p->E + plane, n, 1.0, c.on);
      if (!lower) columns(p->E + 2 * plane, n, 0.0, c.above);
      if (all) {
        columns(p->F, n, 0.0, c.left);
        columns(p->F + plane, n, 0.0, c.mid);
        if (!lower) columns(p->F + 2 * plane, n, 0.0, c.right);
        columns(p->g, n, 0.0, c.in);
      }
    }
    const int64_t last = N - 1 - n;
    for (int l = 0; l < kL && n == 0; ++l) c.below[0][l] = c.left[0][l] = 0.0;
    for (int l = 0; l < kL && last < kColumns; ++l) c.above[last][l] = c.right[last][l] = 0.0;
  }

  // What elimination of a row hands to the next one.
  struct Eliminated {
    Values entry;  // the row's entry in the column of the next, over its pivot
    Values worst;  // how much all so far magnifies rounding errors
  };

  // From above, which writes the records, or from below, which adds the pivots.
  template <bool Down>
  void fold_rows() {
    constexpr bool kAll = Down && !V::kShared;
    Columns c = {};
    Eliminated done = {};
    const int64_t blocks = (N + kColumns - 1) / kColumns;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t begin = (Down ? b : blocks - 1 - b) * kColumns;
      const int64_t count = N - begin < kColumns ? N - begin : kColumns;
      load_columns(begin, kAll, c);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = Down ? i : count - 1 - i;
        fold_row<Down>(begin + row, c, row, done);
      }
    }
    for (int64_t l = 0; l < lanes; ++l) growth = larger(growth, done.worst[l]);
  }

  template <bool Down>
  void fold_row(int64_t n, const Columns& c, int64_t i, Eliminated& done) {
    T* const to = coef + n * record;
    for (int l = 0; l < kL; l += kWide) {
      const auto wide = [=](const Eight& x) __attribute__((always_inline)) {
        return Doubles::load(&x[i][l]);
      };
      const Wide below = wide(c.below), on = wide(c.on), above = wide(c.above);
      const Wide taken = (Down ? below : above) * Doubles::load(done.entry + l);
      const Wide pivot = on - taken, r = 1.0 / pivot;
      Doubles::store(done.entry + l, (Down ? above : below) * r);
      // What elimination adds up in this row, against what the row of E holds; NaN if it is empty.
      // Nothing is added where the matrix is lower triangular.
      const Wide grown = magnitude(pivot) + magnitude(taken);
      const Wide row = magnitude(below) + magnitude(on) + magnitude(above);
      const Wide magnified = lower ? pivot - pivot + 1.0 : grown / row;
      const Wide most = pivot == 0.0 ? __builtin_inf() - Wide{} : magnified;
      const Wide worst = Doubles::load(done.worst + l);
      Doubles::store(done.worst + l, most <= worst ? worst : most);
      const auto write = [=](int k, Wide x) __attribute__((always_inline)) {
        store_rounded(to + k * kL + l, x);
      };
      if constexpr (V::kShared) {
        write(Down ? kSharedDown : kSharedUp, Doubles::load(steps + l) * r);
        continue;
      }
      if constexpr (!Down) {
        write(kUp, r / Doubles::load(inverse + n * kL + l));
        continue;
      }
      Doubles::store(inverse + n * kL + l, r);
      write(kBelow, -below * r);
      write(kLeft, wide(c.left) * r);
      write(kMid, wide(c.mid) * r);
      write(kIn, wide(c.in) * r);
      if (lower) continue;
      write(kAbove, -above * r);
      write(kRight, wide(c.right) * r);
    }
  }

  void find_inputs() {
    const int64_t features = p->g == nullptr ? 1 : lanes;
    for (int64_t l = 0; l < features; ++l) {
      const double* const g = p->g == nullptr ? p->shared->g : p->g + (first + l) * N;
      int64_t n = N;
      while (n > inputs && g[n - 1] == 0.0) --n;
      if (n > inputs) inputs = n;
    }
  }

  void fold_common() {
    const LsslShared& from = *p->shared;
    const auto at = [&](const double* plane, int k, int64_t n) {
      return (k == 0 && n == 0) || (k == 2 && n + 1 == N) ? T(0) : static_cast<T>(plane[k * N + n]);
    };
    for (int64_t n = 0; n < N; ++n) {
      T* const to = common + n * kCommon;
      to[kLeft] = at(from.F, 0, n);
      to[kMid] = at(from.F, 1, n);
      to[kRight] = at(from.F, 2, n);
      to[kIn] = static_cast<T>(from.g[n]);
      to[kBelow] = -at(from.constant, 0, n);
      to[kBelowSlope] = -at(from.slope, 0, n);
      to[kAbove] = -at(from.constant, 2, n);
      to[kAboveSlope] = -at(from.slope, 2, n);
    }
    for (int64_t l = 0; l < kL; ++l) rate[l] = static_cast<T>(1.0 / steps[l]);
  }
};

// lanes[0, count) = base[0, count), the other lanes 0.
template <class V>
SEQKERN_INLINE void load_lanes(typename V::T* lanes, const typename V::T* base, int64_t count) {
  if (count == V::kLanes) return V::store(lanes, V::load(base));
  for (int64_t l = 0; l < V::kLanes; ++l) lanes[l] = l < count ? base[l] : 0;
}

template <class V>
SEQKERN_INLINE void store_lanes(typename V::T* base, const typename V::T* lanes, int64_t count) {
  if (count == V::kLanes) return V::store(base, V::load(lanes));
  for (int64_t l = 0; l < count; ++l) base[l] = lanes[l];
}

// states[n][lane] of one sequence from [H][N], or zeros.
template <class V>
inline void load_state(const Group<V>& s, const void* base, int64_t b, typename V::T* states) {
  constexpr int kL = V::kLanes;
  memset(states, 0, s.N * kL * sizeof(typename V::T));
  if (base == nullptr) return;
  const typename V::T* from =
      static_cast<const typename V::T*>(base) + (b * s.p->H + s.first) * s.N;
  for (int64_t l = 0; l < s.lanes; ++l)
    for (int64_t n = 0; n < s.N; ++n) states[n * kL + l] = from[l * s.N + n];
}

template <class V>
inline void store_state(const Group<V>& s, void* base, int64_t b, const typename V::T* states) {
  constexpr int kL = V::kLanes;
  if (base == nullptr) return;
  typename V::T* to = static_cast<typename V::T*>(base) + (b * s.p->H + s.first) * s.N;
  for (int64_t l = 0; l < s.lanes; ++l)
    for (int64_t n = 0; n < s.N; ++n) to[l * s.N + n] = states[n * kL + l];
}

// Where the states of this group lie in a checkpoint, [N][lane]: the groups of a block lie one
// behind the other.
template <class V>
inline typename V::T* checkpoint_of(const LsslScan& p, const Group<V>& s, int64_t b, int64_t i) {
  const int64_t segments = (p.L + p.segment - 1) / p.segment;
  const int64_t width = lssl_checkpoint_block(s.p->H);
  const int64_t blocks = (s.p->H + width - 1) / width, block = s.first / width;
  return static_cast<typename V::T*>(p.checkpoints) +
         (((b * segments + i) * blocks + block) * width + s.first % width) * s.N;
}

// u of `count` steps from t on, [count][lane]; the impulse if there is no u.
template <class V>
inline void load_input(const LsslScan& p, const Group<V>& s, int64_t b, int64_t t, int64_t count,
                       typename V::T* u) {
  typedef typename V::T T;
  if (p.u == nullptr) {
    memset(u, 0, count * V::kLanes * sizeof(T));
    for (int l = 0; l < V::kLanes && t == 0; ++l) u[l] = 1;
    return;
  }
  const T* from = static_cast<const T*>(p.u) + b * p.u_batch + t * p.u_time + s.first;
  for (int64_t i = 0; i < count; ++i)
    load_lanes<V>(u + i * V::kLanes, from + i * p.u_time, s.lanes);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
