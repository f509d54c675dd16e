// SPDX-License-Identifier: Apache-2.0
// matmul.cpp - schema, checks, allocation and threads of the large matrix product.
#include "../include/seqkern/matmul.h"

#include <algorithm>

#include "../cpu/dispatch.hpp"
#include "tensors.hpp"

namespace seqkern::bind {
namespace {

// Bytes of b that are packed at a time: a part of the third-level cache.
constexpr int64_t kPackedBytes = int64_t{12} << 20;

MatmulOperand operand(const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu() && x.dim() == 2 && x.scalar_type() == ScalarType::Float,
                  "seqkern::matmul_f32: a and b must be float32 matrices on the CPU");
  return {x.const_data_ptr<float>(), x.stride(0), x.stride(1)};
}

// Rows of c for a task: few of them must not leave threads idle.
int64_t rows_of_task(const Matmul& p, int64_t most) {
  const int64_t threads = torch::stable::get_num_threads();
  int64_t rows = most;
  while (threads > 1 && rows > 16 && (p.M + rows - 1) / rows < 4 * threads) rows /= 2;
  return rows;
}

// a b^T
Tensor matmul_f32(const Tensor& a, const Tensor& b) {
  Matmul p;
  p.a = operand(a);
  p.b = operand(b);
  p.M = a.size(0);
  p.N = b.size(0);
  p.K = a.size(1);
  STD_TORCH_CHECK(b.size(1) == p.K, "seqkern::matmul_f32: a is [M, K] and b [N, K], got K of ", p.K,
                  " and ", b.size(1));
  const Tensor c = new_empty({p.M, p.N}, ScalarType::Float);
  p.c = c.mutable_data_ptr<float>();
  if (p.M == 0 || p.N == 0) return c;
  if (p.K == 0) {
    std::fill_n(p.c, p.M * p.N, 0.0f);
    return c;
  }
  const MatmulKernels& kernels = seqkern::kernels().matmul;
  p.stream = p.K <= kernels.depth && past_caches(p.c, DType::kF32, p.M * p.N, {p.N});
  const int64_t slices = std::max<int64_t>(1, kPackedBytes / (4 * p.N * kernels.depth));
  const int64_t length = std::min(p.K, slices * kernels.depth);
  const Tensor memory = new_empty({kernels.packed(p, {0, length})}, ScalarType::Float);
  float* const packed = memory.mutable_data_ptr<float>();
  const int64_t rows = rows_of_task(p, kernels.rows);
  for (int64_t k = 0; k < p.K; k += length) {
    const MatmulRange range{k, std::min(p.K, k + length)};
    parallel_tasks((p.N + kernels.panel - 1) / kernels.panel, 0,
                   [&](int64_t i, void*) { kernels.pack(p, range, i * kernels.panel, packed); });
    parallel_tasks((p.M + rows - 1) / rows, kernels.workspace(p) * 4,
                   [&](int64_t i, void* workspace) {
                     const int64_t begin = i * rows;
                     kernels.multiply(p, range, begin, std::min(p.M, begin + rows), packed,
                                      static_cast<float*>(workspace));
                   });
  }
  return c;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(seqkern, m) { m.def("matmul_f32(Tensor a, Tensor b) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(seqkern, CPU, m) { m.impl("matmul_f32", TORCH_BOX(&matmul_f32)); }

}  // namespace seqkern::bind
