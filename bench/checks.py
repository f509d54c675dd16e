# SPDX-License-Identifier: Apache-2.0
"""Compare results before comparing times: a wrong answer earns no speed-up.

Two comparisons, both on the very input that is timed:

- with a rival that computes the same function: the output and every gradient;
- with the float64 sequential reference: the last tokens of the output and of every gradient. Those
  depend on what came before only through the state, so the reference starts from the state that the
  op itself reports there, and T may be as long as it likes.

The measure is the rms of the difference over the rms of the truth. A result rounded to a type with
machine epsilon eps is off by about 0.3 eps; sums over K, V and the chunk add a few dozen roundings
of float32. Hence 2 eps for 16-bit types, and 512 eps for float32, which also covers the rounding of
a float32 rival.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.registry import Entry
from bench.timing import cotangent_like, first_output, leaves, output_and_grads

WINDOW = 64


@dataclass(frozen=True)
class Finding:
    """The error of one tensor, relative, and what was allowed."""

    name: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the error is a number and small enough."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.name} is off by {self.error:.1e} (allowed {self.allowed:.1e})"


def allowed_error(dtype: torch.dtype) -> float:
    """Return the allowed relative rms error of results in ``dtype``."""
    eps = torch.finfo(dtype).eps
    return 512 * eps if dtype in (torch.float32, torch.float64) else 2 * eps


def relative_rms(actual: torch.Tensor, truth: torch.Tensor) -> float:
    """Return rms(actual - truth) / rms(truth), in float64; NaN stays NaN."""
    actual, truth = actual.double(), truth.double()
    scale = truth.square().mean().sqrt()
    error = (actual - truth).square().mean().sqrt()
    return float(error / scale.clamp_min(torch.finfo(torch.float32).tiny))


def _names(entry: Entry) -> list[str]:
    inputs = [n for n, x in entry.inputs.items() if torch.is_tensor(x) and x.is_floating_point()]
    return [*inputs, *(f"parameter {i}" for i in range(len(entry.parameters)))]


def _head_last(x: torch.Tensor, entry: Entry) -> torch.Tensor:
    return x.transpose(1, 2) if entry.head_first and x.dim() >= 3 else x


def same_as_rival(ours: Entry, rival: Entry, *, gradients: bool = True) -> list[Finding]:
    """Compare the output, and the gradients of inputs of the same name, with the rival's."""
    if not gradients:
        with torch.no_grad():
            a = first_output(ours.call(**ours.inputs))
            b = first_output(rival.call(**rival.inputs))
        return [_finding("o", _head_last(a, ours), _head_last(b, rival))]
    o, grads = output_and_grads(ours)
    do = cotangent_like(o)
    their_o, their_grads = output_and_grads(
        rival, do.transpose(1, 2).contiguous() if rival.head_first else do
    )
    found = [_finding("o", o, _head_last(their_o, rival))]
    theirs = dict(zip(_names(rival), their_grads, strict=True))
    for name, grad in zip(_names(ours), grads, strict=True):
        other = theirs.get(name)
        if grad is not None and other is not None and not name.startswith("parameter"):
            found.append(_finding(f"d{name}", grad, _head_last(other, rival)))
    return found


def _finding(name: str, actual: torch.Tensor, truth: torch.Tensor) -> Finding:
    return Finding(name, relative_rms(actual, truth), allowed_error(actual.dtype))


def _cut(inputs: dict[str, Any], T: int, start: int, stop: int) -> dict[str, Any]:
    """Slice every tensor that runs over T (or over T * n_h virtual tokens) to [start, stop)."""
    part: dict[str, Any] = {}
    for name, x in inputs.items():
        if torch.is_tensor(x) and x.dim() >= 3 and x.shape[1] % T == 0:
            n = x.shape[1] // T
            part[name] = x.detach()[:, start * n : stop * n]
        else:
            part[name] = x
    return part


def tail_matches_reference(
    entry: Entry, reference: Callable[..., Any], *, gradients: bool = True
) -> list[Finding]:
    """Compare the last `WINDOW` tokens of the output and of the gradients with the reference.

    ``entry.call`` must take ``initial_state`` and ``output_final_state``, as ours do.
    """
    inputs = dict(entry.inputs)
    T = inputs["q"].shape[1]
    start = max(0, T - WINDOW)
    h0 = None
    if start:
        with torch.no_grad():
            head = _cut(inputs, T, 0, start)
            h0 = entry.call(**head, output_final_state=True)[1].double()
    tail = {
        name: x.double() if torch.is_tensor(x) and x.is_floating_point() else x
        for name, x in _cut(inputs, T, start, T).items()
    }
    truth = replace(
        entry, call=lambda **kw: reference(**kw, initial_state=h0), inputs=tail, parameters=()
    )
    if not gradients:
        with torch.no_grad():
            o = first_output(entry.call(**inputs))
            expected = first_output(truth.call(**tail))
        return [_finding("o", o[:, start:], expected)]
    o, grads = output_and_grads(entry)
    expected, true_grads = output_and_grads(truth, cotangent_like(o)[:, start:].double())
    found = [_finding("o", o[:, start:], expected)]
    whole = dict(zip(_names(entry), leaves(entry), strict=True))
    for name, grad, true_grad in zip(_names(entry), grads, true_grads, strict=True):
        if grad is None or true_grad is None:
            found.append(Finding(f"d{name}", float("nan"), 0.0))
            continue
        n = whole[name].shape[1] // T
        found.append(_finding(f"d{name}", grad[:, start * n :], true_grad))
    return found
