# SPDX-License-Identifier: Apache-2.0
"""The recurrent cells: values, gradients, packing, strides, options, the same bits."""

import itertools

import pytest
import torch
from rnn_inputs import (
    DTYPES,
    PACKED,
    SHAPES,
    SMALL,
    RnnShape,
    definition,
    expected,
    op,
    rnn_inputs,
)
from specs import assert_right

from seqkern import ops
from seqkern.reference.flashrnn import CELLS
from seqkern.testing import assert_close, grads_of, run, yardstick

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def assert_same(a, b):
    """Equal shapes, dtypes and bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@each_cell
@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.id)
def test_matches_the_definition(cell, shape, dtype, isa, threads):
    x, *_ = expected(cell, shape, dtype)
    threads(1)
    alone = assert_right(op, lambda seed: expected(cell, shape, dtype, seed=seed))
    threads(2)
    assert_same(run(op, x, backend="cpu"), alone)


OPTIONS = {
    "reverse": {"reverse": True},
    "reset": {"reset": True},
    "reset, reverse": {"reset": True, "reverse": True},
    "no states": {"states": False},
    "no bias": {"bias": False},
    "h alone": {"all_states": False},
    "h alone, no states, no bias": {"all_states": False, "states": False, "bias": False},
    "cut": {"gradient_recurrent_cut": True},
    "gradient clip": {"gradient_recurrent_clipval": 0.3},
    "forward clip": {"forward_clipval": 0.4},
    "everything": {
        "reset": True,
        "reverse": True,
        "gradient_recurrent_clipval": 0.5,
        "forward_clipval": 0.5,
    },
}


@each_cell
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=lambda s: s.id)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_match_the_definition(cell, shape, options):
    assert_right(op, lambda seed: expected(cell, shape, seed=seed, **options))


@each_cell
@pytest.mark.parametrize("options", [OPTIONS["everything"], OPTIONS["h alone"]], ids=str)
def test_options_on_every_isa(cell, options, isa):
    assert_right(op, lambda seed: expected(cell, PACKED, seed=seed, **options))


@each_cell
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize(
    "options", [OPTIONS["reset, reverse"], OPTIONS["h alone"], OPTIONS["no states"]], ids=str
)
def test_options_in_sixteen_bits(cell, options, dtype):
    assert_right(op, lambda seed: expected(cell, PACKED, dtype, seed=seed, **options))


@each_cell
def test_reference_backend(cell):
    x, truth, (peer, *_) = expected(cell, SMALL)
    assert_same(run(op, x, backend="reference"), peer)
    assert_same(run(op, x.double(), backend="reference"), truth)


@each_cell
def test_split_and_carry_equals_whole(cell):
    """States carried over any cut give the whole run, forwards and backwards."""
    x, truth, peers = expected(cell, SMALL)
    leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
    state, outs = leaves["states"], []
    for begin, end in ((0, 1), (1, 6), (6, 6), (6, 13)):
        o, state = ops.flashrnn(
            leaves["Wx"][:, begin:end], leaves["R"], leaves["b"], state, **x.options
        )
        outs.append(o)
    o = torch.cat(outs, 2)
    grads = grads_of((o, state), list(leaves.values()), (x.do, x.dht))
    named = {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    got = {"o": o.detach(), "ht": state.detach(), **named}
    assert_close(got, truth, no_worse_than=peers, factor=2)


@each_cell
@each_dtype
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "reversed"])
def test_packed_equals_separate(cell, dtype, reverse, isa):
    """A packed call gives each sequence the results that it gets alone."""
    x = rnn_inputs(cell, PACKED, dtype, reset=True, reverse=reverse)
    packed = run(op, x)
    dR, db = 0, 0
    options = {name: v for name, v in x.options.items() if name not in ("cu_seqlens", "reset")}
    for i, (a, b) in enumerate(itertools.pairwise(x.options["cu_seqlens"].tolist())):
        leaves = {
            "Wx": x.tensors["Wx"][:, a:b],
            "R": x.tensors["R"],
            "b": x.tensors["b"],
            "states": x.tensors["states"][:, i : i + 1],
        }
        leaves = {name: t.clone().requires_grad_() for name, t in leaves.items()}
        o, last = ops.flashrnn(**leaves, **options, reset=x.options["reset"][:, a:b])
        cotangents = (x.do[:, :, a:b], x.dht[:, i : i + 1])
        dWx, part_R, part_b, dstates = grads_of((o, last), list(leaves.values()), cotangents)
        assert torch.equal(o, packed["o"][:, :, a:b])
        assert torch.equal(last, packed["ht"][:, i : i + 1])
        assert torch.equal(dWx, packed["dWx"][:, a:b])
        assert torch.equal(dstates, packed["dstates"][:, i : i + 1])
        dR, db = dR + part_R.float(), db + part_b
    tolerance = 1e-5 if dtype is torch.float32 else 8 * torch.finfo(dtype).eps
    scale = dR.abs().max().item()
    torch.testing.assert_close(packed["dR"].float(), dR, rtol=0, atol=tolerance * scale)
    torch.testing.assert_close(packed["db"], db, rtol=1e-5, atol=1e-5 * db.abs().max().item())


def _time_major(t):
    """Steps before sequences in memory."""
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def _sliced(t):
    """A slice of a wider tensor, so that every stride but the last is odd."""
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), float("nan"), dtype=t.dtype)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def _last_strided(t):
    """The last axis is not contiguous."""
    wide = torch.full((*t.shape, 2), float("nan"), dtype=t.dtype)
    wide[..., 0] = t
    return wide[..., 0]


def _first_axis_last(t):
    """A transposition of everything."""
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


RESTRIDE = (_time_major, _sliced, _last_strided, _first_axis_last)


@each_cell
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("restride", RESTRIDE)
def test_strided_inputs(cell, dtype, restride):
    """Strides change no bit of any result, and the results follow the order of ``Wx``."""
    x = rnn_inputs(cell, SMALL, dtype, reset=True)
    leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
    views = {name: restride(t.detach()).requires_grad_() for name, t in leaves.items()}
    results = []
    for tensors, do, dht in ((leaves, x.do, x.dht), (views, restride(x.do), restride(x.dht))):
        outs = ops.flashrnn(**tensors, **x.options)
        results.append([*outs, *grads_of(outs, list(tensors.values()), (do, dht))])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    every, _, dWx, *_ = results[1]
    if restride is _time_major:
        assert every.transpose(1, 2).is_contiguous()
        assert dWx.transpose(0, 1).is_contiguous()
    reference, _ = ops.flashrnn(**views, **x.options, backend="reference")
    assert reference.stride() == every.stride()


@each_cell
def test_expanded_gradients(cell):
    """A gradient with zero strides, as ``sum()`` makes it, is read right."""
    x = rnn_inputs(cell, SMALL)
    leaves = [t.clone().requires_grad_() for t in x.tensors.values()]
    every, last = ops.flashrnn(**dict(zip(x.tensors, leaves, strict=True)), **x.options)
    summed = torch.autograd.grad(every.sum() + last.sum(), leaves, retain_graph=True)
    ones = (torch.ones_like(every), torch.ones_like(last))
    for a, b in zip(summed, torch.autograd.grad((every, last), leaves, ones), strict=True):
        assert torch.equal(a, b)


@each_cell
@pytest.mark.parametrize(
    "shape",
    [
        RnnShape("T=0", B=2, T=0, N=2, D=3),
        RnnShape("B=0", B=0, T=5, N=2, D=3),
        RnnShape("N=0", B=2, T=5, N=0, D=3),
        RnnShape("empty sequences", N=2, D=3, lengths=(0, 0)),
        RnnShape("no sequences", N=2, D=3, lengths=()),
        RnnShape("T=1", B=2, T=1, N=2, D=3),
    ],
    ids=lambda s: s.id,
)
@pytest.mark.parametrize("states", [True, False], ids=["states", "no states"])
def test_empty_and_single_step(cell, shape, states, isa):
    x, truth, peers = expected(cell, shape, states=states)
    got = run(op, x, backend="cpu")
    assert_close(got, truth, no_worse_than=peers, factor=2)
    if shape.T == 0:
        before = x.tensors["states"] if states else torch.zeros_like(got["ht"])
        assert torch.equal(got["ht"], before)


@each_cell
@each_dtype
def test_inference_equals_training(cell, dtype, isa):
    """The forward pass that saves nothing gives the same bits, and so does h alone."""
    x = rnn_inputs(cell, SMALL, dtype, reset=True)
    got = run(op, x)
    every, last = ops.flashrnn(**x.tensors, **x.options)
    assert torch.equal(every, got["o"])
    assert torch.equal(last, got["ht"])
    h, last = ops.flashrnn(**x.tensors, **x.options, output_all_states=False)
    assert torch.equal(h, every[:1])
    assert torch.equal(last, got["ht"])


@each_cell
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", [SMALL, PACKED], ids=lambda s: s.id)
def test_writes_every_output(cell, shape, dtype, isa, poisoned):
    assert torch.empty(3).isnan().all()
    for name, result in run(op, rnn_inputs(cell, shape, dtype)).items():
        assert not result.isnan().any(), name


@each_cell
@each_dtype
def test_same_bits_twice(cell, dtype, isa):
    x = rnn_inputs(cell, SMALL, dtype)
    assert_same(run(op, x), run(op, x))


@each_cell
@each_dtype
@pytest.mark.parametrize(
    "shape",
    [PACKED, RnnShape("batch", B=40, T=7, N=2, D=20), RnnShape("team", B=8, T=4, N=1, D=288)],
    ids=lambda s: s.id,
)
def test_same_bits_for_every_thread_count(cell, shape, dtype, isa, threads):
    x = rnn_inputs(cell, shape, dtype)
    threads(1)
    alone = run(op, x)
    for count in (2, 3):
        threads(count)
        assert_same(run(op, x), alone)


@each_cell
def test_backward_leaves_its_inputs_alone(cell):
    """Running the same graph backwards twice gives the same gradients."""
    x = rnn_inputs(cell, SMALL)
    leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
    outs = ops.flashrnn(**leaves, **x.options)
    cotangents, inputs = (x.do.clone(), x.dht.clone()), list(leaves.values())
    first = torch.autograd.grad(outs, inputs, cotangents, retain_graph=True)
    second = torch.autograd.grad(outs, inputs, cotangents)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    for name, leaf in leaves.items():
        assert torch.equal(leaf.detach(), x.tensors[name]), name
    assert torch.equal(cotangents[0], x.do)
    assert torch.equal(cotangents[1], x.dht)


@each_cell
def test_every_returned_state_alone(cell):
    """A loss on one returned state takes the gradients of all the others as zero."""
    x = rnn_inputs(cell, SMALL)
    for i, which in itertools.product(range(CELLS[cell].states), (0, 1)):
        results = []
        for function in (op, definition):
            leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
            out = function(**leaves, **x.options)[which][i]
            dy = (x.do, x.dht)[which][i]
            results.append(grads_of([out], list(leaves.values()), [dy]))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))


@pytest.mark.parametrize("function", ["lstm", "slstm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_states_and_bias_in_other_dtypes(function, dtype):
    """They are read as float32, and their gradients come back in their own dtype."""
    x = rnn_inputs(function, SMALL)
    tensors = {n: t.to(dtype) if n in ("b", "states") else t for n, t in x.tensors.items()}
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    outs = ops.flashrnn(**leaves, **x.options)
    same = ops.flashrnn(**{n: t.float() for n, t in tensors.items()}, **x.options)
    for a, b in zip(outs, same, strict=True):
        assert torch.equal(a, b)
    for leaf, grad in zip(
        leaves.values(), grads_of(outs, list(leaves.values()), (x.do, x.dht)), strict=True
    ):
        assert grad.dtype == leaf.dtype
        assert grad.abs().max() > 0


@each_cell
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_wide_recurrence_beside_narrow_inputs(cell, dtype, isa):
    """A float32 R beside a 16-bit Wx loses no digits."""

    def draw(seed):
        x = rnn_inputs(cell, SMALL, dtype, seed=seed)
        x.tensors["R"] = x.tensors["R"].float()
        return x, *yardstick(definition, x)

    assert_right(op, draw)


@each_cell
@each_dtype
def test_step_equals_whole(cell, dtype, isa):
    """Single steps for decoding carry the states that the whole call reaches."""
    x = rnn_inputs(cell, SMALL, dtype)
    tensors, state = x.tensors, x.tensors["states"]
    _, last = ops.flashrnn(**tensors, **x.options)
    for t in range(SMALL.T):
        state = ops.flashrnn_step(tensors["Wx"][:, t], tensors["R"], tensors["b"], state, cell)
    # The product with a 16-bit R may round h in one of the two.
    tolerance = 1e-5 if dtype is torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(state, last, rtol=tolerance, atol=tolerance)
    assert state.dtype == torch.float32


@each_cell
@each_dtype
def test_step_matches_the_definition(cell, dtype, isa):
    shape = RnnShape("step", B=5, T=1, N=2, D=37)

    def step(output_final_state=True, **arguments):
        arguments["Wx"] = arguments["Wx"][:, 0]
        with torch.no_grad():
            states = ops.flashrnn_step(**arguments)
        return states[:1], states

    def whole(output_final_state=True, **arguments):
        with torch.no_grad():
            _, last = definition(**arguments)
        return last[:1], last

    for options in ({}, {"states": False}, {"bias": False}, {"forward_clipval": 0.3}):
        assert_right(
            step,
            lambda seed, options=options: (
                x := rnn_inputs(cell, shape, dtype, seed=seed, **options),
                *yardstick(whole, x),
            ),
        )
