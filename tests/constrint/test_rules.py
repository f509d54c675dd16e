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
    m.require(all_different(x, m.int("y", 1, 9), x + 0))
    assert m.solve().status == "infeasible"


# A domain, a rule about its variable alone, and what it says of a value.
SINGLE = {
    "at least": (range(1, 3000, 3), lambda x: x >= 300),
    "more than": (range(1, 3000, 3), lambda x: x > 300),
    "less than": (range(1, 3000, 3), lambda x: x < 301),
    "at most": (range(1, 3000, 3), lambda x: x <= 301),
    "not": ([1, 5, 9, 700], lambda x: x != 5),
    "equal": ([1, 5, 9, 700], lambda x: x == 9),
    "divides": (range(-20, 21), lambda x: 12 % x == 0),
    "divides, long": (range(-5000, 5001), lambda x: 5040 % x == 0),
    "divides zero": (range(1, 6000), lambda x: 0 % x == 0),
    "leaves one": (range(1, 60), lambda x: 7 % x == 1),
    "power zero divides": (range(1, 60), lambda x: 7 % (x**0) == 0),
    "square divides": (range(1, 60), lambda x: 36 % (x**2) == 0),
    "opposite divides": (range(1, 60), lambda x: 36 % -x == 0),
    "product divides": (range(1, 60), lambda x: 36 % (x * (x + 1)) == 0),
    "product is": (range(-60, 61), lambda x: x * (x + 1) == 12),
    "product is zero": (range(-60, 61), lambda x: x * (x + 1) == 0),
    "remainder": (range(-300, 301), lambda x: x % 7 == 3),
}


@pytest.mark.parametrize("case", SINGLE.values(), ids=SINGLE)
def test_what_a_rule_leaves_of_a_domain(case):
    domain, rule = case

    def allows(value):
        try:
            return rule(value)
        except ZeroDivisionError:
            return False

    m = Model()
    x = m.int("x", domain)
    m.require(rule(x))
    found = [s["x"] for s in m.order((x, "smallest")).solutions()]
    assert found == [value for value in domain if allows(value)]


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
