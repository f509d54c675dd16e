# SPDX-License-Identifier: Apache-2.0
"""What rules on single variables and constant products say about domains before the search."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from constrint._flat import ENUMERATED
from constrint._numbers import FACTOR_LIMIT, divisors
from constrint.expr import Expr, Rule, Var

# Longer domains are not walked through value by value.
WALK = 8 * ENUMERATED


def divisor_domains(
    domains: Sequence[Sequence[int]], rules: Iterable[Rule]
) -> tuple[list[Sequence[int]], dict[int, int]]:
    """Return narrower domains, and which product nodes (by id) have to divide which number."""
    narrowed = list(domains)
    hints: dict[int, int] = {}
    for rule in rules:
        for part in _conjuncts(rule):
            _narrow(narrowed, hints, part)
    return narrowed, hints


def _conjuncts(rule: Rule) -> Iterator[Rule]:
    if rule.op == "and":
        for arg in rule.args:
            yield from _conjuncts(arg)
    else:
        yield rule


def _narrow(domains: list[Sequence[int]], hints: dict[int, int], rule: Rule) -> None:
    if rule.op == "in" and isinstance(rule.args[0], Var):
        i = rule.args[0].index
        domains[i] = _common(rule.values, domains[i])
        return
    if len(rule.args) != 2 or rule.op in ("implies", "alldifferent", "or"):
        return
    left, right = rule.args
    if left.op == "const":
        left, right, op = right, left, _MIRRORED[rule.op]
    else:
        op = rule.op
    if not isinstance(left, Expr) or not isinstance(right, Expr) or right.op != "const":
        return
    c = right.value
    if isinstance(left, Var):
        domains[left.index] = _cut(domains[left.index], op, c)
    elif op == "==" and left.op == "*" and c:
        _divide(domains, hints, left, c)
    elif op == "==" and left.op == "%":
        number, divisor = left.args
        if isinstance(number, Expr) and number.op == "const" and number.value and c == 0:
            _divide(domains, hints, divisor, number.value)
        elif isinstance(number, Var) and divisor.op == "const":
            domain = domains[number.index]
            if size_of(domain) <= WALK:
                d = divisor.value
                domains[number.index] = tuple(v for v in domain if v % d == c)


_MIRRORED = {"==": "==", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def size_of(domain: Sequence[int]) -> int:
    """Return the length of a domain; ``len`` refuses ranges beyond 64 bits."""
    if isinstance(domain, range):
        return max(0, -((domain.start - domain.stop) // domain.step))
    return len(domain)


def _common(values: Sequence[int], domain: Sequence[int]) -> tuple[int, ...]:
    """Return those of ``values`` that are in a domain, which may be as long."""
    known = domain if isinstance(domain, range) else set(domain)
    return tuple(v for v in values if v in known)


def _cut(domain: Sequence[int], op: str, c: int) -> Sequence[int]:
    if isinstance(domain, range) and op in ("<", "<=", ">", ">="):
        return _cut_range(domain, op, c)
    if op in ("<", "<="):
        return domain[: bisect_right(domain, c if op == "<=" else c - 1)]
    if op in (">", ">="):
        return domain[bisect_left(domain, c if op == ">=" else c + 1) :]
    if op == "==":
        return (c,) if c in domain else ()
    if size_of(domain) <= ENUMERATED and c in domain:
        return tuple(v for v in domain if v != c)
    return domain


def _cut_range(domain: range, op: str, c: int) -> range:
    start, stop, step = domain.start, domain.stop, domain.step
    if op in ("<", "<="):
        return range(start, min(stop, c + 1 if op == "<=" else c), step)
    least = c if op == ">=" else c + 1
    return range(max(start, start - (start - least) // step * step), stop, step)


def _divide(domains: list[Sequence[int]], hints: dict[int, int], expr: Expr, number: int) -> None:
    """Note that ``expr`` divides ``number``, which is not 0; so does each of its factors."""
    if isinstance(expr, Var):
        domain = domains[expr.index]
        if size_of(domain) <= WALK:
            domains[expr.index] = tuple(v for v in domain if v and number % v == 0)
        elif abs(number) <= FACTOR_LIMIT:
            positive = divisors(number)
            both = (*(-d for d in reversed(positive)), *positive)
            domains[expr.index] = _common(both, domain)
    elif expr.op == "*":
        hints[id(expr)] = number
        for arg in expr.args:
            _divide(domains, hints, arg, number)
    elif expr.op == "neg" or (
        expr.op == "**" and expr.args[1].op == "const" and expr.args[1].value >= 1
    ):
        _divide(domains, hints, expr.args[0], number)
