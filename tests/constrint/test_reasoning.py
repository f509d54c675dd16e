# SPDX-License-Identifier: Apache-2.0
"""What is settled without walking: linear cycles, remainders, divisors, shared products."""

import itertools
import math
import random

import pytest

from bench.cases._random_models import (
    chained_model,
    check,
    dense_model,
    large_model,
    mixed_model,
    random_model,
)
from constrint import (
    Model,
    _twin,
    all_different,
    backend,
    divides,
    divisors,
    maximum,
    minimum,
)
from constrint._numbers import _is_prime, _primes_of

ENGINES = ["python", *(["cpp"] if backend() == "cpp" else [])]
LONG = 10**12


def of(count, *rules, last=LONG):
    """Return a model of variables 0 .. last under rules, each a function of all variables."""
    m = Model("no way")
    xs = [m.int("xyzuvw"[i], 0, last) for i in range(count)]
    for rule in rules:
        m.require(rule(*xs))
    return m


IMPOSSIBLE = {
    "two": of(2, lambda x, y: x < y, lambda x, y: y < x),
    "two of 400 bits": of(2, lambda x, y: x < y, lambda x, y: y < x, last=1 << 400),
    "three": of(3, lambda x, y, z: x < y, lambda x, y, z: y < z, lambda x, y, z: z < x),
    "six": of(6, *(lambda *v, i=i: v[i] < v[(i + 1) % 6] for i in range(6))),
    "factors": of(
        3,
        lambda x, y, z: 7 * x < 5 * y,
        lambda x, y, z: 5 * y < 3 * z,
        lambda x, y, z: 3 * z < 7 * x,
    ),
    "equations": of(
        3, lambda x, y, z: x == y + 1, lambda x, y, z: y == z + 1, lambda x, y, z: z == x + 1
    ),
    "averages": of(
        3,
        lambda x, y, z: x + y < 2 * z,
        lambda x, y, z: z + x < 2 * y,
        lambda x, y, z: y + z < 2 * x,
    ),
    "a little more": of(
        2, lambda x, y: 1000 * x >= 1001 * y + 1, lambda x, y: 1000 * y >= 1001 * x + 1
    ),
    "through max": of(2, lambda x, y: x == maximum(y, 5) + 1, lambda x, y: y >= x),
    "through min": of(3, lambda x, y, z: x < minimum(y, z), lambda x, y, z: y < x),
    "through a quotient": of(2, lambda x, y: x // 2 > y, lambda x, y: 2 * y >= x),
    "through a product": of(
        4, lambda x, y, z, u: x * y < z, lambda x, y, z, u: z < u, lambda x, y, z, u: u < x * y
    ),
    "in both branches": of(
        3,
        lambda x, y, z: (z > 5).implies((x < y) & (y < x)),
        lambda x, y, z: (z <= 5).implies((x + 3 < y) & (y < x - z)),
    ),
    "equal and different": of(
        2, lambda x, y: x <= y, lambda x, y: y <= x, lambda x, y: all_different(x, y)
    ),
    "equal but not equal": of(2, lambda x, y: x <= y, lambda x, y: y <= x, lambda x, y: x != y),
    "equal as stated": of(2, lambda x, y: x == y, lambda x, y: all_different(y, x)),
    "odd and even": of(3, lambda x, y, z: x == 2 * y, lambda x, y, z: x == 2 * z + 1),
    "remainders": of(1, lambda x: x % 4 == 1, lambda x: x % 6 == 2),
    "remainders of a product": of(2, lambda x, y: x % 6 == 3, lambda x, y: x * y % 9 == 1),
    "remainders of sums": of(
        3,
        lambda x, y, z: x % 10 == 5,
        lambda x, y, z: y % 15 == 5,
        lambda x, y, z: x + y + 20 * z == 10**9 + 1,
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_over_long_intervals(name, engine):
    r = IMPOSSIBLE[name].solve(max_nodes=1000, time_limit=20, backend=engine)
    assert r.status == "infeasible"
    assert r.stats.propagations < 100_000


@pytest.mark.parametrize("engine", ENGINES)
def test_creeping_bounds_that_do_meet(engine):
    m = of(2, lambda x, y: 1000 * x >= 999 * y + 500, lambda x, y: 1000 * y >= 999 * x + 500)
    m.minimize(m.variables[0] + m.variables[1])
    assert m.solve(time_limit=20, backend=engine).objective == 1000
    m = of(3, lambda x, y, z: x + 1 == y, lambda x, y, z: y + z == x + 10**9)
    assert m.solve(time_limit=20, backend=engine)["z"] == 10**9 - 1


def test_rules_that_are_always_looked_at_together(monkeypatch):
    """Every node of the twin is taken for a slow one; answers must stay those of brute force."""
    monkeypatch.setattr(_twin, "SLOW", 2)
    monkeypatch.setattr(_twin, "SLOW_EACH", 0)
    monkeypatch.setattr(_twin, "WINDOW", 3)
    for seed in range(5000, 5150):
        check(random_model(seed), "python")


@pytest.mark.parametrize("engine", ENGINES)
def test_remainders_meet_in_one_value(engine):
    m = Model()
    x = m.int("x", 1, 10**15)
    for divisor, rest in ((10007, 5), (10009, 77), (10037, 1234), (99991, 4)):
        m.require(x % divisor == rest)
    found = [v["x"] for v in m.solutions(time_limit=20, backend=engine)]
    assert len(found) <= 1
    for divisor, rest in ((10007, 5), (10009, 77)):
        assert all(v % divisor == rest for v in found)
    m = Model()
    x, y = m.int("x", 0, 10**9), m.int("y", 0, 10**9)
    m.require(3 * x - 5 * y == 7)
    m.require(x % 4 == 3)
    assert m.minimize(x).solve(backend=engine).values == {"x": 19, "y": 10}


@pytest.mark.parametrize("engine", ENGINES)
def test_divisors_of_what_the_search_fixes(engine):
    m = Model()
    x, y, z = m.int("x", 60, 10**6), m.int("y", 60, 10**6), m.int("z", [510510, 510511])
    m.require(x * y == z)
    truth = {(a, n // a, n) for n in (510510, 510511) for a in range(60, n // 60 + 1) if n % a == 0}
    found = list(m.solutions(max_nodes=5000, backend=engine))
    assert {(v["x"], v["y"], v["z"]) for v in found} == truth
    assert len(found) == len(truth) > 20


@pytest.mark.parametrize("engine", ENGINES)
def test_divisors_of_either_sign_and_of_numbers_too_large_to_factor(engine):
    m = Model()
    x, y, z = m.int("x", -400, 400), m.int("y", -400, 400), m.int("z", [1200, -1300])
    m.require(x * y == z)
    fitting = [d for n in (1200, 1300) for d in divisors(n) if d <= 400 and n // d <= 400]
    assert m.count(backend=engine) == 2 * len(fitting)
    number = 210 * (10**18 + 9)
    m = Model()
    x, y = m.int("x", 1, 1000), m.int("y", 1, number)
    m.require(x * y == number)
    assert m.count(backend=engine) == sum(number % d == 0 for d in range(1, 1001))


def test_divisors_against_trial_division():
    for n in range(1, 2000):
        assert divisors(n) == tuple(d for d in range(1, n + 1) if n % d == 0)
    rng = random.Random(2)
    primes = [1009, 10007, 999_983, 999_999_937, 999_999_929]
    for _ in range(60):
        parts = rng.choices(primes, k=rng.randint(1, 3))
        number = math.prod(parts)
        if number <= 10**18:
            assert sorted(_primes_of(number)) == sorted(parts)
    assert not any(_is_prime(n) for n in (3215031751, 341550071728321, 1009 * 1013))
    assert _is_prime(999_999_937)
    assert len(divisors(897_612_484_786_617_600)) == 103_680
    with pytest.raises(ValueError, match="must be 1 to"):
        divisors(10**18 + 1)


def test_few_values_for_many_variables():
    m = Model()
    xs = [m.int(f"x{i}", range(1, 18, 2)) for i in range(10)]
    m.require(all_different(*xs))
    r = m.solve()
    assert (r.status, r.stats.nodes) == ("infeasible", 0)


def test_products_share_their_parts():
    """c * b * a uses a * b of the other rule, whose bound then refutes it without a search."""
    m = Model()
    a, b, c = (m.int(name, 1, 1000) for name in "abc")
    m.require(a * b <= 50)
    m.require(c <= 7)
    m.require(c * b * a >= 351)
    r = m.solve()
    assert (r.status, r.stats.nodes) == ("infeasible", 0)


@pytest.mark.skipif(backend() != "cpp", reason="the C++ core is not here")
@pytest.mark.parametrize("make", [large_model, chained_model, dense_model, mixed_model])
def test_engines_agree_on_large_domains(make):
    for seed, planted in itertools.product(range(4), (True, False)):
        seen = []
        for engine in ("cpp", "python"):
            r = make(seed, planted).solve(max_nodes=300, backend=engine)
            stats = r.stats
            seen.append((r.status, r.found, stats.nodes, stats.propagations, stats.failures))
        assert seen[0] == seen[1]


@pytest.mark.skipif(backend() != "cpp", reason="the C++ core is not here")
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_engines_agree_on_impossible_rules(name):
    seen = []
    for engine in ("cpp", "python"):
        stats = IMPOSSIBLE[name].solve(max_nodes=1000, backend=engine).stats
        seen.append((stats.nodes, stats.propagations, stats.failures))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_divisibility_between_variables(engine):
    m = Model()
    x, y, z = (m.int(name, 1, 10**6) for name in "xyz")
    m.require(divides(x, y))
    m.require(divides(y, z))
    m.require(divides(z, x))
    m.require(x % 1001 == 0)
    m.require(x + y + z >= 3 * 999_000)
    assert m.solve(time_limit=20, backend=engine).values == dict.fromkeys(
        "xyz", 999_999 // 1001 * 1001
    )
