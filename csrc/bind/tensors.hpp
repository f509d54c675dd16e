// SPDX-License-Identifier: Apache-2.0
// tensors.hpp - small steps between torch tensors (through the stable ABI) and kernel arguments.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdlib>
#include <optional>
#include <vector>

#include "../include/seqkern/types.h"

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

constexpr int64_t kHugePage = int64_t{2} << 20;

// Asks for huge pages under a large block that is about to be written for the first time. A kernel
// writes a few hundred bytes of a page at a time and a page fault costs it microseconds; a refusal
// costs nothing.
inline void advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  if (bytes < 2 * kHugePage) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (begin + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// A dense, uninitialised CPU tensor. Straight through the C shim: on the decoding path the boxed
// dispatcher call of torch::stable::new_empty costs more than the smaller kernels.
inline Tensor new_empty(const std::vector<int64_t>& size, ScalarType dtype) {
  int64_t strides[8];
  const int64_t dims = static_cast<int64_t>(size.size());
  STD_TORCH_CHECK(dims <= 8, "seqkern: at most 8 dimensions");
  int64_t stride = 1;
  for (int64_t i = dims - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= size[i] > 1 ? size[i] : 1;
  }
  AtenTensorHandle handle = nullptr;
  const int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, size.data(), strides, code,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  Tensor out(handle);
  const int64_t bytes = out.numel() * static_cast<int64_t>(out.element_size());
  if (bytes >= 2 * kHugePage) advise_huge_pages(out.data_ptr(), bytes);
  return out;
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  const auto sizes = x.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

// The calling thread's workspace, at least `bytes` long and 64-byte aligned, its content undefined.
// It is kept from call to call, for a fresh one would have to be faulted in again every time;
// blocks of more than kKeptWorkspace bytes are given back.
constexpr int64_t kKeptWorkspace = int64_t{32} << 20;

class Workspace {
 public:
  ~Workspace() { std::free(data_); }
  void* at_least(int64_t bytes) {
    if (bytes <= bytes_) return data_;
    std::free(data_);
    const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
    bytes_ = (bytes + alignment - 1) / alignment * alignment;
    data_ = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(bytes_));
    if (data_ == nullptr) bytes_ = 0;
    STD_TORCH_CHECK(data_ != nullptr, "seqkern: no memory for a workspace of ", bytes, " bytes");
    advise_huge_pages(data_, bytes_);
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

// Runs task(i, workspace) for i in [0, tasks), each thread taking the next one when it is free. A
// task's result never depends on which thread ran it.
template <class Task>
void parallel_tasks(int64_t tasks, int64_t workspace_bytes, const Task& task) {
  if (tasks == 0) return;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t workers = tasks < threads ? tasks : threads;
  if (workers == 1) {
    Workspace& workspace = thread_workspace();
    for (int64_t i = 0; i < tasks; ++i) task(i, workspace.at_least(workspace_bytes));
    workspace.release();
    return;
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      Workspace& workspace = thread_workspace();
      for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1))
        task(i, workspace.at_least(workspace_bytes));
      workspace.release();
    }
  });
}

}  // namespace seqkern::bind
