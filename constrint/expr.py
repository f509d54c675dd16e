# SPDX-License-Identifier: Apache-2.0
"""Integer expressions and the rules (constraints) between them, built with Python's operators.

Arithmetic is Python's: ``//`` rounds down, ``%`` has the sign of the divisor, ``0 ** 0`` is 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, Union

from constrint.errors import ModelError

MAX_DEPTH = 200
MAX_BITS = 4096
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")

Operand: TypeAlias = Union["Expr", int]
Values: TypeAlias = Mapping[str, int]


def _too_deep(depth: int) -> ModelError:
    return ModelError(
        f"an expression is nested {depth} levels deep; {MAX_DEPTH} is the limit. "
        "Give a part of it a variable of its own."
    )


class Expr:
    """An integer expression: an operator of ``OPS`` and its operands."""

    __slots__ = ("args", "depth", "op", "value")
    args: tuple[Any, ...]
    depth: int

    def __init__(self, op: str, args: tuple[Expr | Rule, ...], value: int = 0):
        self.op, self.args, self.value = op, args, value
        self.depth = 1 + max((a.depth for a in args), default=0)
        if self.depth > MAX_DEPTH:
            raise _too_deep(self.depth)

    def __add__(self, other: Operand) -> Expr:
        return _chain("+", self, other)

    def __radd__(self, other: Operand) -> Expr:
        return _chain("+", const(other), self)

    def __sub__(self, other: Operand) -> Expr:
        return _chain("+", self, -const(other))

    def __rsub__(self, other: Operand) -> Expr:
        return _chain("+", const(other), -self)

    def __mul__(self, other: Operand) -> Expr:
        return _chain("*", self, other)

    def __rmul__(self, other: Operand) -> Expr:
        return _chain("*", const(other), self)

    def __floordiv__(self, other: Operand) -> Expr:
        return Expr("//", (self, _divisor(other, "//")))

    def __rfloordiv__(self, other: Operand) -> Expr:
        return Expr("//", (const(other), self))

    def __mod__(self, other: Operand) -> Expr:
        return Expr("%", (self, _divisor(other, "%")))

    def __rmod__(self, other: Operand) -> Expr:
        return Expr("%", (const(other), self))

    def __pow__(self, other: Operand) -> Expr:
        power = const(other)
        if power.op == "const" and power.value < 0:
            raise ModelError(f"`{self}` ** {power.value}: a power must be at least 0.")
        return Expr("**", (self, power))

    def __rpow__(self, other: Operand) -> Expr:
        return Expr("**", (const(other), self))

    def __neg__(self) -> Expr:
        if self.op == "const":
            return Expr("const", (), -self.value)
        return self.args[0] if self.op == "neg" else Expr("neg", (self,))

    def __pos__(self) -> Expr:
        return self

    def __abs__(self) -> Expr:
        return maximum(self, -self)

    def __eq__(self, other: object) -> Rule:  # type: ignore[override]
        return _compare("==", self, other)

    def __ne__(self, other: object) -> Rule:  # type: ignore[override]
        return _compare("!=", self, other)

    def __lt__(self, other: Operand) -> Rule:
        return _compare("<", self, other)

    def __le__(self, other: Operand) -> Rule:
        return _compare("<=", self, other)

    def __gt__(self, other: Operand) -> Rule:
        return _compare(">", self, other)

    def __ge__(self, other: Operand) -> Rule:
        return _compare(">=", self, other)

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError(f"`{self}` has no truth value before the model is solved.")

    def isin(self, values: Iterable[int]) -> Rule:
        """Return the rule that this expression takes one of ``values``."""
        wanted = tuple(sorted({integer(v) for v in integers(values, "isin")}))
        return Rule("in", (self,), wanted)

    def divisible_by(self, divisor: Operand) -> Rule:
        """Return the rule that ``divisor`` divides this expression."""
        return self % divisor == 0

    def __deepcopy__(self, memo: object) -> Expr:
        return self  # it never changes, and may be too deep for copy's recursion

    def __str__(self) -> str:
        from constrint.text.writer import expression_text

        return expression_text(self)

    def __repr__(self) -> str:
        return f"<{self}>"


class Var(Expr):
    """A variable of one model: its name and its position there."""

    __slots__ = ("index", "name", "owner")

    def __init__(self, name: str, index: int, owner: int):
        super().__init__("var", ())
        self.name, self.index, self.owner = name, index, owner


class Rule:
    """A constraint: a comparison, a set membership, or rules joined by and, or, not, implies."""

    __slots__ = ("args", "depth", "op", "values")
    args: tuple[Any, ...]
    depth: int

    def __init__(self, op: str, args: tuple[Expr | Rule, ...], values: tuple[int, ...] = ()):
        self.op, self.args, self.values = op, args, values
        self.depth = 1 + max((a.depth for a in args), default=0)
        if self.depth > MAX_DEPTH:
            raise _too_deep(self.depth)

    def __and__(self, other: Rule) -> Rule:
        return all_of(self, other)

    def __or__(self, other: Rule) -> Rule:
        return any_of(self, other)

    def __invert__(self) -> Rule:
        return Rule("not", (as_rule(self),))

    def implies(self, other: Rule) -> Rule:
        """Return the rule that whenever this one holds, ``other`` does."""
        return Rule("implies", (self, as_rule(other)))

    def count(self) -> Expr:
        """Return an expression that is 1 where this rule holds and 0 elsewhere."""
        return Expr("bool", (self,))

    def __bool__(self) -> bool:
        raise TypeError(
            f"`{self}` is a rule, not a truth value: join rules with &, | and ~ instead of "
            "and, or and not, and write `1 <= x <= 5` as two rules."
        )

    def __deepcopy__(self, memo: object) -> Rule:
        return self

    def __str__(self) -> str:
        from constrint.text.writer import rule_text

        return rule_text(self)

    def __repr__(self) -> str:
        return f"<{self}>"


def integer(value: object, name: str = "") -> int:
    """Return a plain integer; ``name`` is what the message calls it."""
    if isinstance(value, bool) or not isinstance(value, int):
        index = getattr(value, "__index__", None)
        if index is None or isinstance(value, bool):
            said = f"{name}: " if name else ""
            raise TypeError(f"{said}an integer is needed, got {described(value)}.")
        value = int(index())
    if value.bit_length() > MAX_BITS:
        raise ModelError(f"a number of {value.bit_length()} bits; {MAX_BITS} is the limit.")
    return int(value)


def integers(values: object, name: str) -> Iterable[int]:
    """Return what was given as a list of integers, none checked; a message calls it ``name``."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise TypeError(f"{name}: a list or range of integers is needed, got {described(values)}.")
    return values


