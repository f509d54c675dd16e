// SPDX-License-Identifier: Apache-2.0
// lssl_system.hpp - the coefficients of a linear state-space layer, one feature per lane.
//
// Maths      E is eliminated from both ends to the row c = N / 2 in the middle, so that two chains
//            of dependent operations go side by side. Pivots p_n, r_n = 1 / p_n:
//              p_n = E_nn - E_n,n-1 r_n-1 E_n-1,n  (n < c)
//              p_n = E_nn - E_n,n+1 r_n+1 E_n+1,n  (n > c);  p_c = E_cc less both
//            Every row of E, F and g is divided by its pivot beforehand, so that a step needs no
//            division: below_n = -E_n,n-1 r_n, above_n = -E_n,n+1 r_n, then
//              z_n = (F x + g u)_n + below_n z_n-1 (n <= c) + above_n z_n+1 (n >= c)
//              d_c = z_c, d_n = z_n + above_n d_n+1 (n < c), d_n = z_n + below_n d_n-1 (n > c)
//            Where E is lower triangular p_n = E_nn, and one chain may go all the way down.
// Layout     records of 6 + M vectors per n; one more record of zeros behind the last. Where
//            features differ in their time step alone (Shared): 1 + M vectors, dt r_n and C, and 8
//            numbers, of which a step makes the others: long states are bound by the second cache.
// Precision  folded in f64, stored in the type of the states (f32 or f64).
// Threads    none: the caller splits features into groups of V::kLanes.
#pragma once

#include "../include/seqkern/lssl.h"
#include "simd.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// Vectors of a record.
enum : int { kBelow, kAbove, kLeft, kMid, kRight, kIn, kOut };

// Numbers of a row that features share: the above, with the part of -E that does not depend on the
// time step in the place of below and above; the part that is proportional to it follows.
enum : int { kSlope = kIn + 1, kCommon = kSlope + 2 };

// Vectors of float and of double behind one interface.
struct Floats {
  typedef float T;
  typedef vf Vec;
  static constexpr int kLanes = W;
  static constexpr bool kTwice = false, kShared = false;
  SEQKERN_INLINE_MEMBER static Vec load(const T* p) { return SEQKERN_ISA::load(p); }
  SEQKERN_INLINE_MEMBER static void store(T* p, Vec x) { SEQKERN_ISA::store(p, x); }
  // One vector of a row at a time.
  SEQKERN_INLINE_MEMBER static void stream(T* p, Vec x) {
    kLineVectors == 1 ? SEQKERN_ISA::stream(p, x) : store(p, x);
  }
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

SEQKERN_INLINE bool any(DoubleBits x) {
  int64_t some = 0;
  for (int l = 0; l < Doubles::kLanes; ++l) some |= x[l];
  return some != 0;
}

SEQKERN_INLINE Doubles::Vec magnitude(Doubles::Vec x) {
  return reinterpret_cast<Doubles::Vec>(reinterpret_cast<DoubleBits>(x) & INT64_MAX);
}

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

// The coefficients of row n, of which one lane holds one feature.
template <class V>
class Row {
 public:
  typedef typename V::T T;
  typedef typename V::Vec Vec;
  static constexpr int kL = V::kLanes;

  SEQKERN_INLINE_MEMBER explicit Row(const T* at) : at_(at) {}
  SEQKERN_INLINE_MEMBER Vec below() const { return V::load(at_ + kBelow * kL); }
  SEQKERN_INLINE_MEMBER Vec above() const { return V::load(at_ + kAbove * kL); }
  // F and g: weigh() applied to a sum of products with these divides it by the pivot.
  SEQKERN_INLINE_MEMBER Vec left() const { return V::load(at_ + kLeft * kL); }
  SEQKERN_INLINE_MEMBER Vec mid() const { return V::load(at_ + kMid * kL); }
  SEQKERN_INLINE_MEMBER Vec right() const { return V::load(at_ + kRight * kL); }
  SEQKERN_INLINE_MEMBER Vec in() const { return V::load(at_ + kIn * kL); }
  SEQKERN_INLINE_MEMBER Vec weigh(const Vec& x) const { return x; }
  SEQKERN_INLINE_MEMBER const T* out() const { return at_ + kOut * kL; }

 private:
  const T* at_;
};

template <class V>
class Row<Shared<V>> {
 public:
  typedef typename V::T T;
  typedef typename V::Vec Vec;

