// SPDX-License-Identifier: Apache-2.0
// lssl_system.hpp - the coefficients of a linear state-space layer, one feature per lane.
//
// Maths      E = Ld U, Ld lower bidiagonal with pivots d_n, U upper bidiagonal with ones:
//              r_n = 1 / d_n, d_n = E_nn - E_n,n-1 U_n-1,n, U_n,n+1 = E_n,n+1 r_n
//            Every row of F, g and Ld is divided by its pivot beforehand, so that a step needs no
//            division:  z_n = (F x)_n + g_n u + below_n z_n-1,  d_n = z_n + above_n d_n+1
// Layout     records of 6 + M vectors per n; one more record of zeros behind the last.
// Precision  folded in f64, stored in the type of the states (f32 or f64).
// Threads    none: the caller splits features into groups of V::kLanes.
#pragma once

#include "../include/seqkern/lssl.h"
#include "simd.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// Vectors of float and of double behind one interface.
struct Floats {
  typedef float T;
  typedef vf Vec;
  static constexpr int kLanes = W;
  static constexpr bool kTwice = false;
  SEQKERN_INLINE_MEMBER static Vec load(const T* p) { return SEQKERN_ISA::load(p); }
  SEQKERN_INLINE_MEMBER static void store(T* p, Vec x) { SEQKERN_ISA::store(p, x); }
  SEQKERN_INLINE_MEMBER static Vec fma(Vec a, Vec b, Vec c) { return SEQKERN_ISA::fma(a, b, c); }
  SEQKERN_INLINE_MEMBER static Vec splat(T x) { return SEQKERN_ISA::splat(x); }
};

