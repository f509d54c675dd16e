// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#include "target.hpp"
SEQKERN_TARGET_BEGIN(SEQKERN_AVX512_BF16)
#define SEQKERN_ISA avx512_bf16
#define SEQKERN_BF16_DOT
#define SEQKERN_LANES 16
#include "table.hpp"
namespace seqkern {
extern const KernelTable kAvx512Bf16Table;
const KernelTable kAvx512Bf16Table = SEQKERN_TABLE("avx512_bf16");
}  // namespace seqkern
SEQKERN_TARGET_END
#endif
