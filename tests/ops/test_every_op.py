# SPDX-License-Identifier: Apache-2.0
"""What holds for every op: strides, packing, carried states, nothing left unwritten, the same bits.

That the values are right is tested op by op, in `test_linear_attention.py` and its siblings.
"""

import functools
import itertools
import warnings
from dataclasses import replace

import pytest
import torch
from harness import (
    RESTRIDE,
    assert_all_equal,
    assert_packed_equals_separate,
    assert_right,
    assert_same,
    assert_strides_change_nothing,
    leaves_of,
)
from op_cases import CASES, LINEAR_ATTENTION, LINEAR_SCAN, LSSL, RECURRENT, SELECTIVE_SCAN, over

from seqkern._runtime import backends
from seqkern.errors import DTypeError
from seqkern.testing import assert_close, grads_of, run, yardstick

PACKING = [case for case in CASES if case.lengths]
# Signs change one elementwise function of the selective scan.
ONE_SIGN = [case for case in CASES if case not in SELECTIVE_SCAN or "signs" not in case.id]
# The recurrent cells have some tests of their own: with resets, and from single states.
NOT_RECURRENT = [case for case in CASES if case not in RECURRENT]
CARRYING = [case for case in CASES if case.carries]


@over(NOT_RECURRENT, dtype=lambda case: case.dtypes[:2])
@pytest.mark.parametrize("restride", RESTRIDE)
def test_strided_inputs(case, dtype, restride):
    assert_strides_change_nothing(case.op, case.inputs(dtype), restride)


@over(SELECTIVE_SCAN + LINEAR_SCAN, dtype=lambda case: case.dtypes[:2])
def test_strided_inputs_on_every_isa(case, dtype, isa):
    """Of the kernels that read any strides themselves."""
    for restride in RESTRIDE:
        assert_strides_change_nothing(case.op, case.inputs(dtype), restride)


@over(CASES)
def test_expanded_gradients(case):
    """Gradients with zero strides, as ``sum()`` makes them, are read right."""
    x = case.inputs()
    one = torch.ones(())
    dense = replace(x, do=torch.ones_like(x.do), dht=torch.ones_like(x.dht))
    expanded = replace(x, do=one.expand_as(x.do), dht=one.expand_as(x.dht))
    assert_same(run(case.op, expanded), run(case.op, dense))


EDGES = {
    "T=0": {"T": 0},
    "B=0": {"T": 5, "B": 0},
    "no width": {"T": 5, "width": 0},
    "empty sequences": {"T": (0, 0)},
    "no sequences": {"T": ()},
    "T=1": {"T": 1},
}


@functools.cache
def at_the_edge(case, edge, state, seed):
    """Inputs, truth and peers, computed once for all instruction sets."""
    x = case.inputs(**{**case.tiny, **EDGES[edge]}, seed=seed)
    if not state:
        x = replace(x, tensors={n: t for n, t in x.tensors.items() if n != case.state})
    return x, *yardstick(case.definition, x)


@over([case for case in PACKING if case in ONE_SIGN])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("state", [True, False], ids=["state", "no state"])
def test_empty_and_single_step(case, edge, state, isa):
    got = assert_right(case.op, lambda seed: at_the_edge(case, edge, state, seed))
    x, *_ = at_the_edge(case, edge, state, 0)
    outs = case.op(**x.tensors, **x.options, output_final_state=True)
    assert_all_equal(outs, (got["o"], got["ht"]))
    if edge in ("T=0", "empty sequences") and case.carries:
        before = x.tensors[case.state] if state else torch.zeros_like(got["ht"])
        assert torch.equal(got["ht"], before)
        assert not state or torch.equal(got[f"d{case.state}"], x.dht)


@over(CASES)
def test_inference_equals_training(case, isa):
    """The forward pass that saves nothing gives the same bits, in the same shapes."""
    x = case.inputs()
    got = run(case.op, x)
    outs = case.op(**x.tensors, **x.options, output_final_state=True)
    assert_all_equal(outs, (got["o"], got["ht"]))


@over(CASES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("T", [0, 1])
def test_outputs_share_no_memory(case, T, backend):
    """Neither with inputs, for the last state of no step is a copy, nor among each other."""
    x = case.inputs(**{**case.tiny, "T": T})
    outs = case.op(**x.tensors, **x.options, output_final_state=True, backend=backend)
    filled = [t for t in (*x.tensors.values(), *outs) if t.numel()]
    assert len({t.untyped_storage().data_ptr() for t in filled}) == len(filled)


@over(ONE_SIGN, dtype=lambda case: case.dtypes, size=lambda case: case.sizes)
def test_writes_every_output(case, dtype, size, isa, poisoned):
    assert torch.empty(3).isnan().all()
    for name, result in run(case.op, case.inputs(dtype, size)).items():
        assert not result.isnan().any(), name


@over(CASES, dtype=lambda case: case.dtypes, size=lambda case: case.large or case.sizes)
def test_same_bits_twice_and_for_every_thread_count(case, dtype, size, isa, threads):
    x = case.inputs(dtype, size)
    threads(1)
    alone = run(case.op, x)
    for count in (1, 2, 3):
        threads(count)
        assert_same(run(case.op, x), alone)


@over(NOT_RECURRENT)
@pytest.mark.parametrize("absent", ["do", "dht"])
def test_one_output_alone(case, absent):
    """A loss on one of the two outputs takes the other's gradient as zero."""
    x = replace(case.inputs(), **{absent: None})
    got, truth = run(case.op, x), run(case.definition, x)
    torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-4)


