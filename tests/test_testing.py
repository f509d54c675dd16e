# SPDX-License-Identifier: Apache-2.0
"""The test kit: it lets honest rounding pass and nothing else."""

import pytest
import torch

from seqkern import ops, reference
from seqkern.testing import (
    Budget,
    Inputs,
    Shape,
    assert_close,
    compare,
    grads_of,
    make_inputs,
    run,
    yardstick,
)

SHAPE = Shape(B=2, T=30, H=2, K=8, V=6)


@pytest.fixture(scope="module")
def results():
    x = make_inputs(SHAPE)
    return run(reference.gla, x.double()), run(reference.gla, x)


def changed(results, name, change):
    """A copy of the results with one element of one tensor changed."""
    copy = {key: value.clone() for key, value in results.items()}
    copy[name].view(-1)[7] = change(copy[name].view(-1)[7])
    return copy


def test_the_peer_passes(results):
    truth, peer = results
    assert_close(peer, truth, peer)
    assert_close({name: t.float() for name, t in truth.items()}, truth, peer, rowwise=("dg",))


@pytest.mark.parametrize("name", ["o", "ht", "dq", "dk", "dv", "dg", "dinitial_state"])
@pytest.mark.parametrize(
    "change", [lambda x: x + 1e-3, lambda x: x * 1.01 + 1e-4, lambda x: x + float("nan")]
)
def test_one_wrong_element_fails(results, name, change):
    truth, peer = results
    with pytest.raises(AssertionError, match=f"(?m)^{name}: "):
        assert_close(changed(peer, name, change), truth, peer)


def test_a_small_error_everywhere_fails(results):
    """Twice the reference's own error is allowed, not ten times."""
    truth, peer = results
    worse = {**peer, "o": (truth["o"] + 10 * (peer["o"] - truth["o"])).float()}
    bad = [b for b in compare(worse, truth, peer) if not b.ok]
    assert {b.tensor for b in bad} == {"o"}


def test_rows_show_what_large_gradients_hide(results):
    truth, peer = results
    truth = {**truth, "dg": truth["dg"].clone()}
    truth["dg"][:, 0] *= 1e-9
    small = {**peer, "dg": truth["dg"].float()}
    wrong = {**small, "dg": small["dg"].clone()}
    wrong["dg"][:, 0] *= 1.5
    assert_close(wrong, truth, small)
    with pytest.raises(AssertionError, match="dg: worst row"):
        assert_close(wrong, truth, small, rowwise=("dg",))


