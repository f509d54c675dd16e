# SPDX-License-Identifier: Apache-2.0
"""Integer helpers: exact roots, divisors, and arithmetic on ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from math import gcd
from operator import index

# Numbers up to here are factored, in at most 50 ms or so: by trial division up to TRIAL, then by
# Pollard's rho.
FACTOR_LIMIT = 10**18
TRIAL = 1000


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


@lru_cache(maxsize=32)
def divisors(number: int) -> tuple[int, ...]:
    """Return the positive divisors of ``number`` (not 0; at most 10**18 in size), ascending."""
    rest = abs(index(number))
    if rest == 0 or rest > FACTOR_LIMIT:
        raise ValueError(f"divisors of {number}: the number must be 1 to {FACTOR_LIMIT} in size.")
    found = [1]
    for prime, count in Counter(_primes_of(rest)).items():
        found = [a * prime**k for k in range(count + 1) for a in found]
    return tuple(sorted(found))


def _primes_of(rest: int) -> Iterator[int]:
    """Yield the prime factors of ``rest``, each as often as it divides."""
    factor = 2
    while factor <= TRIAL and factor * factor <= rest:
        while rest % factor == 0:
            yield factor
            rest //= factor
        factor += 1 if factor == 2 else 2
    parts = [rest] if rest > 1 else []
    while parts:
        part = parts.pop()
        if part < TRIAL * TRIAL or _is_prime(part):
            yield part
        else:
            split = _split(part)
            parts += (split, part // split)


def _is_prime(number: int) -> bool:
    """Say whether an odd number below 3 * 10**24 is prime (Miller-Rabin, proven bases)."""
    twos = ((number - 1) & -(number - 1)).bit_length() - 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        if number % base == 0:
            return number == base
        x = pow(base, (number - 1) >> twos, number)
        if x != 1 and all(pow(x, 1 << k, number) != number - 1 for k in range(twos)):
            return False
    return True


def _split(number: int) -> int:
    """Return a proper factor of an odd composite number (Pollard's rho, one gcd in 64 steps)."""
    for c in range(1, number):
        slow = fast = 2
        factor = 1
        while factor == 1:
            before, product = (slow, fast), 1
            for _ in range(64):
                slow = (slow * slow + c) % number
                fast = (fast * fast + c) % number
                fast = (fast * fast + c) % number
                product = product * (slow - fast) % number
            factor = gcd(product, number)
        if factor == number:
            slow, fast = before
            factor = 1
            while factor == 1:
                slow = (slow * slow + c) % number
                fast = (fast * fast + c) % number
                fast = (fast * fast + c) % number
                factor = gcd(slow - fast, number)
        if factor != number:
            return factor
    raise AssertionError(f"{number} has no factor")


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
