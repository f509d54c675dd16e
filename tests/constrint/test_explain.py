# SPDX-License-Identifier: Apache-2.0
"""Explanations name minimal clashes, broken rules with their excess, and why not another answer."""

import random
import time
from statistics import median

import pytest

from bench.cases._random_models import brute_force, random_model
from bench.cases._tile_problems import PROBLEMS
from constrint import Conflict, Model, backend, divides, parse
from constrint.examples.flashrnn import Problem, gpu, lexicographic


def without(model, label):
    """Return a model of the same variables that lacks one rule."""
    less = Model(model.name)
    less.variables, less.domains = model.variables, model.domains
    less._by_name, less._owner = model._by_name, model._owner
    less.rules = [r for r in model.rules if r.name != label]
    return less


def test_a_conflict_names_rules_and_domains():
    m = Model("tile")
    x, y = m.int("x", [8, 16, 32]), m.int("y", 1, 100)
    m.require(divides(x, 36), "x divides 36")
    m.require(y >= 3, "unrelated")
    clash = m.conflict()
    assert clash.rules == ("x divides 36",)
    assert clash.domains == ("x",)
    assert clash.minimal
    assert str(clash).splitlines() == [
        "tile: no solution, because these cannot hold together:",
        "  x divides 36: `36 % x == 0`",
        "  x in [8, 16, 32]",
    ]


REASONS = {
    "x + 3 <= 3": "the left side is at least 4, the right side at most 3",
    "x * x * x < 1": "the left side is at least 1, the right side at most 1",
    "-x > -1": "the left side is at most -1, the right side at least -1",
    "x * x * -1 * x >= 0": "the left side is at most -1, the right side at least 0",
    "max(x, 4) == 3": "the left side is at least 4, the right side at most 3",
    "min(y, 3) == 4": "the left side is at most 3, the right side at least 4",
    "x // 200 > 0": "the left side is at most 0, the right side at least 0",
    "count(x == 1) >= 2": "the left side is at most 1, the right side at least 2",
    "0 <= -count(x > y) - 1": "the left side is at least 0, the right side at most -1",
    "y ^ 2 < 0": "the left side is at least 0, the right side at most 0",
    "7 % (x * 5 * y * 2) == 0": "10 does not divide 7",
    "(2 * x + 1) % 2 <= 0": "",
    "-((2 * x + 1) % 2) >= 0": "",
    "((2 * x + 1) % 2) * 3 == 0": "",
    "x - x + x < 0": "",
    "x == 1 & x == 2": "",
}


@pytest.mark.parametrize("rule", REASONS)
def test_a_rule_that_clashes_alone_says_why(rule):
    """Where the ranges of its sides tell; a range that only touches the other one does not."""
    clash = parse(f"var x in 1..9; var y in -9..9; {rule}").conflict()
    (line,) = clash.lines
    assert line == f"`{rule}`" + (f", but {REASONS[rule]}" if REASONS[rule] else "")
    assert str(clash) == f"the model: no solution, because this cannot hold:\n  {line}"


@pytest.mark.parametrize(
    ("domain", "rule", "names"),
    [
        ("5..9", "x <= 0", ()),
        ("5..9", "x <= 4", ("x",)),
        ("0..9", "x <= -1", ()),
        ("-9..-5", "x >= 0", ()),
        ("-9..-5", "x >= -4", ("x",)),
        ("-9..0", "x >= 1", ()),
    ],
)
def test_a_domain_is_named_where_the_sign_alone_does_not_clash(domain, rule, names):
    assert parse(f"var x in {domain}; {rule};").conflict().domains == names


def test_a_conflict_that_may_be_smaller_says_so():
    clash = Conflict("m", ("a", "b"), (), ("a: `x`", "b: `y`"), minimal=False)
    assert str(clash).endswith("\n  (fewer of them may clash already: the budget ran out)")


def test_conflicts_of_random_models_are_minimal():
    seen = 0
    for seed in range(3000, 3300):
        m = random_model(seed)
        if m.solve().status != "infeasible":
            continue
        clash = m.conflict()
        assert clash.minimal
        seen += 1
        for label in clash.rules:
            kept = [r for r in m.rules if r.name in clash.rules and r.name != label]
            less = without(m, "")
            less.rules = kept
            assert brute_force(less), (seed, label)
        less = without(m, "")
        less.rules = [r for r in m.rules if r.name in clash.rules]
        assert not brute_force(less)
    assert seen > 50


def test_what_guards_a_divisor_leaves_with_it():
    """A rule is not needed for the sake of another one that turns out not to be."""
    m = Model("m")
    x = m.int("x", -3, 3)
    m.require(False, "never")
    m.require(12 % x == 0, "not 0")
    m.require((x + 5) % x == 2, "by x")
    assert m.conflict().rules == ("never",)


def test_conflicts_of_tile_problems_are_minimal_and_quick():
    times = []
    for p in PROBLEMS:
        m = lexicographic(p)
        if m.solve():
            continue
        best, clash = float("inf"), None
        for _ in range(2):
            begin = time.perf_counter()
            clash = m.conflict()
            best = min(best, time.perf_counter() - begin)
        times.append(best)
        assert clash.minimal, m.name
        named = [r for r in m.rules if r.name in clash.rules]
        for item in named:
            less = without(m, "")
            less.rules = [r for r in named if r is not item]
            assert less.solve(time_limit=20), (m.name, item.name)
    assert len(times) > 20
    if backend() == "cpp":
        # 50 ms is the bar, which the bench judges; a busy test machine gets five times as long.
        assert max(times) < 0.25
        assert median(times) < 0.1


