# SPDX-License-Identifier: Apache-2.0
"""Expressions as variables: sums become linear forms, other operators variables of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import floordiv, mod, mul

from constrint import _flat as F
from constrint._narrow import size_of
from constrint._numbers import corners, powers, quotients, remainders
from constrint.errors import ModelError
from constrint.expr import MAX_BITS, Expr, Rule, Var

Lin = tuple[dict[int, int], int]
Literal = tuple[int, int] | bool

_TOO_LARGE = 1 << MAX_BITS
_NOTHING: dict[int, int] = {}
# Values of an inner node are listed when its operands have at most this many pairs of values.
PAIRS = 64


class Lowering:
    """Builds the variables and propagators of one `Flat`; `Compiler` adds the rules to it."""

    def __init__(self, domains: Sequence[Sequence[int]]):
        self.flat = F.Flat(n_user=len(domains))
        self.masks: list[int] = []
        self.memo: dict[object, int] = {}
        # Linear forms are shared, so nobody may change one.
        self.forms: dict[int, Lin] = {}
        self.units: list[Lin] = [({i: 1}, 0) for i in range(len(domains))]
        self.scopes: dict[int, tuple[int, ...]] = {}
        self.must_divide: dict[int, int] = {}
        # What is lowered, and in how many products each of the model's variables stands there.
        self.roots: Sequence[Expr | Rule] = ()
        self.frequency: dict[int, int] | None = None
        for i, domain in enumerate(domains):
            self._user_variable(i, domain)
        for i, domain in enumerate(domains):
            if size_of(domain) > F.ENUMERATED:
                self._long_domain(i, domain)

    def _user_variable(self, index: int, domain: Sequence[int]) -> None:
        small = size_of(domain) <= F.ENUMERATED
        self.variable(domain[0], domain[-1], domain if small else None, 1 << index)

    def _long_domain(self, index: int, domain: Sequence[int]) -> None:
        """State the holes of a long domain: its step with a variable of its own, or its values."""
        if not isinstance(domain, range):
            self.post(F.IN, (index,), tuple(domain))
        elif domain.step > 1:
            k = self.variable(0, size_of(domain) - 1, None, 1 << index)
            self.post(F.LIN_EQ, (index, k), (1, -domain.step, domain.start))

    def variable(self, lo: int, hi: int, values: Sequence[int] | None, mask: int) -> int:
        """Add a variable and return its number; ``mask`` has the bits of the model's variables."""
        if lo <= -_TOO_LARGE or hi >= _TOO_LARGE:
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
        scope = self.scopes.get(mask)
        if scope is None:
            scope = self.scopes[mask] = tuple(i for i in range(mask.bit_length()) if mask >> i & 1)
        self.flat.props.append((op, r, want, xs, consts))
        self.flat.scopes.append(scope)

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
        if expr.__class__ is Var:
            return self.units[expr.index]
        if expr.op == "const":
            return _NOTHING, expr.value
        form = self.forms.get(id(expr))
        if form is None:
            form = self.forms[id(expr)] = self._lin(expr)
        return form

    def _lin(self, expr: Expr) -> Lin:
        op = expr.op
        if op == "+":
            return self._sum(expr.args)
        if op == "neg":
            coefs, c = self.lin(expr.args[0])
            return {x: -a for x, a in coefs.items()}, -c
        if op == "*":
            return self._product(expr)
        if op == "bool":
            literal = self.literal(expr.args[0])
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

    def var_of(self, expr: Expr) -> int:
        """Return a variable equal to an expression."""
        if expr.__class__ is Var:
            return expr.index
        return self.as_var(self.lin(expr))

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
        for arg in factors_of(expr):
            coefs, c = self.lin(arg)
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
        for x in sorted(factors, key=self.rank) if len(factors) > 2 else factors:
            count = factors[x]
            power = x if count == 1 else self._function(F.POW, x, self.constant(count), hint)
            z = power if z < 0 else self._function(F.MUL, z, power, hint)
        return {z: scale}, 0

    def rank(self, x: int) -> tuple[int, int]:
        """Return where variable x comes in products: the most frequent first, to share parts."""
        if self.frequency is None:
            self.frequency = frequencies(self.roots)
        return -self.frequency.get(x, 0), x

    def _constant_of(self, expr: Expr, arg: Expr | Rule) -> int | None:
        other = expr.args[1] if expr.args[0] is arg else expr.args[0]
        return other.value if isinstance(other, Expr) and other.op == "const" else None

    def _extreme(self, expr: Expr) -> Lin:
        xs = tuple(dict.fromkeys(self.var_of(a) for a in expr.args))
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

    def _opposite(self, left: Expr, right: Expr) -> bool:
        """Say whether right == -left, which makes their maximum an absolute value."""
        a, c = self.lin(left)
        b, d = self.lin(right)
        return c == -d and a == {x: -k for x, k in b.items()}

    def _binary(self, expr: Expr) -> Lin:
        x = self.var_of(expr.args[0])
        y = self.var_of(expr.args[1])
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
        raise NotImplementedError


def factors_of(expr: Expr) -> Sequence[Expr]:
    """Return the factors of a product, those of products inside it included."""
    args: tuple[Expr, ...] = expr.args
    if all(a.op != "*" for a in args):
        return args
    return [f for a in args for f in (factors_of(a) if a.op == "*" else (a,))]


def frequencies(nodes: Iterable[Expr | Rule]) -> dict[int, int]:
    """Return how many products below the nodes each variable is a factor of."""
    found: dict[int, int] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.op != "*":
            stack.extend(a for a in node.args if a.args)
            continue
        for factor in factors_of(node):  # type: ignore[arg-type]
            if isinstance(factor, Var):
                found[factor.index] = found.get(factor.index, 0) + 1
            elif factor.args:
                stack.append(factor)
    return found


_FUNCTIONS: dict[int, Callable[[int, int], int]] = {
    F.MUL: mul,
    F.DIV: floordiv,
    F.MOD: mod,
    F.POW: pow,
}
_RANGES = {F.MUL: corners, F.DIV: quotients, F.MOD: remainders, F.POW: powers}
