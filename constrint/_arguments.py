# SPDX-License-Identifier: Apache-2.0
"""Names, labels and domains as a caller may pass them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from constrint.errors import ModelError
from constrint.expr import integer, integers


def text_of(what: str, value: object) -> str:
    """Return a text; ``what`` is what the message calls it."""
    if not isinstance(value, str):
        raise TypeError(f"{what} must be text, got {value!r} ({type(value).__name__}).")
    return value


def domain_of(name: str, domain: int | Iterable[int], last: int | None) -> Sequence[int]:
    """Return the values of variable ``name``, ascending: a range where they are one."""
    if last is not None:
        if not hasattr(domain, "__index__"):
            raise ModelError(f"`{name}`: with a last value the first must be an integer too.")
        domain = range(integer(domain, f"`{name}`"), integer(last, f"`{name}`") + 1)
    if isinstance(domain, int):
        raise ModelError(f"`{name}`: one number is no domain; give a list, a range or two bounds.")
    if isinstance(domain, range):
        values: Sequence[int] = domain if domain.step > 0 else domain[::-1]
    else:
        values = tuple(sorted({integer(v, f"`{name}`") for v in integers(domain, f"`{name}`")}))
        if values and values[-1] - values[0] == len(values) - 1:
            values = range(values[0], values[-1] + 1)
    if not values:
        raise ModelError(f"`{name}` has an empty domain: it could have no value at all.")
    return values
