// SPDX-License-Identifier: Apache-2.0
#if defined(__aarch64__)
#include "target.hpp"
#define SEQKERN_ISA neon
#define SEQKERN_LANES 4
#include "table.hpp"
namespace seqkern {
extern const KernelTable kNeonTable;
const KernelTable kNeonTable = SEQKERN_TABLE("neon");
}  // namespace seqkern
#endif
