// SPDX-License-Identifier: Apache-2.0
// lssl_convolution.hpp - causal convolution with the kernels of a linear state-space layer.
//
// Maths      y_m = (K_m + D_m delta) * u, for t < L. Two sequences go through one complex
//            transform, as its real and its imaginary part: K is real, so they mix in rounding
//            alone. That is relative to the larger of them, so each is divided by a power of two
//            near its largest element; one that is not finite goes alone. With P and Q_m the
//            spectra of such a pair of u and of dy_m, and k_m that of the kernel,
//              du is the transform back of sum_m Q_m conj(k_m), and
//              dK_m the real part of that of sum_pairs Q_m conj(P); dD_m = dK_m at t = 0.
//            There u is multiplied with what dy is divided by.
// Layout     lanes are features; u, y, dy, du and K are read and written where they lie.
// Precision  f32 or f64 throughout.
// Cost       a transform for each pair of u, y, dy and du, channel by channel for y and dy, and two
//            for each kernel. Nothing is saved for the backward pass: a spectrum takes as long to
//            load as to compute. u, backward dy, is read once more for its largest elements.
// Limits     a sequence that goes alone costs as much as two.
// Threads    none: the caller splits blocks of features and parts of the batch.
#pragma once

#include "lssl_fft.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

template <class V>
struct ConvolutionMemory {
  typedef typename V::T T;
  int64_t width = 0;                    // of a spectrum
  T *kernels, *sums, *u, *work, *flow;  // [M] spectra, [M] spectra, one each
  int64_t used = 0;

  // One channel's products overwrite a factor: fewer spectra stay longer in the second cache.
  ConvolutionMemory(const LsslConvolution& p, bool back, void* workspace) {
    Carver carver(workspace);
    width = 2 * p.spectrum.radix * p.spectrum.rest * V::kLanes;
    kernels = carver.take<T>(p.M * width);
    sums = carver.take<T>(p.dK == nullptr ? 0 : p.M * width);
    u = carver.take<T>(width);
    work = p.M == 1 && !back ? u : carver.take<T>(width);
    flow = p.M == 1 ? work : carver.take<T>(p.du == nullptr ? 0 : width);
    used = carver.used();
  }
};

// Rows of the inputs and outputs, which lie far apart, are asked for so many ahead.
constexpr int64_t kSequenceRowsAhead = 16;

// Features [first, first + lanes) of one vector.
struct Features {
  int64_t first, lanes;
};

template <class V>
SEQKERN_INLINE typename V::Vec row(const typename V::T* from, int64_t lanes) {
  if (lanes == V::kLanes) return V::load(from);
  typename V::T all[V::kLanes];
  load_lanes<V>(all, from, lanes);
  return V::load(all);
}

template <class V>
SEQKERN_INLINE void set_row(typename V::T* to, typename V::Vec x, int64_t lanes) {
  if (lanes == V::kLanes) return V::store(to, x);
  typename V::T all[V::kLanes];
  V::store(all, x);
  store_lanes<V>(to, all, lanes);
}

// Nothing to be done with a block of a transform.
constexpr auto kNothing = [](int64_t, int64_t) {};

// The pairs of one part of the batch: [begin, end) of the sequences, begin even.
struct Pairs {
  int64_t begin, end;
  Pairs(const LsslConvolution& p, int64_t part) {
    const int64_t pairs = (p.B + 1) / 2;
    begin = 2 * (part * pairs / p.parts);
    end = 2 * ((part + 1) * pairs / p.parts);
    end = end < p.B ? end : p.B;
  }
};

// One sequence, or two that share a transform, and powers of two for each lane of either: `down`
// brings the largest element near 1, `up` undoes that.
template <class V>
struct Company {
  int64_t first, count = 1;
  typename V::Vec down[2] = {V::splat(1), V::splat(1)}, up[2] = {V::splat(1), V::splat(1)};
};

// Sequences of [.][L][.]: rows `time` apart, `channels` of them `channel` apart at each step.
struct Sequences {
  const void* base;
  int64_t batch, time, channel, channels;
};

