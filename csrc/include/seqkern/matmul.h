// SPDX-License-Identifier: Apache-2.0
// matmul.h - the contract between the bindings and the kernels of the large matrix product.
//
//   c[m][n] = sum_k a[m][k] b[n][k]
#pragma once

#include <stdint.h>

#include "types.h"

namespace seqkern {

// float32, any strides (in elements).
struct MatmulOperand {
  const float* data = nullptr;
  int64_t row_stride = 0, k_stride = 0;
};

struct Matmul {
  int64_t M = 0, N = 0, K = 0;
  MatmulOperand a, b;
  float* c = nullptr;   // [M][N] dense
  bool stream = false;  // c is large, its rows aligned: written past the caches
};

// k in [begin, end): what of b is packed at a time.
struct MatmulRange {
  int64_t begin = 0, end = 0;
};

struct MatmulKernels {
  int64_t depth;  // a range is a multiple of it, or ends at K
  int64_t rows;   // rows of c that are worth a task
  int64_t panel;  // rows of b that are packed together
  // Floats of b, packed, and of a task's workspace; both are aligned to 64 bytes.
  int64_t (*packed)(const Matmul&, MatmulRange);
  int64_t (*workspace)(const Matmul&);
  // Packs rows [n, n + panel) of b.
  void (*pack)(const Matmul&, MatmulRange, int64_t n, float* packed);
  // Rows [begin, end) of c: written by the first range, added to by the others.
  void (*multiply)(const Matmul&, MatmulRange, int64_t begin, int64_t end, const float* packed,
                   float* workspace);
};

}  // namespace seqkern
