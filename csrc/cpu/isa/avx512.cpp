// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "target.hpp"
SEQKERN_TARGET_BEGIN(SEQKERN_AVX512)
#define SEQKERN_ISA avx512
#define SEQKERN_LANES 16
#include "table.hpp"
namespace seqkern {
extern const KernelTable kAvx512Table;
const KernelTable kAvx512Table = SEQKERN_TABLE("avx512");
}  // namespace seqkern
SEQKERN_TARGET_END
#endif