// Finds the powers of one sequence; false where it is not finite.
template <class V>
inline bool find_powers(const LsslConvolution& p, const Sequences& of, int64_t b, const Features& f,
                        typename V::Vec& down, typename V::Vec& up) {
  typedef typename V::T T;
  typedef decltype(down < up) Bits;
  typedef decltype(Bits{}[0] + 0) Whole;
  constexpr int kMantissa = sizeof(T) == 4 ? 23 : 52;
  constexpr Whole kMost = sizeof(T) == 4 ? 255 : 2047;  // the exponent of what is not finite
  constexpr Whole kMagnitude = (kMost << kMantissa) | ((Whole{1} << kMantissa) - 1);
  const int64_t ahead = kSequenceRowsAhead * of.time * static_cast<int64_t>(sizeof(T));
  Bits largest{};
  for (int64_t m = 0; m < of.channels; ++m) {
    const T* from = static_cast<const T*>(of.base) + b * of.batch + m * of.channel + f.first;
    for (int64_t t = 0; t < p.L; ++t, from += of.time) {
      prefetch(from, ahead);
      const Bits bits = reinterpret_cast<Bits>(row<V>(from, f.lanes)) & kMagnitude;
      largest = bits > largest ? bits : largest;
    }
  }
  Whole lane[2][V::kLanes];
  memcpy(lane[1], &largest, sizeof largest);
  for (int l = 0; l < V::kLanes; ++l) {
    Whole exponent = lane[1][l] >> kMantissa;
    if (exponent == kMost) return false;
    // Both powers have to be normal numbers.
    exponent = exponent < 1 ? 1 : exponent > kMost - 2 ? kMost - 2 : exponent;
    lane[0][l] = (kMost - 1 - exponent) << kMantissa;
    lane[1][l] = exponent << kMantissa;
  }
  memcpy(&down, lane[0], sizeof down);
  memcpy(&up, lane[1], sizeof up);
  return true;
}

// Calls each(company) for the sequences of one part of the batch.
template <class V, class Each>
inline void each_company(const LsslConvolution& p, const Pairs& pairs, const Sequences& of,
                         const Features& f, const Each& each) {
  for (int64_t b = pairs.begin; b < pairs.end; b += 2) {
    Company<V> both{b};
    if (b + 1 < p.B && find_powers<V>(p, of, b, f, both.down[0], both.up[0]) &&
        find_powers<V>(p, of, b + 1, f, both.down[1], both.up[1])) {
      both.count = 2;
      each(both);
      continue;
    }
    each(Company<V>{b});
    if (b + 1 < p.B) each(Company<V>{b + 1});
  }
}

// The spectrum of one or two sequences of [.][L][.], rows `time` apart, times `powers`.
template <class V, class After>
inline void transform_company(const LsslConvolution& p, const void* base, int64_t batch,
                              int64_t time, const Company<V>& who,
                              const typename V::Vec (&powers)[2], int64_t offset, const Features& f,
                              typename V::T* x, const After& after) {
  typedef typename V::T T;
  const T* from = static_cast<const T*>(base) + who.first * batch + offset + f.first;
  const int64_t ahead = kSequenceRowsAhead * time * static_cast<int64_t>(sizeof(T));
  const typename V::Vec re = powers[0], im = powers[1];
  const auto at = [=](int64_t t) __attribute__((always_inline)) {
    prefetch(from + t * time, ahead);
    return row<V>(from + t * time, f.lanes);
  };
  const auto one = [=](int64_t t) __attribute__((always_inline)) {
    return Complex<V>{at(t), typename V::Vec{}};
  };
  const auto two = [=](int64_t t) __attribute__((always_inline)) {
    prefetch(from + batch + t * time, ahead);
    return Complex<V>{at(t) * re, row<V>(from + batch + t * time, f.lanes) * im};
  };
  who.count == 2 ? transform<V>(p.spectrum, p.L, two, x, after)
                 : transform<V>(p.spectrum, p.L, one, x, after);
}

