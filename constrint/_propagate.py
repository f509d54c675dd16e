# SPDX-License-Identifier: Apache-2.0
"""Propagators of the Python twin: each removes values that its relation rules out, or fails.

`csrc/propagate.hpp` is the same algorithm step by step; the tests compare their node counts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from math import gcd
from operator import floordiv, mod, mul

from constrint import _flat as F
from constrint._linear import Ints, congruent, linear_eq, linear_le, linear_ne
from constrint._numbers import (
    FACTOR_LIMIT,
    corners,
    divisors,
    log_ceil,
    log_floor,
    powers,
    quotients,
    remainders,
    root_ceil,
    root_floor,
)
from constrint._store import BOUNDS, FAIL, HOLE, STEP, Store

# Pairs (x, y) of a relation z == f(x, y) are walked through up to this many.
PAIRS = 16
# An interval of up to so many steps is walked through for divisors of a number.
WALK = 64
# Residues of numbers beyond this are not multiplied.
HALF = 1 << 60
# Running one of these again right after itself removes nothing more.
IDEMPOTENT = frozenset((F.LIN_LE, F.LIN_NE, F.OR))

Propagator = Callable[[Store, int, int, Ints, Ints], None]


def events_of(prop: F.Prop) -> int:
    """Return the events that wake a propagator."""
    op, _, _, xs, _ = prop
    if op in (F.LIN_LE, F.LIN_NE, F.MAX, F.MIN, F.OR, F.ALLDIFF):
        return BOUNDS
    if op == F.LIN_EQ:
        return BOUNDS | STEP if len(xs) > 2 else BOUNDS | HOLE | STEP
    return BOUNDS | HOLE | STEP if op in (F.MUL, F.MOD) else BOUNDS | HOLE


def _pairs(s: Store, f: Callable[[int, int], int], z: int, x: int, y: int) -> None:
    """Keep exactly the values that occur in a triple z == f(x, y), if there are few pairs."""
    if s.size(x) * s.size(y) > PAIRS:
        return
    ys = s.domain(y)
    kept_x, kept_y, kept_z = [], set(), set()
    for a in s.domain(x):
        supported = False
        for b in ys:
            v = f(a, b)
            if s.contains(z, v):
                supported = True
                kept_y.add(b)
                kept_z.add(v)
        if supported:
            kept_x.append(a)
    s.keep(x, kept_x)
    s.keep(y, sorted(kept_y))
    s.keep(z, sorted(kept_z))


def _divide(s: Store, z: int, x: int, y: int) -> None:
    """Cut the bounds of x where z == x * y."""
    zl, zh = s.lo[z], s.hi[z]
    if s.lo[y] <= 0 <= s.hi[y]:
        if zl <= 0 <= zh:
            return
        s.remove(y, 0)
    yl, yh = s.lo[y], s.hi[y]
    if yl < 0 < yh:
        top = max(zh, -zl)
        s.set_lo(x, -top)
        s.set_hi(x, top)
        return
    s.set_lo(x, min(-(-zl // yl), -(-zl // yh), -(-zh // yl), -(-zh // yh)))
    s.set_hi(x, max(zl // yl, zl // yh, zh // yl, zh // yh))


def _product(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    z, x, y = xs
    low, high = corners(s.lo[x], s.hi[x], s.lo[y], s.hi[y])
    s.set_lo(z, low)
    s.set_hi(z, high)
    _divide(s, z, x, y)
    _divide(s, z, y, x)
    _product_residues(s, z, x, y)
    if s.lo[z] == s.hi[z]:
        _dividing(s, s.lo[z], x)
        _dividing(s, s.lo[z], y)
    _pairs(s, mul, z, x, y)


def _product_residues(s: Store, z: int, x: int, y: int) -> None:
    (m, a), (n, b) = s.residue(x), s.residue(y)
    if m >= HALF or n >= HALF or abs(a) >= HALF or abs(b) >= HALF:
        return
    modulus = gcd(m * n, m * b, a * n)
    if modulus:
        s.agree(z, modulus, a * b)
    _factor(s, z, x, y)
    _factor(s, z, y, x)


def _factor(s: Store, z: int, x: int, y: int) -> None:
    """Require y x == z modulo everything that is known of y and z."""
    (n, b), (k, c) = s.residue(y), s.residue(z)
    modulus = gcd(n, k)
    if modulus:
        congruent(s, x, b, c, modulus)


def _dividing(s: Store, number: int, y: int) -> None:
    """Require that y, where it is positive, divides the number unless that is 0."""
    number = abs(number)
    if number == 0 or number > FACTOR_LIMIT or s.lo[y] == s.hi[y] or s.lo[y] <= 0:
        return
    low, high, step = s.lo[y], s.hi[y], s.step[y]
    if s.values[y] is not None:
        s.keep(y, [v for v in s.domain(y) if number % v == 0])
        return
    if (high - low) // step <= WALK:
        while low <= high and number % low:
            low += step
        while low < high and number % high:
            high -= step
        if low > high:
            raise FAIL
    else:
        every = divisors(number)
        first, last = bisect_left(every, low), bisect_right(every, high)
        if first == last:
            raise FAIL
        low, high = every[first], every[last - 1]
    s.set_lo(y, low)
    s.set_hi(y, high)


def _quotient(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    z, x, y = xs
    xl, xh, yl, yh = s.lo[x], s.hi[x], s.lo[y], s.hi[y]
    if yl < 0 < yh:
        top = max(xh, -xl)
        s.set_lo(z, -top)
        s.set_hi(z, top)
    else:
        low, high = quotients(xl, xh, yl, yh)
        s.set_lo(z, low)
        s.set_hi(z, high)
        zl, zn = s.lo[z], s.hi[z] + 1
        if yl > 0:
            s.set_lo(x, min(zl * yl, zl * yh))
            s.set_hi(x, max(zn * yl, zn * yh) - 1)
            if s.lo[x] >= 0 and zl >= 0:
                if zl >= 1:
                    s.set_hi(y, s.hi[x] // zl)
                s.set_lo(y, s.lo[x] // zn + 1)
        else:
            s.set_hi(x, max(zl * yl, zl * yh))
            s.set_lo(x, min(zn * yl, zn * yh) + 1)
    _pairs(s, floordiv, z, x, y)


def _remainder(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    z, x, y = xs
    low, high = remainders(s.lo[x], s.hi[x], s.lo[y], s.hi[y])
    s.set_lo(z, low)
    s.set_hi(z, high)
    if s.lo[y] == s.hi[y]:
        _remainder_of_constant(s, z, x, s.lo[y])
    elif s.lo[y] > 0:
        s.set_lo(y, s.lo[z] + 1)
        if s.lo[x] > s.hi[z]:
            _divisor(s, z, x, y)
        if s.lo[x] == s.hi[x] and s.lo[z] == s.hi[z]:
            _dividing(s, s.lo[x] - s.lo[z], y)
    _remainder_residues(s, z, x, y)
    _pairs(s, mod, z, x, y)


def _remainder_residues(s: Store, z: int, x: int, y: int) -> None:
    """Require x == z modulo everything that divides y for certain."""
    m = gcd(*s.residue(y))
    k, c = s.residue(z)
    s.agree(x, gcd(m, k), c)
    k, c = s.residue(x)
    s.agree(z, gcd(m, k), c)


def _remainder_of_constant(s: Store, z: int, x: int, d: int) -> None:
    xl, xh = s.lo[x], s.hi[x]
    q = xl // d
    if q == xh // d:
        base = q * d
        s.set_lo(z, xl - base)
        s.set_hi(z, xh - base)
        s.set_lo(x, s.lo[z] + base)
        s.set_hi(x, s.hi[z] + base)
    elif d > 0:
        zl, zh = s.lo[z], s.hi[z]
        rest = xl % d
        if rest < zl:
            s.trim_lo(x, xl + zl - rest)
        elif rest > zh:
            s.trim_lo(x, xl + d - rest + zl)
        rest = xh % d
        if rest > zh:
            s.trim_hi(x, xh - rest + zh)
        elif rest < zl:
            s.trim_hi(x, xh - rest - d + zh)


def _divisor(s: Store, z: int, x: int, y: int) -> None:
    """Cut bounds where x - z == q * y for x > z and y > 0, with q between ql and qh."""
    zl, zh = s.lo[z], s.hi[z]
    ql, qh = -((zh - s.lo[x]) // s.hi[y]), (s.hi[x] - zl) // s.lo[y]
    if ql > qh:
        raise FAIL
    low, high = ql * s.lo[y], qh * s.hi[y]
    s.trim_lo(x, low + zl)
    s.trim_hi(x, high + zh)
    s.trim_hi(y, (s.hi[x] - zl) // ql)
    s.trim_lo(y, -((zh - s.lo[x]) // qh))


def _power(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    z, x, y = xs
    low, high = powers(s.lo[x], s.hi[x], s.lo[y], s.hi[y])
    s.set_lo(z, low)
    s.set_hi(z, high)
    zl, zh, yl, yh = s.lo[z], s.hi[z], s.lo[y], s.hi[y]
    if yl == yh:
        if yl >= 1:
            _root(s, x, zl, zh, yl)
    elif s.lo[x] >= 2:
        s.set_hi(y, log_floor(zh, s.lo[x]))
        s.set_lo(y, log_ceil(zl, s.hi[x]))
        if s.lo[y] >= 1:
            s.set_hi(x, root_floor(zh, s.lo[y]))
        if s.hi[y] >= 1:
            s.set_lo(x, root_ceil(zl, s.hi[y]))
    _pairs(s, pow, z, x, y)


def _root(s: Store, x: int, zl: int, zh: int, n: int) -> None:
    """Cut the bounds of x where zl <= x ** n <= zh."""
    if n % 2 == 1:
        s.set_lo(x, root_ceil(zl, n) if zl >= 0 else -root_floor(-zl, n))
        s.set_hi(x, root_floor(zh, n) if zh >= 0 else -root_ceil(-zh, n))
        return
    if zh < 0:
        raise FAIL
    top = root_floor(zh, n)
    s.set_lo(x, -top)
    s.set_hi(x, top)
    if zl > 0:
        least = root_ceil(zl, n)
        if s.lo[x] > -least:
            s.set_lo(x, least)
        if s.hi[x] < least:
            s.set_hi(x, -least)


def _largest(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    z, rest = xs[0], xs[1:]
    s.set_hi(z, max(s.hi[x] for x in rest))
    s.set_lo(z, max(s.lo[x] for x in rest))
    zl, zh, able, count = s.lo[z], s.hi[z], -1, 0
    for x in rest:
        s.set_hi(x, zh)
        if s.hi[x] >= zl:
            able, count = x, count + 1
    if count == 0:
        raise FAIL
    if count == 1:
        s.set_lo(able, zl)


def _smallest(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    z, rest = xs[0], xs[1:]
    s.set_lo(z, min(s.lo[x] for x in rest))
    s.set_hi(z, min(s.hi[x] for x in rest))
    zl, zh, able, count = s.lo[z], s.hi[z], -1, 0
    for x in rest:
        s.set_lo(x, zl)
        if s.lo[x] <= zh:
            able, count = x, count + 1
    if count == 0:
        raise FAIL
    if count == 1:
        s.set_hi(able, zh)


def _either(s: Store, r: int, want: int, xs: Ints, wants: Ints) -> None:
    free = -1
    count = 0
    for k, x in enumerate(xs):
        if s.lo[x] != s.hi[x]:
            free, count = k, count + 1
        elif s.lo[x] == wants[k]:
            if r >= 0:
                s.fix(r, want)
            return
    if count == 0:
        if r < 0:
            raise FAIL
        s.fix(r, 1 - want)
    elif r >= 0 and s.lo[r] == s.hi[r] != want:
        for k, x in enumerate(xs):
            s.fix(x, 1 - wants[k])
    elif count == 1 and (r < 0 or s.lo[r] == s.hi[r]):
        s.fix(xs[free], wants[free])


def _member(s: Store, r: int, want: int, xs: Ints, allowed: Ints) -> None:
    x = xs[0]
    first, last = bisect_left(allowed, s.lo[x]), bisect_right(allowed, s.hi[x])
    if r < 0 or s.lo[r] == s.hi[r] == want:
        if first == last:
            raise FAIL
        s.set_lo(x, allowed[first])
        s.set_hi(x, allowed[last - 1])
        if s.values[x] is not None:
            s.keep(x, [v for v in s.domain(x) if _among(allowed, v)])
    elif s.lo[r] == s.hi[r]:
        for v in allowed[first:last]:
            s.remove(x, v)
        for v in reversed(allowed[first:last]):
            s.remove(x, v)
    else:
        inside = sum(1 for v in allowed[first:last] if s.contains(x, v))
        if inside == 0:
            s.fix(r, 1 - want)
        elif inside == s.size(x):
            s.fix(r, want)


def _among(allowed: Ints, v: int) -> bool:
    k = bisect_left(allowed, v)
    return k < len(allowed) and allowed[k] == v


def _different(s: Store, r: int, want: int, xs: Ints, consts: Ints) -> None:
    done = [False] * len(xs)
    again = True
    while again:
        again = False
        for k, x in enumerate(xs):
            if done[k] or s.lo[x] != s.hi[x]:
                continue
            done[k] = again = True
            v = s.lo[x]
            for other in xs:
                if other != x:
                    s.remove(other, v)
    if max(s.hi[x] for x in xs) - min(s.lo[x] for x in xs) + 1 < len(xs):
        raise FAIL


PROPAGATORS: tuple[Propagator, ...] = (
    linear_le,
    linear_eq,
    linear_ne,
    _product,
    _quotient,
    _remainder,
    _power,
    _largest,
    _smallest,
    _either,
    _member,
    _different,
)
