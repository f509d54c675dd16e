# SPDX-License-Identifier: Apache-2.0
"""Propagators of linear forms for the Python twin; `_propagate` has the others."""

from __future__ import annotations

from constrint._store import FAIL, Store

Ints = tuple[int, ...]


def _sums(s: Store, xs: Ints, coefs: Ints) -> tuple[int, int]:
    low = high = 0
    for x, a in zip(xs, coefs, strict=False):
        if a > 0:
            low += a * s.lo[x]
            high += a * s.hi[x]
        else:
            low += a * s.hi[x]
            high += a * s.lo[x]
    return low, high


def _at_most(s: Store, xs: Ints, coefs: Ints, c: int, low: int, sign: int) -> None:
    """Require sum sign a_i x_i <= c, whose least value is ``low``."""
    slack = c - low
    if slack < 0:
        raise FAIL
    for x, coef in zip(xs, coefs, strict=False):
        a = sign * coef
        if a > 0:
            s.set_hi(x, s.lo[x] + slack // a)
        else:
            s.set_lo(x, s.hi[x] - slack // -a)


def linear_le(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    """Require ``sum_k consts[k] xs[k] <= consts[-1]`` where ``r`` < 0 or is ``want``.

    Where ``r`` is the other value, its negation; as soon as either is certain, fix ``r``.
    """
    c = consts[-1]
    low, high = _sums(s, xs, consts)
    if r < 0 or s.lo[r] == s.hi[r] == want:
        _at_most(s, xs, consts, c, low, 1)
    elif s.lo[r] == s.hi[r]:
        _at_most(s, xs, consts, -c - 1, -high, -1)
    elif high <= c:
        s.fix(r, want)
    elif low > c:
        s.fix(r, 1 - want)


def linear_eq(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    """Require ``sum_k consts[k] xs[k] == consts[-1]`` where ``r`` < 0 or is ``want``.

    Where ``r`` is the other value, its negation; as soon as either is certain, fix ``r``.
    """
    c = consts[-1]
    low, high = _sums(s, xs, consts)
    if r < 0 or s.lo[r] == s.hi[r] == want:
        _equal(s, xs, consts, c, low, high)
    elif s.lo[r] == s.hi[r]:
        linear_ne(s, -1, 1, xs, consts)
    elif low == high == c:
        s.fix(r, want)
    elif (
        c < low
        or c > high
        or (len(xs) == 1 and not (c % consts[0] == 0 and s.contains(xs[0], c // consts[0])))
    ):
        s.fix(r, 1 - want)


def _equal(s: Store, xs: Ints, coefs: Ints, c: int, low: int, high: int) -> None:
    if c < low or c > high:
        raise FAIL
    below, above = c - low, high - c
    for x, a in zip(xs, coefs, strict=False):
        lo, hi = s.lo[x], s.hi[x]
        if lo == hi:
            continue
        if a > 0:
            s.set_hi(x, lo + below // a)
            s.set_lo(x, hi - above // a)
        else:
            s.set_lo(x, hi - below // -a)
            s.set_hi(x, lo + above // -a)
    if len(xs) == 1:
        if not s.contains(xs[0], c // coefs[0]):
            raise FAIL
    elif len(xs) == 2:
        x, y = xs
        if s.values[x] is not None and s.values[y] is not None:
            _match(s, x, y, coefs[0], coefs[1], c)
            _match(s, y, x, coefs[1], coefs[0], c)


def _match(s: Store, x: int, y: int, a: int, b: int, c: int) -> None:
    """Keep the values of x that have a partner in y under a x + b y == c."""
    kept = []
    for v in s.domain(x):
        rest = c - a * v
        if rest % b == 0 and s.contains(y, rest // b):
            kept.append(v)
    s.keep(x, kept)


def linear_ne(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    """Require ``sum_k consts[k] xs[k] != consts[-1]``; ``r`` and ``want`` are not read."""
    rest, free = consts[-1], -1
    for k, x in enumerate(xs):
        if s.lo[x] == s.hi[x]:
            rest -= consts[k] * s.lo[x]
        elif free >= 0:
            return
        else:
            free = k
    if free < 0:
        if rest == 0:
            raise FAIL
    elif rest % consts[free] == 0:
        s.remove(xs[free], rest // consts[free])