@over(CASES)
def test_a_state_nobody_asked_for_changes_nothing(case):
    """Without ``output_final_state`` the output and the gradients are the same."""
    x = replace(case.inputs(), dht=None)
    expected, leaves = run(case.op, x), leaves_of(x)
    o, _ = case.op(**leaves, **x.options, output_final_state=False)
    grads = torch.autograd.grad(o, list(leaves.values()), x.do, materialize_grads=True)
    assert_all_equal((o, *grads), [expected["o"], *(expected[f"d{name}"] for name in leaves)])


@over(CASES)
def test_backward_leaves_its_inputs_alone(case):
    """Running the same graph backwards twice gives the same gradients."""
    x = case.inputs()
    leaves = leaves_of(x)
    outs = [y for y in case.op(**leaves, **x.options, output_final_state=True) if y.requires_grad]
    cotangents = [dy.clone() for dy in (x.do, x.dht)][: len(outs)]
    first, second = (
        torch.autograd.grad(outs, list(leaves.values()), cotangents, retain_graph=True)
        for _ in range(2)
    )
    assert_all_equal(first, second)
    assert_all_equal(leaves.values(), x.tensors.values())
    assert_all_equal(cotangents, (x.do, x.dht)[: len(outs)])


@over(PACKING)
def test_offsets_may_be_int32_or_strided(case):
    x = case.inputs(size="packed")
    expected, offsets = run(case.op, x), x.options["cu_seqlens"]
    for other in (offsets.int(), offsets.repeat_interleave(2)[::2]):
        options = {**x.options, "cu_seqlens": other}
        assert_same(run(case.op, replace(x, options=options)), expected)


def in_pieces(case, x, bounds, tensors):
    """Run the pieces of a batch one after the other, each from the state before it."""
    T, state, outs = x.do.shape[case.time["o"]], tensors[case.state], []
    for begin, end in itertools.pairwise(bounds):
        part = {name: case.steps(name, t, T, begin, end) for name, t in tensors.items()}
        part[case.state] = state
        o, state = case.op(**part, **x.options, output_final_state=True)
        outs.append(o)
    return torch.cat(outs, case.time["o"]), state


@over(CARRYING)
def test_gradients_flow_through_the_carried_state(case):
    """States carried over any cut give the whole run, forwards and backwards."""
    x = case.inputs()
    leaves = leaves_of(x)
    T = case.T
    outs = in_pieces(case, x, (0, 1, T // 2, T // 2, T - 1, T), leaves)
    grads = grads_of(outs, list(leaves.values()), (x.do, x.dht))
    named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    truth, peers = yardstick(case.definition, x)
    assert_close({"o": outs[0].detach(), "ht": outs[1].detach(), **named}, truth, peers)


@over([case for case in CASES if case.exact_cuts], dtype=lambda case: case.dtypes)
@pytest.mark.parametrize("bounds", [(0, 32, 96, 150), (0, 1, 3, 3, 70, 71, 150)], ids=str)
def test_split_and_carry_has_the_bits_of_the_whole(case, dtype, bounds, isa):
    x = case.inputs(dtype, T=150)
    whole = case.op(**x.tensors, **x.options, output_final_state=True)
    assert_all_equal(in_pieces(case, x, bounds, x.tensors), whole)


@over([case for case in PACKING if case not in RECURRENT], dtype=lambda case: case.dtypes)
def test_packed_equals_separate(case, dtype, isa):
    assert_packed_equals_separate(case, case.inputs(dtype, "packed"))


@over(LINEAR_ATTENTION)
def test_packed_equals_separate_beyond_a_saved_state(case, isa):
    """The states that the forward pass saves of one sequence are not another's."""
    assert_packed_equals_separate(case, case.inputs(T=(70, 0, 80), K=3, V=2))


@over(CASES)
def test_reference_backend(case):
    x = case.inputs()
    assert_same(run(case.op, x, backend="reference"), run(case.definition, x))


@over(CASES)
def test_rejects_sparse_tensors(case):
    x = case.inputs(**case.tiny)
    for name, t in x.tensors.items():
        named = {**x.tensors, name: t.to_sparse()}
        with pytest.raises(DTypeError, match="must be a dense tensor, got"):
            case.op(**named, **x.options, output_final_state=True)


@over([case for case in CASES if case not in LSSL])
def test_slow_path_warns_once(case, caplog, monkeypatch):
    """float64 takes the reference; the compiled path says nothing."""
    monkeypatch.setattr(backends, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(case.op, case.inputs())
    assert not caplog.records
    x = case.inputs().double()
    for _ in range(2):
        assert_same(run(case.op, x), run(case.definition, x))
    (record,) = caplog.records
    assert "runs the slow sequential reference: float64 has no" in record.getMessage()
