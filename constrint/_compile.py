# SPDX-License-Identifier: Apache-2.0
"""From rules to a `Flat`: what must hold at the root, and 0/1 variables for what may hold."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from math import gcd

from constrint import _flat as F
from constrint._lower import Lin, Literal, Lowering
from constrint._narrow import divisor_domains
from constrint.expr import Expr, Rule, Var

Terms = tuple[tuple[int, int], ...]

_NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class Compiler(Lowering):
    """Builds one `Flat`; use `compile_model`."""

    def literal(self, rule: Rule) -> Literal:
        """Return (b, want): the rule holds if and only if b == want; or a constant."""
        op = rule.op
        if op == "not":
            return _flip(self.literal(rule.args[0]))
        if op == "or":
            return self._either([self.literal(a) for a in rule.args])
        if op == "and":
            return _flip(self._either([_flip(self.literal(a)) for a in rule.args]))
        if op == "implies":
            first, second = (self.literal(a) for a in rule.args)
            return self._either([_flip(first), second])
        if op == "in":
            x = self.var_of(rule.args[0])
            if not rule.values:
                return False
            return self._reify(F.IN, (x,), rule.values), 1
        if op == "alldifferent":
            xs = [self.var_of(a) for a in rule.args]
            pairs = [(a, b) for i, a in enumerate(xs) for b in xs[:i]]
            if any(a == b for a, b in pairs):
                return False
            equal = [self._compare(({a: 1, b: -1}, 0), "==") for a, b in pairs]
            return _flip(self._either(equal))
        return self._compare(self._difference(rule), op)

    def _difference(self, rule: Rule) -> Lin:
        left, right = rule.args
        coefs, c = self.lin(left)
        more, d = self.lin(right)
        if not more:
            return coefs, c - d
        coefs = dict(coefs)
        for x, a in more.items():
            coefs[x] = coefs.get(x, 0) - a
        return {x: a for x, a in coefs.items() if a}, c - d

    def _either(self, literals: list[Literal]) -> Literal:
        open_ones = [x for x in literals if not isinstance(x, bool)]
        if any(x is True for x in literals):
            return True
        if len(open_ones) < 2:
            return open_ones[0] if open_ones else False
        xs, wants = tuple(x for x, _ in open_ones), tuple(w for _, w in open_ones)
        return self._reify(F.OR, xs, wants), 1

    def _reify(self, op: int, xs: tuple[int, ...], consts: tuple[int, ...]) -> int:
        key = ("reified", op, xs, consts)
        if key not in self.memo:
            mask = 0
            for x in xs:
                mask |= self.masks[x]
            r = self.memo[key] = self.variable(0, 1, None, mask)
            self.post(op, xs, consts, r)
        return self.memo[key]

    def _compare(self, lin: Lin, op: str) -> Literal:
        """Return the literal of ``lin op 0``."""
        coefs, c, op = _normal(lin, op)
        if isinstance(c, bool):
            return c
        low, high = self.bounds((coefs, 0))
        kind = F.LIN_LE if op == "<=" else F.LIN_EQ
        if kind == F.LIN_LE and (high <= c or low > c):
            return high <= c
        if kind == F.LIN_EQ and not low <= c <= high:
            return op == "!="
        b = self._reify(kind, tuple(coefs), (*coefs.values(), c))
        return b, int(op != "!=")

    def root(self, rule: Rule) -> None:
        """State that a rule holds."""
        op = rule.op
        if op == "and":
            for arg in rule.args:
                self.root(arg)
        elif op == "not":
            self._root_not(rule.args[0])
        elif op in ("or", "implies"):
            self._root_or(rule)
        elif op == "in":
            self._root_in(rule)
        elif op == "alldifferent":
            xs = tuple(self.var_of(a) for a in rule.args)
            if len(set(xs)) < len(xs) or self._too_few(xs):
                self.flat.fault = True
            elif len(xs) > 1:
                self.post(F.ALLDIFF, xs)
        else:
            self._root_compare(self._difference(rule), op)

    def _too_few(self, xs: tuple[int, ...]) -> bool:
        """Say whether the listed values of all variables together are fewer than the variables."""
        found: set[int] = set()
        if not xs:
            return False
        for x in xs:
            values = self.flat.values[x]
            if values is None:
                return False
            found.update(values)
            if len(found) >= len(xs):
                return False
        return True

    def _root_not(self, rule: Rule) -> None:
        if rule.op in _NEGATED:
            self._root_compare(self._difference(rule), _NEGATED[rule.op])
        elif rule.op == "not":
            self.root(rule.args[0])
        elif rule.op == "or":
            for arg in rule.args:
                self._root_not(arg)
        elif rule.op == "implies":
            self.root(rule.args[0])
            self._root_not(rule.args[1])
        else:
            self._clause([_flip(self.literal(rule))])

    def _root_or(self, rule: Rule) -> None:
        args: tuple[Rule, ...] = rule.args
        if len(args) == 1:
            self.root(args[0])
            return
        literals = [self.literal(a) for a in args]
        if rule.op == "implies":
            literals[0] = _flip(literals[0])
        self._clause(literals)

    def _clause(self, literals: list[Literal]) -> None:
        if any(x is True for x in literals):
            return
        open_ones = [x for x in literals if not isinstance(x, bool)]
        if len(open_ones) > 1:
            self.post(F.OR, tuple(x for x, _ in open_ones), tuple(w for _, w in open_ones))
        elif open_ones:
            self.restrict(open_ones[0][0], open_ones[0][1], open_ones[0][1])
        else:
            self.flat.fault = True

    def _root_in(self, rule: Rule) -> None:
        x = self.var_of(rule.args[0])
        lo, hi, values = self.flat.lo[x], self.flat.hi[x], self.flat.values[x]
        left = [v for v in rule.values if lo <= v <= hi and (values is None or v in values)]
        if not left:
            self.flat.fault = True
        elif len(left) <= F.ENUMERATED:
            self.flat.lo[x], self.flat.hi[x], self.flat.values[x] = left[0], left[-1], left
        else:
            self.post(F.IN, (x,), tuple(left))

    def restrict(self, x: int, low: int, high: int) -> None:
        """Cut the domain of a variable at the root."""
        flat = self.flat
        low, high = max(low, flat.lo[x]), min(high, flat.hi[x])
        values = flat.values[x]
        if values is not None:
            values = values[bisect_left(values, low) : bisect_right(values, high)]
            if values:
                low, high = values[0], values[-1]
        if low > high or (values is not None and not values):
            flat.fault = True
            return
        flat.lo[x], flat.hi[x], flat.values[x] = low, high, values

    def _root_compare(self, lin: Lin, op: str) -> None:
        """State ``lin op 0``."""
        coefs, c, op = _normal(lin, op)
        if isinstance(c, bool):
            self.flat.fault |= not c
            return
        low, high = self.bounds((coefs, 0))
        if op == "<=":
            self._root_at_most(coefs, c, low, high)
        elif not low <= c <= high:
            self.flat.fault |= op == "=="
        elif len(coefs) == 1:
            ((x, _),) = coefs.items()
            if op == "==":
                self.restrict(x, c, c)
            else:
                self._remove(x, c)
        else:
            kind = F.LIN_EQ if op == "==" else F.LIN_NE
            self.post(kind, tuple(coefs), (*coefs.values(), c))

    def _root_at_most(self, coefs: dict[int, int], c: int, low: int, high: int) -> None:
        if low > c:
            self.flat.fault = True
        elif high <= c:
            return
        elif len(coefs) == 1:
            ((x, a),) = coefs.items()
            if a > 0:
                self.restrict(x, self.flat.lo[x], c // a)
            else:
                self.restrict(x, -(c // -a), self.flat.hi[x])
        else:
            self.post(F.LIN_LE, tuple(coefs), (*coefs.values(), c))

    def compare_sums(self) -> None:
        """Look at sums of the same terms together: they may clash, or be fixed between two rules.

        What is fixed may not be what another rule forbids; variables that are equal so may not all
        be different.
        """
        props = self.flat.props
        sums = [p for p in props if p[0] <= F.LIN_EQ and p[1] < 0 and len(p[3]) > 1]
        ranges: dict[Terms, tuple[int | None, int | None]] = {}
        stated = set()
        for op, _, _, xs, consts in sums:
            terms, sign = _terms(xs, consts)
            c = sign * consts[-1]
            if op == F.LIN_EQ:
                stated.add(terms)
            low, high = ranges.get(terms, (None, None))
            if (op == F.LIN_EQ or sign > 0) and (high is None or c < high):
                high = c
            if (op == F.LIN_EQ or sign < 0) and (low is None or c > low):
                low = c
            ranges[terms] = low, high
        fixed = {}
        for terms, (low, high) in ranges.items():
            if low is not None and high is not None and low >= high:
                fixed[terms] = low
                self.flat.fault |= low > high
        if not fixed:
            return
        for op, _, _, xs, consts in props:
            if op == F.LIN_NE and len(xs) > 1:
                terms, sign = _terms(xs, consts)
                self.flat.fault |= fixed.get(terms) == sign * consts[-1]
            elif op == F.ALLDIFF:
                self.flat.fault |= any(
                    fixed.get(((a, 1), (b, -1))) == 0 for a in xs for b in xs if a < b
                )
        for terms, c in fixed.items():
            if terms in stated:
                continue
            self.post(F.LIN_EQ, tuple(x for x, _ in terms), (*(a for _, a in terms), c))

    def _remove(self, x: int, value: int) -> None:
        values = self.flat.values[x]
        if values is None:
            self.post(F.LIN_NE, (x,), (1, value))
        elif value in values:
            left = [v for v in values if v != value]
            if left:
                self.flat.lo[x], self.flat.hi[x], self.flat.values[x] = left[0], left[-1], left
            else:
                self.flat.fault = True


def _terms(xs: tuple[int, ...], consts: tuple[int, ...]) -> tuple[Terms, int]:
    """Return the terms of a sum in a normal form, and the sign that they were multiplied with."""
    terms = sorted(zip(xs, consts, strict=False))
    if terms[0][1] > 0:
        return tuple(terms), 1
    return tuple((x, -a) for x, a in terms), -1


def _flip(literal: Literal) -> Literal:
    return (not literal) if isinstance(literal, bool) else (literal[0], 1 - literal[1])


def _normal(lin: Lin, op: str) -> tuple[dict[int, int], int, str]:
    """Return (coefs, c, op) of ``sum coefs op c``, op <=, == or !=; a bool c: it is constant."""
    coefs, c = lin
    if op in (">", ">="):
        coefs, c, op = {x: -a for x, a in coefs.items()}, -c, "<" if op == ">" else "<="
    c = -c
    if op == "<":
        c, op = c - 1, "<="
    if not coefs:
        return coefs, (c >= 0 if op == "<=" else (c == 0) == (op == "==")), op
    common = gcd(*coefs.values())
    if op != "<=":
        if c % common:
            return coefs, op == "!=", op
        if next(iter(coefs.values())) < 0:
            common = -common
    if common == 1:
        return coefs, c, op
    return {x: a // common for x, a in coefs.items()}, c // common, op


def compile_model(
    domains: Sequence[Sequence[int]],
    rules: Iterable[Rule],
    order: Sequence[tuple[int, int]] = (),
    objective: Expr | None = None,
) -> F.Flat:
    """Return the `Flat` of variables with ``domains`` under ``rules``, minimizing ``objective``."""
    rules = tuple(rules)
    narrowed, hints = divisor_domains(domains, rules)
    if not all(narrowed):
        return _impossible(len(narrowed), objective is not None)
    compiler = Compiler(narrowed)
    compiler.must_divide.update(hints)
    compiler.roots = rules if objective is None else (*rules, objective)
    for rule in rules:
        compiler.root(rule)
    compiler.compare_sums()
    flat = compiler.flat
    flat.order = list(order)
    flat.directions = [1] * flat.n_user
    if objective is not None:
        flat.objective = compiler.var_of(objective)
        for x, slope in _slopes(compiler, objective).items():
            flat.directions[x] = 1 if slope >= 0 else -1
    return flat


def _impossible(n: int, goal: bool) -> F.Flat:
    """Return a `Flat` that is false at the root."""
    zero = [0] * n
    return F.Flat(
        n, zero, zero, [None] * n, directions=zero, objective=0 if goal else -1, fault=True
    )


def _slopes(compiler: Compiler, expr: Expr) -> dict[int, int]:
    """Guess whether an expression grows (1) or falls (-1) with each variable; 0: both."""
    op, args = expr.op, expr.args
    if op == "const" or op == "bool":
        return {}
    if isinstance(expr, Var):
        return {expr.index: 1}
    parts = [_slopes(compiler, a) for a in args]
    signs = [1] * len(parts)
    if op == "neg":
        signs = [-1]
    elif op in ("//", "%"):
        signs = [1, -1]
    elif op == "*":
        negative = [compiler.bounds(compiler.lin(a))[1] <= 0 for a in args]
        signs = [-1 if (sum(negative) - n) % 2 else 1 for n in negative]
    found: dict[int, int] = {}
    for part, sign in zip(parts, signs, strict=True):
        for x, slope in part.items():
            found[x] = slope * sign if found.get(x, slope * sign) == slope * sign else 0
    return found
