// SPDX-License-Identifier: Apache-2.0
// rms_norm_gated.hpp - root-mean-square norm of rows, plain and gated, forward and backward.
//
// Maths      r = x + residual;  rstd = 1 / sqrt(mean(r^2) + eps);  n = r rstd;  z = n w + b
//            y = z act(g)
//            dz = dy act(g);  dg = dy z act'(g);  dw = sum dz n;  db = sum dz
//            dr = rstd (dz w - n mean(dz w n)) + gradient of the residual stream
// Layout     x, g, y: [rows][D], rows contiguous, any row stride; w, b: [D] float32.
// Precision  x, g, y f32, bf16 or f16; the residual stream the same or f32; all sums f32, in two
//            levels (along a row every kNormVectors vectors, over rows every kNormRows rows).
// Cost       forward: two passes over a row, the second from cache. backward: the same; it saves
//            one float a row (rstd) and recomputes the rest.
// Limits     D >= 1, rows any; offsets int64.
// Threads    none: the caller splits rows. Sums over rows go to one buffer an item; items depend
//            on the shape alone, and reduce() adds them in their order.
#pragma once

#include "../include/seqkern/rms_norm_gated.h"
#include "elements.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr int64_t kNormVectors = 32;

template <DType E>
SEQKERN_INLINE Element<E>* row_at(const RowView& v, int64_t row) {
  return static_cast<Element<E>*>(v.data) + row * v.stride;
}

SEQKERN_INLINE vf weight_at(const float* weight, int64_t i, int64_t left, float absent) {
  return weight == nullptr ? splat(absent) : load_left<DType::kF32>(weight, i, left);
}

// E: type of x, g, y. R: type of the residual stream.
template <DType E, DType R>
inline void norm_forward_row(const RmsNormGated& p, int64_t row) {
  const Element<E>* x = row_at<E>(p.x, row);
  const Element<R>* residual = p.residual.data ? row_at<R>(p.residual, row) : nullptr;
  Element<R>* out = p.residual_out.data ? row_at<R>(p.residual_out, row) : nullptr;
  vf squares = vf{};
  for (int64_t block = 0; block < p.D; block += kNormVectors * W) {
    const int64_t end = smaller(block + kNormVectors * W, p.D);
    vf part = vf{};
    for (int64_t i = block; i < end; i += W) {
      vf r = load_left<E>(x, i, p.D - i);
      if (residual != nullptr) r = r + load_left<R>(residual, i, p.D - i);
      if (out != nullptr) store_left<R>(out, i, p.D - i, r);
      part = fma(r, r, part);
    }
    squares = squares + part;
  }
  const float rstd = rsqrt_exact(sum(squares) / static_cast<float>(p.D) + p.eps);
  p.rstd[row] = rstd;
  const Element<E>* g = p.act == GateAct::kNone ? nullptr : row_at<E>(p.g, row);
  Element<E>* y = row_at<E>(p.y, row);
  for (int64_t i = 0; i < p.D; i += W) {
    const int64_t left = p.D - i;
    vf r = load_left<E>(x, i, left);
    if (residual != nullptr) r = r + load_left<R>(residual, i, left);
    vf z = r * rstd;
    if (p.weight != nullptr) z = z * weight_at(p.weight, i, left, 1.0f);
    if (p.bias != nullptr) z = z + weight_at(p.bias, i, left, 0.0f);
    if (g != nullptr) {
      const vf gate = load_left<E>(g, i, left), s = sigmoid(gate);
      z = z * (p.act == GateAct::kSwish ? gate * s : s);
    }
    store_left<E>(y, i, left, z);
  }
}

template <DType E, DType R>
inline void norm_forward(const RmsNormGated& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) norm_forward_row<E, R>(p, row);
}

// The buffers of one item, D floats each.
struct NormSums {
  float *dweight, *dbias;              // of the item
  float *block_dweight, *block_dbias;  // of the last few rows
  float* dn;                           // dz w of the current row
};

