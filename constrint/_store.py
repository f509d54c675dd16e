# SPDX-License-Identifier: Apache-2.0
"""Domains of the Python twin: bounds, optional value sets, a trail to undo with, and a queue."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from math import gcd

from constrint import _flat as F

BOUNDS, HOLE, STEP = 1, 2, 4
# A part of 1 / 2**TINY is next to nothing.
TINY = 8
# Larger moduli are left alone.
MODULUS = 1 << 62


class FailError(Exception):
    """A domain became empty, or a propagator cannot hold."""


FAIL = FailError()


class Store:
    """The current domains of all variables.

    A variable with a list of values has a bit for each; bits outside lo .. hi do not count, and
    those of lo and hi are always set. Every value is ``rest`` modulo ``step``, 0 <= rest < step; an
    interval holds every such integer of lo .. hi.
    """

    def __init__(self, flat: F.Flat):
        self.lo, self.hi = list(flat.lo), list(flat.hi)
        self.values: list[Sequence[int] | None] = list(flat.values)
        self.bits = [0 if v is None else (1 << len(v)) - 1 for v in flat.values]
        self.step, self.rest = [1] * len(self.lo), [0] * len(self.lo)
        self.stamp = [0] * len(self.lo)
        self.now = 1
        self.trail: list[tuple[int, int, int, int, int, int]] = []
        self.watchers: list[list[tuple[int, int]]] = [[] for _ in self.lo]
        self.queue: deque[int] = deque()
        self.queued = bytearray(len(flat.props))

    def undo(self, length: int) -> None:
        """Restore every domain to what it was when the trail had ``length`` entries."""
        trail = self.trail
        while len(trail) > length:
            i, self.lo[i], self.hi[i], self.bits[i], self.step[i], self.rest[i] = trail.pop()
        self.now += 1

    def _save(self, i: int) -> None:
        if self.stamp[i] != self.now:
            self.stamp[i] = self.now
            bounds = self.lo[i], self.hi[i]
            self.trail.append((i, *bounds, self.bits[i], self.step[i], self.rest[i]))

    def _tell(self, i: int, event: int) -> None:
        queued = self.queued
        for p, mask in self.watchers[i]:
            if mask & event and not queued[p]:
                queued[p] = 1
                self.queue.append(p)

    def clear_queue(self) -> None:
        """Forget what waits."""
        for p in self.queue:
            self.queued[p] = 0
        self.queue.clear()

    def set_lo(self, i: int, v: int) -> None:
        """Require x_i >= v."""
        if v <= self.lo[i]:
            return
        if v > self.hi[i]:
            raise FAIL
        values = self.values[i]
        if values is not None:
            k = bisect_left(values, v)
            rest = self.bits[i] >> k
            v = values[k + (rest & -rest).bit_length() - 1]
        elif self.step[i] > 1:
            v += (self.rest[i] - v) % self.step[i]
            if v > self.hi[i]:
                raise FAIL
        self._save(i)
        self.lo[i] = v
        self._tell(i, BOUNDS)

    def set_hi(self, i: int, v: int) -> None:
        """Require x_i <= v."""
        if v >= self.hi[i]:
            return
        if v < self.lo[i]:
            raise FAIL
        values = self.values[i]
        if values is not None:
            below = self.bits[i] & ((1 << bisect_right(values, v)) - 1)
            v = values[below.bit_length() - 1]
        elif self.step[i] > 1:
            v -= (v - self.rest[i]) % self.step[i]
            if v < self.lo[i]:
                raise FAIL
        self._save(i)
        self.hi[i] = v
        self._tell(i, BOUNDS)

    def trim_lo(self, i: int, v: int) -> None:
        """Require x_i >= v, unless that cuts next to nothing off a long interval.

        Rules on remainders would otherwise walk to where they agree in a million steps.
        """
        if self.values[i] is not None or v - self.lo[i] > (self.hi[i] - self.lo[i]) >> TINY:
            self.set_lo(i, v)

    def trim_hi(self, i: int, v: int) -> None:
        """Require x_i <= v, unless that cuts next to nothing off a long interval."""
        if self.values[i] is not None or self.hi[i] - v > (self.hi[i] - self.lo[i]) >> TINY:
            self.set_hi(i, v)

    def fix(self, i: int, v: int) -> None:
        """Require x_i == v."""
        self.set_lo(i, v)
        self.set_hi(i, v)

    def remove(self, i: int, v: int) -> None:
        """Require x_i != v; inside an interval nothing happens until a bound reaches v."""
        if v == self.lo[i]:
            self.set_lo(i, v + 1)
        elif v == self.hi[i]:
            self.set_hi(i, v - 1)
        else:
            values = self.values[i]
            if values is None or not self.lo[i] < v < self.hi[i]:
                return
            k = bisect_left(values, v)
            if values[k] == v and self.bits[i] >> k & 1:
                self._save(i)
                self.bits[i] &= ~(1 << k)
                self._tell(i, HOLE)

    def contains(self, i: int, v: int) -> bool:
        """Say whether v is still in the domain."""
        if not self.lo[i] <= v <= self.hi[i]:
            return False
        values = self.values[i]
        if values is None:
            return (v - self.rest[i]) % self.step[i] == 0
        k = bisect_left(values, v)
        return values[k] == v and bool(self.bits[i] >> k & 1)

    def _window(self, i: int, values: Sequence[int]) -> tuple[int, int]:
        """Return (index of lo, the bits from lo to hi shifted down by it)."""
        first = bisect_left(values, self.lo[i])
        last = bisect_left(values, self.hi[i])
        return first, self.bits[i] >> first & ((1 << (last - first + 1)) - 1)

    def size(self, i: int) -> int:
        """Return the number of values left."""
        values = self.values[i]
        if values is None:
            return (self.hi[i] - self.lo[i]) // self.step[i] + 1
        return self._window(i, values)[1].bit_count()

    def domain(self, i: int) -> Sequence[int]:
        """Return the values left, ascending."""
        values = self.values[i]
        if values is None:
            return range(self.lo[i], self.hi[i] + 1, self.step[i])
        first, bits = self._window(i, values)
        found = []
        while bits:
            low = bits & -bits
            found.append(values[first + low.bit_length() - 1])
            bits ^= low
        return found

    def keep(self, i: int, kept: Sequence[int]) -> None:
        """Require x_i to be in ``kept``, an ascending list."""
        kept = [v for v in kept if self.contains(i, v)]
        if not kept:
            raise FAIL
        self.set_lo(i, kept[0])
        self.set_hi(i, kept[-1])
        values = self.values[i]
        if values is not None and len(kept) != self.size(i):
            bits = 0
            for v in kept:
                bits |= 1 << bisect_left(values, v)
            self._save(i)
            self.bits[i] &= bits
            self._tell(i, HOLE)

    def residue(self, i: int) -> tuple[int, int]:
        """Return (m, r): all values are r modulo m; an m of 0: there is only r."""
        if self.lo[i] == self.hi[i]:
            return 0, self.lo[i]
        return self.step[i], self.rest[i]

    def agree(self, i: int, m: int, r: int) -> None:
        """Require x_i == r modulo m, for m >= 1; very large moduli are left alone."""
        had = self.step[i]
        if m == 1 or m >= MODULUS or had >= MODULUS:
            return
        if self.lo[i] == self.hi[i]:
            if (self.lo[i] - r) % m:
                raise FAIL
            return
        common = gcd(had, m)
        if (r - self.rest[i]) % common:
            raise FAIL
        if m == common:
            return
        part = m // common
        times = (r - self.rest[i]) // common * pow(had // common, -1, part) % part
        step, rest = had * part, self.rest[i] + had * times
        self.set_lo(i, self.lo[i] + (rest - self.lo[i]) % step)
        self.set_hi(i, self.hi[i] - (self.hi[i] - rest) % step)
        if self.values[i] is not None:
            self.keep(i, [v for v in self.domain(i) if (v - rest) % step == 0])
        if self.lo[i] != self.hi[i]:
            self._save(i)
            self.step[i], self.rest[i] = step, rest
            self._tell(i, STEP)
