# SPDX-License-Identifier: Apache-2.0
"""Random models against brute force, the two engines against each other, and against CP-SAT."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.cases._random_models import brute_force, check, random_model
from constrint import ModelError, Status, backend, parse
from constrint.expr import holds

FIXED = range(1000)
needs_core = pytest.mark.skipif(backend() != "cpp", reason="the C++ core is not here")


def test_the_fixed_set_is_a_mixed_one():
    models = [random_model(seed) for seed in FIXED]
    texts = " ".join(m.text() for m in models)
    for word in ("%", "//", "^", "->", "|", "max(", "min(", "all_different(", " in [", "count("):
        assert texts.count(word) > 50, word
    assert sum(bool(m.objectives) for m in models) > 300
    assert sum(bool(m.ordering) for m in models) > 300


@needs_core
@pytest.mark.parametrize("block", range(10))
def test_core_equals_brute_force(block):
    statuses = {
        check(random_model(s), "cpp").status for s in FIXED[100 * block : 100 * block + 100]
    }
    assert statuses == {Status.OPTIMAL, Status.FEASIBLE, Status.INFEASIBLE}


def test_twin_equals_brute_force():
    for seed in range(1000, 1080):
        check(random_model(seed), "python")


@needs_core
def test_core_and_twin_visit_the_same_nodes():
    for seed in range(2000, 2200):
        seen = []
        for engine in ("cpp", "python"):
            r = random_model(seed).solve(backend=engine)
            assert r.stats.backend == engine or r.status == "infeasible"
            stats = r.stats
            seen.append((r.status, r.found, stats.nodes, stats.propagations, stats.failures))
        assert seen[0] == seen[1], seed


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_any_model_equals_brute_force(rng):
    check(random_model(rng), "auto")


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9))
def test_any_model_survives_a_round_trip(seed):
    model = random_model(random.Random(seed))
    again = parse(model.text())
    assert again.text() == model.text()
    assert again.domains == model.domains
    values = {
        v.name: random.Random(seed).choice(list(d))
        for v, d in zip(model.variables, model.domains, strict=True)
    }
    for a, b in zip(model.rules, again.rules, strict=True):
        assert a.label == b.label
        assert holds(a.rule, values) == holds(b.rule, values)
    assert len(brute_force(model)) == again.count()


@pytest.mark.parametrize("block", range(5))
def test_cp_sat_agrees(block):
    pytest.importorskip("ortools")
    from bench.cases._cpsat import CpSat

    for seed in FIXED[200 * block : 200 * block + 200]:
        m = random_model(seed)
        r = m.solve()
        try:
            status, values, best = CpSat(m).solve()
        except (ValueError, ModelError) as e:
            pytest.fail(f"seed {seed}: {e}")
        assert (status == "INFEASIBLE") == (r.status == "infeasible"), seed
        if values is not None:
            assert all(holds(item.rule, values) for item in m.rules), seed
            assert best is None or best == r.objective, seed
