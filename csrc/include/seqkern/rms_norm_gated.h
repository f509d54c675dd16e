// SPDX-License-Identifier: Apache-2.0
// rms_norm_gated.h - the contract between the bindings and the kernels of the root-mean-square
// norm, plain and gated.
//
//   r = x + residual;   rstd = 1 / sqrt(mean(r^2) + eps)
//   y = (r rstd weight + bias) act(g)
#pragma once

#include <stdint.h>

#include "types.h"

namespace seqkern {

constexpr int64_t kNormRows = 32;        // rows summed before their sum joins the item's
constexpr int64_t kNormMaxItems = 64;    // the sum over all rows has at most so many parts
constexpr int64_t kNormItemBuffers = 5;  // buffers of D floats that one item of backward needs

enum class GateAct : int32_t { kNone = 0, kSwish = 1, kSigmoid = 2 };

// A [rows][D] matrix whose rows are contiguous; data == nullptr means that it is absent.
struct RowView {
  void* data = nullptr;
  int64_t stride = 0;  // elements from row to row
};

struct RmsNormGated {
  int64_t rows = 0, D = 0;
  DType dtype = DType::kF32;         // of x, g and y
  DType stream_dtype = DType::kF32;  // of residual and residual_out: dtype or float32
  GateAct act = GateAct::kNone;
  float eps = 0.0f;
  RowView x, g, residual, y, residual_out;
  const float* weight = nullptr;  // [D] or null
  const float* bias = nullptr;    // [D] or null
  float* rstd = nullptr;          // [rows], written
};

struct RmsNormGatedGrad {
  int64_t rows = 0, D = 0;
  DType dtype = DType::kF32;         // of g, dy and dg
  DType stream_dtype = DType::kF32;  // of r, dr_out and dr
  GateAct act = GateAct::kNone;
  RowView r, g, dy;
  RowView dr_out;  // gradient of the residual stream, or absent
  RowView dr, dg;  // written
  const float* weight = nullptr;
  const float* bias = nullptr;
  const float* rstd = nullptr;
  // [items][kNormItemBuffers][D]; the first two buffers end as the item's dweight and dbias.
  float* partial = nullptr;
  int64_t items = 0, rows_per_item = 0;
  float* dweight = nullptr;  // [D] or null
  float* dbias = nullptr;    // [D] or null
};

struct RmsNormGatedKernels {
  void (*forward)(const RmsNormGated&, int64_t begin, int64_t end);
  void (*backward)(const RmsNormGatedGrad&, int64_t item);
  void (*reduce)(const RmsNormGatedGrad&);
};

}  // namespace seqkern