def test_broken_rules_and_by_how_much():
    m = Model()
    x, y = m.int("x", 1, 8), m.int("y", [2, 4, 8])
    m.require(x * y <= 20, "fits")
    m.require(divides(y, x), "divides")
    m.require(x > y, "larger")
    m.require((x == 1) | (y == 8), "either")
    assert m.explain({"x": 4, "y": 2}) != []
    found = {v.name: v for v in m.explain({"x": 9, "y": 4})}
    assert set(found) == {"x", "fits", "divides", "either"}
    assert found["x"].excess == 1
    assert str(found["fits"]) == "fits: `x * y` is 36 and must be <= 20, by 16"
    assert found["fits"].excess == 16
    assert str(found["divides"]) == "divides: 4 does not divide 9, the remainder is 1"
    assert found["either"].excess is None
    assert str(found["x"]) == "x: 9 is not in 1..8, by 1"
    assert [v.name for v in m.explain({"x": 2, "y": 2})] == ["larger", "either"]
    assert str(m.explain({"x": 2, "y": 2})[0]) == "larger: `x` is 2 and must be > `y`, 2, by 1"
    (low,) = m.explain({"x": -3})
    assert (str(low), low.excess) == ("x: -3 is not in 1..8, by 4", 4)
    (hole,) = m.explain({"y": 3})
    assert (str(hole), hole.excess) == ("y: 3 is not in [2, 4, 8]", None)
    m.require(x != 4, "not four")
    (four,) = m.explain({"x": 4})
    assert (str(four), four.excess) == ("not four: `x` is 4 and must be != 4", None)
    z = m.int("z", -8, -2)
    m.require(divides(z, 7), "sign")
    (broken,) = m.explain({"z": -3})
    assert (str(broken), broken.excess) == (
        "sign: -3 does not divide 7, the remainder is -2",
        2,
    )
    assert m.explain({"x": 3})[0:] == []


def test_division_by_zero_is_a_violation():
    m = Model()
    x, y = m.int("x", 1, 8), m.int("y", 1, 3)
    m.require(x // y == 2, "half")
    assert str(m.explain({"x": 4, "y": 0})[1]) == "half: `x // y == 2` divides by zero"


def test_why_not():
    m = Model()
    rows, columns = m.int("rows", [8, 16, 32]), m.int("columns", 1, 64)
    m.require(rows * columns <= 500, "it fits")
    m.require(divides(columns, 96), "columns divide the width")
    m.maximize(rows * columns)
    m.order((rows, "largest"))
    assert "does have rows = 32" in str(m.why_not(rows=32))
    assert "rows is in [8, 16, 32], which leaves 9 out" in str(m.why_not(rows=9))
    answer = m.why_not(columns=32)
    assert "`rows * columns` is" not in str(answer)
    assert str(answer) == (
        "columns = 32 is possible, but then rows * columns is at most 256, 128 off the largest "
        "value 384"
    )
    assert answer.result.objective == 256
    assert str(m.why_not(rows=8)) == (
        "rows = 8 is possible and as good, but then rows is 8 at best, and the order asks for the "
        "largest first: 32"
    )
    assert "columns = 5 these cannot hold" in str(m.why_not(rows=32, columns=5))
    clash = m.why_not(columns=5).conflict
    assert clash.rules == ("columns divide the width",)


def test_why_not_a_smallest_value():
    m = Model()
    x = m.int("x", 1, 9)
    m.minimize(x)
    assert str(m.why_not(x=5)) == (
        "x = 5 is possible, but then x is at least 5, 4 off the smallest value 1"
    )
    m.objectives.clear()
    m.minimize(sum([x] * 30, start=x))
    assert "then the objective is at least 155, 124 off" in str(m.why_not(x=5))


def test_conflicts_do_not_depend_on_luck():
    m = lexicographic(next(p for p in PROBLEMS if p.width == 2048 and p.gpu.name == "A100"))
    assert len({str(m.conflict()) for _ in range(3)}) == 1
    rng = random.Random(0)
    seed = rng.randint(0, 9)
    assert random_model(seed).text() == random_model(seed).text()


def test_conflicts_of_heads_too_wide_are_minimal():
    """Widths beyond any tile: the rules named clash, and without any one of them do not."""
    for name, width, batch, direction in (
        ("H100", 5120, 16, "forward"),
        ("B200", 6144, 16, "backward"),
        ("H100", 3072, 64, "backward"),
        ("V100", 4096, 8, "forward"),
    ):
        m = lexicographic(Problem(gpu(name), width, 1, batch, direction))
        clash = m.conflict()
        assert clash.minimal, m.name
        named = [r for r in m.rules if r.name in clash.rules]
        less = without(m, "")
        less.rules = named
        assert less.solve(time_limit=20).status == "infeasible"
        for item in named:
            less = without(m, "")
            less.rules = [r for r in named if r is not item]
            assert less.solve(time_limit=20), (m.name, item.name)


def test_an_assignment_is_made_of_integers():
    m = Model()
    m.int("x", 1, 3)
    with pytest.raises(TypeError, match=r"an integer is needed, got 1\.5"):
        m.explain({"x": 1.5})
    with pytest.raises(TypeError, match=r"values by name are needed, .*, got Result.* `values`"):
        m.explain(m.solve())
