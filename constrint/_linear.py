# SPDX-License-Identifier: Apache-2.0
"""Propagators of linear forms for the Python twin; `_propagate` has the others."""

from __future__ import annotations

from math import gcd

from constrint._store import FAIL, MODULUS, Store

Ints = tuple[int, ...]

# Residues of sums of more terms are not looked at.
MOST_RESIDUES = 8


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
        return
    if len(xs) == 2:
        x, y = xs
        if s.values[x] is not None and s.values[y] is not None:
            _match(s, x, y, coefs[0], coefs[1], c)
            _match(s, y, x, coefs[1], coefs[0], c)
            return
    _congruences(s, xs, coefs, c)


def congruent(s: Store, x: int, a: int, c: int, m: int) -> None:
    """Require a x == c modulo m, for m >= 1."""
    if m == 1 or m >= MODULUS:
        return
    a, c = a % m, c % m
    common = gcd(a, m)
    if c % common:
        raise FAIL
    m //= common
    s.agree(x, m, c // common * pow(a // common, -1, m) % m)


def _congruences(s: Store, xs: Ints, coefs: Ints, c: int) -> None:
    """Every x_k has to agree with the residues of the other terms of sum a_i x_i == c."""
    n = len(xs)
    if n > MOST_RESIDUES:
        return
    after = [0] * (n + 1)
    for k in range(n - 1, -1, -1):
        after[k] = gcd(after[k + 1], coefs[k] * s.residue(xs[k])[0])
    before = 0
    rest = c - sum(coefs[k] * s.residue(xs[k])[1] for k in range(n))
    for k, x in enumerate(xs):
        a, (step, base) = coefs[k], s.residue(x)
        m = gcd(before, after[k + 1])
        if m > 1 and step:
            congruent(s, x, a, rest + a * base, m)
        step, now = s.residue(x)
        rest -= a * (now - base)
        before = gcd(before, a * step)


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
