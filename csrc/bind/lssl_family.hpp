// SPDX-License-Identifier: Apache-2.0
// lssl_family.hpp - a structured state matrix, read as the systems that its discretisation leads
// to. seqkern/ops/_lssl_system.py holds the equations and derives them.
#pragma once

#include "elementwise.hpp"

namespace seqkern::bind {

// A vector [N], or one per feature [H, N], as float64.
struct Vectors {
  Tensor kept;
  std::vector<double> wide;
  const double* data = nullptr;
  int64_t stride = 0;

  Vectors(const Tensor& t, const std::vector<int64_t>& shape, const char* name) : kept(dense(t)) {
    check_cpu(t, name);
    const std::vector<int64_t> own = sizes_of(t), shared(shape.begin() + 1, shape.end());
    STD_TORCH_CHECK(own == shape || (!shared.empty() && own == shared), "lssl: `", name,
                    "` has the wrong shape");
    stride = own == shape ? (shared.empty() ? 1 : shared[0]) : 0;
    if (t.scalar_type() == ScalarType::Double) {
      data = kept.const_data_ptr<double>();
      return;
    }
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "lssl: `", name,
                    "` must be float32 or float64");
    const float* from = kept.const_data_ptr<float>();
    wide.assign(from, from + t.numel());
    data = wide.data();
  }

  const double* of(int64_t h) const { return data + h * stride; }
};

// The systems of H features in terms of their time steps: E = constant - alpha dt slope and
// F = dt slope, three diagonals each, and g = dt slope_in.
struct Family {
  const Vectors P, D, Q, lower, diagonal, upper, B, dt;
  const int64_t H, N, diagonals;                  // 2 where nothing is above the main one
  const bool shared;                              // by all features
  std::vector<double> constant, slope, slope_in;  // [3][N], [3][N], [N], of the feature at hand
  // T's columns are multiplied by these; one element beyond either end.
  std::vector<double> x, y, z;  // 1 / P, D Q, B / P

  Family(const Tensor& P, const Tensor& D, const Tensor& Q, const Tensor& lower,
         const Tensor& diagonal, const OptionalTensor& upper, const Tensor& B, const Tensor& dt)
      : P(P, shape_of(P, dt), "A.P"),
        D(D, shape_of(P, dt), "A.D"),
        Q(Q, shape_of(P, dt), "A.Q"),
        lower(lower, shape_of(P, dt), "A.lower"),
        diagonal(diagonal, shape_of(P, dt), "A.diagonal"),
        upper(upper ? *upper : lower, shape_of(P, dt), "A.upper"),
        B(B, shape_of(P, dt), "B"),
        dt(dt, {dt.size(0)}, "dt"),
        H(dt.size(0)),
        N(P.size(P.dim() - 1)),
        diagonals(upper ? 3 : 2),
        shared(stride_sum() == 0) {
    const size_t count = static_cast<size_t>(N);
    constant.resize(3 * count);
    slope.resize(3 * count);
    slope_in.resize(count);
    for (std::vector<double>* column : {&x, &y, &z}) column->resize(count + 2);
  }

  void look_at(int64_t h) {
    const double *p = P.of(h), *d = D.of(h), *q = Q.of(h), *b = B.of(h);
    const double *lo = lower.of(h), *mid = diagonal.of(h), *up = upper.of(h);
    for (int64_t n = 0; n < N; ++n) {
      x[n + 1] = 1.0 / p[n];
      y[n + 1] = d[n] * q[n];
      z[n + 1] = b[n] / p[n];
    }
    for (int64_t n = 0; n < N; ++n) {
      constant[n] = lo[n] * x[n];
      constant[N + n] = mid[n] * x[n + 1];
      slope[n] = lo[n] * y[n];
      slope[N + n] = mid[n] * y[n + 1] + q[n];
      slope_in[n] = mid[n] * z[n + 1] + lo[n] * z[n];
      if (diagonals < 3) continue;
      constant[2 * N + n] = up[n] * x[n + 2];
      slope[2 * N + n] = up[n] * y[n + 2];
      slope_in[n] += up[n] * z[n + 2];
    }
  }

 private:
  static std::vector<int64_t> shape_of(const Tensor& P, const Tensor& dt) {
    STD_TORCH_CHECK(dt.dim() == 1 && P.dim() >= 1, "lssl: `dt` must be [H]");
    return {dt.size(0), P.size(P.dim() - 1)};
  }
  int64_t stride_sum() const {
    return P.stride + D.stride + Q.stride + lower.stride + diagonal.stride + upper.stride +
           B.stride;
  }
};

}  // namespace seqkern::bind
