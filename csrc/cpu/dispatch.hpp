// SPDX-License-Identifier: Apache-2.0
// dispatch.hpp - one table of kernels per instruction set, chosen at run time.
#pragma once

#include <stdint.h>

#include "../include/seqkern/causal_conv1d.h"
#include "../include/seqkern/linear_attention.h"
#include "../include/seqkern/linear_scan.h"
#include "../include/seqkern/lssl.h"
#include "../include/seqkern/matmul.h"
#include "../include/seqkern/rms_norm_gated.h"
#include "../include/seqkern/rnn.h"
#include "../include/seqkern/selective_scan.h"

namespace seqkern {

struct KernelTable {
  const char* isa;
  LinearAttentionForward linear_attention_forward;
  LinearAttentionWorkspace linear_attention_forward_workspace;
  LinearAttentionBackward linear_attention_backward;
  LinearAttentionWorkspace linear_attention_backward_workspace;
  // out[row] = sum of `group` consecutive rows of `from`, stored as `dtype` from element `at` on.
  void (*sum_groups)(const float* from, DType dtype, void* to, int64_t at, int64_t rows,
                     int64_t group, int64_t width);
  CausalConv1dKernels causal_conv1d;
  RmsNormGatedKernels rms_norm_gated;
  RnnKernels rnn;
  LsslKernels lssl;
  SelectiveScanKernels selective_scan;
  LinearScanKernels linear_scan;
  MatmulKernels matmul;
  double (*fma_peak)(double seconds);       // GFLOP/s of one thread, registers only, float32
  double (*bf16_dot_peak)(double seconds);  // the same for bfloat16 dot products, or null
};

// The best table that this CPU runs and SEQKERN_CPU_ISA (or set_isa_cap) allows.
const KernelTable& kernels();
// The best table that this CPU runs.
const KernelTable& best_kernels();
// Caps the instruction set at `name` ("" lifts the cap). False if no compiled table has that name
// or this CPU cannot run it; then nothing changes.
bool set_isa_cap(const char* name);
// Names of the compiled tables, best first, comma separated.
const char* compiled_isas();

}  // namespace seqkern
