// SPDX-License-Identifier: Apache-2.0
#include "dispatch.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

namespace seqkern {

#if defined(__x86_64__)
extern const KernelTable kAvx512Bf16Table, kAvx512Table, kAvx2Table;
#elif defined(__aarch64__)
extern const KernelTable kNeonTable;
#endif
extern const KernelTable kScalarTable;

namespace {

// Best first; every CPU of the architecture runs the last.
#if defined(__x86_64__)
const KernelTable* const kTables[] = {&kAvx512Bf16Table, &kAvx512Table, &kAvx2Table, &kScalarTable};
constexpr char kCompiled[] = "avx512_bf16,avx512,avx2,scalar";

// __builtin_cpu_supports() of some versions of clang does not know this one.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool runs_here(int i) {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (i == 0) return avx512 && __builtin_cpu_supports("avx512bf16");
  if (i == 1) return avx512;
  return i == 2 ? avx2 : true;
}
#elif defined(__aarch64__)
const KernelTable* const kTables[] = {&kNeonTable, &kScalarTable};
constexpr char kCompiled[] = "neon,scalar";
bool runs_here(int) { return true; }
#else
const KernelTable* const kTables[] = {&kScalarTable};
constexpr char kCompiled[] = "scalar";
bool runs_here(int) { return true; }
#endif

constexpr int kCount = sizeof(kTables) / sizeof(kTables[0]);

// The first table from `from` on that runs here.
int best_from(int from) {
  while (from + 1 < kCount && !runs_here(from)) ++from;
  return from;
}

// Asked once: virtual machines take a microsecond for every question to the CPU.
int best() {
  static const int index = best_from(0);
  return index;
}

int index_of(const char* name) {
  for (int i = 0; i < kCount; ++i)
    if (std::strcmp(name, kTables[i]->isa) == 0) return i;
  return -1;
}

int initial_index() {
  const char* value = std::getenv("SEQKERN_CPU_ISA");
  constexpr const char* kSpaces = " \t\n\v\f\r";
  std::string cap = value != nullptr ? value : "";
  cap.erase(0, cap.find_first_not_of(kSpaces));
  cap.erase(cap.find_last_not_of(kSpaces) + 1);
  const int i = index_of(cap.c_str());
  return best_from(i < 0 ? 0 : i);
}

std::atomic<int>& current() {
  static std::atomic<int> index{initial_index()};
  return index;
}

}  // namespace

const KernelTable& kernels() { return *kTables[current().load(std::memory_order_relaxed)]; }

const KernelTable& best_kernels() { return *kTables[best()]; }

bool set_isa_cap(const char* name) {
  if (*name == '\0') {
    current().store(best());
    return true;
  }
  const int i = index_of(name);
  if (i < 0 || !runs_here(i)) return false;
  current().store(i);
  return true;
}

const char* compiled_isas() { return kCompiled; }

}  // namespace seqkern
