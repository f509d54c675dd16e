// SPDX-License-Identifier: Apache-2.0
// types.h - what kernels and bindings share: element types and strided views.
#pragma once

#include <stdint.h>

namespace seqkern {

enum class DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

// A [batch, time, head, width] tensor whose last dimension is contiguous. Strides in elements.
// data == nullptr means that the tensor is absent.
struct View {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t batch_stride = 0, time_stride = 0, head_stride = 0;
};

}  // namespace seqkern
