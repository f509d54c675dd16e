# SPDX-License-Identifier: Apache-2.0
"""From expressions to a `Flat`: sums become linear forms, every other operator a variable."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from math import gcd
from operator import floordiv, mod, mul

from constrint import _flat as F
from constrint._narrow import divisor_domains
from constrint._numbers import corners, powers, quotients, remainders
from constrint.errors import ModelError
from constrint.expr import MAX_BITS, Expr, Rule

Lin = tuple[dict[int, int], int]
Literal = tuple[int, int] | bool

# Values of an inner node are listed when its operands have at most this many pairs of values.
PAIRS = 512
_NEGATED = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}


class Compiler:
    """Builds one `Flat`; use `compile_model`."""

    def __init__(self, domains: Sequence[Sequence[int]]):
        self.flat = F.Flat(n_user=len(domains))
        self.masks: list[int] = []
        self.memo: dict[object, int] = {}
        self.must_divide: dict[int, int] = {}
        for i, domain in enumerate(domains):
            self._user_variable(i, domain)
        for i, domain in enumerate(domains):
            if len(domain) > F.ENUMERATED:
                self._long_domain(i, domain)

    def _user_variable(self, index: int, domain: Sequence[int]) -> None:
        small = len(domain) <= F.ENUMERATED
        self.variable(domain[0], domain[-1], domain if small else None, 1 << index)

    def _long_domain(self, index: int, domain: Sequence[int]) -> None:
        """State the holes of a long domain: its step with a variable of its own, or its values."""
        if not isinstance(domain, range):
            self.post(F.IN, (index,), tuple(domain))
        elif domain.step > 1:
            k = self.variable(0, len(domain) - 1, None, 1 << index)
            self.post(F.LIN_EQ, (index, k), (1, -domain.step, domain.start))

    def variable(self, lo: int, hi: int, values: Sequence[int] | None, mask: int) -> int:
        """Add a variable and return its number; ``mask`` has the bits of the model's variables."""
        if max(lo.bit_length(), hi.bit_length()) > MAX_BITS:
            raise ModelError(
                f"an expression may need numbers of more than {MAX_BITS} bits; "
                "narrow the domains of its variables."
            )
        flat = self.flat
        flat.lo.append(lo)
        flat.hi.append(hi)
        flat.values.append(values)
        self.masks.append(mask)
        return len(flat.lo) - 1

    def post(
        self, op: int, xs: tuple[int, ...], consts: tuple[int, ...] = (), r: int = -1, want: int = 1
    ) -> None:
        """Add a propagator."""
        mask = 0 if r < 0 else self.masks[r]
        for x in xs:
            mask |= self.masks[x]
        scope = []
        while mask:
            low = mask & -mask
            scope.append(low.bit_length() - 1)
            mask ^= low
        self.flat.props.append((op, r, want, xs, consts))
        self.flat.scopes.append(tuple(scope))

    def constant(self, value: int) -> int:
        """Return a variable that is fixed to ``value``."""
        key = ("const", value)
        if key not in self.memo:
            self.memo[key] = self.variable(value, value, range(value, value + 1), 0)
        return self.memo[key]

    def bounds(self, lin: Lin) -> tuple[int, int]:
        """Return the range of a linear form."""
        low = high = lin[1]
        lo, hi = self.flat.lo, self.flat.hi
        for x, a in lin[0].items():
            if a > 0:
                low += a * lo[x]
                high += a * hi[x]
            else:
                low += a * hi[x]
                high += a * lo[x]
        return low, high

    def lin(self, expr: Expr) -> Lin:
        """Return an expression as a sum of variables times constants, plus a constant."""
        op = expr.op
        if op == "const":
            return {}, expr.value
        if op == "var":
            return {expr.index: 1}, 0  # type: ignore[attr-defined]
        if op == "+":
            return self._sum(expr.args)  # type: ignore[arg-type]
        if op == "neg":
            coefs, c = self.lin(expr.args[0])  # type: ignore[arg-type]
            return {x: -a for x, a in coefs.items()}, -c
        if op == "*":
            return self._product(expr)
        if op == "bool":
            literal = self.literal(expr.args[0])  # type: ignore[arg-type]
            if isinstance(literal, bool):
                return {}, int(literal)
            x, want = literal
            return ({x: 1}, 0) if want else ({x: -1}, 1)
        if op in ("max", "min"):
            return self._extreme(expr)
        return self._binary(expr)

    def _sum(self, args: Iterable[Expr]) -> Lin:
        coefs: dict[int, int] = {}
        total = 0
        for arg in args:
            more, c = self.lin(arg)
            total += c
            for x, a in more.items():
                coefs[x] = coefs.get(x, 0) + a
        return {x: a for x, a in coefs.items() if a}, total

    def as_var(self, lin: Lin) -> int:
        """Return a variable equal to a linear form."""
        coefs, c = lin
        if not coefs:
            return self.constant(c)
        if len(coefs) == 1:
            ((x, a),) = coefs.items()
            if a == 1 and c == 0:
                return x
            values = self.flat.values[x]
            if values is not None:
                values = sorted(a * v + c for v in values)
        else:
            values = None
        key = (tuple(sorted(coefs.items())), c)
        z = self.memo.get(key)
        if z is None:
            low, high = self.bounds(lin)
            mask = 0
            for x in coefs:
                mask |= self.masks[x]
            z = self.memo[key] = self.variable(low, high, values, mask)
            self.post(F.LIN_EQ, (*coefs, z), (*coefs.values(), -1, -c))
        return z

    def _product(self, expr: Expr) -> Lin:
        scale = 1
        factors: dict[int, int] = {}
        for arg in expr.args:
            coefs, c = self.lin(arg)  # type: ignore[arg-type]
            if not coefs:
                scale *= c
            elif len(coefs) == 1 and c == 0:
                ((x, a),) = coefs.items()
                scale *= a
                factors[x] = factors.get(x, 0) + 1
            elif len(expr.args) == 2 and (other := self._constant_of(expr, arg)) is not None:
                return {x: a * other for x, a in coefs.items() if other}, c * other
            else:
                x = self.as_var((coefs, c))
                factors[x] = factors.get(x, 0) + 1
        if scale == 0 or not factors:
            return {}, scale
        hint = self.must_divide.get(id(expr), 0)
        z = -1
        for x, count in factors.items():
            power = x if count == 1 else self._function(F.POW, x, self.constant(count), hint)
            z = power if z < 0 else self._function(F.MUL, z, power, hint)
        return {z: scale}, 0

    def _constant_of(self, expr: Expr, arg: Expr | Rule) -> int | None:
        other = expr.args[1] if expr.args[0] is arg else expr.args[0]
        return other.value if isinstance(other, Expr) and other.op == "const" else None

    def _extreme(self, expr: Expr) -> Lin:
        xs = tuple(dict.fromkeys(self.as_var(self.lin(a)) for a in expr.args))  # type: ignore[arg-type]
        if len(xs) == 1:
            return {xs[0]: 1}, 0
        key = (expr.op, xs)
        if key not in self.memo:
            pick: Callable[[Iterable[int]], int] = max if expr.op == "max" else min
            low, high = pick(self.flat.lo[x] for x in xs), pick(self.flat.hi[x] for x in xs)
            if expr.op == "max" and len(expr.args) == 2 and self._opposite(*expr.args):
                low = max(low, 0)
            mask = 0
            for x in xs:
                mask |= self.masks[x]
            z = self.memo[key] = self.variable(low, high, None, mask)
            self.post(F.MAX if expr.op == "max" else F.MIN, (z, *xs))
        return {self.memo[key]: 1}, 0

    def _opposite(self, left: Expr | Rule, right: Expr | Rule) -> bool:
        """Say whether right == -left, which makes their maximum an absolute value."""
        a, c = self.lin(left)  # type: ignore[arg-type]
        b, d = self.lin(right)  # type: ignore[arg-type]
        return c == -d and a == {x: -k for x, k in b.items()}

    def _binary(self, expr: Expr) -> Lin:
        x = self.as_var(self.lin(expr.args[0]))  # type: ignore[arg-type]
        y = self.as_var(self.lin(expr.args[1]))  # type: ignore[arg-type]
        lo, hi = self.flat.lo[y], self.flat.hi[y]
        if expr.op == "**":
            self._check_power(expr, x, y)
            return {self._function(F.POW, x, y, 0): 1}, 0
        values = self.flat.values[y]
        if (lo <= 0 <= hi) and (values is None or 0 in values):
            raise ModelError(
                f"division by zero: `{expr.args[1]}` may be 0 in `{expr}` (its range is "
                f"{lo} to {hi}). Divide by a variable whose domain leaves 0 out.",
                expr,
            )
        if lo < 0 < hi:
            return {self._two_sided(expr, x, y): 1}, 0
        return {self._function(F.DIV if expr.op == "//" else F.MOD, x, y, 0): 1}, 0

    def _two_sided(self, expr: Expr, x: int, y: int) -> int:
        """A divisor of either sign, without 0: only its size bounds the result."""
        top = max(abs(self.flat.lo[y]), abs(self.flat.hi[y]))
        size = max(abs(self.flat.lo[x]), abs(self.flat.hi[x]))
        low, high = (-size, size) if expr.op == "//" else (1 - top, top - 1)
        return self._function(F.DIV if expr.op == "//" else F.MOD, x, y, 0, (low, high))

    def _check_power(self, expr: Expr, x: int, y: int) -> None:
        if self.flat.lo[y] < 0:
            raise ModelError(
                f"`{expr.args[1]}` may be negative in `{expr}`; a power must not be.", expr
            )
        size = max(abs(self.flat.lo[x]), abs(self.flat.hi[x]))
        if size > 1 and (size.bit_length() - 1) * self.flat.hi[y] > MAX_BITS:
            raise ModelError(
                f"`{expr}` may need numbers of more than {MAX_BITS} bits; narrow its domains.",
                expr,
            )

    def _function(
        self, op: int, x: int, y: int, hint: int, known: tuple[int, int] | None = None
    ) -> int:
        """Return the variable z == x op y; it divides ``hint`` unless that is 0."""
        flat = self.flat
        if op == F.MUL and x > y:
            x, y = y, x
        key = (op, x, y)
        if key in self.memo:
            return self.memo[key]
        xs, ys = flat.values[x], flat.values[y]
        values: Sequence[int] | None = None
        if xs is not None and ys is not None and len(xs) * len(ys) <= PAIRS:
            f = _FUNCTIONS[op]
            found = {f(a, b) for a in xs for b in ys}
            if hint:
                found = {v for v in found if v and hint % v == 0}
                if not found:
                    flat.fault, found = True, {1}
            if len(found) <= F.ENUMERATED:
                values = sorted(found)
            low, high = min(found), max(found)
        else:
            low, high = known or _RANGES[op](flat.lo[x], flat.hi[x], flat.lo[y], flat.hi[y])
        z = self.memo[key] = self.variable(low, high, values, self.masks[x] | self.masks[y])
        self.post(op, (z, x, y))
        return z

    def literal(self, rule: Rule) -> Literal:
        """Return (b, want): the rule holds if and only if b == want; or a constant."""
        op = rule.op
        if op == "not":
            return _flip(self.literal(rule.args[0]))  # type: ignore[arg-type]
        if op == "or":
            return self._either([self.literal(a) for a in rule.args])  # type: ignore[arg-type]
        if op == "and":
            return _flip(self._either([_flip(self.literal(a)) for a in rule.args]))  # type: ignore[arg-type]
        if op == "implies":
            first, second = (self.literal(a) for a in rule.args)  # type: ignore[arg-type]
            return self._either([_flip(first), second])
        if op == "in":
            x = self.as_var(self.lin(rule.args[0]))  # type: ignore[arg-type]
            return self._reify(F.IN, (x,), rule.values), 1
        if op == "alldifferent":
            xs = [self.as_var(self.lin(a)) for a in rule.args]  # type: ignore[arg-type]
            pairs = [(a, b) for i, a in enumerate(xs) for b in xs[:i]]
            if any(a == b for a, b in pairs):
                return False
            equal = [self._compare(({a: 1, b: -1}, 0), "==") for a, b in pairs]
            return _flip(self._either(equal))
        return self._compare(self._difference(rule), op)

    def _difference(self, rule: Rule) -> Lin:
        left, right = rule.args
        coefs, c = self.lin(left)  # type: ignore[arg-type]
        more, d = self.lin(right)  # type: ignore[arg-type]
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
                self.root(arg)  # type: ignore[arg-type]
        elif op == "not":
            self._root_not(rule.args[0])  # type: ignore[arg-type]
        elif op in ("or", "implies"):
            self._root_or(rule)
        elif op == "in":
            self._root_in(rule)
        elif op == "alldifferent":
            xs = tuple(self.as_var(self.lin(a)) for a in rule.args)  # type: ignore[arg-type]
            if len(set(xs)) < len(xs):
                self.flat.fault = True
            elif len(xs) > 1:
                self.post(F.ALLDIFF, xs)
        else:
            self._root_compare(self._difference(rule), op)

    def _root_not(self, rule: Rule) -> None:
        if rule.op in _NEGATED:
            self._root_compare(self._difference(rule), _NEGATED[rule.op])
        elif rule.op == "not":
            self.root(rule.args[0])  # type: ignore[arg-type]
        elif rule.op == "or":
            for arg in rule.args:
                self._root_not(arg)  # type: ignore[arg-type]
        elif rule.op == "implies":
            self.root(rule.args[0])  # type: ignore[arg-type]
            self._root_not(rule.args[1])  # type: ignore[arg-type]
        else:
            self._clause([_flip(self.literal(rule))])

    def _root_or(self, rule: Rule) -> None:
        args: tuple[Rule, ...] = rule.args  # type: ignore[assignment]
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
        x = self.as_var(self.lin(rule.args[0]))  # type: ignore[arg-type]
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


