// SPDX-License-Identifier: Apache-2.0
// lssl.hpp - the kernels of the linear state-space layer as a table entry.
#pragma once

#include "lssl_convolution.hpp"
#include "lssl_grad.hpp"

namespace seqkern {
namespace SEQKERN_ISA {
namespace {

constexpr LsslKernels lssl_kernels = {
    &lssl_forward_tasks,      &lssl_groups,       &lssl_shares,   &lssl_forward_workspace,
    &lssl_backward_workspace, &lssl_forward,      &lssl_backward, &lssl_convolution_workspace,
    &lssl_convolve,           &lssl_convolve_back};

}  // namespace
}  // namespace SEQKERN_ISA
}  // namespace seqkern
