// SPDX-License-Identifier: Apache-2.0
// lssl_system.cpp - the discretised system of a structured state matrix in one pass, for calls that
// need no gradient of it. seqkern/ops/_lssl_system.py holds the equations and derives them.
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
  double *e = E.mutable_data_ptr<double>(), *f = F.mutable_data_ptr<double>();
  double* in = g.mutable_data_ptr<double>();
  // Columns of T are multiplied by these; one element beyond either end.
  std::vector<double> x(static_cast<size_t>(N + 2)), y(x), z(x);
  const bool shared = p.stride == 0 && d.stride == 0 && q.stride == 0;
  std::vector<double> inverse(static_cast<size_t>(N)), product(inverse);
  for (int64_t h = 0; h < H; ++h) {
    for (int64_t n = 0; n < N && (h == 0 || !shared); ++n) {
      inverse[n] = 1.0 / p.of(h)[n];
      product[n] = d.of(h)[n] * q.of(h)[n];
    }
    const double step = *steps.of(h), implicit = alpha * step;
    const double *qh = q.of(h), *bh = b.of(h);
    const double *lo = below.of(h), *mid = on.of(h), *up = above.of(h);
    for (int64_t n = 0; n < N; ++n) {
      x[n + 1] = inverse[n] - implicit * product[n];
      y[n + 1] = step * product[n];
      z[n + 1] = bh[n] * inverse[n];
    }
    for (int64_t n = 0; n < N; ++n) {
      const int64_t at = h * N + n;
      const double right = upper ? up[n] : 0.0;
      e[at] = lo[n] * x[n];
      e[plane + at] = mid[n] * x[n + 1] - implicit * qh[n];
      e[2 * plane + at] = right * x[n + 2];
      f[at] = lo[n] * y[n];
      f[plane + at] = mid[n] * y[n + 1] + step * qh[n];
      f[2 * plane + at] = right * y[n + 2];
      in[at] = step * (mid[n] * z[n + 1] + lo[n] * z[n] + right * z[n + 2]);
    }
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