struct Doubles {
  typedef double T;
  typedef double Vec __attribute__((vector_size(4 * W)));
  typedef double Unaligned __attribute__((vector_size(4 * W), aligned(8), may_alias));
  static constexpr int kLanes = W / 2;
  static constexpr bool kTwice = false;
  SEQKERN_INLINE_MEMBER static Vec load(const T* p) {
    return *reinterpret_cast<const Unaligned*>(p);
  }
  SEQKERN_INLINE_MEMBER static void store(T* p, Vec x) { *reinterpret_cast<Unaligned*>(p) = x; }
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
  static constexpr bool kTwice = true;
  SEQKERN_INLINE_MEMBER static Vec load(const T* p) { return {V::load(p), V::load(p + V::kLanes)}; }
  SEQKERN_INLINE_MEMBER static void store(T* p, const Vec& x) {
    V::store(p, x.low);
    V::store(p + V::kLanes, x.high);
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

// Vectors of a record.
enum : int { kBelow, kAbove, kLeft, kMid, kRight, kIn, kOut };

// Steps taken at a time where the system is lower triangular.
#if SEQKERN_LANES == 16 || defined(__aarch64__)
constexpr int kSteps = 8;
#else
constexpr int kSteps = 4;
#endif

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
  T* coef = nullptr;          // [N + 1][6 + M][kL]
  double* inverse = nullptr;  // [N][kL], 1 / pivot
  T* pass = nullptr;          // [M][kL], D
  bool lower = true;          // E and F have nothing above the diagonal
  int64_t inputs = 0;         // rows from here on have g_n = 0
  double growth = 1.0;

  SEQKERN_INLINE_MEMBER const T* at(int64_t n) const { return coef + n * record; }

  void carve(Carver& carver, const LsslSystem& system, int64_t group) {
    p = &system;
    first = group * kL;
    lanes = system.H - first < kL ? system.H - first : kL;
    N = system.N;
    M = system.M;
    record = (kOut + M) * kL;
    coef = carver.take<T>((N + 1) * record);
    inverse = carver.take<double>(N * kL);
    pass = carver.take<T>(M * kL);
  }

  void fold() {
    memset(coef, 0, (N + 1) * record * sizeof(T));
    memset(pass, 0, M * kL * sizeof(T));
    for (int64_t i = 0; i < N * kL; ++i) inverse[i] = 1.0;
    // U_n-1,n, and the worst growth of each lane
    double before[kL] = {}, worst[kL] = {};
    fold_rows(before, worst);
    for (int64_t l = 0; l < lanes; ++l)
      if (!(worst[l] <= growth)) growth = worst[l];
    const T *C = static_cast<const T*>(p->C) + first * M * N, *D = static_cast<const T*>(p->D);
    for (int64_t l = 0; l < lanes; ++l)
      for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n)
          coef[n * record + (kOut + m) * kL + l] = C[(l * M + m) * N + n];
        if (D != nullptr) pass[m * kL + l] = D[(first + l) * M + m];
      }
  }

 private:
  // Eight columns of the planes of E and F and of g, feature by feature as they lie in memory: the
  // rows of many features are a power of 2 apart and would drive each other out of the cache.
  static constexpr int kColumns = 8;
  struct Columns {
    double on[kColumns][kL], below[kColumns][kL], above[kColumns][kL];
    double mid[kColumns][kL], left[kColumns][kL], right[kColumns][kL], in[kColumns][kL];
  };

  void columns(const double* plane, int64_t n, double other, double (&to)[kColumns][kL]) const {
    const int64_t count = N - n < kColumns ? N - n : kColumns;
    for (int64_t l = 0; l < kL; ++l) {
      const double* from = plane + (first + l) * N + n;
      for (int64_t i = 0; i < count; ++i) to[i][l] = l < lanes ? from[i] : other;
    }
  }

  void fold_rows(double (&before)[kL], double (&worst)[kL]) {
    const int64_t plane = p->H * N;
    Columns c = {};
    for (int64_t n = 0; n < N; ++n) {
      const int64_t i = n % kColumns;
      if (i == 0) {
        columns(p->E, n, 0.0, c.below);
        columns(p->E + plane, n, 1.0, c.on);
        columns(p->F, n, 0.0, c.left);
        columns(p->F + plane, n, 0.0, c.mid);
        if (!p->lower) columns(p->E + 2 * plane, n, 0.0, c.above);
        if (!p->lower) columns(p->F + 2 * plane, n, 0.0, c.right);
        columns(p->g, n, 0.0, c.in);
      }
      for (int l = 0; l < kL && n == 0; ++l) c.below[0][l] = c.left[0][l] = 0.0;
      for (int l = 0; l < kL && n + 1 == N; ++l) c.above[i][l] = c.right[i][l] = 0.0;
      fold_row(n, c.below[i], c.on[i], c.above[i], c.left[i], c.mid[i], c.right[i], c.in[i], before,
               worst);
    }
  }

  typedef double Row[kL];
  void fold_row(int64_t n, const Row& below, const Row& on, const Row& above, const Row& left,
                const Row& mid, const Row& right, const Row& in, Row& before, Row& worst) {
    T* to = coef + n * record;
    double product[kL], pivot[kL];
    for (int l = 0; l < kL; ++l) {
      product[l] = below[l] * before[l];
      pivot[l] = on[l] - product[l];
      const double r = 1.0 / pivot[l];
      inverse[n * kL + l] = r;
      before[l] = above[l] * r;
      to[kBelow * kL + l] = static_cast<T>(-below[l] * r);
      to[kAbove * kL + l] = static_cast<T>(-before[l]);
      to[kLeft * kL + l] = static_cast<T>(left[l] * r);
      to[kMid * kL + l] = static_cast<T>(mid[l] * r);
      to[kRight * kL + l] = static_cast<T>(right[l] * r);
      to[kIn * kL + l] = static_cast<T>(in[l] * r);
    }
    bool upper = false, fed = false;
    for (int l = 0; l < kL; ++l) {
      // What elimination adds up in this row, against what the row of E holds; NaN if it is empty.
      const double grown = __builtin_fabs(pivot[l]) + __builtin_fabs(product[l]);
      const double size =
          __builtin_fabs(below[l]) + __builtin_fabs(on[l]) + __builtin_fabs(above[l]);
      const double magnified = pivot[l] == 0.0 ? __builtin_inf() : grown / size;
      worst[l] = magnified <= worst[l] ? worst[l] : magnified;
      upper |= (above[l] != 0.0) | (right[l] != 0.0);
      fed |= in[l] != 0.0;
    }
    if (upper) lower = false;
    if (fed) inputs = n + 1;
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