template <class V, class Before>
inline void transform_company_back(const LsslConvolution& p, void* base, int64_t batch,
                                   int64_t time, const Company<V>& who, int64_t offset,
                                   const Features& f, typename V::T* x, const Before& before) {
  typedef typename V::T T;
  T* const to = static_cast<T*>(base) + who.first * batch + offset + f.first;
  const int64_t ahead = kSequenceRowsAhead * time * static_cast<int64_t>(sizeof(T));
  const bool two = who.count == 2;
  const typename V::Vec re = who.up[0], im = who.up[1];
  transform_back<V>(p.spectrum, p.L, x, before, [=](int64_t t, Complex<V> a) {
    T* const at = to + t * time;
    prefetch_to_write(at, ahead);
    set_row<V>(at, a.re * re, f.lanes);
    if (!two) return;
    prefetch_to_write(at + batch, ahead);
    set_row<V>(at + batch, a.im * im, f.lanes);
  });
}

// The spectra of K_m + D_m delta, over n.
template <class V>
inline void transform_kernels(const LsslConvolution& p, const Features& f, typename V::T* to) {
  typedef typename V::T T;
  const T scale = static_cast<T>(1.0 / static_cast<double>(p.spectrum.radix * p.spectrum.rest));
  const int64_t width = 2 * p.spectrum.radix * p.spectrum.rest * V::kLanes;
  for (int64_t m = 0; m < p.M; ++m) {
    const T* from = static_cast<const T*>(p.K) + m * p.H + f.first;
    const int64_t time = p.M * p.H,
                  ahead = kSequenceRowsAhead * time * static_cast<int64_t>(sizeof(T));
    T pass[V::kLanes] = {};
    for (int64_t l = 0; p.D != nullptr && l < f.lanes; ++l)
      pass[l] = static_cast<const T*>(p.D)[(f.first + l) * p.M + m];
    const typename V::Vec d = V::load(pass);
    transform<V>(
        p.spectrum, p.L,
        [=](int64_t t) __attribute__((always_inline)) {
          prefetch(from + t * time, ahead);
          typename V::Vec k = row<V>(from + t * time, f.lanes);
          if (t == 0) k = k + d;
          return Complex<V>{k * scale, typename V::Vec{}};
        },
        to + m * width, kNothing);
  }
}

// to = a b for the elements [begin, end).
template <class V>
inline void multiply_spectra(int64_t begin, int64_t end, const typename V::T* a,
                             const typename V::T* b, typename V::T* to) {
  for (int64_t i = begin; i < end; ++i) put<V>(to, i, times<V, false>(get<V>(a, i), get<V>(b, i)));
}

// With Q_m in `work`: the elements [begin, end) of the sums for dK_m, the first of them if `fresh`,
// and of those for du.
template <class V>
inline void undo_product(const LsslConvolution& p, const ConvolutionMemory<V>& memory, int64_t m,
                         bool fresh, int64_t begin, int64_t end) {
  const typename V::T* kernel = memory.kernels + m * memory.width;
  typename V::T* sums = memory.sums + m * memory.width;
  for (int64_t i = begin; i < end; ++i) {
    const Complex<V> q = get<V>(memory.work, i);
    if (p.dK != nullptr) {
      const Complex<V> before = fresh ? Complex<V>{} : get<V>(sums, i);
      put<V>(sums, i, add_times<V, true>(before, q, get<V>(memory.u, i)));
    }
    if (p.du == nullptr) continue;
    const Complex<V> before = m > 0 ? get<V>(memory.flow, i) : Complex<V>{};
    put<V>(memory.flow, i, add_times<V, true>(before, q, get<V>(kernel, i)));
  }
}

template <class V, class Each>
inline void each_vector(const LsslConvolution& p, int64_t block, const Each& each) {
  const int64_t begin = block * kLsslBlock;
  const int64_t end = p.H < begin + kLsslBlock ? p.H : begin + kLsslBlock;
  for (int64_t h = begin; h < end; h += V::kLanes)
    each(Features{h, end - h < V::kLanes ? end - h : V::kLanes});
}

