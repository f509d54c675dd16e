# SPDX-License-Identifier: Apache-2.0
"""Compare an op with its definition: inputs, gradients, and a tolerance that is derived.

The yardstick is the definition, run in float64, which is taken for the truth, and as its peers: in
the dtype under test, whose error is what honest arithmetic in that dtype costs on these very
inputs, and in float64 on inputs that are off by one rounding in float32, whose error is what the
inputs themselves allow. An op passes when its error is at most ``factor`` times the worst of these,
plus a rounding floor (`Budget`).

    x = make_inputs(Shape(B=2, T=63, H=3, K=32, V=48), torch.bfloat16)
    truth, peers = yardstick(reference.gla, x)
    assert_close(run(ops.chunk_gla, x), truth, no_worse_than=peers)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Budget",
    "Inputs",
    "Shape",
    "assert_close",
    "compare",
    "grads_of",
    "make_inputs",
    "pooled",
    "run",
    "yardstick",
]

Results = Mapping[str, Tensor]

# Rows whose true values are this small may underflow in float32 and have no relative error.
_UNDERFLOW = 1e-30
# About a hundred terms below the smallest normal float32, each of which may be flushed to zero.
_FLUSHED = 1e-36
# Half the spacing of float32 at 1: one rounding of a number changes it by at most this much of it.
_ROUNDING = 2.0**-24


@dataclass(frozen=True)
class Shape:
    """Sizes of one call.

    Attributes:
        B: batch; 1 when packed.
        T: time steps; the sum of ``lengths`` when packed.
        H: heads of q and k.
        K, V: key and value width per head.
        HV: heads of v and the state, a multiple of H; default H.
        num_householder: updates per token; k, v and beta have T times that many rows.
        lengths: of the sequences to pack into B = 1, or None.
        id: name in messages and of tests; default: the sizes.
    """

    B: int = 1
    T: int = 1
    H: int = 1
    K: int = 1
    V: int = 1
    HV: int | None = None
    num_householder: int = 1
    lengths: tuple[int, ...] | None = None
    id: str = ""

    def __post_init__(self) -> None:
        if self.HV is None:
            object.__setattr__(self, "HV", self.H)
        if self.lengths is not None:
            object.__setattr__(self, "B", 1)
            object.__setattr__(self, "T", sum(self.lengths))
        if not self.id:
            sizes = f"B{self.B} T{self.T} H{self.H} HV{self.HV} K{self.K} V{self.V}"
            packed = "" if self.lengths is None else f" packed{list(self.lengths)}"
            object.__setattr__(self, "id", sizes + packed)

    @property
    def num_sequences(self) -> int:
        """Return the number of sequences."""
        return self.B if self.lengths is None else len(self.lengths)

    @property
    def cu_seqlens(self) -> Tensor | None:
        """Return the int64 offsets [N + 1] of the packed sequences, or None."""
        if self.lengths is None:
            return None
        return torch.tensor([0, *self.lengths]).cumsum(0)


@dataclass(frozen=True)
class Inputs:
    """Arguments of one call: differentiable tensors, other keywords, and the cotangents."""

    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    do: Tensor
    dht: Tensor | None

    def double(self) -> Inputs:
        """Return the same numbers in float64."""
        return replace(
            self,
            tensors={name: x.double() for name, x in self.tensors.items()},
            do=self.do.double(),
            dht=None if self.dht is None else self.dht.double(),
        )

    def nudged(self, seed: int) -> Inputs:
        """Return float64 inputs, each number larger or smaller by one rounding in float32.

        Every element of every floating tensor, cotangents included, is multiplied by
        ``1 + 2**-24`` or ``1 - 2**-24``, as coins thrown with ``seed`` fall.
        """
        draw = torch.Generator().manual_seed(seed)

        def nudge(x: Tensor) -> Tensor:
            if not x.is_floating_point():
                return x
            coins = torch.randint(2, x.shape, generator=draw, dtype=torch.float64)
            return x.double() * (1 + _ROUNDING * (2 * coins - 1)).to(x.device)

        return replace(
            self,
            tensors={name: nudge(x) for name, x in self.tensors.items()},
            do=nudge(self.do),
            dht=None if self.dht is None else nudge(self.dht),
        )


def make_inputs(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    *,
    gate: str | None = "vector",
    gate_name: str = "g",
    beta: str | None = None,
    initial_state: bool = True,
    decay: float = 1.0,
    gate_dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **options: Any,
) -> Inputs:
    """Draw inputs of the linear-attention family, the same on every machine.

    Args:
        shape: the sizes.
        dtype: of q, k, v and do; the states are float32.
        gate: "vector" for [B, T, H, K], "scalar" for [B, T, HV], or None.
        gate_name: the keyword the gate is passed as.
        beta: "scalar" for [B, T n, HV], "vector" for [B, T n, HV, V], or None; uniform in [0, 2).
            With ``beta`` the keys have unit length.
        initial_state: draw one, [N, HV, K, V].
        decay: the log decays are ``decay * logsigmoid(normal)``.
        gate_dtype: of the gate and of beta.
        seed: of the generator.
        options: passed on to the op, for example ``scale`` or ``num_householder``.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*size: int | None) -> Tensor:
        return torch.randn(size, generator=draw, dtype=torch.float32)  # type: ignore[arg-type]

    B, T, H, HV, K, V = shape.B, shape.T, shape.H, shape.HV, shape.K, shape.V
    rows = T * shape.num_householder
    q, k, v = normal(B, T, H, K), normal(B, rows, H, K), normal(B, rows, HV, V)
    if beta is not None:
        k = torch.nn.functional.normalize(k, dim=-1)
    tensors = {"q": q.to(dtype), "k": k.to(dtype), "v": v.to(dtype)}
    if gate is not None:
        g = normal(B, T, H, K) if gate == "vector" else normal(B, T, HV)
        tensors[gate_name] = (decay * torch.nn.functional.logsigmoid(g)).to(gate_dtype)
    if beta is not None:
        b = normal(B, rows, HV) if beta == "scalar" else normal(B, rows, HV, V)
        tensors["beta"] = (2 * torch.sigmoid(b)).to(gate_dtype)
    if initial_state:
        tensors["initial_state"] = normal(shape.num_sequences, HV, K, V)
    if shape.lengths is not None:
        options["cu_seqlens"] = shape.cu_seqlens
    do, dht = normal(B, T, HV, V).to(dtype), normal(shape.num_sequences, HV, K, V)
    return Inputs(tensors, options, do, dht)


