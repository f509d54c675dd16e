// SPDX-License-Identifier: Apache-2.0
// lssl_convolution.hpp - causal convolution with the kernels of a linear state-space layer.
//
// Maths      y_m = (K_m + D_m delta) * u, for t < L. Two sequences go through one complex
//            transform, as its real and its imaginary part: K is real, so they never mix. With
//            P and Q_m the spectra of such a pair of u and of dy_m, and k_m that of the kernel,
//              du is the transform back of sum_m Q_m conj(k_m), and
//              dK_m the real part of that of sum_pairs Q_m conj(P); dD_m = dK_m at t = 0.
// Layout     lanes are features; u, y, dy, du and K are read and written where they lie.
// Precision  f32 or f64 throughout.
// Cost       a transform for each pair of u, y, dy and du, channel by channel for y and dy, and two
//            for each kernel. Nothing is saved for the backward pass: a spectrum takes as long to
//            load as to compute.
// Limits     an odd sequence goes alone, at the cost of two.
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

// The spectrum of the sequences b and b + 1 (zeros, if there is none) of [.][L][.], rows `time`
// apart.
template <class V, class After>
inline void transform_pair(const LsslConvolution& p, const void* base, int64_t batch, int64_t time,
                           int64_t b, int64_t offset, const Features& f, typename V::T* x,
                           const After& after) {
  typedef typename V::T T;
  const T* from = static_cast<const T*>(base) + b * batch + offset + f.first;
  const int64_t ahead = kSequenceRowsAhead * time * static_cast<int64_t>(sizeof(T));
  const auto at = [=](int64_t t) __attribute__((always_inline)) {
    prefetch(from + t * time, ahead);
    return row<V>(from + t * time, f.lanes);
  };
  const auto one = [=](int64_t t) __attribute__((always_inline)) {
    return Complex<V>{at(t), typename V::Vec{}};
  };
  const auto two = [=](int64_t t) __attribute__((always_inline)) {
    prefetch(from + batch + t * time, ahead);
    return Complex<V>{at(t), row<V>(from + batch + t * time, f.lanes)};
  };
  b + 1 < p.B ? transform<V>(p.spectrum, p.L, two, x, after)
              : transform<V>(p.spectrum, p.L, one, x, after);
}

template <class V, class Before>
inline void transform_pair_back(const LsslConvolution& p, void* base, int64_t batch, int64_t time,
                                int64_t b, int64_t offset, const Features& f, typename V::T* x,
                                const Before& before) {
  typedef typename V::T T;
  T* const to = static_cast<T*>(base) + b * batch + offset + f.first;
  const int64_t ahead = kSequenceRowsAhead * time * static_cast<int64_t>(sizeof(T));
  const bool two = b + 1 < p.B;
  transform_back<V>(p.spectrum, p.L, x, before, [=](int64_t t, Complex<V> a) {
    T* const at = to + t * time;
    prefetch_to_write(at, ahead);
    set_row<V>(at, a.re, f.lanes);
    if (!two) return;
    prefetch_to_write(at + batch, ahead);
    set_row<V>(at + batch, a.im, f.lanes);
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

template <class V>
inline void convolve(const LsslConvolution& p, int64_t task, void* workspace) {
  const ConvolutionMemory<V> memory(p, false, workspace);
  const int64_t blocks = (p.H + kLsslBlock - 1) / kLsslBlock, MH = p.M * p.H;
  const Pairs pairs(p, task / blocks);
  each_vector<V>(p, task % blocks, [&](const Features& f) {
    transform_kernels<V>(p, f, memory.kernels);
    for (int64_t b = pairs.begin; b < pairs.end; b += 2) {
      transform_pair<V>(p, p.u, p.u_batch, p.u_time, b, 0, f, memory.u, kNothing);
      for (int64_t m = 0; m < p.M; ++m) {
        const auto multiply = [&](int64_t begin, int64_t end) {
          multiply_spectra<V>(begin, end, memory.u, memory.kernels + m * memory.width, memory.work);
        };
        transform_pair_back<V>(p, p.y, p.L * MH, MH, b, m * p.H, f, memory.work, multiply);
      }
    }
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
    for (int64_t b = pairs.begin; b < pairs.end; b += 2) {
      if (p.dK != nullptr)
        transform_pair<V>(p, p.u, p.u_batch, p.u_time, b, 0, f, memory.u, kNothing);
      for (int64_t m = 0; m < p.M; ++m) {
        const auto undo = [&](int64_t begin, int64_t end) {
          undo_product<V>(p, memory, m, b == pairs.begin, begin, end);
        };
        transform_pair<V>(p, p.dy, p.dy_batch, p.dy_time, b, m * p.dy_channel, f, memory.work,
                          undo);
      }
      if (p.du != nullptr)
        transform_pair_back<V>(p, p.du, p.L * p.H, p.H, b, 0, f, memory.flow, kNothing);
    }
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
