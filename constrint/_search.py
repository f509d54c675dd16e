# SPDX-License-Identifier: Apache-2.0
"""Runs an engine under a budget, and chooses which engine that is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from numbers import Real
from types import ModuleType
from typing import Protocol

from constrint import _flat as F
from constrint._twin import DONE, LATE, PAUSED, SOLUTION, Twin
from constrint.errors import ModelError
from constrint.expr import integer


def _load() -> tuple[ModuleType | None, str]:
    """Return the C++ core, or None and why it is not there."""
    try:
        return import_module("constrint._core"), ""
    except ModuleNotFoundError:  # built without a compiler, or for another Python
        return None, "the C++ core was not built for this Python"
    except ImportError as error:
        return None, str(error)


_core, _WHY = _load()

BACKENDS = ("auto", "cpp", "python")
# The core returns when a sum or product leaves its integers; the twin then starts afresh.
OVERFLOW = 3
# An engine returns after this long, so that Ctrl-C is heard.
SLICE_SECONDS = 0.1
MANY = 1 << 62


class Engine(Protocol):
    """What the core and its twin have in common."""

    nodes: int
    propagations: int
    failures: int
    solutions: int
    best: list[tuple[int, list[int]]]

    def run(self, nodes: int, seconds: float) -> int:
        """Search on; see `Twin.run`."""

    def solution(self) -> list[int]:
        """Return the values of the model's variables."""

    def bound(self) -> int:
        """Return what no solution still to be found can be below."""


def backend() -> str:
    """Return which engine runs: "cpp", or "python" when the C++ core is not there."""
    asked = os.environ.get("CONSTRINT_BACKEND", "auto")
    return _chosen(asked)


def why_python() -> str:
    """Return why the C++ core is not there, or ""."""
    return _WHY


def _chosen(asked: str) -> str:
    if asked not in BACKENDS:
        raise ModelError(f"backend must be one of {', '.join(BACKENDS)}; got {asked!r}.")
    if asked == "cpp" and _core is None:
        raise ModelError(
            f"the C++ core is not there ({_WHY}). Install with a C++ compiler and pybind11 "
            'present, or use backend="python".'
        )
    if asked == "auto":
        return "python" if _core is None else "cpp"
    return asked


@dataclass
class Budget:
    """Nodes and seconds that several searches share; None: no limit."""

    max_nodes: int | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if self.max_nodes is not None:
            self.max_nodes = min(integer(self.max_nodes, "max_nodes"), MANY)
            if self.max_nodes < 0:
                raise ModelError(f"max_nodes must be at least 0, got {self.max_nodes}.")
        limit = self.time_limit
        if limit is not None and not (isinstance(limit, Real) and limit >= 0):
            raise ModelError(f"time_limit must be at least 0 seconds, got {limit!r}.")
        self._start = time.monotonic()
        self._spent_nodes = 0

    def spend(self, nodes: int) -> None:
        """Note nodes that a finished search took."""
        self._spent_nodes += nodes

    def nodes_left(self, running: int = 0) -> int:
        """Return how many more nodes may be visited."""
        if self.max_nodes is None:
            return MANY
        return max(0, self.max_nodes - self._spent_nodes - running)

    def seconds_left(self) -> float:
        """Return how many more seconds may pass."""
        if self.time_limit is None:
            return float("inf")
        return self.time_limit - (time.monotonic() - self._start)


class Search:
    """One search under a budget; falls back to the twin when numbers outgrow the core."""

    def __init__(
        self,
        flat: F.Flat,
        budget: Budget,
        asked: str,
        keep: int = 0,
        counting: bool = False,
        restarts: bool = False,
    ):
        self.flat, self.budget, self.keep, self.counting = flat, budget, keep, counting
        self.restarts = restarts
        if asked == "auto":
            asked = os.environ.get("CONSTRINT_BACKEND", "auto")
        self.backend = _chosen(asked)
        self.engine: Engine
        if self.backend == "cpp" and _core is not None and not flat.fault:
            for width in (8, 16):
                try:
                    self.engine = _core.engine(flat.pack(width), width, keep, counting, restarts)
                except OverflowError:
                    continue
                return
        self.backend = "python"
        self.engine = Twin(flat, keep, counting, restarts)

    def advance(self) -> int:
        """Search until a solution, the end (DONE), or the end of the budget (PAUSED)."""
        engine, budget = self.engine, self.budget
        while True:
            seconds = budget.seconds_left()
            if seconds <= 0:
                return PAUSED
            nodes = budget.nodes_left(engine.nodes)
            state = engine.run(nodes, min(seconds, SLICE_SECONDS))
            if state == OVERFLOW:
                engine = self._restart()
            elif state != LATE:
                return state

    def _restart(self) -> Engine:
        """Start the twin and take it to where the core had found its last solution."""
        seen = 0 if self.keep or self.counting else self.engine.solutions
        self.backend = "python"
        self.engine = Twin(self.flat, self.keep, self.counting, self.restarts)
        while self.engine.solutions < seen and self.advance() == SOLUTION:
            pass
        return self.engine

    def each(self) -> Iterator[list[int]]:
        """Yield every solution; returns at the end or when the budget is spent."""
        while self.advance() == SOLUTION:
            yield self.engine.solution()


__all__ = ["BACKENDS", "DONE", "PAUSED", "SOLUTION", "Budget", "Search", "backend", "why_python"]