_FUNCTIONS: dict[int, Callable[[int, int], int]] = {
    F.MUL: mul,
    F.DIV: floordiv,
    F.MOD: mod,
    F.POW: pow,
}
_RANGES = {F.MUL: corners, F.DIV: quotients, F.MOD: remainders, F.POW: powers}


def _flip(literal: Literal) -> Literal:
    return (not literal) if isinstance(literal, bool) else (literal[0], 1 - literal[1])


def _normal(lin: Lin, op: str) -> tuple[dict[int, int], int, str]:
    """Return (coefs, c, op) of ``sum coefs op c`` with op <=, == or !=; c a bool: it is constant."""
    coefs, c = lin
    if op in (">", ">="):
        coefs, c, op = {x: -a for x, a in coefs.items()}, -c, "<" if op == ">" else "<="
    c = -c
    if op == "<":
        c, op = c - 1, "<="
    if not coefs:
        return coefs, (0 <= c if op == "<=" else (c == 0) == (op == "==")), op
    common = gcd(*coefs.values())
    if op != "<=" and c % common:
        return coefs, op == "!=", op
    if op != "<=" and next(iter(coefs.values())) < 0:
        common = -common
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
    for rule in rules:
        compiler.root(rule)
    flat = compiler.flat
    flat.order = list(order)
    flat.directions = [1] * flat.n_user
    if objective is not None:
        flat.objective = compiler.as_var(compiler.lin(objective))
        for x, slope in _slopes(compiler, objective).items():
            flat.directions[x] = 1 if slope >= 0 else -1
    return flat


def _impossible(n: int, goal: bool) -> F.Flat:
    """Return a `Flat` that is false at the root."""
    zero = [0] * n
    return F.Flat(n, zero, zero, [None] * n, directions=zero, objective=0 if goal else -1, fault=True)


def _slopes(compiler: Compiler, expr: Expr) -> dict[int, int]:
    """Guess whether an expression grows (1) or falls (-1) with each variable; 0: both."""
    op, args = expr.op, expr.args
    if op == "const" or op == "bool":
        return {}
    if op == "var":
        return {expr.index: 1}  # type: ignore[attr-defined]
    parts = [_slopes(compiler, a) for a in args]  # type: ignore[arg-type]
    signs = [1] * len(parts)
    if op == "neg":
        signs = [-1]
    elif op in ("//", "%"):
        signs = [1, -1]
    elif op == "*":
        negative = [compiler.bounds(compiler.lin(a))[1] <= 0 for a in args]  # type: ignore[arg-type]
        signs = [-1 if (sum(negative) - n) % 2 else 1 for n in negative]
    found: dict[int, int] = {}
    for part, sign in zip(parts, signs, strict=True):
        for x, slope in part.items():
            found[x] = slope * sign if found.get(x, slope * sign) == slope * sign else 0
    return found
