# SPDX-License-Identifier: Apache-2.0
"""Why a rule cannot hold by itself: the ranges of its two sides do not meet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from constrint._numbers import corners, powers, quotients, remainders
from constrint.expr import Expr, Rule, Var

Range = tuple[int, int]


def range_of(expr: Expr, domains: Sequence[Sequence[int]]) -> Range | None:
    """Return bounds of an expression, or None where they are not easily said."""
    op = expr.op
    if op == "const":
        return expr.value, expr.value
    if isinstance(expr, Var):
        domain = domains[expr.index]
        return domain[0], domain[-1]
    if op == "bool":
        return 0, 1
    parts = [range_of(a, domains) for a in expr.args]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    first = known[0]
    if op == "+":
        return sum(p[0] for p in known), sum(p[1] for p in known)
    if op == "neg":
        return -first[1], -first[0]
    if op in ("max", "min"):
        pick = max if op == "max" else min
        return pick(p[0] for p in known), pick(p[1] for p in known)
    if op == "*":
        for part in known[1:]:
            first = corners(*first, *part)
        return first
    second = known[1]
    if op == "**":
        large = max(abs(first[0]), abs(first[1])).bit_length() * second[1] > 4096
        return None if large or second[0] < 0 else powers(*first, *second)
    if second[0] <= 0 <= second[1]:
        return None
    return (quotients if op == "//" else remainders)(*first, *second)


def impossible(rule: Rule, domains: Sequence[Sequence[int]]) -> str:
    """Return why no values in ``domains`` satisfy a rule, or "" if ranges do not tell."""
    if rule.op not in ("==", "<", "<=", ">", ">="):
        return ""
    left, right = rule.args
    if not isinstance(left, Expr) or not isinstance(right, Expr):
        return ""
    if rule.op == "==" and left.op == "%" and right.op == "const" and right.value == 0:
        return _never_divides(left)
    a, b = range_of(left, domains), range_of(right, domains)
    if a is None or b is None:
        return ""
    # Where the ranges touch, only a strict rule is impossible.
    apart = 0 if rule.op in ("<", ">") else 1
    if rule.op in ("==", ">", ">=") and b[0] - a[1] >= apart:
        return f"the left side is at most {a[1]}, the right side at least {b[0]}"
    if rule.op in ("==", "<", "<=") and a[0] - b[1] >= apart:
        return f"the left side is at least {a[0]}, the right side at most {b[1]}"
    return ""


def _never_divides(remainder: Expr) -> str:
    number, divisor = remainder.args
    if not isinstance(number, Expr) or not isinstance(divisor, Expr) or number.op != "const":
        return ""
    factors = divisor.args if divisor.op == "*" else (divisor,)
    fixed = math.prod(f.value for f in factors if isinstance(f, Expr) and f.op == "const")
    if abs(fixed) > 1 and number.value % fixed:
        return f"{fixed} does not divide {number.value}"
    return ""
