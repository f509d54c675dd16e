# SPDX-License-Identifier: Apache-2.0
"""The solver: against CP-SAT on random models and tile problems, against its twin, and its latency.

Our times include turning the model into what the engine reads; CP-SAT's models are built before,
and only its solver is timed (one worker; on tile problems a fixed search in the order asked for). A
row first checks every answer, and the rows of whole sets check the medians problem by problem too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.cases._cpsat import CpSat
from bench.cases._random_models import order_key, random_model
from bench.cases._tile_problems import PROBLEMS
from bench.checks import Finding
from bench.peers import HOW, PeerMissingError
from bench.registry import Contest, Entry, Size, at_least, at_most, case
from constrint import Model, Result, backend
from constrint._search import Budget, Search
from constrint.examples.flashrnn import Problem, cheapest, constraints, gpu, lexicographic
from constrint.expr import evaluate, holds

TWIN_NODES = 1500
TILES = {
    "16x48": {"K": [16], "H": [48], "B": [16]},
    "64x12": {"K": [64], "H": [12], "B": [16]},
    "256x3": {"K": [256], "H": [3], "B": [16]},
    "768x1": {"K": [768], "H": [1], "B": [16]},
    "1024x4": {"K": [1024], "H": [4], "B": [64]},
}


def _fresh(m: Model) -> Result:
    """Solve as if the model had just been written: nothing of an earlier call is used."""
    m._compiled = None
    return m.solve()


def _solve_all(models: Sequence[Model]) -> None:
    for m in models:
        _fresh(m)


def _cp_sat_all(peers: Sequence[CpSat]) -> None:
    for peer in peers:
        peer.solve()


def _wrong(models: Sequence[Model], peers: Sequence[CpSat]) -> int:
    """Count the models on which the two disagree, or where a solution breaks a rule."""
    wrong = 0
    for m, peer in zip(models, peers, strict=True):
        r, (status, values, best) = _fresh(m), peer.solve()
        good = (status == "INFEASIBLE") == (r.found is None)
        if r.found is not None and values is not None:
            good &= all(holds(rule.rule, values) for rule in m.rules)
            if m.objectives:
                good &= best == r.objective == evaluate(m.objectives[0].expr, r.found)
            elif m.ordering:
                # CP-SAT's presolve may skip the first one in the order; ours must not be later.
                good &= order_key(m, r.found) <= order_key(m, values)
        wrong += not good
    return wrong


def _time(call: Any, argument: Any) -> float:
    start = time.perf_counter()
    call(argument)
    return time.perf_counter() - start


def _medians(models: Sequence[Model], peers: Sequence[CpSat]) -> float:
    """Return our median time per problem over CP-SAT's, turn by turn."""
    ours, theirs = [], []
    for m, peer in zip(models, peers, strict=True):
        ours.append(_time(_fresh, m))
        theirs.append(_time(CpSat.solve, peer))
    return median(ours) / median(theirs)


def _against_cp_sat(models: Sequence[Model]) -> Contest:
    try:
        peers = [CpSat(m) for m in models]
    except ImportError as e:
        raise PeerMissingError(f"OR-Tools is not usable ({e}): {HOW}") from e

    def check() -> list[Finding]:
        return [
            Finding("the number of wrong answers", float(_wrong(models, peers)), 0.0),
            Finding("our median over CP-SAT's", _medians(models, peers), 1.0),
        ]

    ours = Entry("constrint", lambda: _solve_all(models), {})
    rival = Entry("OR-Tools CP-SAT", lambda: _cp_sat_all(peers), {}, peer=True)
    return Contest(ours, rival, check)


@case(
    "random",
    "fwd",
    title="{T} random models, all of them",
    bar=at_least(1, aim=10),
    sizes={"T": [1000]},
)
def _(s: Size) -> Contest:
    return _against_cp_sat([random_model(seed) for seed in range(s.T)])


@case(
    "tiles",
    "fwd",
    title=f"{len(PROBLEMS)} FlashRNN tile problems, lexicographic, all of them",
    bar=at_least(1, aim=10),
)
def _(s: Size) -> Contest:
    return _against_cp_sat([lexicographic(p) for p in PROBLEMS])


def _tile(s: Size, direction: str = "forward", name: str = "H100") -> Problem:
    return Problem(gpu(name), s.K, s.H, s.B, direction)  # type: ignore[arg-type]


def _lexicographic(s: Size) -> Contest:
    models = [lexicographic(_tile(s, way)) for way in ("forward", "backward")]
    return Contest(Entry("constrint", lambda: _solve_all(models[:1]), {}))


for _name, _sizes in TILES.items():
    case(
        "tile",
        "fwd",
        title="tile problem {K}x{H}, batch {B}, H100, lexicographic",
        metric="latency_us",
        bar=at_most(1000),
        sizes=_sizes,
        suite="constrint",
    )(_lexicographic)


@case(
    "tile",
    "fwd",
    title="tile problem {K}x{H}, batch {B}, H100, cheapest by the cost model",
    metric="latency_us",
    sizes=TILES["64x12"],
)
def _(s: Size) -> Contest:
    m = cheapest(_tile(s))
    return Contest(Entry("constrint", lambda: _fresh(m), {}))


@case(
    "tile",
    "fwd",
    title="tile problem {K}x{H}, batch {B}, A100, infeasible",
    metric="latency_us",
    bar=at_most(20_000),
    sizes={"K": [2048], "H": [1], "B": [8]},
)
def _(s: Size) -> Contest:
    m = lexicographic(_tile(s, name="A100"))
    return Contest(Entry("constrint", lambda: _fresh(m), {}))


@case(
    "explain",
    "fwd",
    title="explain the infeasible tile problem {K}x{H}, batch {B}, A100",
    metric="latency_us",
    bar=at_most(50_000),
    sizes={"K": [40, 1000, 2048, 2688], "H": [1], "B": [8]},
)
def _(s: Size) -> Contest:
    m = lexicographic(_tile(s, name="A100"))
    if m.solve():
        m.require(m.variables[0] == 0, "never")

    def check() -> list[Finding]:
        return [Finding("rules that were not proven necessary", float(not m.conflict().minimal), 0)]

    return Contest(Entry("constrint", m.conflict, {}), None, check)


@case(
    "twin",
    "fwd",
    title=f"C++ core, the first {TWIN_NODES} nodes of counting the tiles of {{K}}x{{H}}",
    bar=at_least(20),
    sizes=TILES["64x12"],
)
def _(s: Size) -> Contest:
    if backend() != "cpp":
        raise PeerMissingError("the C++ core is not built here")
    flat = constraints(_tile(s)).flat()

    def run(engine: str) -> Search:
        search = Search(flat, Budget(max_nodes=TWIN_NODES), engine, counting=True)
        search.advance()
        return search

    def check() -> list[Finding]:
        a, b = run("cpp").engine, run("python").engine
        same = (a.nodes, a.propagations, a.failures, a.solutions) == (
            b.nodes,
            b.propagations,
            b.failures,
            b.solutions,
        )
        return [Finding("the count of nodes, propagations or solutions", float(not same), 0)]

    ours = Entry("C++ core", lambda: run("cpp"), {})
    return Contest(ours, Entry("Python twin", lambda: run("python"), {}), check)