template <class V>
inline void convolve(const LsslConvolution& p, int64_t task, void* workspace) {
  const ConvolutionMemory<V> memory(p, false, workspace);
  const int64_t blocks = (p.H + kLsslBlock - 1) / kLsslBlock, MH = p.M * p.H;
  const Pairs pairs(p, task / blocks);
  each_vector<V>(p, task % blocks, [&](const Features& f) {
    transform_kernels<V>(p, f, memory.kernels);
    const Sequences u{p.u, p.u_batch, p.u_time, 0, 1};
    each_company<V>(p, pairs, u, f, [&](const Company<V>& who) {
      transform_company<V>(p, p.u, p.u_batch, p.u_time, who, who.down, 0, f, memory.u, kNothing);
      for (int64_t m = 0; m < p.M; ++m) {
        const auto multiply = [&](int64_t begin, int64_t end) {
          multiply_spectra<V>(begin, end, memory.u, memory.kernels + m * memory.width, memory.work);
        };
        transform_company_back<V>(p, p.y, p.L * MH, MH, who, m * p.H, f, memory.work, multiply);
      }
    });
  });
}

// dK and dD of one part, the sums over its pairs.
template <class V>
inline void store_kernel_grads(const LsslConvolution& p, const ConvolutionMemory<V>& memory,
                               int64_t part, const Features& f) {
  typedef typename V::T T;
  const T scale = static_cast<T>(1.0 / static_cast<double>(p.spectrum.radix * p.spectrum.rest));
  const int64_t MH = p.M * p.H;
  for (int64_t m = 0; m < p.M; ++m) {
    T* const to = static_cast<T*>(p.dK) + part * p.L * MH + m * p.H + f.first;
    transform_back<V>(
        p.spectrum, p.L, memory.sums + m * memory.width, kNothing,
        [&](int64_t t, Complex<V> a) { set_row<V>(to + t * MH, a.re * scale, f.lanes); });
  }
}

template <class V>
inline void convolve_back(const LsslConvolution& p, int64_t task, void* workspace) {
  const ConvolutionMemory<V> memory(p, true, workspace);
  const int64_t blocks = (p.H + kLsslBlock - 1) / kLsslBlock, part = task / blocks;
  const Pairs pairs(p, part);
  each_vector<V>(p, task % blocks, [&](const Features& f) {
    if (p.du != nullptr) transform_kernels<V>(p, f, memory.kernels);
    const Sequences dy{p.dy, p.dy_batch, p.dy_time, p.dy_channel, p.M};
    each_company<V>(p, pairs, dy, f, [&](const Company<V>& who) {
      if (p.dK != nullptr)
        transform_company<V>(p, p.u, p.u_batch, p.u_time, who, who.up, 0, f, memory.u, kNothing);
      for (int64_t m = 0; m < p.M; ++m) {
        const auto undo = [&](int64_t begin, int64_t end) {
          undo_product<V>(p, memory, m, who.first == pairs.begin, begin, end);
        };
        transform_company<V>(p, p.dy, p.dy_batch, p.dy_time, who, who.down, m * p.dy_channel, f,
                             memory.work, undo);
      }
      if (p.du != nullptr)
        transform_company_back<V>(p, p.du, p.L * p.H, p.H, who, 0, f, memory.flow, kNothing);
    });
    if (p.dK != nullptr) store_kernel_grads<V>(p, memory, part, f);
  });
}

inline int64_t lssl_convolution_workspace(const LsslConvolution& p) {
  const bool back = p.dy != nullptr;
  return p.f64 ? ConvolutionMemory<Doubles>(p, back, nullptr).used
               : ConvolutionMemory<Floats>(p, back, nullptr).used;
}

inline void lssl_convolve(const LsslConvolution& p, int64_t task, void* workspace) {
  const FlushSubnormals flush;
  p.f64 ? convolve<Doubles>(p, task, workspace) : convolve<Floats>(p, task, workspace);
}

inline void lssl_convolve_back(const LsslConvolution& p, int64_t task, void* workspace) {
  const FlushSubnormals flush;
  p.f64 ? convolve_back<Doubles>(p, task, workspace) : convolve_back<Floats>(p, task, workspace);
}

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
