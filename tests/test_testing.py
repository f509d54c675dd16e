# SPDX-License-Identifier: Apache-2.0
"""The test kit: it lets honest rounding pass and nothing else."""

import pytest
import torch

from seqkern import ops, reference
from seqkern.testing import Budget, Shape, assert_close, compare, grads_of, make_inputs, run

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


def test_different_tensors_fail(results):
    truth, peer = results
    with pytest.raises(AssertionError, match="different tensors"):
        assert_close({"o": peer["o"]}, truth, peer)
    with pytest.raises(AssertionError, match="o: got"):
        assert_close({**peer, "o": peer["o"][:1]}, truth, peer)
    with pytest.raises(AssertionError, match=r"o: got .* torch.float64"):
        assert_close({**peer, "o": peer["o"].double()}, truth, peer)


def test_a_budget_reads_well():
    budget = Budget("dq", "max", 3e-6, 1e-6, 2e-6)
    assert not budget.ok
    assert str(budget) == "dq: max 3.000e-06, allowed 2.000e-06 (the reference: 1.000e-06)"
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
