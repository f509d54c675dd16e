# SPDX-License-Identifier: Apache-2.0
"""Which view of a linear state-space layer is cheaper, by what each was measured to cost."""

# Nanoseconds on one core, keyed by training: forward, or forward and backward. Recurrence: per
# sequence, feature, step and order. A kernel is the same of one impulse, which takes one sweep over
# the rows a step where a sequence takes two, unless the system is lower triangular. Convolution:
# per sequence, feature, channel and step; sequences go in pairs.
_LOWER = {False: 0.05, True: 0.25}
_TRIDIAGONAL = {False: 0.15, True: 0.65}
_TRIDIAGONAL_KERNEL = {False: 0.1, True: 0.5}
_FFT = {False: 1.5, True: 4.0}


def recurrence_is_cheaper(B: int, N: int, M: int, triangular: bool, training: bool) -> bool:
    """Say whether B recurrences cost less than one kernel and B convolutions.

    Args:
        B: sequences.
        N: order.
        M: channels.
        triangular: whether the discretised system is lower triangular.
        training: whether a backward pass will follow.
    """
    sequence = (_LOWER if triangular else _TRIDIAGONAL)[training]
    kernel = (_LOWER if triangular else _TRIDIAGONAL_KERNEL)[training]
    return (B * sequence - kernel) * N <= (B + B % 2) * M * _FFT[training]
