# SPDX-License-Identifier: Apache-2.0
"""What a row of the benchmark is, and the table that all suites register in.

A suite is a module of `bench.cases`. It writes its rows with the decorator::

    @case("chunk_gla", "fwd", title="chunk_gla forward", metric="peak_share",
          bar=at_least(0.60), sizes=dict(T=[2048]))
    def _(s):
        return Contest(Entry("seqkern", chunk_gla, inputs.gla(s), flops=4 * s.K * s.V * s.tokens))

The function receives one `Size` and builds the inputs, the entry under test and its rival; it runs
only when the row does, so a missing peer costs its own rows and nothing else.
"""

from __future__ import annotations

import fnmatch
import importlib
import itertools
import math
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from bench import cases

PASSES = ("fwd", "bwd", "fwd+bwd")
METRICS = ("speedup", "ratio", "per_token", "peak_share", "latency_us", "memory")


@dataclass(frozen=True)
class Size:
    """Shape, element type and options of one row; symbols as in the house glossary."""

    B: int = 1
    T: int = 2048
    H: int = 4
    K: int = 128
    V: int = 128
    dtype: str = "float32"
    n_h: int = 1

    @property
    def tokens(self) -> int:
        """Head-tokens of one call: B * T * H."""
        return self.B * self.T * self.H

    @property
    def torch_dtype(self) -> torch.dtype:
        """The element type of q, k and v as torch names it."""
        return getattr(torch, self.dtype)

    def quick(self) -> Size:
        """Return the smallest size that still walks the same path (T stays a multiple of 64)."""
        return replace(self, T=self.T if self.T == 1 else max(64, self.T // 256), H=2, K=32, V=32)


@dataclass(frozen=True)
class Bar:
    """The least (``>=``) or the most (``<=``) a row's value may be, or how far it may be from 1
    either way (``within``); ``aim`` is only reported.
    """

    sense: str
    value: float
    aim: float | None = None

    def met(self, value: float) -> bool:
        """Say whether ``value`` satisfies the bar."""
        least = {">=": self.value, "<=": -math.inf, "within": 1 / self.value}[self.sense]
        most = math.inf if self.sense == ">=" else self.value
        return least <= value <= most


def at_least(value: float, aim: float | None = None) -> Bar:
    """Bar for a value that should be large: a speed-up, a share of the peak."""
    return Bar(">=", value, aim)


def at_most(value: float) -> Bar:
    """Bar for a value that should be small: a time, a ratio of times, a ratio of bytes."""
    return Bar("<=", value)


def within(factor: float) -> Bar:
    """Bar for a ratio that should be 1."""
    return Bar("within", factor)


@dataclass
class Entry:
    """One contestant: a callable, its inputs and the setting it runs in.

    ``call(**inputs)`` returns the output tensor or a tuple that starts with it. Gradients are taken
    of every floating-point input and of ``parameters``. ``head_first`` says that its tensors are
    [B, H, T, D] instead of [B, T, H, D]; only the comparison of results cares. ``peer``: somebody
    else's code. ``threads`` 0 and ``isa`` "" mean what the command line asked for.
    """

    label: str
    call: Callable[..., Any]
    inputs: dict[str, Any]
    pass_: str = "fwd"
    parameters: Sequence[torch.Tensor] = ()
    threads: int = 0
    isa: str = ""
    flops: float = 0.0
    tokens: int = 0
    state_bytes: int = 0
    head_first: bool = False
    peer: bool = False

    def __post_init__(self) -> None:
        if self.pass_ not in PASSES:
            raise ValueError(f"Entry: `pass_` must be one of {PASSES}, got {self.pass_!r}.")


@dataclass
class Contest:
    """What one row times: ours, its rival if it has one, and the check both must pass first."""

    ours: Entry
    rival: Entry | None = None
    check: Callable[[], list[Any]] | None = None
    floor: Entry | None = None


@dataclass
class MemoryTrial:
    """A row that is measured in bytes by fresh processes; the names are those of `bench.memory`."""

    ours: str
    rival: str = ""


@dataclass(frozen=True)
class Row:
    """One registered measurement at one size."""

    suite: str
    op: str
    pass_: str
    template: str
    metric: str
    bar: Bar | None
    size: Size
    build: Callable[[Size], Contest | MemoryTrial] = field(repr=False)

    @property
    def title(self) -> str:
        """What the table shows: the template with the size filled in."""
        return self.template.format(**asdict(self.size))

    @property
    def id(self) -> str:
        """A name to select the row by, unique within its suite: the op and the title, hyphened."""
        return f"{self.op}/{re.sub('[^a-z0-9_=.]+', '-', self.title.lower()).strip('-')}"

    def matches(self, patterns: Sequence[str]) -> bool:
        """Say whether any pattern (part of the id, or a shell pattern for all of it) selects it."""
        if not patterns:
            return True
        return any(p in self.id or fnmatch.fnmatch(self.id, p) for p in patterns)

    def quick(self) -> Row:
        """Return the row at its smallest size."""
        return replace(self, size=self.size.quick())

    def shape(self) -> dict[str, Any]:
        """Return the size as a record."""
        return asdict(self.size)


_ROWS: list[Row] = []


def case(
    op: str,
    pass_: str,
    *,
    title: str,
    metric: str = "speedup",
    bar: Bar | None = None,
    sizes: Mapping[str, Sequence[Any]] | None = None,
    suite: str = "",
) -> Callable[[Callable[[Size], Contest | MemoryTrial]], Callable[[Size], Contest | MemoryTrial]]:
    """Register the decorated function as one row per size.

    Args:
        op: the seqkern op (or layer) under test.
        pass_: "fwd", "bwd" or "fwd+bwd".
        title: what the table shows; ``{T}`` and the other fields of `Size` are filled in.
        metric: "speedup" (rival / ours), "ratio" (ours / rival), "per_token" (ratio of the times
            per token), "peak_share" (useful operations over the FMA peak), "latency_us", "memory".
        bar: what the row has to reach, or None for a row that only reports.
        sizes: lists of values per field of `Size`; their product is taken.
        suite: default: the name of the module that registers.
    """
    if pass_ not in PASSES:
        raise ValueError(f"case {op}: `pass_` must be one of {PASSES}, got {pass_!r}.")
    if metric not in METRICS:
        raise ValueError(f"case {op}: `metric` must be one of {METRICS}, got {metric!r}.")
    grid = dict(sizes or {})

    def register(build: Callable[[Size], Contest | MemoryTrial]) -> Callable[..., Any]:
        home = suite or build.__module__.rpartition(".")[2]
        for values in itertools.product(*grid.values()):
            size = Size(**dict(zip(grid, values, strict=True)))
            row = Row(home, op, pass_, title, metric, bar, size, build)
            if any(r.suite == home and r.id == row.id for r in _ROWS):
                raise ValueError(f"case {row.id}: registered twice in suite {home!r}.")
            _ROWS.append(row)
        return build

    return register


def suites() -> list[str]:
    """Names of the suites in this checkout."""
    names = (m.name for m in pkgutil.iter_modules(cases.__path__))
    return sorted(name for name in names if not name.startswith("_"))


def rows(suite: str, only: Sequence[str] = ()) -> list[Row]:
    """Load a suite and return its rows in the order of registration, filtered by ``only``."""
    if suite not in suites():
        raise ValueError(f"no suite {suite!r}; there are: {', '.join(suites())}.")
    importlib.import_module(f"bench.cases.{suite}")
    return [row for row in _ROWS if row.suite == suite and row.matches(only)]
