// SPDX-License-Identifier: Apache-2.0
// table.hpp - every kernel for the instruction set that the including file has set up.
#pragma once

#include "../causal_conv1d.hpp"
#include "../dispatch.hpp"
#include "../linear_attention_bwd.hpp"
#include "../linear_attention_fwd.hpp"
#include "../linear_scan.hpp"
#include "../lssl.hpp"
#include "../matmul.hpp"
#include "../peak.hpp"
#include "../rms_norm_gated.hpp"
#include "../rnn.hpp"
#include "../selective_scan_bwd.hpp"

#if defined(SEQKERN_BF16_DOT)
#define SEQKERN_BF16_DOT_PEAK &SEQKERN_ISA::bf16_dot_peak
#else
#define SEQKERN_BF16_DOT_PEAK nullptr
#endif

#define SEQKERN_TABLE(name)                                                                       \
  {                                                                                               \
    name, &SEQKERN_ISA::linear_attention_forward, &SEQKERN_ISA::forward_workspace,                \
        &SEQKERN_ISA::linear_attention_backward, &SEQKERN_ISA::backward_workspace,                \
        &SEQKERN_ISA::sum_groups, SEQKERN_ISA::causal_conv1d_kernels,                             \
        SEQKERN_ISA::rms_norm_gated_kernels, SEQKERN_ISA::rnn_kernels, SEQKERN_ISA::lssl_kernels, \
        SEQKERN_ISA::selective_scan_kernels, SEQKERN_ISA::linear_scan_kernels,                    \
        SEQKERN_ISA::matmul_kernels, &SEQKERN_ISA::fma_peak, SEQKERN_BF16_DOT_PEAK                \
  }
