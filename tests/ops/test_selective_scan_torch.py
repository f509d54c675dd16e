# SPDX-License-Identifier: Apache-2.0
"""The selective scan inside torch: derivatives, opcheck, large shapes, single steps."""

import pytest
import torch
from harness import (
    assert_gradients_have_the_shapes,
    assert_refuses_longer_tensors,
    assert_second_derivatives,
    each_dtype,
)
from scan_inputs import PACKED, PARTS, SMALL, definition, each_sign, make, op

from seqkern._runtime import library
from seqkern.ops import selective_scan, selective_state_update
from seqkern.testing import run


@each_sign
def test_gradients_are_those_of_differences(negative):
    """The kernel's gradients against finite differences of the float64 definition.

    With negative eigenvalues a kernel that rebuilt a_t h_{t-1} as h_t - dt u B and took that for
    the derivative would be wrong here, and nowhere in the forward pass.
    """
    x = make((1, 9, 3, 2, "11", "t"), negative=negative)
    got = run(op, x, backend="cpu")
    wide = x.double()
    for name, value in wide.tensors.items():
        direction = torch.randn(value.shape, dtype=torch.float64)

        def loss(step, name=name, value=value, direction=direction):
            moved = {**wide.tensors, name: value + step * direction}
            y, h = definition(**moved, **wide.options)
            return (y * wide.do).sum() + (h * wide.dht).sum()

        size = 1e-6
        slope = (loss(size) - loss(-size)) / (2 * size)
        ours = (got[f"d{name}"].double() * direction).sum()
        torch.testing.assert_close(ours, slope, rtol=1e-4, atol=1e-4)


@each_sign
@pytest.mark.parametrize("softplus", [True, False])
def test_second_derivatives_of_a_constant_beside_groups(negative, softplus):
    x = make((2, 3, 4, 2, "2c", "t"), negative=negative)
    x.options["delta_softplus"] = softplus
    if not softplus:  # negative steps let the states grow: they must be small
        for name in ("delta", "delta_bias"):
            x.tensors[name] = 0.02 * x.tensors[name]
    assert_second_derivatives(op, x, shared=("u", "z"))


NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def _arguments(x):
    """The positional tensors of the compiled op."""
    tensors = [x.tensors.get(name) for name in NAMES]
    for i in (3, 4):
        t = tensors[i]
        t = t.unsqueeze(1) if t.dim() == 3 else t
        tensors[i] = t if t.dim() == 2 else t.transpose(2, 3)
    return [*tensors, x.options.get("cu_seqlens")]


@each_dtype
def test_opcheck(dtype):
    forward, backward = (library.find_op(f"selective_scan_{way}") for way in ("fwd", "bwd"))
    mixed = {"delta": torch.float32, "z": torch.bfloat16}
    for shape, parts, dtypes in (
        ((2, 37, 21, 8, "c3", "t"), PARTS, {}),
        (PACKED, (), {}),
        ((2, 40, 21, 5, "3c", "d"), ("z",), mixed),
    ):
        x = make(shape, dtype, parts=parts, **dtypes)
        tensors, time_major = _arguments(x), shape[5] == "d"
        torch.library.opcheck(forward, (*tensors, True, True, time_major, True, True))
        torch.library.opcheck(forward, (*tensors, True, False, time_major, False, False))
        checkpoints = forward(*tensors, True, True, time_major, False, True)[2]
        for dht in (None, x.dht):
            call = (x.do, dht, *tensors, checkpoints, True, True, time_major)
            torch.library.opcheck(backward, call)


def _arguments_of_the_step(x):
    """The same of a single row: the state, and the others without time."""
    tensors = dict(zip(NAMES, _arguments(x), strict=False))
    rows = {name: tensors[name].squeeze(-1) for name in ("u", "delta", "z")}
    varying = {name: tensors[name].squeeze(2) for name in "BC" if tensors[name].dim() == 4}
    *others, state = {**tensors, **rows, **varying}.values()
    return [state.clone(), *others]


@each_dtype
def test_opcheck_of_the_step(dtype):
    tensors = _arguments_of_the_step(make((2, 1, 5, 4, "11", "t"), dtype))
    torch.library.opcheck(library.find_op("selective_scan_step"), (*tensors, True, False))


@pytest.mark.parametrize("shape", [SMALL, PACKED, (2, 37, 20, 8, "cc", "t")], ids=str)
def test_the_compiled_ops_refuse_what_does_not_fit(shape):
    """A compiled graph, which sees no offsets, has nobody else to ask."""
    x = make(shape)
    forward, backward = (library.find_op(f"selective_scan_{way}") for way in ("fwd", "bwd"))
    tensors = _arguments(x)
    assert_refuses_longer_tensors(forward, (*tensors, True, False, False, True, True))
    checkpoints = forward(*tensors, True, False, False, True, True)[2]
    call = (x.do, x.dht, *tensors, checkpoints, True, False, False)
    assert_refuses_longer_tensors(backward, call)
    for other in (checkpoints.double(), checkpoints.mT.contiguous().mT):
        with pytest.raises(RuntimeError, match="must be those of the forward pass"):
            backward(*call[:12], other, *call[13:])


@pytest.mark.parametrize("kinds", ["22", "cc"])
def test_the_compiled_step_refuses_what_does_not_fit(kinds):
    step = library.find_op("selective_scan_step")
    state, *others = _arguments_of_the_step(make((2, 1, 20, 8, kinds, "t")))
    assert_refuses_longer_tensors(step, (state, *others, True, False))
    for other in (state.double(), state.mT.contiguous().mT):
        with pytest.raises(RuntimeError, match=r"the state must be float32 \[B, D, N\], dense"):
            step(other, *others, True, False)


@each_sign
def test_offsets_beyond_int32(negative):
    """Shapes hold past 2**31 elements, on meta tensors."""
    with torch.device("meta"):
        u, B = torch.empty(4, 1024, 2**19 + 7), torch.empty(4, 16, 2**19 + 7)
        leaves = [u, torch.empty_like(u), torch.empty(1024, 16), B, torch.empty_like(B)]
    assert u.numel() > 2**31
    leaves = [t.requires_grad_() for t in leaves]
    y, h = op(*leaves, allow_neg_eigval=negative)
    assert y.shape == u.shape
    assert h.shape == (4, 1024, 16)
    assert_gradients_have_the_shapes((y, h), leaves)


def test_the_step_compiles():
    torch._dynamo.reset()
    x = make((3, 1, 5, 4, "11", "t"))
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    values = [x.tensors[n] if x.tensors[n].dim() < 3 else x.tensors[n].squeeze(2) for n in names]

    def call(state):
        return selective_state_update(state, *values, dt_softplus=True)

    states = [x.tensors["initial_state"].clone() for _ in range(2)]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(call(states[0]), compiled(states[1]))
    assert torch.equal(*states)


def test_meta_tensors():
    x = make(SMALL)
    tensors = {name: t.to("meta") for name, t in x.tensors.items()}
    assert selective_scan(**tensors, **x.options).is_meta
