# SPDX-License-Identifier: Apache-2.0
"""The model's questions and answers, and its complaints."""

import copy
import functools
import itertools
import pickle
import re

import pytest

from constrint import (
    BudgetError,
    InfeasibleError,
    Model,
    ModelError,
    Status,
    all_different,
    any_of,
    ceil_div,
    divides,
    divisors,
    maximum,
    minimum,
    parse,
    total,
)
from constrint.expr import evaluate

BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "**": lambda a, b: a**b,
    "max": maximum,
    "min": minimum,
    "ceil": ceil_div,
}
PLAIN = {**BINARY, "max": max, "min": min, "ceil": lambda a, b: -(-a // b)}
SIGNS = {"both": range(-7, 8), "positive": range(1, 8), "negative": range(-7, 0)}


@pytest.mark.parametrize("small", [True, False], ids=["sets", "intervals"])
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("op", BINARY)
def test_an_operator_means_what_python_says(op, sign, small):
    ys = SIGNS[sign]
    if op == "**":
        ys = range(4)
    elif op in ("//", "%", "ceil"):
        ys = [y for y in ys if y != 0]
    m = Model()
    # Long domains are kept as intervals; the rules below cut them back.
    reach = 0 if small else 600
    x = m.int("x", -9 - reach, 9 + reach)
    y = m.int("y", ys)
    z = m.int("z", -1000 - reach, 1000 + reach)
    m.require(x >= -9)
    m.require(x <= 9)
    m.require(z == BINARY[op](x, y))
    found = {(s["x"], s["y"], s["z"]) for s in m.solutions()}
    assert found == {(a, b, PLAIN[op](a, b)) for a in range(-9, 10) for b in ys}


@pytest.mark.parametrize("target", [-30, -7, -1, 0, 1, 6, 12, 30])
@pytest.mark.parametrize("op", ["*", "//", "%"])
def test_bounds_round_towards_the_inside(op, target):
    for low, high in itertools.product((-40, -3, 1), (-2, 5, 40)):
        if low > high:
            continue
        ys = [v for v in range(-6, 7) if v != 0]
        m = Model()
        x, y = m.int("x", low, high), m.int("y", ys)
        m.require(BINARY[op](x, y) >= target)
        truth = [a for a in range(low, high + 1) if any(PLAIN[op](a, b) >= target for b in ys)]
        for direction, want in (("smallest", truth[:1]), ("largest", truth[-1:])):
            m.ordering.clear()
            r = m.order((x, direction)).solve()
            assert ([r["x"]] if r else []) == want


def test_a_variable_on_both_sides_of_an_operator():
    for op, xs in {"**": range(1, 5), "//": range(-3, 0), "%": range(1, 9)}.items():
        m = Model()
        x, z = m.int("x", xs), m.int("z", [v for v in range(-9, 300) if v != 7])
        m.require(BINARY[op](x, x) == z)
        m.require((x + z).isin(range(-9, 270)))
        found = {(s["x"], s["z"]) for s in m.solutions()}
        assert found == {(a, PLAIN[op](a, a)) for a in xs}


def test_the_example_of_the_documentation():
    m = Model("a tile")
    rows, columns = m.int("rows", [8, 16, 32]), m.int("columns", 1, 64)
    m.require(rows * columns <= 500, "it fits")
    m.require(divides(columns, 96), "columns divide the width")
    r = m.maximize(rows * columns).solve()
    assert r.status == "optimal"
    assert r.status is Status.OPTIMAL
    assert r[rows] * r["columns"] == r.objective == r.bound == 384
    assert r.stats.nodes > 0
    assert "rows = 8" in str(r) or "rows = 32" in str(r)


def test_mistakes_of_other_solvers():
    m = Model()
    a, b = m.int("A", [3]), m.int("B", [4])
    m.require(a * b <= 10)
    assert m.solve().status == "infeasible"

    m = Model()
    a, b = m.int("A", 1, 9), m.int("B", 1, 9)
    m.require(a * b % 7 == 0)
    m.require(a + b <= 9)
    found = m.order((a, "largest"), (b, "largest")).solve().values
    assert found == {"A": 7, "B": 2}

    m = Model()
    a, b = m.int("A", 1, 5), m.int("B", 1, 5)
    m.require(a * b <= 10)
    m.order((a, "largest"), (b, "largest"))
    first = list(itertools.islice(m.solutions(), 3))
    assert first == [{"A": 5, "B": 2}, {"A": 5, "B": 1}, {"A": 4, "B": 2}]


def test_several_objectives_are_met_in_order():
    m = Model()
    x, y = m.int("x", 0, 10), m.int("y", 0, 10)
    m.require(x + y <= 12)
    m.maximize(x + y).minimize(x).maximize(y)
    r = m.solve()
    assert r.values == {"x": 2, "y": 10}
    assert r.objectives == r.bounds == (12, 2, 10)


def test_top_is_sorted_and_complete():
    m = Model()
    x, y = m.int("x", 1, 9), m.int("y", 1, 9)
    m.require(x != y)
    best = m.top(5, by=x * y, largest=True)
    assert [s["x"] * s["y"] for s in best] == [72, 72, 63, 63, 56]
    assert len({tuple(s.values()) for s in best}) == 5
    assert best == m.top(5, by=x * y, largest=True, backend="python")


def test_logic_and_counting():
    m = Model()
    xs = [m.int(f"x{i}", 1, 4) for i in range(4)]
    m.require(all_different(*xs))
    m.require(any_of(xs[0] == 1, xs[1] == 1) & ~(xs[2] == 4))
    m.require((xs[0] == 1).implies(xs[1] >= 3))
    m.require(total((x > 2).count() for x in xs[:2]) >= 1)
    truth = 0
    for p in itertools.permutations(range(1, 5)):
        good = (p[0] == 1 or p[1] == 1) and p[2] != 4 and (p[0] != 1 or p[1] >= 3)
        truth += good and (p[0] > 2) + (p[1] > 2) >= 1
    assert m.count() == truth == len(list(m.solutions()))


def test_long_domains_with_holes():
    m = Model()
    stepped = m.int("stepped", range(7, 10**9, 11))
    listed = m.int("listed", [k * k for k in range(1, 2000)])
    m.require(stepped == listed + 3)
    r = m.minimize(stepped).solve()
    assert r.status == "optimal"
    root = next(k for k in range(1, 2000) if (k * k + 3 - 7) % 11 == 0 and k * k + 3 >= 7)
    assert r["listed"] == root**2
    for domain in (range(0, 1400, 2), range(1398, -2, -2), [k * k for k in range(700)]):
        m = Model()
        m.int("x", domain)
        assert [s["x"] for s in m.solutions()] == sorted(domain)


def test_a_sum_of_a_thousand_terms_is_flat():
    m = Model()
    x = m.int("x", 0, 3)
    m.require(sum(x for _ in range(1000)) == 2000)
    assert m.solve().values == {"x": 2}


def test_divisors_as_a_domain():
    m = Model()
    x = m.int("x", divisors(160))
    assert m.count() == 12
    m.require(x > 20)
    assert [s["x"] for s in m.order((x, "smallest")).solutions()] == [32, 40, 80, 160]
    assert divisors(91) == (1, 7, 13, 91)


def test_infeasible_values_name_the_clash():
    m = Model("tiny")
    x = m.int("x", 1, 10)
    m.require(x <= 7, "small")
    m.require(x * 2 >= 15, "large")
    r = m.solve()
    assert not r
    with pytest.raises(InfeasibleError, match=r"(?s)tiny: no solution.*small.*large"):
        _ = r["x"]


def rejects():
    m = Model("m")
    x = m.int("x", 0, 9)
    other = Model("other").int("y", 1, 2)
    yield "empty list", lambda: Model().int("x", []), "`x` has an empty domain"
    yield "empty range", lambda: Model().int("x", 5, 4), "`x` has an empty domain"
    yield "list and last", lambda: Model().int("x", [1, 2], 5), "the first must be an integer too"
    yield "no name", lambda: Model().int("2x", 1, 4), "'2x' is no name"
    yield "no ASCII", lambda: Model().int("ä", 1, 4), "'ä' is no name"
    yield "number as name", lambda: Model().int(7, 1, 4), "7 is no name"
    yield "name twice", lambda: m.int("x", 1, 4), "a variable `x` already"
    yield "number as domain", lambda: Model().int("x", 5), "one number is no domain"
    for name, call in {
        "rule": lambda: m.require(other == 1),
        "goal": lambda: m.minimize(x + other),
        "order": lambda: m.order((other, "smallest")),
        "top": lambda: m.top(1, by=other),
    }.items():
        yield f"foreign {name}", call, "`y` belongs to another model than m"
    yield "unknown", lambda: m.variable("q"), "no variable `q`; there are: x"
    yield "direction", lambda: m.order((x, "up")), "must be smallest or largest, got 'up'"
    yield "order without a way", lambda: m.order(x), "each choice must be a variable and"
    yield "order of a name", lambda: m.order(("x", "smallest")), "got ('x', 'smallest'"
    yield "order of a list", lambda: m.order((x, ["smallest"])), "must be smallest or largest"
    yield "order of a sum", lambda: m.order((x + 1, "smallest")), "is no variable"
    yield "zero", lambda: x // 0, "division by zero"
    yield "negative power", lambda: x**-1, "a power must be at least 0"
    yield "top 0", lambda: m.top(0, by=x), "k must be at least 1, got 0"
    yield "nodes", lambda: m.solve(max_nodes=-1), "max_nodes must be at least 0"
    yield "time", lambda: m.solve(time_limit=-1), "time_limit must be at least 0"
    yield "text as time", lambda: m.solve(time_limit="1"), "at least 0 seconds, got '1'"
    yield "backend", lambda: m.solve(backend="rust"), "one of auto, cpp, python; got 'rust'"
    yield "unsaid", lambda: m.explain({"q": 1}), "no variable `q`"
    yield "why not what", lambda: m.why_not(), "at least one value"
    yield "no conflict", lambda: m.conflict(), "m has a solution"


@pytest.mark.parametrize(
    ("call", "message"), [r[1:] for r in rejects()], ids=[r[0] for r in rejects()]
)
def test_rejects(call, message):
    with pytest.raises(ModelError, match=r"(?s)" + message.replace("(", r"\(")):
        call()


def test_a_divisor_that_may_be_zero_is_refused():
    m = Model()
    x, y = m.int("x", 1, 9), m.int("y", 0, 3)
    m.require(x % y == 1)
    with pytest.raises(ModelError, match=r"division by zero: `y` may be 0 in `x % y`"):
        m.solve()
    m.require(y >= 1)
    assert m.solve()


@pytest.mark.parametrize("sign", [1, -1])
def test_huge_numbers_are_refused(sign):
    for make in (lambda x, y: y ** (y * y), lambda x, y: (x * 2**200 + y) // 3):
        m = Model()
        huge = range(1, 2**4000)
        x, y = m.int("x", huge if sign > 0 else range(-(2**4000), 0)), m.int("y", 2, 10**6)
        m.require(make(x, y) >= 5)
        with pytest.raises(ModelError, match="more than 4096 bits"):
            m.solve()


def test_a_power_that_may_be_negative_is_refused():
    m = Model()
    x, y = m.int("x", 1, 9), m.int("y", -1, 3)
    m.require(x**y >= 5)
    with pytest.raises(ModelError, match=r"`y` may be negative in `x \^ y`"):
        m.solve()


def test_truth_values_are_refused_kindly():
    m = Model()
    x = m.int("x", 0, 9)
    with pytest.raises(TypeError, match="join rules with &"):
        _ = 1 <= x <= 5
    with pytest.raises(TypeError, match="no truth value"):
        _ = bool(x)
    with pytest.raises(TypeError, match="a rule such as"):
        m.require(x)
    with pytest.raises(TypeError, match=r"an integer is needed, got 1\.5"):
        _ = x + 1.5


def not_integers():
    m = Model("m")
    x = m.int("x", 0, 9)
    yield "domain of variables", lambda: m.int("y", [x]), "`y`: an integer is needed, got <x>"
    yield "variable as bound", lambda: m.int("y", 0, x), "`y`: an integer is needed, got <x>"
    yield "variable as value", lambda: m.explain({"x": x}), "x: an integer is needed, got <x>"
    yield "nodes", lambda: m.solve(max_nodes=2.5), "max_nodes: an integer is needed, got 2.5"
    yield "top", lambda: m.top(1.5, by=x), "top: k: an integer is needed, got 1.5"
    yield "divisors", lambda: divisors(2.5), "cannot be interpreted as an integer"
    yield "name of a model", lambda: Model(5), "the name of a model must be text, got 5 (int)"
    yield "label", lambda: m.require(x <= 3, 5), "a label must be text, got 5 (int)"
    yield "no domain", lambda: m.int("y", None), "`y`: a list or range of integers is needed"
    yield "text as domain", lambda: m.int("y", "12"), "`y`: a list or range of integers is needed"
    yield "number for isin", lambda: x.isin(3), "isin: a list or range of integers is needed, got 3"
    yield "list of different", lambda: all_different([x, 1]), "one by one, as in f(*items)"
    yield "list of rules", lambda: any_of([x <= 1]), "one by one, as in f(*items)"
    yield "implied number", lambda: (x <= 1).implies(x), "a rule such as `x <= 3` is needed"
    yield "rules in text", lambda: parse(5), "the rules must be text, got 5 (int)"
    yield "variable as name", lambda: m.variable(x), "name of a variable must be text, got <x>"


@pytest.mark.parametrize(
    ("call", "message"), [r[1:] for r in not_integers()], ids=[r[0] for r in not_integers()]
)
def test_rejects_types(call, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        call()


def test_takes_any_integer():
    class Seven:
        def __index__(self):
            return 7

    m = Model()
    x = m.int("x", Seven(), 9)
    m.int("y", [Seven()])
    assert m.solve(max_nodes=1 << 70).status == "feasible"
    assert [v["x"] for v in m.top(1 << 70, by=x)] == [7, 8, 9]
    assert divisors(Seven()) == (1, 7)


def test_copies_are_models_of_their_own():
    m = Model("m")
    x = m.int("x", 1, 9)
    m.require(functools.reduce(lambda rule, _: ~rule, range(180), x >= 3))
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        other.require(x <= 4)
        assert (m.count(), other.count()) == (7, 2)
        z = other.int("z", 1, 2)
        with pytest.raises(ModelError, match="`z` belongs to another model than m"):
            m.require(z == 1)
        m.int(f"w{id(other)}", 1, 1)
        with pytest.raises(ModelError, match="`z` belongs to another model than m"):
            m.require(z == 1)


def test_a_model_is_left_alone_while_its_solutions_are_read():
    m = Model("m")
    x = m.int("x", 1, 5)
    reading = m.solutions()
    assert next(reading) == {"x": 1}
    assert m.solve()
    assert next(reading) == {"x": 2}
    m.require(x >= 4)
    with pytest.raises(ModelError, match="m was changed while its solutions were read"):
        next(reading)


def test_membership_of_long_lists_takes_one_pass():
    m = Model()
    x = m.int("x", [*range(0, 300_000, 3), 7])
    m.require(x.isin(range(0, 300_000, 2)))
    assert m.solve(time_limit=20)


def test_nesting_has_a_limit():
    x = Model().int("x", 1, 3)
    with pytest.raises(ModelError, match="levels deep"):
        functools.reduce(lambda e, _: abs(e + 1), range(300), x)


def test_plain_truths_are_rules_too():
    m = Model()
    m.int("x", 1, 3)
    m.require(True)
    assert m.count() == 3
    m.require(False, "never")
    assert m.solve().status == "infeasible"
    assert m.conflict().rules == ("never",)


def test_evaluate_is_exact():
    m = Model()
    x = m.int("x", 1, 9)
    assert evaluate((x**60) // 7 % 1000, {"x": 9}) == 9**60 // 7 % 1000


def test_reading_values_without_an_answer():
    m = Model("hard")
    xs = [m.int(f"x{i}", 1, 10**6) for i in range(4)]
    m.require(xs[0] ** 3 + xs[1] ** 3 + xs[2] ** 3 == xs[3] ** 3 + 4)
    r = m.solve(max_nodes=5)
    assert r.status == "exhausted"
    with pytest.raises(BudgetError, match="no solution within 5 nodes"):
        _ = r.values
