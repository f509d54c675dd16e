# SPDX-License-Identifier: Apache-2.0
"""Why there is no solution, what an assignment breaks, and why the answer is not another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from constrint._compile import compile_model
from constrint._ranges import impossible
from constrint._search import DONE, SOLUTION, Budget, Search
from constrint.errors import BudgetError, ModelError
from constrint.expr import Expr, Rule, evaluate, holds, integer, variables_of
from constrint.result import Result
from constrint.text.writer import domain_text, expression_text, rule_text

if TYPE_CHECKING:
    from constrint.model import Model

# A domain that is left out becomes every integer of its sign up to so many times its bounds.
WIDER, AT_LEAST = 16, 100
# A question whether rules (domains) can be left out may take this many nodes; an open one counts as
# "they cannot". Open rules are asked about again, with so many times the nodes each time.
NODES, NODES_FOR_DOMAINS, PATIENCE = 150, 10, 40


@dataclass(frozen=True)
class Conflict:
    """Rules and domains that cannot hold together.

    A domain is left out where the rules clash also if its variable is any integer of the same sign
    up to 16 times its bounds (at least 100), and a short search proves it.

    Attributes:
        title: the model's name.
        rules: labels of the rules (their text where they have no label).
        domains: names of the variables whose domains take part.
        lines: one sentence per rule and domain.
        minimal: without any one of the rules there is a solution, or a divisor that may be 0;
            False: the budget ended before that was proven.
    """

    title: str
    rules: tuple[str, ...]
    domains: tuple[str, ...]
    lines: tuple[str, ...]
    minimal: bool = True

    def __str__(self) -> str:
        few = len(self.lines) == 1
        head = f"{self.title}: no solution, because {'this' if few else 'these'} cannot hold"
        tail = "" if self.minimal else "\n  (fewer of them may clash already: the budget ran out)"
        return f"{head}{'' if few else ' together'}:\n  " + "\n  ".join(self.lines) + tail


@dataclass(frozen=True)
class Violation:
    """A rule or a domain that an assignment breaks.

    Attributes:
        name: the rule's label, or the variable's name.
        text: what it says, with the values it had.
        excess: by how much it is broken; None where there is no measure.
    """

    name: str
    text: str
    excess: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


@dataclass(frozen=True)
class WhyNot:
    """Why the answer does not have certain values.

    Attributes:
        reason: the answer in a sentence or a few.
        conflict: the rules against it, if no solution has these values.
        result: the best solution that has these values, if there is one.
    """

    reason: str
    conflict: Conflict | None = None
    result: Result | None = None

    def __str__(self) -> str:
        return self.reason


def _wide(domain: Sequence[int]) -> range:
    low, high = domain[0], domain[-1]
    top = max(AT_LEAST, WIDER * max(abs(low), abs(high)))
    first = low if 0 <= low <= 1 else (1 if low > 1 else -top)
    last = high if -1 <= high <= 0 else (-1 if high < -1 else top)
    return range(first, last + 1)


class _Shrinker:
    """Leaves out rules and domains of an infeasible model as long as it stays infeasible."""

    def __init__(self, model: Model, assumed: Sequence[Rule], budget: Budget):
        self.model, self.assumed, self.budget = model, assumed, budget
        # Whether some rule was kept without a proof that it is needed.
        self.open = False
        self.wide = [_wide(d) for d in model.domains]
        self.every = range(len(model.domains))

    def shrink(self) -> tuple[list[int], list[int]]:
        """Leave out rules while every domain stays, which is quick to decide, and then domains.

        A rule that was needed beside all domains is needed beside some of them, so the outcome is
        minimal in both.
        """
        rules = self._rules()
        domains = _deleted(self.every, lambda some: self._ask(rules, some, NODES_FOR_DOMAINS)[0])
        return rules, domains

    def _rules(self) -> list[int]:
        """Return rules that clash, each of them needed: a solution of the others breaks only it."""
        kept, nodes = list(range(len(self.model.rules))), NODES
        needed: set[int] = set()
        # Those of them that only keep the others well formed, which may leave yet.
        guards: set[int] = set()
        step = len(kept)
        while len(needed) < len(kept):
            at = 0
            while at < len(kept):
                part, rest = kept[at : at + step], kept[:at] + kept[at + step :]
                if needed.isdisjoint(part):
                    gone, witness = self._ask(rest, self.every, nodes)
                    if gone:
                        kept, needed, guards = rest, needed - guards, set()
                        continue
                    found = self._only_broken(kept, part, witness)
                    needed |= found
                    if not witness:
                        guards |= found
                at += step
            if step > 1:
                step //= 2
            elif self.budget.seconds_left() <= 0:
                self.open = len(needed) < len(kept)
                break
            else:
                nodes *= PATIENCE
        return kept

    def _only_broken(
        self, kept: Sequence[int], part: Sequence[int], witness: Sequence[int] | None
    ) -> set[int]:
        """Return the one rule that a solution of the rest breaks, if it is one."""
        if witness is None or (not witness and len(part) > 1):
            return set()
        if len(part) == 1:
            return set(part)
        values = {v.name: n for v, n in zip(self.model.variables, witness, strict=True)}
        broken = [i for i in kept if not _holds(self.model.rules[i].rule, values)]
        return set(broken) if len(broken) == 1 else set()

    def _ask(
        self, rules: Sequence[int], domains: Sequence[int], nodes: int
    ) -> tuple[bool, Sequence[int] | None]:
        """Say whether these rules and domains have no solution, for certain; or return one.

        An empty one stands for rules that are not well formed without the others.
        """
        model = self.model
        kept = set(domains)
        chosen = [d if i in kept else self.wide[i] for i, d in enumerate(model.domains)]
        picked = [model.rules[i].rule for i in rules]
        try:
            flat = compile_model(chosen, [*picked, *self.assumed])
        except ModelError:
            # Without the rest a divisor may be 0 or a power too large: that rest is needed.
            return False, ()
        left = self.budget.seconds_left()
        search = Search(flat, Budget(nodes, max(left, 0)), "auto", restarts=nodes <= NODES)
        state = search.advance()
        return state == DONE, search.engine.solution() if state == SOLUTION else None


def _deleted(items: Sequence[int], enough: Callable[[list[int]], bool]) -> list[int]:
    """Return a part of ``items`` that is enough while no part without one of it is."""
    kept = list(items)
    step = len(kept)
    while step:
        at = 0
        while at < len(kept):
            rest = kept[:at] + kept[at + step :]
            if enough(rest):
                kept = rest
            else:
                at += step
        step //= 2
    return kept


def _holds(rule: Rule, values: Mapping[str, int]) -> bool:
    try:
        return holds(rule, values)
    except ZeroDivisionError:
        return False


def conflict(model: Model, time_limit: float, assumed: Sequence[Rule] = ()) -> Conflict:
    """Return a minimal set of rules and domains that cannot hold together.

    Raises:
        ModelError: there is a solution. BudgetError: whether there is one stayed open.
    """
    budget = Budget(None, time_limit)
    whole = Search(
        compile_model(model.domains, [*(r.rule for r in model.rules), *assumed]), budget, "auto"
    )
    state = whole.advance()
    if state == SOLUTION:
        raise ModelError(f"{model.title} has a solution; there is no conflict to name.")
    if state != DONE:
        raise BudgetError(f"{model.title}: whether it has a solution was not settled in time.")
    shrinker = _Shrinker(model, assumed, budget)
    rules, domains = shrinker.shrink()
    bounds = [
        model.domains[i] if i in domains else shrinker.wide[i] for i in range(len(model.domains))
    ]
    lines = [_line(model, i, bounds, alone=len(rules) + len(domains) == 1) for i in rules]
    names = tuple(model.variables[i].name for i in domains)
    lines += [
        f"{name} in {domain_text(model.domains[i])}" for i, name in zip(domains, names, strict=True)
    ]
    return Conflict(
        model.title,
        tuple(model.rules[i].name for i in rules),
        names,
        tuple(lines),
        not shrinker.open,
    )


def _line(model: Model, index: int, bounds: Sequence[Sequence[int]], alone: bool) -> str:
    item = model.rules[index]
    text = rule_text(item.rule)
    why = impossible(item.rule, bounds) if alone else ""
    reason = f", but {why}" if why else ""
    return f"{item.label}: `{text}`{reason}" if item.label else f"`{text}`{reason}"


def violations(model: Model, assignment: Mapping[str, int]) -> list[Violation]:
    """Return the domains and rules an assignment breaks; rules with unset variables are skipped."""
    if not isinstance(assignment, Mapping):
        raise TypeError(
            "explain: values by name are needed, as in m.explain({'x': 3}), got "
            f"{type(assignment).__name__}. Those of a result are in its `values`."
        )
    values = {model.variable(name).name: integer(v, name) for name, v in assignment.items()}
    found = []
    for var, domain in zip(model.variables, model.domains, strict=True):
        if var.name in values and values[var.name] not in domain:
            text = f"{values[var.name]} is not in {domain_text(domain)}"
            gap = max(domain[0] - values[var.name], values[var.name] - domain[-1], 0)
            found.append(Violation(var.name, text + _by(gap), gap or None))
    for item in model.rules:
        if all(name in values for name in variables_of(item.rule)):
            broken = _violation(item.name, item.rule, values)
            if broken is not None:
                found.append(broken)
    return found


def _by(gap: int) -> str:
    return f", by {gap}" if gap else ""


def _violation(name: str, rule: Rule, values: Mapping[str, int]) -> Violation | None:
    try:
        if holds(rule, values):
            return None
    except ZeroDivisionError:
        return Violation(name, f"`{rule_text(rule)}` divides by zero")
    if rule.op not in ("==", "!=", "<", "<=", ">", ">="):
        return Violation(name, f"`{rule_text(rule)}` does not hold")
    left, right = rule.args
    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return None
    a, b = evaluate(left, values), evaluate(right, values)
    if left.op == "%" and rule.op == "==" and b == 0:
        number, divisor = (evaluate(x, values) for x in left.args)
        text = f"{divisor} does not divide {number}, the remainder is {a}"
        return Violation(name, text, abs(a))
    excess = abs(a - b) + (1 if rule.op in ("<", ">") else 0)
    sides = f"`{expression_text(left)}` is {a}"
    wanted = (
        f"{rule.op} {b}" if right.op == "const" else f"{rule.op} `{expression_text(right)}`, {b}"
    )
    if rule.op == "!=":
        return Violation(name, f"{sides} and must be {wanted}")
    return Violation(name, f"{sides} and must be {wanted}{_by(excess)}", excess)


def why_not(model: Model, fixed: Mapping[str, int], time_limit: float) -> WhyNot:
    """Say why the model's answer does not have the values ``fixed``."""
    if not fixed:
        raise ModelError("why_not needs at least one value, as in why_not(rows=32).")
    budget = Budget(None, time_limit)
    best = model.solve(time_limit=time_limit)
    wanted = [model.variable(name) == value for name, value in fixed.items()]
    said = ", ".join(f"{name} = {value}" for name, value in fixed.items())
    if best.found is not None and all(best.found[name] == v for name, v in fixed.items()):
        return WhyNot(f"the answer does have {said}", None, best)
    for name, value in fixed.items():
        if value not in model.domains[model.variable(name).index]:
            domain = domain_text(model.domains[model.variable(name).index])
            return WhyNot(f"{said}: {name} is in {domain}, which leaves {value} out")
    narrowed = copy.copy(model)
    narrowed.rules = list(model.rules)
    for rule in wanted:
        narrowed.require(rule)
    other = narrowed.solve(time_limit=max(budget.seconds_left(), 0.01))
    if other.status == "infeasible":
        clash = conflict(model, max(budget.seconds_left(), 0.01), wanted)
        lines = "\n  ".join(clash.lines)
        return WhyNot(f"with {said} these cannot hold:\n  {lines}", clash)
    if best.found is None or other.found is None:
        raise BudgetError(f"{model.title}: {said} was not settled within {time_limit:g} s.")
    return WhyNot(_worse(model, said, best, other), None, other)


def _worse(model: Model, said: str, best: Result, other: Result) -> str:
    if best.found is None or other.found is None:
        return ""
    for goal, a, b in zip(model.objectives, best.objectives, other.objectives, strict=True):
        if a != b:
            name, word = expression_text(goal.expr), "largest" if goal.largest else "smallest"
            sense = "at most" if goal.largest else "at least"
            if len(name) > 60:
                name = "the objective"
            return (
                f"{said} is possible, but then {name} is {sense} {b}, "
                f"{abs(a - b)} off the {word} value {a}"
            )
    for var, way in model.ordering:
        a, b = best.found[var.name], other.found[var.name]
        if a != b:
            return (
                f"{said} is possible and as good, but then {var.name} is {b} at best, and the "
                f"order asks for the {way} first: {a}"
            )
    return f"{said} is possible and as good; the search met another solution first"
