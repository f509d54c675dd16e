# SPDX-License-Identifier: Apache-2.0
"""Integer helpers: exact roots, divisors, and arithmetic on ranges."""

from __future__ import annotations

from functools import lru_cache
from itertools import product

# Trial division up to here takes about 3 ms.
FACTOR_LIMIT = 10**10


def root_floor(value: int, degree: int) -> int:
    """Return the largest r >= 0 with r ** degree <= value, for value >= 0 and degree >= 1."""
    if value < 2 or degree == 1:
        return value
    if degree >= value.bit_length():
        return 1
    low, high = 1, 1 << (value.bit_length() // degree + 1)
    while high - low > 1:
        middle = (low + high) >> 1
        if middle**degree <= value:
            low = middle
        else:
            high = middle
    return low


def root_ceil(value: int, degree: int) -> int:
    """Return the smallest r >= 0 with r ** degree >= value, for value >= 0 and degree >= 1."""
    r = root_floor(value, degree)
    return r if r**degree == value else r + 1


def log_floor(value: int, base: int) -> int:
    """Return the largest e >= 0 with base ** e <= value, for value >= 1 and base >= 2."""
    e, power = 0, base
    while power <= value:
        e += 1
        power *= base
    return e


def log_ceil(value: int, base: int) -> int:
    """Return the smallest e >= 0 with base ** e >= value, for base >= 2."""
    e, power = 0, 1
    while power < value:
        e += 1
        power *= base
    return e


@lru_cache(maxsize=4096)
def divisors(number: int) -> tuple[int, ...]:
    """Return the positive divisors of ``number`` (not 0; at most 10**10 in size), ascending."""
    rest = abs(number)
    if rest == 0 or rest > FACTOR_LIMIT:
        raise ValueError(f"divisors of {number}: the number must be 1 to {FACTOR_LIMIT} in size.")
    found = [1]
    factor = 2
    while factor * factor <= rest:
        power, powers = 1, [1]
        while rest % factor == 0:
            rest //= factor
            power *= factor
            powers.append(power)
        if power > 1:
            found = [a * b for a, b in product(found, powers)]
        factor += 1 if factor == 2 else 2
    if rest > 1:
        found += [rest * d for d in found]
    return tuple(sorted(found))


def corners(xl: int, xh: int, yl: int, yh: int) -> tuple[int, int]:
    """Return the range of x * y."""
    a, b, c, d = xl * yl, xl * yh, xh * yl, xh * yh
    return min(a, b, c, d), max(a, b, c, d)


def quotients(xl: int, xh: int, yl: int, yh: int) -> tuple[int, int]:
    """Return the range of x // y for y on one side of 0."""
    a, b, c, d = xl // yl, xl // yh, xh // yl, xh // yh
    return min(a, b, c, d), max(a, b, c, d)


def remainders(xl: int, xh: int, yl: int, yh: int) -> tuple[int, int]:
    """Return a range that holds x % y, for y that is never 0."""
    low, high = min(yl + 1, 0), max(yh - 1, 0)
    if xl >= 0 and yl > 0:
        high = min(high, xh)
        if xh < yl:
            low = xl
    return low, high


def powers(xl: int, xh: int, yl: int, yh: int) -> tuple[int, int]:
    """Return a range that holds x ** y, for y >= 0."""
    if xl >= 1:
        return xl**yl, xh**yh
    if yl == yh:
        a, b = xl**yl, xh**yl
        if yl % 2 == 1:
            return a, b
        if yl == 0:
            return 1, 1
        return (0 if xl <= 0 <= xh else min(a, b)), max(a, b)
    top = max(abs(xl), abs(xh)) ** yh
    return (0 if xl >= 0 else -top), max(top, 1)
