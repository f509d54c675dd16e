# SPDX-License-Identifier: Apache-2.0
"""Tile sizes of a fused recurrent network on a GPU (FlashRNN, arXiv 2412.07752).

One kernel keeps the recurrent matrix R of every head in the registers and shared memory of the
blocks that share the head, and synchronizes them at every time step. One independent problem each
for the forward and the backward pass. O is the side R's products write, K the side they sum over:

    forward   O = G D, K = D        backward   O = D, K = G D        (G gates, D units per head)

| name | unknown |
|---|---|
| tb, to | matrix-instruction tile along the batch, along O |
| H | heads in one launch |
| no, nk, nb | blocks along O, K, batch |
| lb, lo | tiles a warp loops over along batch, O |
| wk, wb | warps along K, batch |
| rc | K tiles a warp keeps in registers |
| W | warps per block |

`lexicographic` asks for the first solution in the order of the published kernel; `cheapest` ranks
the same feasible set by an estimate of the time of one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from constrint.errors import ModelError
from constrint.examples.gpus import GPUS, Gpu
from constrint.expr import Expr, Var, ceil_div, divides, maximum, minimum
from constrint.model import Model

GATES = {"elman": 1, "lstm": 4, "slstm": 4}
PAD = 8
ORDER = (
    ("tb", "largest"),
    ("H", "largest"),
    ("no", "largest"),
    ("nk", "smallest"),
    ("nb", "largest"),
    ("lb", "largest"),
    ("lo", "smallest"),
    ("wk", "largest"),
    ("wb", "largest"),
    ("rc", "largest"),
)
Pass = Literal["forward", "backward"]


@dataclass(frozen=True)
class Problem:
    """One tile problem.

    Attributes:
        width: D, units per head. heads: N. batch: B, before padding.
        direction: "forward" or "backward".
        function: "lstm", "slstm" or "elman".
        dtype_bytes: 2 (half precision) or 4 (float32 through tf32 instructions).
    """

    gpu: Gpu
    width: int
    heads: int
    batch: int
    direction: Pass = "forward"
    function: str = "lstm"
    dtype_bytes: int = 2

    def __post_init__(self) -> None:
        if self.function not in GATES:
            raise ModelError(f"function must be one of {', '.join(GATES)}; got {self.function!r}.")
        if self.direction not in ("forward", "backward"):
            raise ModelError(f"direction must be forward or backward, got {self.direction!r}.")
        if self.dtype_bytes not in (2, 4):
            raise ModelError(f"dtype_bytes must be 2 or 4, got {self.dtype_bytes}.")
        if min(self.width, self.heads, self.batch) < 1:
            raise ModelError("width, heads and batch must be at least 1.")

    @property
    def gates(self) -> int:
        """G."""
        return GATES[self.function]

    @property
    def out(self) -> int:
        """O, the side that R's products write."""
        return self.gates * self.width if self.direction == "forward" else self.width

    @property
    def inner(self) -> int:
        """K, the side that R's products sum over."""
        return self.width if self.direction == "forward" else self.gates * self.width

    @property
    def k_tile(self) -> int:
        """Depth of one matrix instruction."""
        return 16 if self.dtype_bytes == 2 else 8

    @property
    def padded_batch(self) -> int:
        """The batch as the kernel pads it."""
        unit = 8 if self.dtype_bytes == 2 else 16
        return -(-self.batch // unit) * unit


def gpu(name: str) -> Gpu:
    """Return a GPU of the table by its name."""
    if name not in GPUS:
        raise ModelError(f"no GPU {name!r} in the table; there are: {', '.join(GPUS)}.")
    return GPUS[name]


def constraints(p: Problem) -> Model:
    """Return the model with every rule and no objective."""
    m = Model(
        f"FlashRNN {p.function} {p.direction}, {p.width}x{p.heads}, batch {p.batch} on {p.gpu.name}"
    )
    half, out, inner, k = p.dtype_bytes == 2, p.out, p.inner, p.k_tile
    batch, sms = p.padded_batch, p.gpu.multiprocessors
    tiles = [8, 16, 32] if half else [16]
    tb, to = m.int("tb", tiles), m.int("to", tiles)
    heads = m.int("H", 1, p.heads)
    no, nk, nb = m.int("no", 1, sms), m.int("nk", 1, sms), m.int("nb", 1, sms)
    lb, lo = m.int("lb", 1, 4), m.int("lo", 1, out)
    wk, wb = m.int("wk", 1, 32), m.int("wb", 1, 32)
    rc = m.int("rc", 1, max(1, inner // k))
    warps = m.int("W", 1, 32)

    m.require(tb * to == 256, "an instruction tile has 256 elements")
    m.require(divides(heads, p.heads), "launches divide the heads")
    m.require(divides(no * lo * to, out), f"tiles divide the output side, {out}")
    m.require(divides(nk * wk * k, inner), f"tiles of {k} divide the inner side, {inner}")
    m.require(divides(nb * wb * lb * tb, batch), f"tiles divide the batch, {batch}")
    m.require(wk * wb * out == warps * no * lo * to, "warps cover the output side")
    m.require(32 * warps <= p.gpu.max_threads // 4, "a quarter of the threads of a block")
    m.require(no * nk * nb * heads <= sms, f"all blocks are resident on {sms} SMs")
    m.require(nk * rc * wk * k <= inner, "cached tiles are part of the inner side")
    cached = m.int("cached", 1, inner * out)
    m.require(cached * wb == to * k * rc * warps, "elements of R in registers, per block")
    accumulators = warps * tb * to * lb * (4 // p.dtype_bytes)
    capacity = p.gpu.registers * (2 if half else 1)
    m.require(cached + accumulators + warps * tb * k <= capacity, "registers")
    shared_r = _shared_matrix(p, nb, no, nk, cached)
    m.require(shared_r >= 1, "no more of R in registers than there is")
    sums = 4 * wk * nk * out * (nb * wb * lb) * tb
    padding = 4 * wk * no * nk * (nb * wb * lb) * tb * PAD
    limit = min(p.gpu.shared_bytes - 1024, 227_000)
    m.require(shared_r + sums + padding <= limit * (no * nk * nb), "shared memory")
    return m


def _shared_matrix(p: Problem, nb: Var, no: Var, nk: Var, cached: Var) -> Expr:
    """Bytes of R that stay in shared memory, over all blocks of a head."""
    size, width, gates = p.dtype_bytes, p.width, p.gates
    rows = gates if p.direction == "forward" else 1
    whole = size * gates * width * width + size * width * rows * PAD
    return nb * whole + 64 - size * cached * nb * no * nk


def lexicographic(p: Problem) -> Model:
    """Return the model that asks for the published kernel's choice."""
    m = constraints(p)
    return m.order(*((m.variable(name), way) for name, way in ORDER))


def step_cost(p: Problem, m: Model) -> Expr:
    """Return an estimate of one time step, in nanoseconds, of all launches that the heads need.

    The larger of matrix work and L2 traffic, plus the barriers. Matrix work: the busiest block's
    share of 2 B O K, at the speed of one SM, slower with fewer than 4 warps. Traffic: every block
    reads its heads' h (B K) once and, where K is split, the partial sums of its fellows; the blocks
    write h once. Barriers: none for one block per head (the block synchronizes itself), one across
    the grid otherwise, and another where K is split.
    """
    v = {var.name: var for var in m.variables}
    no, nk, nb = v["no"], v["nk"], v["nb"]
    batch, size = p.padded_batch, p.dtype_bytes
    speed = p.gpu.flops_per_sm // (1 if size == 2 else 2)
    blocks = no * nk * nb
    work = 2_000 * batch * p.out * p.inner
    # With fewer than four warps some of the four schedulers of the SM have nothing to do.
    matrix = ceil_div(ceil_div(work * 4, speed), blocks * minimum(v["W"], 4))
    per_head = size * 1000 * (no * nk * nb * (batch * p.inner) + batch * p.width)
    partial = 4 * 1000 * batch * p.out * (nk - 1)
    traffic = ceil_div(v["H"] * (per_head + partial), p.gpu.l2_bytes)
    barrier = int(1000 * p.gpu.sync_us)
    sync = barrier * (blocks > 1).count() + barrier * (nk > 1).count()
    launches = ceil_div(p.heads, v["H"])
    return launches * (maximum(matrix, traffic) + sync)


def cheapest(p: Problem) -> Model:
    """Return the model that asks for the least `step_cost`; the published order breaks ties."""
    m = constraints(p)
    m.minimize(step_cost(p, m))
    return m.order(*((m.variable(name), way) for name, way in ORDER))


__all__ = ["GPUS", "Problem", "cheapest", "constraints", "gpu", "lexicographic"]
