// SPDX-License-Identifier: Apache-2.0
// The baseline of the architecture: four lanes, mapped by the compiler onto what is there.
#include "target.hpp"
#define SEQKERN_ISA scalar
#define SEQKERN_LANES 4
#include "table.hpp"
namespace seqkern {
extern const KernelTable kScalarTable;
const KernelTable kScalarTable = SEQKERN_TABLE("scalar");
}  // namespace seqkern
