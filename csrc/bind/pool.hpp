// SPDX-License-Identifier: Apache-2.0
// pool.hpp - memory for large outputs, aligned to huge pages and used again.
//
// A kernel writes gradients of many megabytes in milliseconds, about as fast as the system hands
// out fresh pages: faulting them in, 4 KiB at a time, took up to a third of a backward pass. So
//   - blocks start on a huge page and ask for huge pages;
//   - a freed block is kept for the next output of its size, at most kept_bytes() in all;
//   - while it waits it is marked MADV_FREE: the system takes the pages when anybody needs them,
//   and
//     nothing is paid if nobody does.
// SEQKERN_POOL_MB sets the limit (0: keep nothing).
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <deque>
#include <mutex>

namespace seqkern::bind {

constexpr int64_t kHugePage = int64_t{2} << 20;

inline void* new_block(int64_t bytes) {
  void* data = std::aligned_alloc(static_cast<size_t>(kHugePage), static_cast<size_t>(bytes));
#if defined(__linux__)
  if (data != nullptr) madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return data;
}

class Pool {
 public:
  // Never destroyed: a tensor may outlive every static object.
  static Pool& instance() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  static int64_t block_bytes(int64_t bytes) {
    return (bytes + kHugePage - 1) / kHugePage * kHugePage;
  }

  // `bytes` is a whole number of huge pages. Null if there is no memory.
  void* take(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block)
        if (block->bytes == bytes) {
          void* const data = block->data;
          blocks_.erase(std::next(block).base());
          kept_ -= bytes;
          return data;
        }
    }
    return new_block(bytes);
  }

  void give(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_FREE)
    if (bytes <= limit_) madvise(data, static_cast<size_t>(bytes), MADV_FREE);
#endif
    const std::lock_guard<std::mutex> lock(mutex_);
    blocks_.push_back({data, bytes});
    kept_ += bytes;
    while (kept_ > limit_) {  // the longest unused first
      std::free(blocks_.front().data);
      kept_ -= blocks_.front().bytes;
      blocks_.pop_front();
    }
  }

 private:
  struct Block {
    void* data;
    int64_t bytes;
  };

  Pool() {
    const char* megabytes = std::getenv("SEQKERN_POOL_MB");
    if (megabytes != nullptr) {
      limit_ = std::strtoll(megabytes, nullptr, 10) << 20;
      return;
    }
#if defined(__linux__)
    // A sixteenth of the machine's memory.
    limit_ = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE) / 16;
#endif
  }

  std::mutex mutex_;
  std::deque<Block> blocks_;  // oldest first
  int64_t kept_ = 0, limit_ = 0;
};

}  // namespace seqkern::bind
