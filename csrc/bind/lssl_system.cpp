// SPDX-License-Identifier: Apache-2.0
// lssl_system.cpp - the discretised system of a structured state matrix in one pass, for calls that
// need no gradient of it. seqkern/ops/_lssl_system.py holds the equations and derives them.
#include <algorithm>

#include "elementwise.hpp"

namespace seqkern::bind {
namespace {

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

std::tuple<Tensor, Tensor, Tensor> lssl_system(const Tensor& P, const Tensor& D, const Tensor& Q,
                                               const Tensor& lower, const Tensor& diagonal,
                                               const OptionalTensor& upper, const Tensor& B,
                                               const Tensor& dt, double alpha) {
  STD_TORCH_CHECK(dt.dim() == 1 && P.dim() >= 1, "lssl: `dt` must be [H]");
  const int64_t H = dt.size(0), N = P.size(P.dim() - 1), plane = H * N;
  const std::vector<int64_t> shape{H, N};
  const Vectors p(P, shape, "A.P"), d(D, shape, "A.D"), q(Q, shape, "A.Q"),
      below(lower, shape, "A.lower"), on(diagonal, shape, "A.diagonal"), b(B, shape, "B"),
      steps(dt, {H}, "dt"), above(upper ? *upper : lower, shape, "A.upper");
  const Tensor E = new_empty({3, H, N}, ScalarType::Double);
  const Tensor F = new_empty({3, H, N}, ScalarType::Double);
  const Tensor g = new_empty({H, N}, ScalarType::Double);
  double *const e_data = E.mutable_data_ptr<double>(), *const f_data = F.mutable_data_ptr<double>();
  double* const in = g.mutable_data_ptr<double>();
  // E = constant - alpha dt slope, F = dt slope (three diagonals each), g = dt slope_in.
  const size_t count = static_cast<size_t>(N);
  std::vector<double> constant(3 * count, 0.0), slope(constant), slope_in(count);
  // Columns of T are multiplied by these; one element beyond either end.
  std::vector<double> x(count + 2), y(x), z(x);
  const bool shared =
      p.stride + d.stride + q.stride + below.stride + on.stride + above.stride + b.stride == 0;
  for (int64_t h = 0; h < H; ++h) {
    if (h == 0 || !shared) {
      const double *ph = p.of(h), *dh = d.of(h), *qh = q.of(h), *bh = b.of(h);
      const double *lo = below.of(h), *mid = on.of(h), *up = above.of(h);
      for (int64_t n = 0; n < N; ++n) {
        x[n + 1] = 1.0 / ph[n];
        y[n + 1] = dh[n] * qh[n];
        z[n + 1] = bh[n] / ph[n];
      }
      for (int64_t n = 0; n < N; ++n) {
        constant[n] = lo[n] * x[n];
        constant[N + n] = mid[n] * x[n + 1];
        slope[n] = lo[n] * y[n];
        slope[N + n] = mid[n] * y[n + 1] + qh[n];
        slope_in[n] = mid[n] * z[n + 1] + lo[n] * z[n];
        if (!upper) continue;
        constant[2 * N + n] = up[n] * x[n + 2];
        slope[2 * N + n] = up[n] * y[n + 2];
        slope_in[n] += up[n] * z[n + 2];
      }
    }
    const double step = *steps.of(h), implicit = alpha * step;
    for (int64_t k = 0; k < 3; ++k) {
      double* __restrict const e = e_data + k * plane + h * N;
      double* __restrict const f = f_data + k * plane + h * N;
      if (k == 2 && !upper) {
        std::fill(e, e + N, 0.0);
        std::fill(f, f + N, 0.0);
        continue;
      }
      const double *c = constant.data() + k * N, *s = slope.data() + k * N;
      for (int64_t n = 0; n < N; ++n) {
        e[n] = c[n] - implicit * s[n];
        f[n] = step * s[n];
      }
    }
    for (int64_t n = 0; n < N; ++n) in[h * N + n] = step * slope_in[n];
  }
  return {E, F, g};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      "lssl_system(Tensor P, Tensor D, Tensor Q, Tensor lower, Tensor diagonal, Tensor? upper, "
      "Tensor B, Tensor dt, float alpha) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) { m.impl("lssl_system", TORCH_BOX(&lssl_system)); }

}  // namespace seqkern::bind