// dg and the sums of one row; leaves dz w in sums.dn and returns mean(dz w n).
template <DType E, DType R>
inline float norm_backward_gate(const RmsNormGatedGrad& p, int64_t row, const NormSums& sums) {
  const Element<R>* r = row_at<R>(p.r, row);
  const Element<E>* dy = row_at<E>(p.dy, row);
  const bool gated = p.act != GateAct::kNone;
  const Element<E>* g = gated ? row_at<E>(p.g, row) : nullptr;
  Element<E>* dg = gated ? row_at<E>(p.dg, row) : nullptr;
  vf total = vf{};
  for (int64_t block = 0; block < p.D; block += kNormVectors * W) {
    const int64_t end = smaller(block + kNormVectors * W, p.D);
    vf part = vf{};
    for (int64_t i = block; i < end; i += W) {
      const int64_t left = p.D - i;
      const vf n = load_left<R>(r, i, left) * p.rstd[row];
      const vf w = weight_at(p.weight, i, left, 1.0f);
      vf dz = load_left<E>(dy, i, left);
      if (gated) {
        const vf z = fma(n, w, weight_at(p.bias, i, left, 0.0f));
        const vf gate = load_left<E>(g, i, left), s = sigmoid(gate), other = 1.0f - s;
        const bool swish = p.act == GateAct::kSwish;
        const vf slope = swish ? s * fma(gate, other, splat(1.0f)) : s * other;
        store_left<E>(dg, i, left, dz * z * slope);
        dz = dz * (swish ? gate * s : s);
      }
      const vf dn = dz * w;
      part = fma(dn, n, part);
      store_left<DType::kF32>(sums.dn, i, left, dn);
      if (p.dweight != nullptr) {
        const vf old = load_left<DType::kF32>(sums.block_dweight, i, left);
        store_left<DType::kF32>(sums.block_dweight, i, left, fma(dz, n, old));
      }
      if (p.dbias != nullptr) {
        const vf old = load_left<DType::kF32>(sums.block_dbias, i, left);
        store_left<DType::kF32>(sums.block_dbias, i, left, old + dz);
      }
    }
    total = total + part;
  }
  return sum(total) / static_cast<float>(p.D);
}

template <DType R>
inline void norm_backward_row(const RmsNormGatedGrad& p, int64_t row, const float* dn, float mean) {
  const Element<R>* r = row_at<R>(p.r, row);
  const Element<R>* dr_out = p.dr_out.data ? row_at<R>(p.dr_out, row) : nullptr;
  Element<R>* dr = row_at<R>(p.dr, row);
  const float rstd = p.rstd[row];
  for (int64_t i = 0; i < p.D; i += W) {
    const int64_t left = p.D - i;
    const vf n = load_left<R>(r, i, left) * rstd;
    vf d = fnma(n, splat(mean), load_left<DType::kF32>(dn, i, left)) * rstd;
    if (dr_out != nullptr) d = d + load_left<R>(dr_out, i, left);
    store_left<R>(dr, i, left, d);
  }
}

// Adds the sums of the last rows to those of the item and clears them.
inline void norm_flush(float* item, float* block, int64_t D) {
  for (int64_t i = 0; i < D; ++i) {
    item[i] += block[i];
    block[i] = 0.0f;
  }
}

template <DType E, DType R>
inline void norm_backward(const RmsNormGatedGrad& p, int64_t item) {
  float* buffer = p.partial + item * kNormItemBuffers * p.D;
  const NormSums sums = {buffer, buffer + p.D, buffer + 2 * p.D, buffer + 3 * p.D,
                         buffer + 4 * p.D};
  memset(buffer, 0, 4 * p.D * sizeof(float));
  const int64_t begin = item * p.rows_per_item;
  const int64_t end = smaller(begin + p.rows_per_item, p.rows);
  for (int64_t row = begin; row < end;) {
    for (const int64_t stop = smaller(row + kNormRows, end); row < stop; ++row) {
      const float mean = norm_backward_gate<E, R>(p, row, sums);
      norm_backward_row<R>(p, row, sums.dn, mean);
    }
    norm_flush(sums.dweight, sums.block_dweight, p.D);
    norm_flush(sums.dbias, sums.block_dbias, p.D);
  }
}

inline void norm_reduce_to(const RmsNormGatedGrad& p, int64_t which, float* out) {
  if (out == nullptr) return;
  memset(out, 0, p.D * sizeof(float));
  for (int64_t item = 0; item < p.items; ++item) {
    const float* part = p.partial + (item * kNormItemBuffers + which) * p.D;
    for (int64_t i = 0; i < p.D; ++i) out[i] += part[i];
  }
}

inline void rms_norm_gated_reduce(const RmsNormGatedGrad& p) {
  norm_reduce_to(p, 0, p.dweight);
  norm_reduce_to(p, 1, p.dbias);
}

inline void rms_norm_gated_forward(const RmsNormGated& p, int64_t begin, int64_t end) {
  constexpr DType F = DType::kF32, B = DType::kBF16, H = DType::kF16;
  if (p.dtype == F) return norm_forward<F, F>(p, begin, end);
  const bool wide = p.stream_dtype == F;
  if (p.dtype == B)
    return wide ? norm_forward<B, F>(p, begin, end) : norm_forward<B, B>(p, begin, end);
  return wide ? norm_forward<H, F>(p, begin, end) : norm_forward<H, H>(p, begin, end);
}

inline void rms_norm_gated_backward(const RmsNormGatedGrad& p, int64_t item) {
  constexpr DType F = DType::kF32, B = DType::kBF16, H = DType::kF16;
  if (p.dtype == F) return norm_backward<F, F>(p, item);
  const bool wide = p.stream_dtype == F;
  if (p.dtype == B) return wide ? norm_backward<B, F>(p, item) : norm_backward<B, B>(p, item);
  return wide ? norm_backward<H, F>(p, item) : norm_backward<H, H>(p, item);
}

constexpr RmsNormGatedKernels rms_norm_gated_kernels = {
    &rms_norm_gated_forward, &rms_norm_gated_backward, &rms_norm_gated_reduce};

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
