// SPDX-License-Identifier: Apache-2.0
// target.hpp - compiles what stands between BEGIN and END for other instructions than the rest of
// the build. System headers come first, outside: their inline functions must stay portable.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__unix__) || defined(__APPLE__)
#include <sched.h>
#endif
#if defined(__x86_64__)
// GCC's own headers leave lanes that nobody reads undefined by `__Y = __Y`.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#include "../dispatch.hpp"

#define SEQKERN_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define SEQKERN_TARGET_BEGIN(isa) \
  SEQKERN_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define SEQKERN_TARGET_END _Pragma("clang attribute pop")
#define SEQKERN_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define SEQKERN_AVX512_BF16 "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#else
#define SEQKERN_TARGET_BEGIN(isa) _Pragma("GCC push_options") SEQKERN_PRAGMA(GCC target(isa))
#define SEQKERN_TARGET_END _Pragma("GCC pop_options")
// Left to itself GCC makes loops of half the width.
#define SEQKERN_AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512"
#define SEQKERN_AVX512_BF16 \
  "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512"
#endif
