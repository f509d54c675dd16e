# SPDX-License-Identifier: Apache-2.0
"""Refutes linear rules together, over the rationals, where bounds would creep for ever.

The simplex of Dutertre and de Moura for feasibility, with Bland's rule and whole numbers: every row
keeps a common denominator. `csrc/relax.hpp` is the same algorithm step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from constrint import _flat as F
from constrint._store import Store

# More rules, more pivots or larger coefficients than these leave the question open.
MOST_ROWS, MOST_PIVOTS, COEFFICIENT = 64, 200, 1 << 60

Row = tuple[tuple[int, ...], tuple[int, ...], int | None, int | None]


def rows_of(s: Store, prop: F.Prop) -> list[Row]:
    """Return what a propagator says linearly here: (variables, factors, least, most) of sums."""
    op, r, want, xs, consts = prop
    if op in (F.MAX, F.MIN):
        z, sign = xs[0], 1 if op == F.MAX else -1
        return [((z, x), (sign, -sign), 0, None) for x in xs[1:] if x != z]
    if op in (F.MUL, F.DIV) and len(set(xs)) == 3:
        z, x, y = xs
        if op == F.MUL and s.lo[x] == s.hi[x]:
            x, y = y, x
        by = s.lo[y]
        if s.hi[y] != by or by == 0:
            return []
        if op == F.MUL:
            return [((z, x), (1, -by), 0, 0)]
        most = abs(by) - 1
        return [((x, z), (1, -by), 0, most) if by > 0 else ((x, z), (1, -by), -most, 0)]
    if op not in (F.LIN_LE, F.LIN_EQ) or (r >= 0 and s.lo[r] != s.hi[r]):
        return []
    c = consts[-1]
    if r < 0 or s.lo[r] == want:
        return [(xs, consts[:-1], c if op == F.LIN_EQ else None, c)]
    return [(xs, consts[:-1], c + 1, None)] if op == F.LIN_LE else []


def refuted(s: Store, props: Sequence[F.Prop]) -> bool:
    """Say whether no rational point in the bounds of now satisfies the linear propagators."""
    rows = [row for prop in props for row in rows_of(s, prop)]
    if not rows or len(rows) > MOST_ROWS:
        return False
    return _Tableau(s, rows).infeasible()


class _Tableau:
    """Row i says below[i] basic_i == sum_j factors[i][j] nonbasic_j; nonbasic ones have values."""

    def __init__(self, s: Store, rows: Sequence[Row]):
        places: dict[int, int] = {}
        for xs, _, _, _ in rows:
            for x in xs:
                places.setdefault(x, len(places))
        n = len(places)
        self.least: list[int | None] = [s.lo[x] for x in places]
        self.most: list[int | None] = [s.hi[x] for x in places]
        self.columns, self.basic = list(range(n)), list(range(n, n + len(rows)))
        self.values = [s.lo[x] for x in places]
        self.below = [1] * len(rows)
        self.factors = []
        for xs, factors, least, most in rows:
            row = [0] * n
            for x, a in zip(xs, factors, strict=True):
                row[places[x]] += a
            self.factors.append(row)
            self.least.append(least)
            self.most.append(most)

    def infeasible(self) -> bool:
        """Pivot until every bound holds (False), one cannot (True), or it takes too long."""
        for _ in range(MOST_PIVOTS):
            i, grows = self._broken()
            if i < 0:
                return False
            j = self._entering(i, grows)
            if j < 0:
                return True
            if not self._pivot(i, j, grows):
                return False
        return False

    def _broken(self) -> tuple[int, bool]:
        """Return the row of the first variable out of its bounds, and whether it has to grow."""
        found, grows = -1, False
        for i, row in enumerate(self.factors):
            b, d = self.basic[i], self.below[i]
            if found >= 0 and b > self.basic[found]:
                continue
            value = sum(a * v for a, v in zip(row, self.values, strict=True))
            least, most = self.least[b], self.most[b]
            if least is not None and value < least * d:
                found, grows = i, True
            elif most is not None and value > most * d:
                found, grows = i, False
        return found, grows

    def _entering(self, i: int, grows: bool) -> int:
        """Return the column of the first variable that can move row i the right way, or -1."""
        found = -1
        for j, a in enumerate(self.factors[i]):
            c = self.columns[j]
            if a == 0 or (found >= 0 and c > self.columns[found]):
                continue
            end = self.most[c] if (a > 0) == grows else self.least[c]
            if end is None or self.values[j] != end:
                found = j
        return found

    def _pivot(self, i: int, j: int, grows: bool) -> bool:
        """Swap basic variable i, put to the bound it broke, with column j; False: too large."""
        leaving = self.basic[i]
        end = self.least[leaving] if grows else self.most[leaving]
        pivot, old = self.factors[i][j], self.factors[i]
        sign = 1 if pivot > 0 else -1
        new = [-sign * a for a in old]
        new[j] = sign * self.below[i]
        d = abs(pivot)
        self.factors[i], self.below[i] = new, d
        self.basic[i], self.columns[j] = self.columns[j], leaving
        self.values[j] = end or 0
        for k, row in enumerate(self.factors):
            if k == i or row[j] == 0:
                continue
            m = row[j]
            mixed = [d * a + m * b for a, b in zip(row, new, strict=True)]
            mixed[j] = m * new[j]
            below = d * self.below[k]
            common = gcd(below, *mixed)
            self.factors[k], self.below[k] = [a // common for a in mixed], below // common
            if self.below[k] >= COEFFICIENT or any(abs(a) >= COEFFICIENT for a in self.factors[k]):
                return False
        return True
