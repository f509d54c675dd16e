# SPDX-License-Identifier: Apache-2.0
"""What autograd has to know of the compiled ops beyond their own gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable_grads(
    definition: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    cotangents: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Return the gradient of every input that needs one, with a graph of its own.

    Args:
        definition: computes the outputs of the op from ``inputs``, differentiably.
        inputs: tensors of any shape, or None.
        needs: which gradients are wanted; further elements are not read.
        cotangents: gradients of the outputs; None where an output was not used.
    """
    # Views, so that a tensor passed twice gets each of its gradients once.
    own: list[Any] = [x if x is None else x.view_as(x) for x in inputs]
    wanted = [i for i in range(len(own)) if needs[i]]
    grads: list[Tensor | None] = [None] * len(own)
    # An output need not depend on what gradients are wanted of.
    pairs = [
        (y, g)
        for y, g in zip(definition(*own), cotangents, strict=True)
        if g is not None and y.requires_grad
    ]
    if pairs and wanted:
        found = torch.autograd.grad(
            [y for y, _ in pairs],
            [own[i] for i in wanted],
            [g for _, g in pairs],
            create_graph=True,
            allow_unused=True,
        )
        for i, grad in zip(wanted, found, strict=True):
            grads[i] = grad
    return grads


def overwritten(x: Tensor) -> None:
    """Tell autograd that a compiled op has written into ``x``, as torch's own in-place ops do."""
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(x)