  SEQKERN_INLINE_MEMBER Row(const T* at, const T* common, Vec rate)
      : at_(at), common_(common), rate_(rate) {}
  SEQKERN_INLINE_MEMBER Vec below() const { return off(kBelow); }
  SEQKERN_INLINE_MEMBER Vec above() const { return off(kAbove); }
  SEQKERN_INLINE_MEMBER Vec left() const { return V::splat(common_[kLeft]); }
  SEQKERN_INLINE_MEMBER Vec mid() const { return V::splat(common_[kMid]); }
  SEQKERN_INLINE_MEMBER Vec right() const { return V::splat(common_[kRight]); }
  SEQKERN_INLINE_MEMBER Vec in() const { return V::splat(common_[kIn]); }
  SEQKERN_INLINE_MEMBER Vec weigh(const Vec& x) const { return x * V::load(at_); }
  SEQKERN_INLINE_MEMBER const T* out() const { return at_ + V::kLanes; }

 private:
  SEQKERN_INLINE_MEMBER Vec off(int k) const {
    return weigh(V::fma(rate_, V::splat(common_[k]), V::splat(common_[kSlope + k])));
  }
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
  int64_t middle = 0;         // the row where elimination from above and from below meet
  T* coef = nullptr;          // [N + 1][6 + M][kL], or [N + 1][1 + M][kL]
  T* common = nullptr;        // [N][kCommon], if V::kShared
  T* rate = nullptr;          // [kL], 1 / dt, if V::kShared
  double* inverse = nullptr;  // [N][kL], 1 / pivot
  T* pass = nullptr;          // [M][kL], D
  bool lower = true;          // E and F have nothing above the diagonal
  int64_t inputs = 0;         // rows from here on have g_n = 0
  int64_t kept = most_kept<V>;
  double growth = 1.0;

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
    middle = N / 2;
    record = ((V::kShared ? 1 : kOut) + M) * kL;
    coef = carver.take<T>((N + 1) * record);
    inverse = carver.take<double>(N * kL);
    pass = carver.take<T>(M * kL);
    common = carver.take<T>(V::kShared ? N * kCommon : 0);
    rate = carver.take<T>(V::kShared ? kL : 0);
  }

