# SPDX-License-Identifier: Apache-2.0
"""Rules of any shape: their opposites, long chains of them, and those of few operands."""

import functools
import itertools
import operator

import pytest

from constrint import Model, all_different, any_of, maximum, total
from constrint.expr import holds


def test_long_chains_of_rules_are_flat():
    m = Model()
    x = m.int("x", 1, 999)
    m.require(functools.reduce(operator.or_, (x == i for i in range(3, 900, 3))))
    m.require(functools.reduce(operator.and_, (x != i for i in range(3, 900, 6))))
    assert m.count() == 149


def test_rules_of_few_operands():
    m = Model()
    x = m.int("x", 1, 9)
    m.require(all_different(x, x) | x.isin([7, 2, 5, 2]))
    m.require(any_of(x != 2))
    m.require(total([]) == 0)
    assert [s["x"] for s in m.order((x, "smallest")).solutions()] == [5, 7]
    assert str(total([])) == "0"
    m.require(all_different(x, x + 1, x + 0))
    assert m.solve().status == "infeasible"


def test_the_largest_of_two_may_be_negative():
    m = Model()
    x = m.int("x", 0, 9)
    assert m.minimize(maximum(x - 5, -x)).solve().objective == -2


NEGATED = {
    "not": lambda x, y: ~(x == y),
    "and": lambda x, y: (x <= 3) & (y >= 2),
    "or": lambda x, y: (x <= 3) | (y >= 2),
    "implies": lambda x, y: (x <= 3).implies(y >= 2),
    "in": lambda x, y: (x + y).isin([2, 5, 6]),
    "different": lambda x, y: all_different(x, y, 3),
    "equal": lambda x, y: 2 * x == y + 1,
    "at most": lambda x, y: x - 2 * y <= -1,
}


@pytest.mark.parametrize("rule", NEGATED.values(), ids=NEGATED)
def test_the_opposite_of_a_rule(rule):
    m = Model()
    x, y = m.int("x", 1, 6), m.int("y", 1, 6)
    m.require(~rule(x, y))
    pairs = itertools.product(range(1, 7), repeat=2)
    truth = {(a, b) for a, b in pairs if not holds(rule(x, y), {"x": a, "y": b})}
    assert {tuple(s.values()) for s in m.solutions()} == truth
