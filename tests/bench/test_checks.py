# SPDX-License-Identifier: Apache-2.0
"""The check before the timing must pass right answers and catch wrong ones, anywhere it looks."""

from dataclasses import replace

import pytest

from bench import inputs
from bench.cases._family import check, ours
from bench.registry import Entry, Size

SIZE = Size(T=150, H=2, K=16, V=24)


def _broken(entry: Entry, spoil) -> Entry:
    def call(**x):
        result = entry.call(**x)
        return (spoil(result[0], x), result[1])

    return replace(entry, call=call)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["chunk_gla", "chunk_gated_delta_rule"])
def test_right_answers_pass(name, dtype):
    size = replace(SIZE, dtype=dtype)
    findings = check(name, size, ours(name, size, "fwd+bwd"))
    assert {f.name for f in findings} >= {"o", "dq", "dk", "dv", "dg"}
    assert all(f.ok for f in findings), [str(f) for f in findings]


def test_delta_product_is_cut_at_token_boundaries():
    size = replace(SIZE, n_h=3)
    name = "chunk_gated_delta_product"
    findings = check(name, size, ours(name, size, "fwd+bwd"))
    assert all(f.ok for f in findings), [str(f) for f in findings]


@pytest.mark.parametrize("pass_", ["fwd", "fwd+bwd"])
def test_a_wrong_output_is_caught(pass_):
    entry = _broken(ours("chunk_gla", SIZE, pass_), lambda o, x: o * 1.001)
    assert not all(f.ok for f in check("chunk_gla", SIZE, entry))


def test_a_wrong_gradient_is_caught():
    def spoil(o, x):
        return o + (x["g"] - x["g"].detach()).sum()

    findings = check("chunk_gla", SIZE, _broken(ours("chunk_gla", SIZE, "fwd+bwd"), spoil))
    assert {f.name for f in findings if not f.ok} == {"dg"}


def test_inputs_are_the_same_every_time():
    first, second = inputs.gated_delta_rule(SIZE), inputs.gated_delta_rule(SIZE)
    assert all(first[name].equal(second[name]) for name in first)