  void fold() {
    // Where all lanes hold features, every row but the last, of zeros, is written whole below.
    const int64_t first_zero = lanes == kL ? N * record : 0;
    memset(coef + first_zero, 0, ((N + 1) * record - first_zero) * sizeof(T));
    memset(pass, 0, M * kL * sizeof(T));
    fold_rows();
    if constexpr (V::kShared) fold_common();
    const T *C = static_cast<const T*>(p->C) + first * M * N, *D = static_cast<const T*>(p->D);
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n)
          coef[n * record + ((V::kShared ? 1 : kOut) + m) * kL + l] = C[(l * M + m) * N + n];
        if (D != nullptr) pass[m * kL + l] = D[(first + l) * M + m];
      }
  }

 private:
  typedef Doubles::Vec Wide;
  static constexpr int kWide = Doubles::kLanes;
  typedef double Values[kL];

  // Eight columns of the planes of E and F and of g, feature by feature as they lie in memory: the
  // rows of many features are a power of 2 apart and would drive each other out of the cache.
  static constexpr int kColumns = 8;
  struct Columns {
    double on[kColumns][kL], below[kColumns][kL], above[kColumns][kL];
    double mid[kColumns][kL], left[kColumns][kL], right[kColumns][kL], in[kColumns][kL];
  };

  void columns(const double* plane, int64_t n, double other, double (&to)[kColumns][kL]) const {
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

  struct Planes {
    const Values &below, &on, &above, &left, &mid, &right, &in;
  };

  // Row n, out of the columns around it.
  Planes planes(int64_t n, int64_t& first_column, Columns& c) {
    const int64_t begin = n / kColumns * kColumns, i = n - begin;
    if (begin != first_column) {
      const int64_t plane = p->H * N;
      columns(p->E, begin, 0.0, c.below);
      columns(p->E + plane, begin, 1.0, c.on);
      columns(p->F, begin, 0.0, c.left);
      columns(p->F + plane, begin, 0.0, c.mid);
      if (!p->lower) columns(p->E + 2 * plane, begin, 0.0, c.above);
      if (!p->lower) columns(p->F + 2 * plane, begin, 0.0, c.right);
      columns(p->g, begin, 0.0, c.in);
      first_column = begin;
    }
    for (int l = 0; l < kL && n == 0; ++l) c.below[0][l] = c.left[0][l] = 0.0;
    for (int l = 0; l < kL && n + 1 == N; ++l) c.above[i][l] = c.right[i][l] = 0.0;
    return {c.below[i], c.on[i], c.above[i], c.left[i], c.mid[i], c.right[i], c.in[i]};
  }

  // What all rows together show.
  struct Found {
    Values worst;      // how much elimination magnifies rounding errors
    DoubleBits upper;  // not zero where an entry above the diagonal is not
  };

  void fold_rows() {
    int64_t loaded = -1;
    Columns c = {};
    Found found = {};
    Values from_above = {}, from_below = {}, none = {};  // U_n-1,n and U_n+1,n
    // The last rows first: `inputs` is then found at once, and not searched for any more.
    for (int64_t n = N - 1; n > middle; --n)
      fold_row(n, planes(n, loaded, c), none, from_below, found);
    loaded = -1;
    for (int64_t n = 0; n < middle; ++n) fold_row(n, planes(n, loaded, c), from_above, none, found);
    fold_row(middle, planes(middle, loaded, c), from_above, from_below, found);
    for (int64_t l = 0; l < lanes; ++l)
      if (!(found.worst[l] <= growth)) growth = found.worst[l];
    if (any(found.upper)) lower = false;
  }

  // Row n, which the rows above and below it as far as they are eliminated hand their U.
  void fold_row(int64_t n, const Planes& row, Values& from_above, Values& from_below,
                Found& found) {
    T* const to = coef + n * record;
    DoubleBits fed = {};
    for (int l = 0; l < kL; l += kWide) {
      const auto wide = [l](const Values& x) __attribute__((always_inline)) {
        return Doubles::load(x + l);
      };
      const Wide below = wide(row.below), on = wide(row.on), above = wide(row.above);
      const Wide right = wide(row.right), in = wide(row.in);
      const Wide first = below * wide(from_above), second = above * wide(from_below);
      const Wide pivot = on - first - second, r = 1.0 / pivot;
      Doubles::store(inverse + n * kL + l, r);
      if (n < middle) Doubles::store(from_above + l, above * r);
      if (n > middle) Doubles::store(from_below + l, below * r);
      // What elimination adds up in this row, against what the row of E holds; NaN if it is empty.
      const Wide grown = magnitude(pivot) + magnitude(first) + magnitude(second);
      const Wide magnified = grown / (magnitude(below) + magnitude(on) + magnitude(above));
      const Wide most = pivot == 0.0 ? __builtin_inf() - Wide{} : magnified;
      const Wide worst = wide(found.worst);
      Doubles::store(found.worst + l, most <= worst ? worst : most);
      found.upper |= (above != 0.0) | (right != 0.0);
      fed |= in != 0.0;
      if constexpr (V::kShared) {
        for (int i = l; i < l + kWide && i < lanes; ++i)
          to[i] = static_cast<T>(p->shared->dt[this->first + i] * inverse[n * kL + i]);
      } else {
        const auto write = [=](int k, Wide x) __attribute__((always_inline)) {
          store_rounded(to + k * kL + l, x);
        };
        write(kBelow, -below * r);
        write(kAbove, -above * r);
        write(kLeft, wide(row.left) * r);
        write(kMid, wide(row.mid) * r);
        write(kRight, right * r);
        write(kIn, in * r);
      }
    }
    if (inputs <= n && any(fed)) inputs = n + 1;
  }

  void fold_common() {
    const LsslShared& from = *p->shared;
    const auto at = [&](const double* plane, int k, int64_t n) {
      return (k == 0 && n == 0) || (k == 2 && n + 1 == N) ? T(0) : static_cast<T>(plane[k * N + n]);
    };
    for (int64_t n = 0; n < N; ++n) {
      T* const to = common + n * kCommon;
      for (int k = 0; k < 3; ++k) to[kLeft + k] = at(from.F, k, n);
      to[kIn] = static_cast<T>(from.g[n]);
      for (int k = 0; k < 2; ++k) {
        to[kBelow + k] = -at(from.constant, 2 * k, n);
        to[kSlope + k] = -at(from.slope, 2 * k, n);
      }
    }
    for (int64_t l = 0; l < kL; ++l)
      rate[l] = l < lanes ? static_cast<T>(1.0 / from.dt[first + l]) : T(0);
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

// Where the states of this group lie in a checkpoint; rows are a block apart.
template <class V>
inline typename V::T* checkpoint_of(const LsslScan& p, const Group<V>& s, int64_t b, int64_t i) {
  const int64_t segments = (p.L + p.segment - 1) / p.segment;
  const int64_t width = lssl_checkpoint_block(s.p->H);
  const int64_t blocks = (s.p->H + width - 1) / width, block = s.first / width;
  return static_cast<typename V::T*>(p.checkpoints) +
         ((b * segments + i) * blocks + block) * s.N * width + s.first % width;
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
