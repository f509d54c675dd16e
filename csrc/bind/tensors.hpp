// SPDX-License-Identifier: Apache-2.0
// tensors.hpp - small steps between torch tensors (through the stable ABI) and kernel arguments.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "../include/seqkern/types.h"
#include "pool.hpp"

namespace seqkern::bind {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const Tensor& x, const char* name) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kF32;
    case ScalarType::BFloat16:
      return DType::kBF16;
    case ScalarType::Half:
      return DType::kF16;
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

inline Tensor with_contiguous_rows(const Tensor& x) {
  const int64_t last = x.dim() - 1;
  return x.size(last) <= 1 || x.stride(last) == 1 ? x : torch::stable::contiguous(x);
}

// A [B, T, H] or [B, T, H, D] tensor; the caller keeps `x` alive.
inline View view_of(const Tensor& x, const char* name) {
  return {x.data_ptr(), dtype_of(x, name), x.stride(0), x.stride(1), x.stride(2)};
}

// Far beyond any memory, so that sums of a few such sizes do not overflow.
constexpr int64_t kMostBytes = int64_t{1} << 60;

// A dense, uninitialised CPU tensor: a large one from the pool, a small one straight through the C
// shim, for on the decoding path the boxed dispatcher call of torch::stable::new_empty costs more
// than the smaller kernels.
inline Tensor new_empty(const std::vector<int64_t>& size, ScalarType dtype) {
  int64_t strides[8];
  const int64_t dims = static_cast<int64_t>(size.size());
  STD_TORCH_CHECK(dims <= 8, "seqkern: at most 8 dimensions");
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  int64_t stride = 1, bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(code));
  bool countable = true;  // inputs that are expanded can ask for more than a number holds
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[i] = stride;
    countable &= !__builtin_mul_overflow(stride, size[i] > 1 ? size[i] : 1, &stride);
    countable &= !__builtin_mul_overflow(bytes, size[i], &bytes);
  }
  STD_TORCH_CHECK(countable && bytes <= kMostBytes, "seqkern: no memory for an output that large");
  AtenTensorHandle handle = nullptr;
  if (bytes < kPooledBytes) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        dims, size.data(), strides, code, aoti_torch_device_type_cpu(), 0, &handle));
    return Tensor(handle);
  }
  const int64_t block = Pool::block_bytes(bytes);
  const auto give = [block](void* x) { Pool::instance().give(x, block); };
  std::unique_ptr<void, decltype(give)> data(Pool::instance().take(block), give);
  STD_TORCH_CHECK(data != nullptr, "seqkern: no memory for an output of ", bytes, " bytes");
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU, -1);
  Tensor out = torch::stable::from_blob(
      data.get(), torch::headeronly::IntHeaderOnlyArrayRef(size.data(), size.size()),
      torch::headeronly::IntHeaderOnlyArrayRef(strides, size.size()), cpu, dtype, give);
  data.release();
  return out;
}

// Whether a float32 tensor is larger than what a core can hope to find in its caches later on, so
// that writing it past them costs nothing to whoever reads it, and saves reading it before: from
// `large` bytes on; and whether all its rows, `strides` apart, begin at cache lines.
inline bool past_caches(const void* data, DType dtype, int64_t numel,
                        std::initializer_list<int64_t> strides, int64_t large = 16 << 20) {
  bool lines = reinterpret_cast<uintptr_t>(data) % 64 == 0;
  for (const int64_t stride : strides) lines = lines && stride % 16 == 0;
  return dtype == DType::kF32 && numel * 4 >= large && lines;
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  const auto sizes = x.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

// The calling thread's workspace, at least `bytes` long and 64-byte aligned, its content undefined.
// It is kept from call to call, for a fresh one would have to be faulted in again every time;
// blocks of more than kKeptWorkspace bytes are given back.
constexpr int64_t kKeptWorkspace = int64_t{128} << 20;

class Workspace {
 public:
  ~Workspace() { std::free(data_); }
  void* at_least(int64_t bytes) {
    if (bytes <= bytes_) return data_;
    std::free(data_);
    bytes_ = bytes >= kHugePage ? Pool::block_bytes(bytes) : (bytes + 63) / 64 * 64;
    data_ = bytes >= kHugePage ? new_block(bytes_)
                               : std::aligned_alloc(64, static_cast<size_t>(bytes_));
    if (data_ == nullptr) bytes_ = 0;
    STD_TORCH_CHECK(data_ != nullptr, "seqkern: no memory for a workspace of ", bytes, " bytes");
    return data_;
  }
  void release() {
    if (bytes_ <= kKeptWorkspace) return;
    std::free(data_);
    data_ = nullptr;
    bytes_ = 0;
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

inline Workspace& thread_workspace() {
  thread_local Workspace workspace;
  return workspace;
}

// The calling thread's workspace for a while, whose end may be an exception.
class WorkspaceUse {
 public:
  WorkspaceUse() = default;
  ~WorkspaceUse() { workspace_.release(); }
  WorkspaceUse(const WorkspaceUse&) = delete;
  WorkspaceUse& operator=(const WorkspaceUse&) = delete;
  void* at_least(int64_t bytes) { return workspace_.at_least(bytes); }

 private:
  Workspace& workspace_ = thread_workspace();
};

// Runs task(i, workspace) for i in [0, tasks), each thread taking the next one when it is free. A
// task's result never depends on which thread ran it.
template <class Task>
void parallel_tasks(int64_t tasks, int64_t workspace_bytes, const Task& task) {
  if (tasks == 0) return;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t workers = tasks < threads ? tasks : threads;
  if (workers == 1) {
    WorkspaceUse workspace;
    for (int64_t i = 0; i < tasks; ++i) task(i, workspace.at_least(workspace_bytes));
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      WorkspaceUse workspace;
      for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1))
        task(i, workspace.at_least(workspace_bytes));
    }
  });
}

}  // namespace seqkern::bind
