// SPDX-License-Identifier: Apache-2.0
// rnn_step.hpp - one step of a recurrent cell without gradients, for decoding.
//
// Maths      as rnn_fwd.hpp
// Layout     R as it comes, [D_out][D_in]: packing it would cost more than the step. One vector of
//            units at a time: W rows of R, each a dot product with h.
// Precision  states and sums f32.
// Cost       R is read once, and from the cache again for every further sequence.
// Threads    none: the caller splits heads and units.
#pragma once

#include "rnn_cells.hpp"
#include "rnn_rows.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

// Lane i: row i of `rows` times h; `count` rows exist, each of D elements.
template <DType E>
inline vf dot_rows(const void* rows, int64_t stride, int64_t count, const float* h, int64_t D) {
  vf acc[W];
  for (int i = 0; i < W; ++i) acc[i] = vf{};
  // A row that does not exist is read as the last one that does.
  int64_t at[W];
  for (int i = 0; i < W; ++i) at[i] = smaller(i, count - 1) * stride;
  int64_t p = 0;
  for (; p + W <= D; p += W) {
    const vf x = load(h + p);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) acc[i] = fma(load_as<E>(rows, at[i] + p), x, acc[i]);
  }
  if (p < D) {
    const vf x = load_some<DType::kF32>(h, p, D - p);
    for (int i = 0; i < W; ++i) acc[i] = fma(load_some<E>(rows, at[i] + p, D - p), x, acc[i]);
  }
  return sum_each(acc);
}

inline vf dot_rows(DType type, const void* rows, int64_t stride, int64_t count, const float* h,
                   int64_t D) {
  if (type == DType::kF32) return dot_rows<DType::kF32>(rows, stride, count, h, D);
  if (type == DType::kBF16) return dot_rows<DType::kBF16>(rows, stride, count, h, D);
  return dot_rows<DType::kF16>(rows, stride, count, h, D);
}

template <class P>
inline void step_units(const RnnStep& p, int64_t i_h, int64_t unit) {
  constexpr CellShape shape = cell_shape(P::kId);
  const int64_t end = smaller(unit + kRnnStepUnits, p.D);
  for (int64_t u = unit; u < end; u += W) {
    const int64_t left = p.D - u;
    for (int64_t b = 0; b < p.B; ++b) {
      const float* h = p.s + (b * p.H + i_h) * p.D;
      vf a[shape.bias], s[shape.states], g[shape.saved];
      for (int i = 0; i < shape.bias; ++i) {
        a[i] = p.bias == nullptr ? vf{}
                                 : load_any(DType::kF32, p.bias, (i * p.H + i_h) * p.D + u, left);
        if (i >= shape.bias - shape.input)
          a[i] += load_any(
              p.Wx.dtype, p.Wx.data,
              element_at(p.Wx, b, 0, i_h) + (i - shape.bias + shape.input) * p.Wx.part_stride + u,
              left);
        if (i >= shape.recurrent) continue;
        const int64_t gate = (i + p.first) % shape.recurrent;
        const unsigned char* rows =
            static_cast<const unsigned char*>(p.R.data) +
            (gate * p.R.gate_stride + i_h * p.R.head_stride + u * p.R.row_stride) *
                element_bytes(p.R.dtype);
        a[i] += dot_rows(p.R.dtype, rows, p.R.row_stride, smaller(W, left), h, p.D);
      }
      const auto at = [&](int i) { return ((i * p.B + b) * p.H + i_h) * p.D + u; };
      for (int i = 0; i < shape.states; ++i) s[i] = load_any(DType::kF32, p.s, at(i), left);
      P::gates([&](int i) { return a[i]; }, [&](int i, vf x) { g[i] = x; });
      P::update(s, g);
      if (p.forward_clip > 0.0f)
        s[0] = at_most(splat(p.forward_clip), at_least(splat(-p.forward_clip), s[0]));
      for (int i = 0; i < shape.states; ++i) store_any(DType::kF32, p.out, at(i), left, s[i]);
    }
  }
}

template <class... P>
inline void step_cell(CellList<P...>, const RnnStep& p, int64_t i_h, int64_t unit) {
  constexpr void (*run[])(const RnnStep&, int64_t, int64_t) = {&step_units<P>...};
  run[static_cast<int>(p.cell)](p, i_h, unit);
}

inline void rnn_step(const RnnStep& p, int64_t i_h, int64_t unit) {
  const FlushSubnormals flush;
  step_cell(Cells{}, p, i_h, unit);
}

inline void rnn_activate(int kind, const float* x, float* out, int64_t count) {
  const FlushSubnormals flush;
  for (int64_t i = 0; i < count; i += W) {
    const vf in = load_any(DType::kF32, x, i, count - i);
    vf u;
    const vf y = kind == 0 ? sigmoid_of(in) : (kind == 1 ? tanh_of(in) : log_sigmoid_of(in, u));
    store_any(DType::kF32, out, i, count - i, y);
  }
}

inline int64_t rnn_most_parts(int64_t D) { return Panels(D).count; }

#if defined(SEQKERN_BF16_DOT)
constexpr bool kHasBf16Dot = true;
#else
constexpr bool kHasBf16Dot = false;
#endif

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
