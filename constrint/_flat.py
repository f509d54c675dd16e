# SPDX-License-Identifier: Apache-2.0
"""A model in the form the search engines read: integer variables and numbered propagators.

Both engines, the C++ core and its Python twin, get the same `Flat` and must visit the same nodes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

# Propagators. Variables first, then constants; `r` is a 0/1 variable or -1: the propagator states
# "holds if and only if r == want", or plainly "holds" without one.
LIN_LE = 0  # xs; a_1 .. a_n, c          sum a_i x_i <= c
LIN_EQ = 1  # xs; a_1 .. a_n, c          sum a_i x_i == c
LIN_NE = 2  # xs; a_1 .. a_n, c          sum a_i x_i != c, never with r
MUL = 3  # z, x, y                       z == x * y
DIV = 4  # z, x, y                       z == x // y, y never 0
MOD = 5  # z, x, y                       z == x % y, y never 0
POW = 6  # z, x, y                       z == x ** y, y >= 0
MAX = 7  # z, xs                         z == max(xs)
MIN = 8  # z, xs                         z == min(xs)
OR = 9  # xs; wants                      some x_i == want_i
IN = 10  # x; values, ascending          x is one of them
ALLDIFF = 11  # xs                       no two are equal

# Domains of up to this many values are kept as sets, larger ones as intervals.
ENUMERATED = 512
# |bound| below these for the engine with 64-bit (128-bit) numbers; beyond them Python's integers.
SMALL, WIDE = 1 << 62, 1 << 124

Prop = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]


@dataclass
class Flat:
    """Variables 0 .. n_user - 1 are the model's; all others are functions of them.

    Attributes:
        lo, hi: bounds at the root.
        values: the domain's values in ascending order, or None for every integer in lo .. hi.
        props: (operator, r, want, variables, constants) of every propagator.
        scopes: model variables below every propagator.
        order: (variable, 1 for smallest first or -1 for largest first) to branch on first.
        directions: which end of its range each model variable tries first when no order says.
        objective: the variable to minimize, or -1.
        fault: whether a rule is false at the root already.
    """

    n_user: int = 0
    lo: list[int] = field(default_factory=list)
    hi: list[int] = field(default_factory=list)
    values: list[Sequence[int] | None] = field(default_factory=list)
    props: list[Prop] = field(default_factory=list)
    scopes: list[tuple[int, ...]] = field(default_factory=list)
    order: list[tuple[int, int]] = field(default_factory=list)
    directions: list[int] = field(default_factory=list)
    objective: int = -1
    fault: bool = False

    def pack(self, width: int) -> bytes:
        """Return the program as machine integers of 8 or 16 bytes.

        Raises:
            OverflowError: a bound or a constant does not fit.
        """
        numbers = self._numbers()
        if max(max(numbers), -min(numbers)) >= (SMALL if width == 8 else WIDE):
            raise OverflowError(f"numbers of more than {width} bytes")
        if width == 8:
            return array("q", numbers).tobytes()
        return b"".join(n.to_bytes(16, "little", signed=True) for n in numbers)

    def _numbers(self) -> list[int]:
        out = [len(self.lo), self.n_user, self.objective, len(self.order)]
        for var, direction in self.order:
            out += (var, direction)
        out += self.directions
        for lo, hi, values in zip(self.lo, self.hi, self.values, strict=True):
            if values is None:
                out += (0, lo, hi)
            elif type(values) is range and values.step == 1:
                out += (2, lo, hi)
            else:
                out += (1, lo, hi, len(values), *values)
        out.append(len(self.props))
        for (op, r, want, xs, consts), scope in zip(self.props, self.scopes, strict=True):
            out += (op, r, want, len(xs), *xs, len(consts), *consts, len(scope), *scope)
        return out
