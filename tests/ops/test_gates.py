# SPDX-License-Identifier: Apache-2.0
"""Gates and keys at their extremes: strong decay, resets, none at all, nearly parallel keys."""

import functools
from dataclasses import replace

import pytest
import torch
from harness import DTYPES, assert_right
from specs import DELTA_FAMILY, GATED, GLA, expected

from seqkern.testing import Shape, run, yardstick

SHAPE = Shape(B=2, T=150, H=2, K=32, V=32)
each_gated = pytest.mark.parametrize("spec", GATED, ids=lambda s: s.id)


def with_gate(x, g):
    """The same inputs with another gate."""
    return replace(x, tensors={**x.tensors, "g": g})


def case(spec, x):
    """What `assert_right` draws; cache the functions that call it, one for all instruction sets."""
    return x, *yardstick(spec.definition, x)


@each_gated
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("decay", [0.01, 1, 20, 100])
def test_strong_decay_gate_gradient(spec, decay, dtype, isa):
    """Gradients of gates keep their digits, row by row, where decays multiply them down."""
    assert_right(
        spec.op,
        lambda seed: expected(spec, SHAPE, dtype, decay=decay, seed=seed),
        rowwise=("dg",),
    )


@functools.cache
def some_resets(spec, reset, seed):
    """Weak decay but for four resets, two of them in a row."""
    x = spec.inputs(SHAPE, decay=0.1, seed=seed)
    g = x.tensors["g"].clone()
    g[:, [5, 40, 41, 99]] = reset
    return case(spec, with_gate(x, g))


@each_gated
@pytest.mark.parametrize("reset", [-30.0, -200.0, -1e4, float("-inf")])
def test_hard_reset_costs_no_digits(spec, reset, isa):
    """What happens after a reset does not depend on what happened before it, to the last bit."""
    assert_right(spec.op, lambda seed: some_resets(spec, reset, seed))
    if reset > -1e3:
        return
    x, n = some_resets(spec, reset, 0)[0], spec.n
    other = spec.inputs(SHAPE, decay=0.1, seed=7)
    mixed = {
        name: t
        if name == "initial_state"
        else torch.cat(
            [
                other.tensors[name][:, : 41 * (t.shape[1] // SHAPE.T)],
                t[:, 41 * (t.shape[1] // SHAPE.T) :],
            ],
            1,
        )
        for name, t in x.tensors.items()
    }
    assert mixed["k"].shape[1] == SHAPE.T * n
    with torch.no_grad():
        before = spec.op(**x.tensors, **x.options, output_final_state=True)
        after = spec.op(**mixed, **x.options, output_final_state=True)
    assert not torch.equal(before[0][:, :41], after[0][:, :41])
    assert torch.equal(before[0][:, 41:], after[0][:, 41:])
    assert torch.equal(before[1], after[1])


@functools.cache
def no_decay(spec, seed):
    """A gate of zeros."""
    x = spec.inputs(SHAPE, seed=seed)
    return case(spec, with_gate(x, torch.zeros_like(x.tensors["g"])))


@each_gated
def test_no_decay(spec, isa):
    """A gate of zeros is the op without a gate, and still has a gradient."""
    assert_right(spec.op, lambda seed: no_decay(spec, seed))


@functools.cache
def resets_at_the_ends(lengths, seed):
    """Packed sequences whose first and last decays are resets."""
    x = GLA.inputs(Shape(H=2, K=32, V=32, lengths=lengths), seed=seed)
    g, offsets = x.tensors["g"].clone(), x.options["cu_seqlens"]
    g[:, offsets[:-1]] = -1e4
    g[:, offsets[1:] - 1] = float("-inf")
    return case(GLA, with_gate(x, g))


@pytest.mark.parametrize("lengths", [(150,), (37, 1, 112)], ids=str)
def test_resets_at_the_ends(lengths, isa):
    """Resets at the first and the last token of a sequence, packed or not."""
    assert_right(GLA.op, lambda seed: resets_at_the_ends(lengths, seed))


@functools.cache
def nearly_parallel_keys(spec, dtype, signs, seed):
    """Keys that are almost one vector, or its opposite, written with a strength near 2."""
    x = spec.inputs(SHAPE, dtype, seed=seed)
    k, beta = x.tensors["k"], x.tensors["beta"]
    nearly = k[:, :1].float() + 0.02 * k.float()
    nearly = torch.nn.functional.normalize(nearly, dim=-1).to(dtype)
    if signs:
        nearly[:, 1::2] *= -1
    tensors = {**x.tensors, "k": nearly, "beta": torch.full_like(beta, 1.98)}
    return case(spec, replace(x, tensors=tensors))


@pytest.mark.parametrize("spec", DELTA_FAMILY, ids=lambda s: s.id)
@pytest.mark.parametrize(
    ("dtype", "signs"), [*((dtype, False) for dtype in DTYPES), (torch.float32, True)], ids=str
)
def test_nearly_parallel_keys(spec, dtype, signs, isa):
    """Each write almost reflects what the one before has written.

    Rounding errors of a chunk count from the state at its start, where the definition's count
    from the last token, and such keys shrink that state token by token. The kernel cuts these
    chunks to 4 tokens, which leaves up to 2.7 times the error of the definition, hence the factor
    of 3; shorter ones win nothing more. (The plain chunked form with 64 tokens has 14 times it.)
    """
    draw = functools.partial(nearly_parallel_keys, spec, dtype, signs)
    assert_right(spec.op, draw, factor=3)


@functools.cache
def parallel_at_first(spec, seed):
    """The first keys are almost one vector, the others are not."""
    x = spec.inputs(SHAPE, seed=seed)
    k = x.tensors["k"].clone()
    k[:, :16] = k[:, :1] + 0.02 * k[:, :16]
    k = torch.nn.functional.normalize(k, dim=-1)
    return case(spec, replace(x, tensors={**x.tensors, "k": k}))


@pytest.mark.parametrize("spec", DELTA_FAMILY, ids=lambda s: s.id)
def test_chunks_of_another_length_meet_the_saved_states(spec, isa):
    """After chunks that were cut short the next ones end where the states are saved again."""
    assert_right(spec.op, lambda seed: parallel_at_first(spec, seed), factor=3)


@functools.cache
def same_strength(spec, strength, seed):
    """Every write strength the same."""
    x = spec.inputs(SHAPE, seed=seed)
    beta = torch.full_like(x.tensors["beta"], strength)
    return case(spec, replace(x, tensors={**x.tensors, "beta": beta}))


@pytest.mark.parametrize("spec", DELTA_FAMILY, ids=lambda s: s.id)
@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
def test_strength_at_its_ends(spec, strength, isa):
    """No write at all, a plain overwrite, a reflection: gradients of beta included."""
    assert_right(spec.op, lambda seed: same_strength(spec, strength, seed))


@pytest.mark.parametrize("spec", DELTA_FAMILY, ids=lambda s: s.id)
def test_zero_keys(spec, isa):
    """Keys and queries of zeros divide by nothing, also when they are normalised."""
    x = spec.inputs(SHAPE)
    zeros = {name: torch.zeros_like(x.tensors[name]) for name in ("q", "k")}
    got = run(spec.op, replace(x, tensors={**x.tensors, **zeros}))
    for name, result in got.items():
        assert result.isfinite().all(), name
    assert got["o"].count_nonzero() == 0
