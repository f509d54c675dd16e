# SPDX-License-Identifier: Apache-2.0
"""What a search returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from constrint.errors import BudgetError, InfeasibleError
from constrint.expr import Var

if TYPE_CHECKING:
    from constrint.model import Model


class Status(str, Enum):
    """How a search ended.

    ``OPTIMAL``: proven best (or first in the given order); ``FEASIBLE``: a solution, with no claim
    to be the best; ``INFEASIBLE``: proven that there is none; ``EXHAUSTED``: the budget ran out
    before any solution was found.
    """

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    EXHAUSTED = "exhausted"

    def __str__(self) -> str:
        return self.value


@dataclass
class Stats:
    """What a search cost. ``seconds`` is wall time; everything else is the same on every run."""

    nodes: int = 0
    propagations: int = 0
    failures: int = 0
    seconds: float = 0.0
    backend: str = ""


@dataclass
class Result:
    """The outcome of `Model.solve`.

    Attributes:
        status: a `Status`; compares equal to its name in lower case.
        objectives: the value of every objective, in their order; () without a solution.
        bounds: what no solution can be better than, per objective; equal to ``objectives`` when
            optimal. An objective that was not reached before the budget ended has None.
        stats: nodes, propagations, time.
    """

    status: Status
    model: Model
    found: dict[str, int] | None = None
    objectives: tuple[int, ...] = ()
    bounds: tuple[int | None, ...] = ()
    stats: Stats = field(default_factory=Stats)

    @property
    def objective(self) -> int | None:
        """The value of the first objective, or None."""
        return self.objectives[0] if self.objectives else None

    @property
    def bound(self) -> int | None:
        """The proven bound of the first objective, or None."""
        return self.bounds[0] if self.bounds else None

    @property
    def values(self) -> dict[str, int]:
        """The value of every variable by name.

        Raises:
            InfeasibleError: there is no solution; the message names rules that clash.
            BudgetError: the budget ran out before a solution was found.
        """
        if self.found is not None:
            return self.found
        if self.status == Status.INFEASIBLE:
            raise InfeasibleError(str(self.model.conflict()))
        raise BudgetError(
            f"{self.model.title}: no solution within {self.stats.nodes} nodes and "
            f"{self.stats.seconds:.3g} s, and no proof that there is none. Raise max_nodes or "
            "time_limit."
        )

    def __getitem__(self, variable: Var | str) -> int:
        return self.values[variable.name if isinstance(variable, Var) else variable]

    def __bool__(self) -> bool:
        return self.found is not None

    def __str__(self) -> str:
        cost = f"{self.stats.nodes} nodes, {1000 * self.stats.seconds:.3g} ms"
        head = f"{self.model.title}: {self.status} ({cost})"
        if self.found is None:
            return head
        lines = [head, *(f"  {name} = {value}" for name, value in self.found.items())]
        pairs = zip(self.objectives, self.bounds, strict=False)
        lines += [
            f"  objective {v}" + ("" if v == b else f", none better than {b}") for v, b in pairs
        ]
        return "\n".join(lines)
