// SPDX-License-Identifier: Apache-2.0
// lssl_system.cpp - the discretised system of a structured state matrix in one pass, and back.
// seqkern/ops/_lssl_system.py holds the equations and derives them.
#include <algorithm>

#include "lssl_family.hpp"

namespace seqkern::bind {
namespace {

std::tuple<Tensor, Tensor, Tensor> lssl_system(const Tensor& P, const Tensor& D, const Tensor& Q,
                                               const Tensor& lower, const Tensor& diagonal,
                                               const OptionalTensor& upper, const Tensor& B,
                                               const Tensor& dt, double alpha) {
  Family family(P, D, Q, lower, diagonal, upper, B, dt);
  const int64_t H = family.H, N = family.N, plane = H * N;
  const Tensor E = new_empty({3, H, N}, ScalarType::Double);
  const Tensor F = new_empty({3, H, N}, ScalarType::Double);
  const Tensor g = new_empty({H, N}, ScalarType::Double);
  double *const e_data = E.mutable_data_ptr<double>(), *const f_data = F.mutable_data_ptr<double>();
  double* const in = g.mutable_data_ptr<double>();
  for (int64_t h = 0; h < H; ++h) {
    if (h == 0 || !family.shared) family.look_at(h);
    const double step = *family.dt.of(h), implicit = alpha * step;
    for (int64_t k = 0; k < 3; ++k) {
      double* __restrict const e = e_data + k * plane + h * N;
      double* __restrict const f = f_data + k * plane + h * N;
      if (k == family.diagonals) {
        std::fill(e, e + N, 0.0);
        std::fill(f, f + N, 0.0);
        continue;
      }
      const double *c = family.constant.data() + k * N, *s = family.slope.data() + k * N;
      for (int64_t n = 0; n < N; ++n) {
        e[n] = c[n] - implicit * s[n];
        f[n] = step * s[n];
      }
    }
    for (int64_t n = 0; n < N; ++n) in[h * N + n] = step * family.slope_in[n];
  }
  return {E, F, g};
}

// The gradient of one of the vectors, in its shape and type.
struct Gradient {
  std::vector<double> sums;
  int64_t stride;

  explicit Gradient(const Vectors& of)
      : sums(static_cast<size_t>(of.kept.numel())), stride(of.stride) {}
  double* of(int64_t h) { return sums.data() + h * stride; }

  Tensor rounded(const Vectors& like) const {
    const Tensor to = new_empty(sizes_of(like.kept), like.kept.scalar_type());
    if (to.scalar_type() == ScalarType::Double)
      std::copy(sums.begin(), sums.end(), to.mutable_data_ptr<double>());
    else
      std::transform(sums.begin(), sums.end(), to.mutable_data_ptr<float>(),
                     [](double sum) { return static_cast<float>(sum); });
    return to;
  }
};

// Carries the gradients of E, F and g back to those of a family's vectors.
class FamilyGradient {
 public:
  explicit FamilyGradient(Family& family)
      : f_(family),
        P(f_.P),
        D(f_.D),
        Q(f_.Q),
        lower(f_.lower),
        diagonal(f_.diagonal),
        upper(f_.upper),
        B(f_.B),
        dt(f_.dt) {
    const size_t count = static_cast<size_t>(f_.N);
    constant_.resize(3 * count);
    slope_.resize(3 * count);
    slope_in_.resize(count);
    steps_.resize(count);
    for (std::vector<double>* column : {&x_, &y_, &z_}) column->resize(count + 2);
  }

  // E, F: [3][H][N]; g: [H][N].
  void add(const double* E, const double* F, const double* g, double alpha) {
    const int64_t H = f_.H, N = f_.N;
    for (int64_t h = 0; h < H; ++h) {
      if (h == 0 || !f_.shared) f_.look_at(h);
      const double step = *f_.dt.of(h);
      std::fill(steps_.begin(), steps_.end(), 0.0);
      for (int64_t k = 0; k < f_.diagonals; ++k) {
        const double *e = E + (k * H + h) * N, *f = F + (k * H + h) * N;
        const double* const slope = f_.slope.data() + k * N;
        double* __restrict const to_constant = constant_.data() + k * N;
        double* __restrict const to_slope = slope_.data() + k * N;
        double* __restrict const to_step = steps_.data();
        for (int64_t n = 0; n < N; ++n) {
          const double part = f[n] - alpha * e[n];
          to_constant[n] += e[n];
          to_slope[n] += step * part;
          to_step[n] += slope[n] * part;
        }
      }
      double sum = 0.0;
      for (int64_t n = 0; n < N; ++n) {
        slope_in_[n] += step * g[h * N + n];
        sum += steps_[n] + f_.slope_in[n] * g[h * N + n];
      }
      *dt.of(h) += sum;
      if (!f_.shared || h + 1 == H) hand_on(h);
    }
  }