def run(op: Callable[..., Any], x: Inputs, **options: Any) -> dict[str, Tensor]:
    """Call ``op`` and return ``o``, ``ht`` and the gradient ``d<name>`` of every input tensor.

    The loss is ``(o * do).sum() + (ht * dht).sum()``, so that no gradient is forgotten.
    """
    leaves = {name: t.detach().clone().requires_grad_() for name, t in x.tensors.items()}
    o, ht = op(**leaves, **{**x.options, "output_final_state": True, **options})
    grads = grads_of((o, ht), list(leaves.values()), (x.do, x.dht))
    named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"o": o.detach(), "ht": ht.detach(), **named}


def yardstick(
    definition: Callable[..., Any], x: Inputs, **options: Any
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Run ``definition`` for `compare`: return the truth and the peers, see `Budget`.

    The truth is float64; the peers are ``x`` as it is, then ``x.nudged`` with two seeds.
    """
    peers = [run(definition, y, **options) for y in (x, x.nudged(0), x.nudged(1))]
    return run(definition, x.double(), **options), peers


def grads_of(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]
) -> list[Tensor]:
    """Return the gradient of ``sum((y * dy).sum())`` for every input, zeros where none flows."""
    pairs = [
        (y, dy.to(y.dtype))
        for y, dy in zip(outputs, cotangents, strict=True)
        if dy is not None and y.requires_grad
    ]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    ys, dys = zip(*pairs, strict=True)
    grads = torch.autograd.grad(ys, inputs, dys, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, grads, strict=True)]


@dataclass(frozen=True)
class Budget:
    """How one error measure of one tensor compares with what is allowed.

    ``allowed = factor * peer + floor``, where ``peer`` is the worst error of these, measured alike:

    - The definition in the dtype under test: what honest arithmetic costs, in the one order of
      operations that the definition happens to have.
    - The definition in float64 on nudged inputs (`Inputs.nudged`): what the problem costs. A kernel
      that computes in float32 rounds the products of its inputs (q scaled, k times beta, the
      exponential of g); even if it were exact from there on, its results would be those of nudged
      inputs. Where the problem magnifies small changes (nearly parallel keys, differences of large
      sums) the definition's order of operations may be a lucky one, and no other algorithm in
      float32 can be asked to share its luck. This peer follows from the inputs alone: where the
      problem magnifies nothing, its error is a rounding or two, of the floor's own size.

    With ``eps`` the spacing of the output's dtype at 1, ``floor`` is by measure:

    - Worst element: both results are rounded once into that dtype, each by up to ``eps / 2`` of
      the element. The peer's rounding may hide as much of its own error, ours may add as much,
      and a factor of 2 doubles the first: 1.5 eps, and 2 eps for a last bit of the operations
      before. ``floor = 2 * eps * max|truth|``.
    - Root mean square: that luck averages out over n elements, the last bit does not.
      ``floor = (0.5 + 1.5 / sqrt(n)) * eps * rms(truth)``.
    - Both: 1e-36 for terms that underflow.
    - Worst row, for gradients of decays only: the error of each time step relative to that step's
      own size, so that large gradients do not hide small ones. ``floor = 2 * eps``.
    """

    tensor: str
    measure: str
    error: float
    peer: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Tell whether the error is within what is allowed; NaN is not."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.tensor}: {self.measure} {self.error:.3e}, allowed {self.allowed:.3e} "
            f"(the peers: {self.peer:.3e})"
        )


def compare(
    actual: Results,
    truth: Results,
    no_worse_than: Results | Sequence[Results],
    factor: float = 2,
    rowwise: Collection[str] = (),
) -> list[Budget]:
    """Measure every tensor of ``actual`` against the truth; see `Budget` for what is allowed.

    Args:
        actual: results of the op under test, by name.
        truth: the same in float64.
        no_worse_than: the same from one peer or several, see `yardstick`; the worst counts, for
            every tensor and measure by itself. The first peer has the dtypes that the op must
            return.
        factor: how many times the peers' error is allowed.
        rowwise: names of the tensors [B, T, ...] that are also measured row by row.
    """
    peers = [no_worse_than] if isinstance(no_worse_than, Mapping) else no_worse_than
    for expected in (truth, *peers):
        if set(actual) != set(expected):
            raise AssertionError(f"different tensors: {sorted(actual)} and {sorted(expected)}")
    budgets: list[Budget] = []
    for name, x in actual.items():
        t, dtype = truth[name], peers[0][name].dtype
        if x.shape != t.shape or x.dtype != dtype:
            raise AssertionError(
                f"{name}: got {list(x.shape)} {x.dtype}, not {list(t.shape)} {dtype}"
            )
        if t.numel():
            known = [peer[name] for peer in peers]
            budgets += _budgets(name, x, t, known, factor, name in rowwise)
    return budgets


def assert_close(
    actual: Results,
    truth: Results,
    no_worse_than: Results | Sequence[Results],
    factor: float = 2,
    rowwise: Collection[str] = (),
) -> None:
    """Raise AssertionError naming every tensor whose error is over its budget; see `compare`."""
    bad = [b for b in compare(actual, truth, no_worse_than, factor, rowwise) if not b.ok]
    if bad:
        raise AssertionError("\n".join(["over the allowed error:", *map(str, bad)]))


def pooled(draws: Sequence[tuple[list[Budget], Mapping[str, Tensor]]]) -> list[Budget]:
    """Judge several draws of the inputs together.

    Over few elements the error of the peers is as much luck as ours. The worst error over the draws
    stands against the worst allowance over the same draws, each relative to the size of its truth
    (of "worst row", the median against the median); the factor between the two stays what it was.

    Args:
        draws: for every draw the result of `compare`, and the truth it was measured against.

    Returns:
        One relative budget per tensor and measure.
    """
    relative = [[_relative(b, truth[b.tensor]) for b in budgets] for budgets, truth in draws]
    return [_worst(same) for same in zip(*relative, strict=True)]


def _relative(budget: Budget, truth: Tensor) -> Budget:
    """Divide the errors by the size of the true values that they were measured on."""
    if budget.measure == "max":
        scale = float(truth.abs().max()) or 1.0
    elif budget.measure == "rms":
        scale = float(truth.square().mean().sqrt()) or 1.0
    else:  # a row's error is relative already
        scale = 1.0
    figures = (budget.error / scale, budget.peer / scale, budget.allowed / scale)
    return Budget(budget.tensor, budget.measure, *figures)


def _worst(draws: Sequence[Budget]) -> Budget:
    """Take the worst of every figure; a NaN in any draw stays.

    Of the worst rows it takes the median: one row in which everything cancels decides a draw, and
    how far it cancels has no typical size.
    """
    figures = torch.tensor([[b.error, b.peer, b.allowed] for b in draws], dtype=torch.float64)
    by_row = draws[0].measure == "worst row"
    error, peer, allowed = (figures.median(0).values if by_row else figures.amax(0)).tolist()
    return Budget(draws[0].tensor, draws[0].measure, error, peer, allowed)


def _budgets(
    name: str, x: Tensor, t: Tensor, peers: Sequence[Tensor], factor: float, rowwise: bool
) -> Iterable[Budget]:
    eps = torch.finfo(x.dtype).eps
    # One error tensor per candidate along the first axis, ours before the peers'.
    errors = torch.stack([(y.double() - t).abs() for y in (x, *peers)])
    measures = [
        ("max", errors.flatten(1).amax(1), 2 * eps * t.abs().max()),
        ("rms", _rms(errors, 1), (0.5 + 1.5 / math.sqrt(t.numel())) * eps * _rms(t)),
    ]
    if rowwise and t.dim() > 2:
        size = _rms(t, 2)
        kept = size > _UNDERFLOW
        if kept.any():
            rows = (_rms(errors, 3) / size)[:, kept]
            measures.append(("worst row", rows.amax(1), torch.tensor(2 * eps)))
    for measure, found, floor in measures:
        # A NaN of any peer stays and fails.
        error, peer = float(found[0]), float(found[1:].max())
        allowed = factor * peer + float(floor) + _FLUSHED
        yield Budget(name, measure, error, peer, allowed)


def _rms(x: Tensor, start: int = 0) -> Tensor:
    return x.square().flatten(start).mean(-1).sqrt()
