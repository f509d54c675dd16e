# SPDX-License-Identifier: Apache-2.0
"""A model: integer variables, labelled rules, objectives, and the questions one can ask of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrint._arguments import domain_of, text_of
from constrint._compile import compile_model
from constrint._flat import Flat
from constrint._search import DONE, MANY, PAUSED, SOLUTION, Budget, Search
from constrint.errors import BudgetError, ConstrintError, ModelError
from constrint.expr import (
    Expr,
    Operand,
    Rule,
    Var,
    as_rule,
    const,
    evaluate,
    holds,
    integer,
    variables_of,
)
from constrint.result import Result, Stats, Status

if TYPE_CHECKING:
    from constrint.explain import Conflict, Violation, WhyNot

DIRECTIONS = {"smallest": 1, "largest": -1}
_OWNERS = itertools.count()
# `int` inside the class is the method.
Int = int


@dataclass(frozen=True)
class LabelledRule:
    """A rule of a model and what it is called there; without a label it is called by its text."""

    rule: Rule
    label: str = ""

    @property
    def name(self) -> str:
        """The label, or the rule itself as text."""
        return self.label or str(self.rule)


@dataclass(frozen=True)
class Objective:
    """An expression to make small, or large."""

    expr: Expr
    largest: bool = False


class Model:
    """Integer variables and rules between them.

    Example:
        >>> m = Model("a tile")
        >>> rows, columns = m.int("rows", [8, 16, 32]), m.int("columns", 1, 64)
        >>> m.require(rows * columns <= 500, "it fits")
        <rows * columns <= 500>
        >>> m.require(divides(columns, 96), "columns divide the width")
        <96 % columns == 0>
        >>> m.maximize(rows * columns).solve().values
        {'rows': 32, 'columns': 12}
    """

    def __init__(self, name: str = ""):
        self.name = text_of("the name of a model", name)
        self.variables: list[Var] = []
        self.domains: list[Sequence[int]] = []
        self.rules: list[LabelledRule] = []
        self.objectives: list[Objective] = []
        self.ordering: list[tuple[Var, str]] = []
        self._by_name: dict[str, Var] = {}
        self._owner = next(_OWNERS)
        self._compiled: Flat | None = None

    @property
    def title(self) -> str:
        """The name, or "the model"."""
        return self.name or "the model"

    def int(self, name: str, domain: int | Iterable[int], last: int | None = None) -> Var:
        """Add an integer variable.

        Args:
            name: letters, digits and ``_``, not starting with a digit; unique.
            domain: its values, such as ``range(1, 9)``, ``[8, 16, 32]`` or ``divisors(160)``; or
                its first value, with ``last`` being its last one.
        Raises:
            ModelError: the name is taken or not a name, or the domain is empty.
        """
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            raise ModelError(f"{name!r} is no name: letters, digits and _ make one.")
        if name in self._by_name:
            raise ModelError(f"there is a variable `{name}` already.")
        values = domain_of(name, domain, last)
        var = Var(name, len(self.variables), self._owner)
        self.variables.append(var)
        self.domains.append(values)
        self._by_name[name] = var
        self._compiled = None
        return var

    def variable(self, name: str) -> Var:
        """Return the variable of this name."""
        name = text_of("the name of a variable", name)
        if name not in self._by_name:
            raise ModelError(f"{self.title} has no variable `{name}`; {self._names()}")
        return self._by_name[name]

    def _names(self) -> str:
        return f"there are: {', '.join(self._by_name) or 'none'}."

    def require(self, rule: Rule | bool, label: str = "") -> Rule:
        """Add a rule; ``label`` is what explanations call it.

        A plain ``True`` or ``False`` (a rule between constants) is taken as what it says.
        """
        if isinstance(rule, bool):
            rule = const(int(rule)) == 1
        rule = as_rule(rule)
        self._own(rule)
        self.rules.append(LabelledRule(rule, text_of("a label", label)))
        self._compiled = None
        return rule

    def minimize(self, expr: Operand) -> Model:
        """Ask for the smallest value of ``expr``, after the objectives named before it."""
        return self._aim(expr, largest=False)

    def maximize(self, expr: Operand) -> Model:
        """Ask for the largest value of ``expr``, after the objectives named before it."""
        return self._aim(expr, largest=True)

    def _aim(self, expr: Operand, largest: bool) -> Model:
        target = const(expr)
        self._own(target)
        self.objectives.append(Objective(target, largest))
        self._compiled = None
        return self

    def order(self, *choices: tuple[Var, str]) -> Model:
        """Ask for the solution that is first in this order: (variable, "smallest" or "largest").

        With objectives the order decides among equally good solutions.
        """
        for choice in choices:
            pair = isinstance(choice, (tuple, list)) and len(choice) == 2
            if not pair or not isinstance(choice[0], Expr):
                raise ModelError(
                    'order: each choice must be a variable and "smallest" or "largest", as in '
                    f'(x, "smallest"); got {choice!r}.'
                )
            var, direction = choice
            if direction not in tuple(DIRECTIONS):
                raise ModelError(
                    f"order of `{var}`: the direction must be smallest or largest, "
                    f"got {direction!r}."
                )
            self._own(var)
            if not isinstance(var, Var):
                raise ModelError(f"order: `{var}` is no variable; give it one of its own.")
            self.ordering.append((var, direction))
        self._compiled = None
        return self

    def _own(self, node: Expr | Rule) -> None:
        for var in variables_of(node).values():
            own = self._by_name.get(var.name)
            # A copy of this model has the same owner, and may have got other variables since.
            if var.owner != self._owner or own is None or own.index != var.index:
                raise ModelError(f"`{var.name}` belongs to another model than {self.title}.")

    def flat(self, extra: Iterable[Rule] = (), goal: Objective | None = None) -> Flat:
        """Return the form the engines read, with more rules or with an objective."""
        plain = not extra and goal is None
        if plain and self._compiled is not None:
            return self._compiled
        rules = [*(r.rule for r in self.rules), *extra]
        order = [(var.index, DIRECTIONS[direction]) for var, direction in self.ordering]
        target = None
        if goal is not None:
            target = -goal.expr if goal.largest else goal.expr
        flat = compile_model(self.domains, rules, order, target)
        if plain:
            self._compiled = flat
        return flat

    def solve(
        self,
        max_nodes: Int | None = None,
        time_limit: float | None = None,
        backend: str = "auto",
    ) -> Result:
        """Search for a solution: the best one, the first one in the order, or any.

        Args:
            max_nodes: give up after so many nodes of the search (the same answer on every run).
            time_limit: give up after so many seconds.
            backend: "auto", "cpp" or "python".
        Returns:
            A `Result`. An infeasible model is no error here; reading its values is one.
        """
        begin = time.perf_counter()
        budget, stats = Budget(max_nodes, time_limit), Stats()
        result = self._solve(budget, stats, backend)
        stats.seconds = time.perf_counter() - begin
        return result

    def _solve(self, budget: Budget, stats: Stats, backend: str) -> Result:
        if not self.objectives:
            search = Search(self.flat(), budget, backend, restarts=not self.ordering)
            state = search.advance()
            _account(stats, search)
            if state == SOLUTION:
                status = Status.OPTIMAL if self.ordering else Status.FEASIBLE
                return Result(status, self, self._checked(search.engine.solution()), stats=stats)
            return Result(
                Status.INFEASIBLE if state == DONE else Status.EXHAUSTED, self, stats=stats
            )
        return self._optimize(budget, stats, backend)

    def _optimize(self, budget: Budget, stats: Stats, backend: str) -> Result:
        """Optimize one objective after the other, each held at its best for the next."""
        held: list[Rule] = []
        found: dict[str, Int] | None = None
        bounds: list[Int | None] = []
        status = Status.OPTIMAL
        for goal in self.objectives:
            search = Search(self.flat(held, goal), budget, backend, keep=1)
            state = search.advance()
            _account(stats, search)
            budget.spend(search.engine.nodes)
            sign = -1 if goal.largest else 1
            if search.engine.best:
                value, numbers = search.engine.best[0]
                found = self._checked(numbers, held)
                held.append(goal.expr == sign * value)
            if state == DONE and not search.engine.best:
                return Result(Status.INFEASIBLE, self, stats=stats)
            if state == PAUSED:
                status = Status.FEASIBLE
                low = search.engine.bound()
                if search.engine.best:
                    low = min(low, search.engine.best[0][0])
                bounds.append(sign * low)
                break
            bounds.append(sign * value)
        if found is None:
            return Result(Status.EXHAUSTED, self, None, (), tuple(bounds), stats)
        values = tuple(evaluate(goal.expr, found) for goal in self.objectives)
        bounds += [None] * (len(values) - len(bounds))
        return Result(status, self, found, values, tuple(bounds), stats)

    def _checked(self, numbers: Sequence[Int], held: Iterable[Rule] = ()) -> dict[str, Int]:
        """Name the values and check them against every domain and rule in plain integers."""
        found = dict(zip(self._by_name, numbers, strict=True))
        for value, domain, name in zip(numbers, self.domains, found, strict=True):
            if value not in domain:
                raise ConstrintError(f"internal error: {name} = {value} is not in its domain.")
        for rule in itertools.chain((r.rule for r in self.rules), held):
            if not holds(rule, found):
                raise ConstrintError(f"internal error: {found} breaks `{rule}`.")
        return found

    def solutions(
        self,
        max_nodes: Int | None = None,
        time_limit: float | None = None,
        backend: str = "auto",
    ) -> Iterator[dict[str, Int]]:
        """Yield every solution once, in the order asked for; objectives do not matter.

        Raises:
            BudgetError: the budget ran out before the last solution was certain.
        """
        flat = self.flat()
        search = Search(flat, Budget(max_nodes, time_limit), backend)
        for numbers in search.each():
            if self._compiled is not flat:
                raise ModelError(
                    f"{self.title} was changed while its solutions were read; list them first, as "
                    "in list(m.solutions())."
                )
            yield self._checked(numbers)
        if search.advance() != DONE:
            raise _out_of_budget(self.title, search, "not all solutions were found")

    def count(
        self,
        max_nodes: Int | None = None,
        time_limit: float | None = None,
        backend: str = "auto",
    ) -> Int:
        """Return the number of solutions.

        Raises:
            BudgetError: the budget ran out before they were all counted.
        """
        search = Search(self.flat(), Budget(max_nodes, time_limit), backend, counting=True)
        if search.advance() != DONE:
            raise _out_of_budget(
                self.title, search, f"{search.engine.solutions} solutions so far, maybe more"
            )
        return search.engine.solutions

    def top(
        self,
        k: Int,
        by: Operand,
        largest: bool = False,
        max_nodes: Int | None = None,
        time_limit: float | None = None,
        backend: str = "auto",
    ) -> list[dict[str, Int]]:
        """Return the ``k`` solutions with the smallest (or largest) ``by``, the best one first.

        Raises:
            BudgetError: the budget ran out before they were certain.
        """
        k = integer(k, "top: k")
        if k < 1:
            raise ModelError(f"top: k must be at least 1, got {k}.")
        goal = Objective(const(by), largest)
        self._own(goal.expr)
        search = Search(
            self.flat((), goal), Budget(max_nodes, time_limit), backend, keep=min(k, MANY)
        )
        if search.advance() != DONE:
            raise _out_of_budget(self.title, search, f"the best {k} are not certain")
        return [self._checked(numbers) for _, numbers in search.engine.best]

    def conflict(self, time_limit: float = 10.0) -> Conflict:
        """Return a minimal set of rules and domains that cannot hold together."""
        from constrint.explain import conflict

        return conflict(self, time_limit)

    def explain(self, assignment: Mapping[str, Int]) -> list[Violation]:
        """Return which domains and rules an assignment breaks, and by how much."""
        from constrint.explain import violations

        return violations(self, assignment)

    def why_not(self, time_limit: float = 10.0, **fixed: Int) -> WhyNot:
        """Say why the answer does not have these values: ``m.why_not(rows=32)``."""
        from constrint.explain import why_not

        return why_not(self, fixed, time_limit)

    def text(self) -> str:
        """Return the model in the rule language; `parse` reads it back."""
        from constrint.text.writer import model_text

        return model_text(self)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Model {self.title}: {len(self.variables)} variables, {len(self.rules)} rules>"


def _account(stats: Stats, search: Search) -> None:
    stats.nodes += search.engine.nodes
    stats.propagations += search.engine.propagations
    stats.failures += search.engine.failures
    stats.backend = search.backend


def _out_of_budget(title: str, search: Search, what: str) -> BudgetError:
    return BudgetError(
        f"{title}: the budget ran out after {search.engine.nodes} nodes; {what}. "
        "Raise max_nodes or time_limit."
    )
