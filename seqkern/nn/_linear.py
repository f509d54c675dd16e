# SPDX-License-Identifier: Apache-2.0
"""The linear projections of the layers."""

from torch import Tensor, nn

from seqkern._runtime.matmul import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, parameters and all; large float32 products take the faster library."""

    def forward(self, input: Tensor) -> Tensor:
        """``input`` [..., in_features] to [..., out_features]."""
        return linear(input, self.weight, self.bias)
