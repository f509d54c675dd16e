// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "target.hpp"
SEQKERN_TARGET_BEGIN("avx2,fma,f16c")
#define SEQKERN_ISA avx2
#define SEQKERN_LANES 8
#include "table.hpp"
namespace seqkern {
extern const KernelTable kAvx2Table;
const KernelTable kAvx2Table = SEQKERN_TABLE("avx2");
}  // namespace seqkern
SEQKERN_TARGET_END
#endif
