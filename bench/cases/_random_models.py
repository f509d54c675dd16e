# SPDX-License-Identifier: Apache-2.0
"""Random models that brute force can decide, the same for the same seed."""

import itertools
import random

from constrint import (
    Model,
    all_different,
    ceil_div,
    divides,
    maximum,
    minimum,
    total,
)
from constrint.expr import evaluate, holds


def random_model(seed):
    """Return a model of 2 to 4 variables with at most a few thousand points.

    Two of three have a solution by construction: rules are drawn until one holds at a hidden point.
    ``seed`` may be a generator itself.
    """
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    m = Model(f"random {seed}" if isinstance(seed, int) else "random")
    xs = [m.int("abcd"[i], _domain(rng)) for i in range(rng.randint(2, 4))]
    hidden = {x.name: rng.choice(list(d)) for x, d in zip(xs, m.domains, strict=True)}
    planted = rng.random() < 0.67
    for i in range(rng.randint(1, 5)):
        rule = _rule(rng, xs, 2)
        for _ in range(30 if planted else 0):
            if holds(rule, hidden):
                break
            rule = _rule(rng, xs, 2)
        m.require(rule, f"rule {i}")
    if rng.random() < 0.5:
        goal = _expr(rng, xs, 2)
        m.minimize(goal) if rng.random() < 0.5 else m.maximize(goal)
        if rng.random() < 0.3:
            m.maximize(rng.choice(xs))
    if rng.random() < 0.4:
        chosen = rng.sample(xs, rng.randint(1, len(xs)))
        m.order(*((x, rng.choice(["smallest", "largest"])) for x in chosen))
    return m


