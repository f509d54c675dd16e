# SPDX-License-Identifier: Apache-2.0
"""Time contestants in one process, turn by turn, and turn samples into quantiles.

Clock speed, caches and neighbors drift over seconds, so the contestants alternate (A B, then B A,
...) and each is described by quantiles of its samples, never by its best run.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.registry import Entry

SAMPLE_MS = 1.0
MIN_ROUNDS = 5
MIN_SLOW_ROUNDS = 3
MAX_ROUNDS = 400


@dataclass
class Side:
    """A contestant made ready: ``run`` is timed, ``prepare`` and ``enter`` are not."""

    label: str
    run: Callable[[], Any]
    prepare: Callable[[], Any] | None = None
    enter: Callable[[], None] | None = None
    grad: bool = True
    calls: int = 1
    ms: list[float] = field(default_factory=list)

    def sample(self) -> float:
        """Time one sample and return it in ms per call."""
        if self.enter is not None:
            self.enter()
        if self.prepare is not None:
            self.prepare()
        with torch.set_grad_enabled(self.grad):
            start = time.perf_counter_ns()
            for _ in range(self.calls):
                self.run()
            spent = time.perf_counter_ns() - start
        return spent / 1e6 / self.calls


@contextmanager
def _no_collector() -> Iterator[None]:
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def quantile(values: Sequence[float], p: float) -> float:
    """Return the linearly interpolated quantile, p in [0, 1]."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    at = p * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def median(values: Sequence[float]) -> float:
    """Return the 0.5 quantile."""
    return quantile(values, 0.5)


def interleave(
    sides: Sequence[Side], budget_s: float, between: Callable[[], Any] | None = None
) -> None:
    """Fill ``side.ms`` of every side, alternating, for about ``budget_s`` seconds.

    One or two calls a side warm up and choose how many calls make a sample of at least 1 ms. Every
    round takes one sample of each side, forwards and backwards in turn; ``between`` runs untimed
    after each round. At least 5 rounds are taken, or 3 once twice the budget is spent.
    """
    with _no_collector():
        for side in sides:
            first = side.sample()
            second = side.sample() if first < 1000 * budget_s / 8 else first
            if side.prepare is None and second < SAMPLE_MS:
                side.calls = math.ceil(SAMPLE_MS / max(second, 1e-4))
        start = time.perf_counter()
        rounds = 0
        while rounds < MAX_ROUNDS:
            elapsed = time.perf_counter() - start
            least = MIN_SLOW_ROUNDS if elapsed > 2 * budget_s else MIN_ROUNDS
            if elapsed > budget_s and rounds >= least:
                break
            for side in sides if rounds % 2 == 0 else reversed(sides):
                side.ms.append(side.sample())
            if between is not None:
                between()
            rounds += 1


def first_output(result: Any) -> torch.Tensor:
    """Return the output tensor of a call that may also return states."""
    return result[0] if isinstance(result, tuple) else result


def leaves(entry: Entry) -> list[torch.Tensor]:
    """The tensors an entry's gradients are taken of: its floating inputs, then its parameters."""
    floating = [x for x in entry.inputs.values() if torch.is_tensor(x) and x.is_floating_point()]
    return [*floating, *entry.parameters]


def output_and_grads(
    entry: Entry, cotangent: torch.Tensor | None = None
) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """Run an entry once with gradients; the cotangent defaults to a fixed random one."""
    wrt = leaves(entry)
    for x in wrt:
        x.requires_grad_(True)
    o = first_output(entry.call(**entry.inputs))
    do = cotangent if cotangent is not None else cotangent_like(o)
    return o.detach(), torch.autograd.grad(o, wrt, do, allow_unused=True)


def cotangent_like(o: torch.Tensor) -> torch.Tensor:
    """A random gradient of the loss with respect to ``o``, the same for the same shape."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(o.shape, generator=generator).to(o.dtype)


def make_side(entry: Entry, enter: Callable[[], None] | None = None) -> Side:
    """Turn an entry into a side that times the pass it asks for."""
    call, inputs = entry.call, dict(entry.inputs)
    if entry.pass_ == "fwd":

        def forward() -> None:
            call(**inputs)

        return Side(entry.label, forward, enter=enter, grad=False)

    wrt = leaves(entry)
    for x in wrt:
        x.requires_grad_(True)
    if enter is not None:
        enter()
    with torch.no_grad():
        do = cotangent_like(first_output(call(**inputs)))
    if entry.pass_ == "fwd+bwd":

        def both() -> None:
            torch.autograd.grad(first_output(call(**inputs)), wrt, do, allow_unused=True)

        return Side(entry.label, both, enter=enter)

    graph: list[torch.Tensor] = []

    def build_graph() -> None:
        graph[:] = [first_output(call(**inputs))]

    def backward() -> None:
        torch.autograd.grad(graph.pop(), wrt, do, allow_unused=True)

    return Side(entry.label, backward, prepare=build_graph, enter=enter)