def rounded(results):
    """Float32 results."""
    return {name: t.float() for name, t in results.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nudged_inputs_differ_by_one_rounding(dtype):
    shape = Shape(H=2, K=4, V=3, lengths=(5, 2))
    x = make_inputs(shape, dtype, beta="scalar")
    one, again, other = x.nudged(3), x.double().nudged(3), x.nudged(4)
    assert torch.equal(one.options["cu_seqlens"], x.options["cu_seqlens"])
    for exact, a, b, c in zip(
        *([*y.tensors.values(), y.do, y.dht] for y in (x, one, again, other)), strict=True
    ):
        assert a.dtype == torch.float64
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        away = (a / exact.double() - 1) * 2**24
        assert away.abs().sub(1).abs().max() < 1e-6
        assert 0 < (away > 0).sum() < away.numel()


def test_nudges_leave_what_has_no_digits():
    tensors = {"g": torch.tensor([0.0, float("-inf")]), "index": torch.tensor([1, 2])}
    x = Inputs(tensors, {}, torch.zeros(2), None).nudged(0)
    assert x.tensors["g"].tolist() == [0.0, float("-inf")]
    assert x.tensors["index"].dtype == torch.int64
    assert x.do.tolist() == [0.0, 0.0]
    assert x.dht is None


@pytest.mark.parametrize(
    ("definition", "making"),
    [
        (reference.gla, {"gate": "vector"}),
        (reference.gated_delta_rule, {"gate": "scalar", "beta": "scalar"}),
    ],
    ids=["gla", "gated delta rule"],
)
def test_a_nudge_passes_and_a_wrong_factor_fails(definition, making):
    """Inputs that are off by one rounding are as good as exact ones, by 1e-5 they are wrong."""
    x = make_inputs(SHAPE, **making)
    truth, peers = yardstick(definition, x)
    assert_close(rounded(run(definition, x.nudged(7))), truth, no_worse_than=peers)
    wrong = run(definition, x, scale=SHAPE.K**-0.5 * (1 + 1e-5))
    bad = {b.tensor for b in compare(wrong, truth, no_worse_than=peers) if not b.ok}
    assert {"o", "dq"} <= bad
    for name in truth:
        wrong = {**peers[0], name: (truth[name] * (1 + 1e-5)).float()}
        bad = {b.tensor for b in compare(wrong, truth, no_worse_than=peers) if not b.ok}
        assert bad == {name}


def test_a_lucky_definition_is_no_standard():
    """A difference of near neighbours is exact in float32, but not after one rounding of either."""

    def definition(a, b, output_final_state):
        return a - b, a[:0]

    def op(a, b, output_final_state):
        return (a * 0.7 - b * 0.7) / 0.7, a[:0]

    a = torch.linspace(1, 2, 50)
    x = Inputs({"a": a, "b": a * 1.001}, {}, torch.ones(50), None)
    truth, peers = yardstick(definition, x)
    got = run(op, x)
    assert_close(got, truth, no_worse_than=peers)
    with pytest.raises(AssertionError, match=r"(?m)^o: "):
        assert_close(got, truth, no_worse_than=peers[0])
    with pytest.raises(AssertionError, match=r"(?m)^o: "):
        assert_close({**got, "o": got["o"] * (1 + 1e-3)}, truth, no_worse_than=peers)


def test_the_worst_peer_counts(results):
    """For every tensor and measure by itself."""
    truth, peer = results
    worse = rounded({name: t + 3 * (peer[name] - t) for name, t in truth.items()})
    peers = [peer, {**rounded(truth), "o": worse["o"]}, {**rounded(truth), "dq": worse["dq"]}]
    each = [compare(peer, truth, p) for p in peers]
    for budget, *alone in zip(compare(peer, truth, peers), *each, strict=True):
        assert budget.error == alone[0].error
        assert budget.peer == max(b.peer for b in alone)
        assert budget.allowed == max(b.allowed for b in alone)
        assert alone.index(max(alone, key=lambda b: b.peer)) == {"o": 1, "dq": 2}.get(
            budget.tensor, 0
        )
    broken = {**truth, "o": truth["o"] * float("nan")}
    assert {b.tensor for b in compare(peer, truth, [peer, broken]) if not b.ok} == {"o"}


def test_different_tensors_fail(results):
    truth, peer = results
    with pytest.raises(AssertionError, match="different tensors"):
        assert_close(peer, truth, [peer, {"o": peer["o"]}])
    with pytest.raises(AssertionError, match="different tensors"):
        assert_close({"o": peer["o"]}, truth, peer)
    with pytest.raises(AssertionError, match="o: got"):
        assert_close({**peer, "o": peer["o"][:1]}, truth, peer)
    with pytest.raises(AssertionError, match=r"o: got .* torch.float64"):
        assert_close({**peer, "o": peer["o"].double()}, truth, peer)


def test_a_budget_reads_well():
    budget = Budget("dq", "max", 3e-6, 1e-6, 2e-6)
    assert not budget.ok
    assert str(budget) == "dq: max 3.000e-06, allowed 2.000e-06 (the peers: 1.000e-06)"
    assert not Budget("dq", "max", float("nan"), 0.0, 1.0).ok


def test_inputs_are_the_same_every_time():
    a, b, other = make_inputs(SHAPE), make_inputs(SHAPE), make_inputs(SHAPE, seed=1)
    for name in a.tensors:
        assert torch.equal(a.tensors[name], b.tensors[name])
        assert not torch.equal(a.tensors[name], other.tensors[name])


def test_packed_shapes():
    shape = Shape(H=1, K=2, V=2, lengths=(3, 0, 4))
    assert (shape.B, shape.T, shape.num_sequences) == (1, 7, 3)
    assert shape.cu_seqlens.tolist() == [0, 3, 3, 7]
    x = make_inputs(shape, gate="scalar", beta="vector")
    assert x.tensors["initial_state"].shape == (3, 1, 2, 2)
    assert run(ops.chunk_gated_delta_rule, x)["ht"].shape == (3, 1, 2, 2)


def test_gradients_that_do_not_flow_are_zeros():
    x = torch.ones(2, requires_grad=True)
    unused = torch.ones(3, requires_grad=True)
    y = x * 2
    assert [g.tolist() for g in grads_of([y], [x, unused], [y.detach()])] == [[4, 4], [0, 0, 0]]
    assert grads_of([y.detach()], [x], [y])[0].tolist() == [0, 0]