def large_model(seed, planted=True):
    """Return 30 variables of 1 .. 10**6 under 40 rules on products and divisibility.

    Planted: a hidden point satisfies all rules. Otherwise the last rule contradicts itself.
    """
    rng = random.Random(seed)
    m = Model(f"large {seed}")
    xs = [m.int(f"x{i}", 1, 10**6) for i in range(30)]
    hidden = [rng.choice([2, 3, 4, 5, 6, 8, 9, 12]) ** rng.randint(1, 4) for _ in xs]
    for k in range(40):
        i, j, h = rng.sample(range(30), 3)
        kind = k % 4
        product = hidden[i] * hidden[j]
        if kind == 0:
            m.require(xs[i] * xs[j] == product, f"product {k}")
        elif kind == 1:
            m.require(xs[i] * xs[j] * xs[h] <= product * hidden[h] + rng.randint(0, 50))
        elif kind == 2:
            m.require(divides(xs[i], product * rng.randint(1, 9)))
        else:
            m.require(xs[i] * xs[j] >= product // 2)
            m.require((xs[i] * xs[h]) % xs[j] == (hidden[i] * hidden[h]) % hidden[j])
    return m if planted else _contradicted(m, xs, rng)


def chained_model(seed, planted=True):
    """Return 30 variables of 1 .. 10**6, each under a rule with the next; large hidden values."""
    rng = random.Random(seed)
    m = Model(f"chained {seed}")
    xs = [m.int(f"x{i}", 1, 10**6) for i in range(30)]
    hidden = [rng.randint(1, 10**6) for _ in xs]
    for k in range(40):
        i, j = k % 29, k % 29 + 1
        kind = rng.randint(0, 3)
        if kind == 0:
            m.require(xs[i] * xs[j] == hidden[i] * hidden[j])
        elif kind == 1:
            m.require(divides(xs[i], hidden[i] * hidden[j] * rng.randint(1, 9)))
        elif kind == 2:
            m.require(xs[i] * xs[j] % (k + 2) == hidden[i] * hidden[j] % (k + 2))
        else:
            m.require(xs[i] % xs[j] == hidden[i] % hidden[j])
    return m if planted else _contradicted(m, xs, rng)


def dense_model(seed, planted=True):
    """Return 30 variables of 1 .. 10**6, ten of them products of others, under 40 rules."""
    rng = random.Random(seed)
    m = Model(f"dense {seed}")
    xs = [m.int(f"x{i}", 1, 10**6) for i in range(30)]
    hidden = [rng.randint(1, 60) for _ in xs]
    for k in range(15, 25):
        i, j = rng.sample(range(15), 2)
        hidden[k] = hidden[i] * hidden[j]
        m.require(xs[i] * xs[j] == xs[k])
    for _ in range(30):
        i, j, h = rng.sample(range(30), 3)
        kind, product = rng.randint(0, 3), hidden[i] * hidden[j]
        if kind == 0:
            m.require(xs[i] * xs[j] % hidden[h] == product % hidden[h])
        elif kind == 1:
            m.require(xs[i] * xs[j] % xs[h] == product % hidden[h])
        elif kind == 2:
            m.require(xs[i] * xs[j] <= product + rng.randint(0, 9))
        else:
            m.require(xs[i] * xs[j] * xs[h] == product * hidden[h])
    return m if planted else _contradicted(m, xs, rng)


def mixed_model(seed, planted=True):
    """Return 30 variables of 1 .. 10**6 under 40 products, sums, remainders and inequalities."""
    rng = random.Random(seed)
    m = Model(f"mixed {seed}")
    xs = [m.int(f"x{i}", 1, 10**6) for i in range(30)]
    hidden = [rng.choice([2, 3, 4, 5, 6, 8, 9, 12]) ** rng.randint(1, 4) for _ in xs]
    for _ in range(40):
        i, j, h = rng.sample(range(30), 3)
        x, y, z = xs[i], xs[j], xs[h]
        a, b, c = hidden[i], hidden[j], hidden[h]
        d = rng.randint(2, 50)
        m.require(
            [
                x * y == a * b,
                x * y + z == a * b + c,
                x % y == a % b,
                x * y <= z * (a * b // c + 1),
                (x + y) % z == (a + b) % c,
                x * y - z * x == a * b - c * a,
                x % d == a % d,
                x * y >= a * b,
            ][rng.randint(0, 7)]
        )
    return m if planted else _contradicted(m, xs, rng)


def _contradicted(m, xs, rng):
    """Add a rule on two variables that no integers satisfy, whatever the other rules are."""
    i, j = rng.sample(range(len(xs)), 2)
    m.require(xs[i] * xs[j] * 6 == 7**11, "no multiple of 6")
    return m


def _domain(rng):
    kind = rng.random()
    if kind < 0.4:
        low = rng.randint(0, 4)
        return range(low, low + rng.randint(1, 9))
    if kind < 0.6:
        low = rng.randint(-6, 2)
        return range(low, low + rng.randint(1, 9))
    if kind < 0.7:
        return range(rng.randint(1, 8), 60, rng.randint(7, 12))
    return rng.sample(range(-4, 40), rng.randint(1, 8))


def _expr(rng, xs, depth):
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(xs) if rng.random() < 0.8 else xs[0] * 0 + rng.randint(-3, 12)
    kind = rng.random()
    a = _expr(rng, xs, depth - 1)
    if kind < 0.2:
        return a + _expr(rng, xs, depth - 1)
    if kind < 0.3:
        return a - _expr(rng, xs, depth - 1)
    if kind < 0.55:
        return a * _expr(rng, xs, depth - 1)
    if kind < 0.62:
        return a // _positive(rng, xs)
    if kind < 0.7:
        return a % _positive(rng, xs)
    if kind < 0.78:
        return rng.choice(xs) ** rng.randint(0, 3)
    if kind < 0.81:
        return rng.randint(-2, 3) ** (abs(rng.choice(xs)) % 5)
    if kind < 0.86:
        return maximum(a, _expr(rng, xs, depth - 1), rng.randint(-3, 9))
    if kind < 0.91:
        return minimum(a, _expr(rng, xs, depth - 1))
    if kind < 0.95:
        return abs(a)
    if kind < 0.98:
        return ceil_div(a, rng.choice([-3, 2, 5]))
    return a * _rule(rng, xs, 1).count()


def _positive(rng, xs):
    kind = rng.random()
    x = rng.choice(xs)
    if kind < 0.3:
        return rng.choice([-4, -2, 2, 3, 7])
    return abs(x) + 1 if kind < 0.8 else -(x * x) - 1


def _rule(rng, xs, depth):
    kind = rng.random()
    if depth and kind < 0.3:
        a, b = _rule(rng, xs, depth - 1), _rule(rng, xs, depth - 1)
        return rng.choice([a | b, a & b, a.implies(b), ~a, ~(a & b), ~(a | b), (a | b) & ~b])
    if kind < 0.4:
        return divides(_positive(rng, xs), _expr(rng, xs, 1))
    if kind < 0.47:
        return _expr(rng, xs, 1).isin(rng.sample(range(-10, 60), rng.randint(1, 20)))
    if kind < 0.52:
        return all_different(*(_expr(rng, xs, rng.randint(0, 1)) for _ in range(rng.randint(2, 4))))
    if kind < 0.56:
        few = [_rule(rng, xs, 0).count() for _ in range(3)]
        return total(few) >= rng.randint(1, 3)
    left = _expr(rng, xs, 2)
    right = rng.randint(-10, 60) if rng.random() < 0.6 else _expr(rng, xs, 1)
    if rng.random() < 0.15:
        return left == right
    pick = rng.randint(0, 4)
    return [left != right, left < right, left <= right, left > right, left >= right][pick]


def brute_force(m):
    """Return every solution of a model as a list of dicts, sorted as its order asks."""
    names = [v.name for v in m.variables]
    found = []
    for point in itertools.product(*m.domains):
        values = dict(zip(names, point, strict=True))
        if all(holds(r.rule, values) for r in m.rules):
            found.append(values)
    return found


def order_key(m, values):
    """Return what to sort solutions by to get the order that a model asks for."""
    return tuple(
        values[x.name] * (1 if direction == "smallest" else -1) for x, direction in m.ordering
    )


def objective_key(m, values):
    """Return what to sort solutions by to get the best first."""
    return tuple(evaluate(goal.expr, values) * (-1 if goal.largest else 1) for goal in m.objectives)


def check(m, backend):
    """Compare every answer about a model with brute force; return (nodes, status)."""
    truth = brute_force(m)
    r = m.solve(backend=backend)
    if not truth:
        assert r.status == "infeasible"
        assert m.count(backend=backend) == 0
        return r
    assert r.found in truth
    if m.objectives:
        assert r.status == "optimal"
        best = min(objective_key(m, v) for v in truth)
        assert objective_key(m, r.found) == best
        assert r.objectives == r.bounds
        truth_best = [v for v in truth if objective_key(m, v) == best]
    else:
        assert r.status == ("optimal" if m.ordering else "feasible")
        truth_best = truth
    first = min(order_key(m, v) for v in truth_best)
    assert order_key(m, r.found) == first
    assert m.count(backend=backend) == len(truth)
    found = list(m.solutions(backend=backend))
    keys = [tuple(v.values()) for v in found]
    assert len(keys) == len(set(keys)) == len(truth)
    assert set(keys) == {tuple(v.values()) for v in truth}
    firsts = [order_key(m, v) for v in found]
    assert firsts == sorted(firsts)
    if m.objectives:
        goal = m.objectives[0]
        top = m.top(3, by=goal.expr, largest=goal.largest, backend=backend)
        sign = -1 if goal.largest else 1
        scores = sorted(sign * evaluate(goal.expr, v) for v in truth)
        assert [sign * evaluate(goal.expr, v) for v in top] == scores[:3]
    return r
