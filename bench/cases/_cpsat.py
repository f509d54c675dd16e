# SPDX-License-Identifier: Apache-2.0
"""A constrint model stated for OR-Tools CP-SAT, as a rival and as a check."""

from __future__ import annotations

from typing import Any

from constrint import Model
from constrint._numbers import corners, powers, quotients, remainders
from constrint.expr import Expr, Rule


class CpSat:
    """Translates a model; `solve` runs one worker.

    Sums become linear expressions. Every other operator gets a variable and CP-SAT's own constraint
    for it; floor division and remainders of negative numbers become x == q y + r with bounds on r.
    """

    def __init__(self, source: Model) -> None:
        from ortools.sat.python import cp_model

        self.cp = cp_model
        self.source = source
        self.model = cp_model.CpModel()
        self.bounds: dict[int, tuple[int, int]] = {}
        self.memo: dict[int, tuple[Any, Any]] = {}
        self.scaled: dict[int, tuple[int, int]] = {}
        self.vars = []
        for var, values in zip(source.variables, source.domains, strict=True):
            domain = cp_model.Domain.from_values(list(values))
            if isinstance(values, range) and values.step == 1:
                domain = cp_model.Domain(values[0], values[-1])
            x = self.model.new_int_var_from_domain(domain, var.name)
            self.bounds[x.index] = (values[0], values[-1])
            self.vars.append(x)
        for item in source.rules:
            self.root(item.rule)
        if source.objectives:
            goal = source.objectives[0]
            (self.model.maximize if goal.largest else self.model.minimize)(self.expr(goal.expr))
        elif source.ordering:
            self._fix_order()

    def solve(self, seconds: float = 60.0) -> tuple[str, dict[str, int] | None, Any]:
        """Return (status, values, objective); with an order and no objective: the first in it."""
        solver = self.cp.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.max_time_in_seconds = seconds
        if self.source.ordering and not self.source.objectives:
            solver.parameters.search_branching = self.cp.FIXED_SEARCH
        self.status = solver.solve(self.model)
        if self.status not in (self.cp.OPTIMAL, self.cp.FEASIBLE):
            return solver.status_name(self.status), None, None
        values = {
            v.name: solver.value(x) for v, x in zip(self.source.variables, self.vars, strict=True)
        }
        best = round(solver.objective_value) if self.source.objectives else None
        return solver.status_name(self.status), values, best

    def _fix_order(self) -> None:
        for var, way in self.source.ordering:
            pick = self.cp.SELECT_MIN_VALUE if way == "smallest" else self.cp.SELECT_MAX_VALUE
            self.model.add_decision_strategy([self.vars[var.index]], self.cp.CHOOSE_FIRST, pick)
        ordered = {var.index for var, _ in self.source.ordering}
        rest = [x for i, x in enumerate(self.vars) if i not in ordered]
        if rest:
            self.model.add_decision_strategy(rest, self.cp.CHOOSE_FIRST, self.cp.SELECT_MIN_VALUE)

    def range_of(self, e: Any) -> tuple[int, int]:
        """Return the bounds of a variable or a number."""
        return (e, e) if isinstance(e, int) else self.bounds[e.index]

    def new(self, low: int, high: int) -> Any:
        """Return a new variable."""
        x = self.model.new_int_var(low, high, "")
        self.bounds[x.index] = (low, high)
        return x

    def expr(self, e: Expr) -> Any:
        """Return an expression of CP-SAT."""
        if e.op == "const":
            return e.value
        if e.op == "var":
            return self.vars[e.index]
        if id(e) not in self.memo:
            # The expression is kept beside its translation, so that its id stays its own.
            self.memo[id(e)] = (self._translate(e), e)
        return self.memo[id(e)][0]

    def _named(self, e: Expr) -> Any:
        """Return an expression whose bounds are known: a variable or a number."""
        x = self.expr(e)
        if isinstance(x, int) or hasattr(x, "index"):
            return x
        low, high = self._linear_range(e)
        z = self.new(low, high)
        self.model.add(z == x)
        self.memo[id(e)] = (z, e)
        return z

    def _linear_range(self, e: Expr) -> tuple[int, int]:
        if e.op == "neg":
            low, high = self._linear_range(e.args[0])
            return -high, -low
        if e.op == "+":
            parts = [self._linear_range(a) for a in e.args]
            return sum(p[0] for p in parts), sum(p[1] for p in parts)
        x = self.expr(e)
        if id(e) in self.scaled:
            return self.scaled[id(e)]
        return self.range_of(x)

    def _translate(self, e: Expr) -> Any:
        if e.op == "+":
            return sum(self.expr(a) for a in e.args)
        if e.op == "neg":
            return -self.expr(e.args[0])
        if e.op == "bool":
            b = self.literal(e.args[0])
            z = self.new(0, 1)
            self.model.add(z == b)
            return z
        if e.op == "*":
            return self._product(e)
        args = [self._named(a) for a in e.args]
        if e.op in ("max", "min"):
            ranges = [self.range_of(a) for a in args]
            pick = max if e.op == "max" else min
            low, high = pick(r[0] for r in ranges), pick(r[1] for r in ranges)
            first, last = e.args[0], e.args[-1]
            if any(a.op == "neg" and a.args[0] is b for a, b in ((first, last), (last, first))):
                low = max(low, 0)  # an absolute value
            z = self.new(low, high)
            add = self.model.add_max_equality if e.op == "max" else self.model.add_min_equality
            add(z, args)
            return z
        if e.op == "**":
            return self._power(*args)
        return self._divide(e.op, *args)

    def _product(self, e: Expr) -> Any:
        scale = 1
        z: Any = None
        for arg in e.args:
            if arg.op == "const":
                scale *= arg.value
                continue
            x = self._named(arg)
            if isinstance(x, int):
                scale *= x
            elif z is None:
                z = x
            else:
                low, high = corners(*self.range_of(z), *self.range_of(x))
                p = self.new(max(low, 0) if z is x else low, high)
                self.model.add_multiplication_equality(p, [z, x])
                z = p
        if z is None:
            return scale
        ends = [scale * end for end in self.range_of(z)]
        self.scaled[id(e)] = (min(ends), max(ends))
        return scale * z

    def _power(self, x: Any, y: Any) -> Any:
        (xl, xh), (yl, yh) = self.range_of(x), self.range_of(y)
        z = self.new(*powers(xl, xh, yl, yh))
        points = [(a, b, a**b) for a in range(xl, xh + 1) for b in range(yl, yh + 1)]
        columns = [v if not isinstance(v, int) else self._fixed(v) for v in (x, y)]
        self.model.add_allowed_assignments([*columns, z], points)
        return z

    def _fixed(self, value: int) -> Any:
        return self.new(value, value)

    def _divide(self, op: str, x: Any, y: Any) -> Any:
        (xl, xh), (yl, yh) = self.range_of(x), self.range_of(y)
        if xl >= 0 and yl > 0:
            q = self.new(*quotients(xl, xh, yl, yh)) if op == "//" else None
            if q is not None:
                self.model.add_division_equality(q, x, y)
                return q
            r = self.new(*remainders(xl, xh, yl, yh))
            self.model.add_modulo_equality(r, x, y)
            return r
        if yl <= 0 <= yh:
            raise ValueError(f"a divisor between {yl} and {yh}")
        q = self.new(*quotients(xl, xh, yl, yh))
        p = self.new(*corners(*self.range_of(q), yl, yh))
        self.model.add_multiplication_equality(p, [q, y])
        r = x - p
        if yl > 0:
            self.model.add(r >= 0)
            self.model.add(r < y)
        else:
            self.model.add(r <= 0)
            self.model.add(r > y)
        if op == "//":
            return q
        z = self.new(min(yl + 1, 0), max(yh - 1, 0))
        self.model.add(z == r)
        return z

    def literal(self, rule: Rule) -> Any:
        """Return a Boolean that is true exactly where a rule holds."""
        if id(rule) not in self.memo:
            b = self.model.new_bool_var("")
            self.memo[id(rule)] = (b, rule)
            self._define(b, rule)
        return self.memo[id(rule)][0]

    def _define(self, b: Any, rule: Rule) -> None:
        m, op = self.model, rule.op
        if op in ("and", "or", "not", "implies"):
            parts = [self.literal(a) for a in rule.args]
            if op == "not":
                m.add(b + parts[0] == 1)
                return
            if op == "implies":
                parts[0] = ~parts[0]
            if op == "and":
                m.add_bool_and(parts).only_enforce_if(b)
                m.add_bool_or([~x for x in parts]).only_enforce_if(~b)
            else:
                m.add_bool_or(parts).only_enforce_if(b)
                m.add_bool_and([~x for x in parts]).only_enforce_if(~b)
        elif op == "in":
            x, values = self.expr(rule.args[0]), self.cp.Domain.from_values(list(rule.values))
            m.add_linear_expression_in_domain(x, values).only_enforce_if(b)
            m.add_linear_expression_in_domain(x, values.complement()).only_enforce_if(~b)
        elif op == "alldifferent":
            xs = rule.args
            pairs = [Rule("!=", (xs[i], xs[j])) for i in range(len(xs)) for j in range(i)]
            self._define(b, Rule("and", tuple(pairs)))
        else:
            _COMPARE[op](self, rule, b)
            _COMPARE[_OPPOSITE[op]](self, rule, ~b)

    def _post(self, constraint: Any, b: Any) -> None:
        if isinstance(constraint, bool):
            if not constraint:
                self.model.add_bool_or([] if b is None else [~b])
            return
        added = self.model.add(constraint)
        if b is not None:
            added.only_enforce_if(b)

    def root(self, rule: Rule) -> None:
        """State that a rule holds."""
        op = rule.op
        if op == "and":
            for arg in rule.args:
                self.root(arg)
        elif op == "or":
            self.model.add_bool_or([self.literal(a) for a in rule.args])
        elif op == "implies":
            first, second = (self.literal(a) for a in rule.args)
            self.model.add_implication(first, second)
        elif op == "not":
            self.model.add_bool_or([~self.literal(rule.args[0])])
        elif op == "alldifferent":
            self.model.add_all_different([self.expr(a) for a in rule.args])
        elif op == "in":
            values = self.cp.Domain.from_values(list(rule.values))
            self.model.add_linear_expression_in_domain(self.expr(rule.args[0]), values)
        else:
            _COMPARE[op](self, rule, None)


def _comparison(make: Any) -> Any:
    def post(self: CpSat, rule: Rule, b: Any) -> None:
        left, right = (self.expr(a) for a in rule.args)
        self._post(make(left, right), b)

    return post


_COMPARE = {
    "==": _comparison(lambda a, b: a == b),
    "!=": _comparison(lambda a, b: a != b),
    "<": _comparison(lambda a, b: a < b),
    "<=": _comparison(lambda a, b: a <= b),
    ">": _comparison(lambda a, b: a > b),
    ">=": _comparison(lambda a, b: a >= b),
}
_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
