// SPDX-License-Identifier: Apache-2.0
// matmul.cpp - the large matrix product against sum_k a[m][k] b[n][k].
#include <cstdio>

#include "../cpu/dispatch.hpp"
#include "checks.hpp"

namespace seqkern::test {
namespace {

enum class Order { kRows, kColumns, kNeither };

struct Case {
  int64_t M = 1, N = 1, K = 1;
  Order a = Order::kRows, b = Order::kRows;
  bool stream = false;
};

std::string name_of(const Case& c) {
  char text[120];
  snprintf(text, sizeof text, "M=%d N=%d K=%d a=%d b=%d stream=%d", int(c.M), int(c.N), int(c.K),
           int(c.a), int(c.b), c.stream);
  return text;
}

// A matrix [rows, K] in any order.
struct Matrix {
  Tensor x;
  Order order;
  Matrix(Order order, int64_t rows, int64_t K, Random& random) : order(order) {
    if (order == Order::kRows) x = dense(1, 1, rows, K);
    if (order == Order::kColumns) x = dense(1, 1, K, rows);
    if (order == Order::kNeither) x = dense(1, rows, K, 2);
    fill(x, [&] { return random.normal(); });
  }
  double at(int64_t row, int64_t k) const {
    if (order == Order::kRows) return x.at(0, 0, row, k);
    return order == Order::kColumns ? x.at(0, 0, k, row) : x.at(0, row, k, 0);
  }
  MatmulOperand operand() const {
    if (order == Order::kRows) return {x.floats(), x.D, 1};
    if (order == Order::kColumns) return {x.floats(), 1, x.D};
    return {x.floats(), x.H * x.D, x.D};
  }
};

template <class Real>
std::vector<Real> definition(const Case& c, const Matrix& a, const Matrix& b) {
  std::vector<Real> out;
  for (int64_t m = 0; m < c.M; ++m)
    for (int64_t n = 0; n < c.N; ++n) {
      Real sum = 0;
      for (int64_t k = 0; k < c.K; ++k)
        sum += static_cast<Real>(a.at(m, k)) * static_cast<Real>(b.at(n, k));
      out.push_back(sum);
    }
  return out;
}

// `depth`: of a range, a multiple of the kernels' own.
void multiply(const Matmul& p, int64_t depth) {
  const MatmulKernels& kernels = seqkern::kernels().matmul;
  for (int64_t k = 0; k < p.K; k += depth) {
    const MatmulRange range{k, std::min(p.K, k + depth)};
    const Scratch packed(kernels.packed(p, range) * 4), workspace(kernels.workspace(p) * 4);
    for (int64_t n = 0; n < p.N; n += kernels.panel)
      kernels.pack(p, range, n, static_cast<float*>(packed.data()));
    for (int64_t m = 0; m < p.M; m += kernels.rows)
      kernels.multiply(p, range, m, std::min(p.M, m + kernels.rows),
                       static_cast<float*>(packed.data()), static_cast<float*>(workspace.data()));
  }
}

void run(const Case& c, Random& random, const Plan& plan, Report& report) {
  const Matrix a(c.a, c.M, c.K, random), b(c.b, c.N, c.K, random);
  const Expected want{definition<double>(c, a, b), definition<float>(c, a, b)};
  on_every_isa(plan, report, name_of(c), [&] {
    const int64_t depth = seqkern::kernels().matmul.depth;
    for (const int64_t ranges : {1, 2}) {
      Matmul p{c.M, c.N, c.K, a.operand(), b.operand()};
      Tensor dense_c = dense(1, 1, c.M, c.N);
      const Scratch aligned_c(c.M * c.N * 4);
      p.stream = c.stream && c.N % 16 == 0 && c.K <= depth;
      p.c = p.stream ? static_cast<float*>(aligned_c.data()) : dense_c.floats();
      multiply(p, ranges * depth);
      if (p.stream) memcpy(dense_c.floats(), p.c, static_cast<size_t>(c.M * c.N * 4));
      report.compare("c", dense_c, want);
    }
  });
}

}  // namespace

Report test_matmul(const Plan& plan) {
  Report report("matmul", plan.isas);
  Random random(11);
  const int64_t cases = plan.quick ? 12 : 200;
  for (int64_t i = 0; i < cases; ++i) {
    Case c;
    c.M = 1 + random.below(i % 3 == 0 ? 200 : 40);
    c.N = i % 4 == 0 ? 16 * (1 + random.below(8)) : 1 + random.below(130);
    c.K = i % 5 == 0 ? 900 + random.below(1500) : 1 + random.below(300);
    c.a = static_cast<Order>(random.below(3));
    c.b = static_cast<Order>(random.below(3));
    c.stream = random.coin();
    run(c, random, plan, report);
  }
  return report;
}

}  // namespace seqkern::test
