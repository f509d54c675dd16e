# SPDX-License-Identifier: Apache-2.0
"""Budgets are kept, answers do not depend on the clock, and large problems stay small in memory."""

import time

import pytest

from bench.cases._random_models import (
    chained_model,
    dense_model,
    large_model,
    mixed_model,
    random_model,
)
from constrint import BudgetError, Model, _search, backend, divides

ENGINES = ["python", *(["cpp"] if backend() == "cpp" else [])]


def endless():
    """No solution (the square root of 2 is irrational), and no propagator sees why."""
    m = Model("endless")
    x, y = m.int("x", 1, 10**9), m.int("y", 1, 10**9)
    m.require(x * x == 2 * y * y)
    return m


@pytest.mark.parametrize("engine", ENGINES)
def test_time_limit_holds_inside_propagation(engine):
    begin = time.monotonic()
    r = endless().solve(time_limit=0.2, backend=engine)
    assert time.monotonic() - begin < 2
    assert r.status == "exhausted"
    assert r.stats.propagations > 100 * max(r.stats.nodes, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_zero_budgets_return_at_once(engine):
    m = large_model(1)
    assert m.solve(max_nodes=0, backend=engine).status in ("exhausted", "infeasible")
    assert m.solve(time_limit=0, backend=engine).status == "exhausted"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_node_budget_gives_the_same_answer_every_time(engine):
    answers = set()
    for _ in range(3):
        m = hard()
        r = m.solve(max_nodes=300, backend=engine)
        assert r.stats.nodes == 300
        assert r.status == "feasible"
        answers.add((tuple(r.values.items()), r.objectives, r.bounds, r.stats.propagations))
    assert len(answers) == 1
    ((_, objectives, bounds, _),) = answers
    assert bounds[0] <= objectives[0]


def hard():
    m = Model("hard")
    xs = [m.int(f"x{i}", 1, 60) for i in range(6)]
    m.require(divides(xs[0] + xs[1], xs[2] * xs[3] + xs[4]))
    m.require(xs[0] * xs[1] * xs[2] >= 5000)
    m.require(xs[3] * xs[4] * xs[5] == 3600)
    return m.minimize((xs[0] - xs[3]) ** 2 + (xs[1] - xs[4]) ** 2 + xs[2] * xs[5])


def test_bounds_of_a_broken_off_search_are_true():
    final = hard().solve()
    assert final.status == "optimal"
    for nodes in (50, 200, 1000):
        r = hard().solve(max_nodes=nodes)
        if r:
            assert r.bound <= final.objective <= r.objective
        elif r.bounds:
            assert r.bound <= final.objective


@pytest.mark.parametrize("engine", ENGINES)
def test_objectives_share_one_budget(engine):
    """What was settled is said, and what was not reached has no bound."""
    m = hard()
    goal = m.objectives.pop().expr
    m.maximize(m.variables[1])
    spent = m.solve(backend=engine).stats.nodes
    m.minimize(goal)
    best = m.solve(backend=engine)
    assert best.stats.nodes > spent + 40
    r = m.solve(max_nodes=spent + 40, backend=engine)
    assert (r.status, r.stats.nodes) == ("feasible", spent + 40)
    assert r.objectives[0] == r.bounds[0] == best.objectives[0] == 60
    assert r.bounds[1] <= best.objectives[1] < r.objectives[1]
    r = m.solve(max_nodes=spent - 2, backend=engine)
    assert (r.status, r.objectives[0], r.bounds) == ("feasible", 60, (60, None))
    r = m.solve(max_nodes=0, backend=engine)
    assert (r.status, r.objectives, r.bounds) == ("exhausted", (), (60,))


def test_counting_and_listing_say_when_they_are_cut_off():
    m = Model("wide")
    m.int("x", 1, 10**6)
    m.int("y", 1, 10**6)
    with pytest.raises(BudgetError, match="wide: the budget ran out after 50 nodes"):
        m.count(max_nodes=50)
    with pytest.raises(BudgetError, match="not all solutions"):
        list(m.solutions(max_nodes=50))
    with pytest.raises(BudgetError, match="the best 3 are not certain"):
        m.top(3, by=m.variables[0], largest=True, max_nodes=3)


@pytest.mark.parametrize("make", [large_model, chained_model, dense_model, mixed_model])
@pytest.mark.parametrize("block", range(3))
def test_large_problems_are_settled_within_their_limit(make, block):
    if backend() != "cpp":
        pytest.skip("the C++ core is not here")
    for seed in range(10 * block, 10 * block + 10):
        begin = time.monotonic()
        r = make(seed).solve(time_limit=5)
        assert time.monotonic() - begin < 8
        assert r.status == "feasible", (make.__name__, seed)
        assert make(seed, planted=False).solve(time_limit=5).status == "infeasible"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_problem_too_hard_ends_with_its_limit(engine):
    begin = time.monotonic()
    r = endless().solve(time_limit=1, backend=engine)
    assert time.monotonic() - begin < 3
    assert r.status == "exhausted"


def test_a_large_problem_stays_small_in_memory():
    resource = pytest.importorskip("resource")
    m = Model("large and hard")
    xs = [m.int(f"x{i}", 1, 10**6) for i in range(30)]
    for k in range(40):
        a, b, c = xs[k % 30], xs[(7 * k + 1) % 30], xs[(11 * k + 5) % 30]
        m.require(a * b % (c + k) == k % 7)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    m.solve(time_limit=2)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # KiB


@pytest.mark.parametrize("engine", ENGINES)
def test_enumeration_in_pieces_equals_the_whole(engine):
    for seed in range(15):
        m = random_model(seed)
        whole = list(m.solutions(backend=engine))
        assert whole == list(m.solutions(backend=engine, max_nodes=10**6, time_limit=100))


@pytest.mark.parametrize("engine", ENGINES)
def test_slices_of_time_do_not_change_a_node_budget(engine, monkeypatch):
    """A search that is interrupted all the time ends where one in a single piece does."""
    seen = []
    for seconds in (10.0, 1e-9):
        monkeypatch.setattr(_search, "SLICE_SECONDS", seconds)
        stats = dense_model(3).solve(max_nodes=40, backend=engine).stats
        seen.append((stats.nodes, stats.propagations, stats.failures))
        assert stats.propagations > 500
    assert seen[0] == seen[1]
