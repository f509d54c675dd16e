// SPDX-License-Identifier: Apache-2.0
// elementwise.hpp - what the bindings of the convolution and of the norm share: checks that keep
// the kernels inside their tensors, and small allocations.
#pragma once

#include <tuple>

#include "tensors.hpp"

namespace seqkern::bind {

inline void check_cpu(const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.is_cpu(), "`", name, "` must be on the CPU");
}

inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// `t` in float32 and dense.
inline Tensor as_float(const Tensor& t, const char* name) {
  check_cpu(t, name);
  const Tensor wide =
      t.scalar_type() == ScalarType::Float ? t : torch::stable::to(t, ScalarType::Float);
  return dense(wide);
}

inline Tensor float_empty(const std::vector<int64_t>& shape) {
  return new_empty(shape, ScalarType::Float);
}

// A dense tensor of the shape of `x`, which may have any number of dimensions.
inline Tensor dense_like(const Tensor& x, ScalarType dtype) {
  return x.dim() <= 8 ? new_empty(sizes_of(x), dtype)
                      : torch::stable::new_empty(x, x.sizes(), dtype);
}

// An output in the dtype of `like`, or of shape [0] when nobody asked for it.
inline Tensor empty_state(const Tensor& like, bool wanted, const std::vector<int64_t>& shape) {
  return new_empty(wanted ? shape : std::vector<int64_t>{0}, like.scalar_type());
}

inline Tensor checked_cu_seqlens(const Tensor& cu_seqlens, int64_t B, int64_t T) {
  check_cpu(cu_seqlens, "cu_seqlens");
  STD_TORCH_CHECK(cu_seqlens.scalar_type() == ScalarType::Long && cu_seqlens.dim() == 1 &&
                      cu_seqlens.size(0) >= 1 && B == 1,
                  "`cu_seqlens` must be int64 [N + 1], and the batch 1");
  const Tensor offsets = dense(cu_seqlens);
  const int64_t* at = offsets.const_data_ptr<int64_t>();
  const int64_t last = offsets.size(0) - 1;
  bool good = at[0] == 0 && at[last] == T;
  for (int64_t i = 0; i < last; ++i) good = good && at[i] <= at[i + 1];
  STD_TORCH_CHECK(good, "`cu_seqlens` must rise from 0 to T = ", T);
  return offsets;
}

}  // namespace seqkern::bind