def described(value: object) -> str:
    """Return a value and its type for a message; of a list the way to pass its items."""
    said = f"{value!r} ({type(value).__name__})"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"{said}; items of a list are passed one by one, as in f(*items)"
    return said


def const(value: object) -> Expr:
    """Return ``value`` as an expression; a rule counts as 1 or 0."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, Rule):
        return value.count()
    return Expr("const", (), integer(value))


def as_rule(value: object) -> Rule:
    """Return ``value``, which must be a rule."""
    if isinstance(value, Rule):
        return value
    raise TypeError(f"a rule such as `x <= 3` is needed, got {described(value)}.")


def _chain(op: str, left: Expr, right: object) -> Expr:
    """Join into one flat node, so that a sum of a thousand terms is one level deep."""
    other = const(right)
    if left.op == "const" and other.op == "const":
        value = left.value + other.value if op == "+" else left.value * other.value
        return const(value)
    head = left.args if left.op == op else (left,)
    return Expr(op, (*head, other))


def _divisor(value: Operand, op: str) -> Expr:
    divisor = const(value)
    if divisor.op == "const" and divisor.value == 0:
        raise ModelError(f"division by zero: the right side of `{op}` is 0.")
    return divisor


def _compare(op: str, left: Expr, right: object) -> Rule:
    return Rule(op, (left, const(right)))


def _flat(op: str, rules: tuple[object, ...]) -> tuple[Rule, ...]:
    found: list[Rule] = []
    for item in rules:
        rule = as_rule(item)
        found.extend(rule.args if rule.op == op else (rule,))
    return tuple(found)


def all_of(*rules: Rule) -> Rule:
    """Return the rule that every one of ``rules`` holds (none: always true)."""
    return Rule("and", _flat("and", rules))


def any_of(*rules: Rule) -> Rule:
    """Return the rule that at least one of ``rules`` holds (none: never true)."""
    return Rule("or", _flat("or", rules))


def all_different(*items: Operand) -> Rule:
    """Return the rule that no two of the expressions are equal."""
    return Rule("alldifferent", tuple(const(i) for i in items))


def maximum(first: Operand, *more: Operand) -> Expr:
    """Return the largest of the expressions."""
    return Expr("max", tuple(const(i) for i in (first, *more)))


def minimum(first: Operand, *more: Operand) -> Expr:
    """Return the smallest of the expressions."""
    return Expr("min", tuple(const(i) for i in (first, *more)))


def total(items: Iterable[Operand]) -> Expr:
    """Return the sum of the expressions; like ``sum``, but linear in their number."""
    args = tuple(const(i) for i in items)
    return Expr("+", args) if args else const(0)


def ceil_div(numerator: Operand, divisor: Operand) -> Expr:
    """Return ``numerator / divisor`` rounded up."""
    return -((-const(numerator)) // divisor)


def divides(divisor: Operand, number: Operand) -> Rule:
    """Return the rule that ``divisor`` divides ``number`` without remainder."""
    return const(number) % divisor == 0


def evaluate(expr: Expr, values: Values) -> int:
    """Compute an expression in plain integers; the names must all be in ``values``."""
    op, args = expr.op, expr.args
    if op == "const":
        return expr.value
    if isinstance(expr, Var):
        return values[expr.name]
    if op == "bool":
        return int(holds(args[0], values))
    found = [evaluate(a, values) for a in args]
    if op == "+":
        return sum(found)
    if op == "*":
        return math.prod(found)
    if op == "neg":
        return -found[0]
    if op == "//":
        return found[0] // found[1]
    if op == "%":
        return found[0] % found[1]
    if op == "**":
        return int(found[0] ** found[1])
    return max(found) if op == "max" else min(found)


def holds(rule: Rule, values: Values) -> bool:
    """Say in plain integers whether a rule holds; the names must all be in ``values``."""
    op, args = rule.op, rule.args
    if op == "and":
        return all(holds(a, values) for a in args)
    if op == "or":
        return any(holds(a, values) for a in args)
    if op == "not":
        return not holds(args[0], values)
    if op == "implies":
        return not holds(args[0], values) or holds(args[1], values)
    found = [evaluate(a, values) for a in args]
    if op == "in":
        return found[0] in rule.values
    if op == "alldifferent":
        return len(set(found)) == len(found)
    return _HOLDS[op](found[0], found[1])


_HOLDS = {
    "==": int.__eq__,
    "!=": int.__ne__,
    "<": int.__lt__,
    "<=": int.__le__,
    ">": int.__gt__,
    ">=": int.__ge__,
}


def variables_of(node: Expr | Rule) -> dict[str, Var]:
    """Return the variables below a node by name, in the order of their first appearance."""
    found: dict[str, Var] = {}
    stack: list[Expr | Rule] = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, Var):
            found.setdefault(item.name, item)
        else:
            stack.extend(reversed(item.args))
    return found
