// SPDX-License-Identifier: Apache-2.0
// pool.hpp - memory for outputs that is used again; of large ones aligned to huge pages.
//
// A kernel writes outputs about as fast as the system hands out fresh pages, or faster: a page
// costs up to two microseconds the first time that it is touched, and the C library returns to the
// system much of what is freed. That took up to a third of a call. So
//   - blocks of 2 MiB or more start on a huge page and ask for huge pages;
//   - a freed block is kept for the next output of its size, at most limit_ bytes in all;
//   - while it waits behind kFresh bytes of blocks freed later, it is marked MADV_FREE: the system
//     takes the pages when anybody needs them, and little is paid if nobody does.
// SEQKERN_POOL_MB sets the limit (0, or what is no whole number: keep nothing).
#pragma once

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>

namespace seqkern::bind {

constexpr int64_t kHugePage = int64_t{2} << 20;
// Smaller outputs are the C library's: it keeps them.
constexpr int64_t kPooledBytes = int64_t{128} << 10;

inline void* new_block(int64_t bytes) {
  const bool huge = bytes >= kHugePage;
  void* data =
      std::aligned_alloc(static_cast<size_t>(huge ? kHugePage : 4096), static_cast<size_t>(bytes));
#if defined(__linux__)
  if (huge && data != nullptr) madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return data;
}

// The bytes that SEQKERN_POOL_MB names, as many of them as a number can hold.
inline int64_t bytes_of_megabytes(const char* text) {
  char* end = nullptr;
  const int64_t number = std::strtoll(text, &end, 10);
  while (*end == ' ') ++end;
  return *end == '\0' && number > 0 ? std::min(number, INT64_MAX >> 20) << 20 : 0;
}

class Pool {
 public:
  // Never destroyed: a tensor may outlive every static object.
  static Pool& instance() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  static int64_t block_bytes(int64_t bytes) {
    const int64_t unit = bytes >= kHugePage ? kHugePage : kPooledBytes / 2;
    return (bytes + unit - 1) / unit * unit;
  }

  // `bytes` is from block_bytes(). Null if there is no memory.
  void* take(int64_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block)
        if (block->bytes == bytes) {
          void* const data = block->data;
          kept_ -= bytes;
          if (!block->marked) fresh_ -= bytes;
          blocks_.erase(std::next(block).base());
          return data;
        }
    }
    return new_block(bytes);
  }

  void give(void* data, int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      blocks_.push_back({data, bytes, false});
    } catch (const std::bad_alloc&) {
      std::free(data);
      return;
    }
    kept_ += bytes;
    fresh_ += bytes;
    while (kept_ > limit_ || blocks_.size() > kMostBlocks) {  // the longest unused first
      const Block& oldest = blocks_.front();
      std::free(oldest.data);
      kept_ -= oldest.bytes;
      if (!oldest.marked) fresh_ -= oldest.bytes;
      blocks_.pop_front();
    }
    for (auto block = blocks_.begin(); fresh_ > kFresh; ++block) mark(*block);
  }

 private:
  static constexpr int64_t kFresh = int64_t{64} << 20;
  static constexpr size_t kMostBlocks = 512;
  struct Block {
    void* data;
    int64_t bytes;
    bool marked;
  };

  void mark(Block& block) {
    if (block.marked) return;
#if defined(__linux__) && defined(MADV_FREE)
    madvise(block.data, static_cast<size_t>(block.bytes), MADV_FREE);
#endif
    block.marked = true;
    fresh_ -= block.bytes;
  }

  Pool() {
#if defined(__linux__)
    // A child of fork() has no thread that could give back a lock that another one held.
    const auto unlock = [] { instance().mutex_.unlock(); };
    pthread_atfork([] { instance().mutex_.lock(); }, unlock, unlock);
#endif
    const char* megabytes = std::getenv("SEQKERN_POOL_MB");
    if (megabytes != nullptr && *megabytes != '\0') {
      limit_ = bytes_of_megabytes(megabytes);
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
  int64_t fresh_ = 0;  // bytes of blocks that are not marked
};

}  // namespace seqkern::bind