 private:
  // From the sums so far to the vectors of feature h.
  void hand_on(int64_t h) {
    const int64_t N = f_.N;
    const double *d = f_.D.of(h), *q = f_.Q.of(h), *b = f_.B.of(h);
    const double *lo = f_.lower.of(h), *mid = f_.diagonal.of(h), *up = f_.upper.of(h);
    const double *x = f_.x.data(), *y = f_.y.data(), *z = f_.z.data();
    for (std::vector<double>* column : {&x_, &y_, &z_})
      std::fill(column->begin(), column->end(), 0.0);
    for (int64_t k = 0; k < f_.diagonals; ++k) {
      const double* const entries = k == 0 ? lo : (k == 1 ? mid : up);
      double* const to = (k == 0 ? lower : (k == 1 ? diagonal : upper)).of(h);
      for (int64_t n = 0; n < N; ++n) {
        const double c = constant_[k * N + n], s = slope_[k * N + n], in = slope_in_[n];
        to[n] += c * x[n + k] + s * y[n + k] + in * z[n + k];
        x_[n + k] += c * entries[n];
        y_[n + k] += s * entries[n];
        z_[n + k] += in * entries[n];
      }
    }
    for (int64_t n = 0; n < N; ++n) {
      const double inverse = x[n + 1];
      Q.of(h)[n] += slope_[N + n] + y_[n + 1] * d[n];
      D.of(h)[n] += y_[n + 1] * q[n];
      B.of(h)[n] += z_[n + 1] * inverse;
      P.of(h)[n] -= (x_[n + 1] + z_[n + 1] * b[n]) * inverse * inverse;
    }
    for (std::vector<double>* sums : {&constant_, &slope_, &slope_in_})
      std::fill(sums->begin(), sums->end(), 0.0);
  }

  Family& f_;
  std::vector<double> constant_, slope_, slope_in_;  // as in Family
  std::vector<double> steps_;                        // [N], of dt
  std::vector<double> x_, y_, z_;                    // as in Family

 public:
  Gradient P, D, Q, lower, diagonal, upper, B, dt;
};

typedef std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> EightTensors;

EightTensors lssl_system_bwd(const Tensor& dE, const Tensor& dF, const Tensor& dg, const Tensor& P,
                             const Tensor& D, const Tensor& Q, const Tensor& lower,
                             const Tensor& diagonal, const OptionalTensor& upper, const Tensor& B,
                             const Tensor& dt, double alpha) {
  Family f(P, D, Q, lower, diagonal, upper, B, dt);
  const auto check = [](const Tensor& t, const std::vector<int64_t>& shape, const char* name) {
    check_cpu(t, name);
    STD_TORCH_CHECK(sizes_of(t) == shape && t.scalar_type() == ScalarType::Double, "lssl: `", name,
                    "` has the wrong shape or dtype");
    return dense(t);
  };
  const Tensor e = check(dE, {3, f.H, f.N}, "dE"), in = check(dg, {f.H, f.N}, "dg");
  const Tensor step = check(dF, {3, f.H, f.N}, "dF");
  FamilyGradient to(f);
  to.add(e.const_data_ptr<double>(), step.const_data_ptr<double>(), in.const_data_ptr<double>(),
         alpha);
  return {to.P.rounded(f.P),
          to.D.rounded(f.D),
          to.Q.rounded(f.Q),
          to.lower.rounded(f.lower),
          to.diagonal.rounded(f.diagonal),
          upper ? to.upper.rounded(f.upper) : new_empty({0}, ScalarType::Double),
          to.B.rounded(f.B),
          to.dt.rounded(f.dt)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) {
  m.def(
      "lssl_system(Tensor P, Tensor D, Tensor Q, Tensor lower, Tensor diagonal, Tensor? upper, "
      "Tensor B, Tensor dt, float alpha) -> (Tensor, Tensor, Tensor)");
  m.def(
      "lssl_system_bwd(Tensor dE, Tensor dF, Tensor dg, Tensor P, Tensor D, Tensor Q, "
      "Tensor lower, Tensor diagonal, Tensor? upper, Tensor B, Tensor dt, float alpha) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) {
  m.impl("lssl_system", TORCH_BOX(&lssl_system));
  m.impl("lssl_system_bwd", TORCH_BOX(&lssl_system_bwd));
}

}  // namespace seqkern::bind
