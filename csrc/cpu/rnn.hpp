// SPDX-License-Identifier: Apache-2.0
// rnn.hpp - the table of the recurrent kernels of one instruction set.
#pragma once

#include "rnn_bwd.hpp"
#include "rnn_fwd.hpp"
#include "rnn_step.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr RnnKernels rnn_kernels = {
    kHasBf16Dot,          &packed_bytes, &pack,         &rnn_most_parts, &rnn_forward_shared,
    &rnn_backward_shared, &rnn_forward,  &rnn_backward, &rnn_step,       &rnn_activate};

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
