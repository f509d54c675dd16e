# SPDX-License-Identifier: Apache-2.0
"""Every op inside torch: compile, export, checkpointing, derivatives, autocast, far strides."""

from dataclasses import replace

import pytest
import torch
from harness import (
    assert_all_equal,
    assert_compiles,
    assert_gradcheck,
    assert_same,
    assert_second_derivatives,
    far_apart,
    leaves_of,
)
from op_cases import (
    CASES,
    CONVOLUTION,
    LINEAR_ATTENTION,
    LSSL,
    MAIN,
    NORMS,
    RECURRENT,
    SELECTIVE_SCAN,
    over,
)
from torch.utils.checkpoint import checkpoint

from seqkern.testing import run

# Lengths of sequences, an empty one among them and the longest at any place.
LENGTHS = ((5, 0, 33), (40, 2, 1), (7, 70, 3))


@over(CASES, dtype=lambda case: case.traced)
def test_compiles_fullgraph(case, dtype):
    assert_compiles(case.op, [case.inputs(dtype, T=sum(lengths)) for lengths in LENGTHS])


@over((*LINEAR_ATTENTION, *RECURRENT, CONVOLUTION))
def test_compiles_packed(case):
    assert_compiles(case.op, [case.inputs(T=lengths) for lengths in LENGTHS])


@over(LINEAR_ATTENTION + RECURRENT)
def test_compiles_inference(case):
    torch._dynamo.reset()
    x = case.inputs()
    compiled = torch.compile(case.op, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        outs, expected = (
            function(**x.tensors, **x.options, output_final_state=True)
            for function in (compiled, case.op)
        )
    assert_all_equal(outs, expected)


@over(CASES)
def test_export(case):
    """A module that calls the op is exported with a dynamic length."""
    x, longer = case.inputs(), case.inputs(T=101)

    class Module(torch.nn.Module):
        def forward(self, tensors):
            return case.op(**tensors, **x.options, output_final_state=True)

    T, dynamic = torch.export.Dim("T", max=4096), {}
    for name, t in x.tensors.items():
        axis = case.time[name] % t.dim() if name in case.time else None
        dynamic[name] = {} if axis is None else {axis: t.shape[axis] // case.T * T}
    program = torch.export.export(Module(), (dict(x.tensors),), dynamic_shapes=(dynamic,))
    expected = case.op(**longer.tensors, **x.options, output_final_state=True)
    assert_all_equal(program.module()(dict(longer.tensors)), expected)


@over([case for case in CASES if case.lengths])
def test_offsets_without_values(case):
    """Of meta tensors shapes alone are known, and of meta offsets how many there are."""
    x = case.inputs(size="packed")
    options = {**x.options, "cu_seqlens": x.options["cu_seqlens"].to("meta")}
    tensors = {name: t.to("meta") for name, t in x.tensors.items()}
    outs, expected = (
        case.op(**given, output_final_state=True)
        for given in ({**tensors, **options}, {**x.tensors, **x.options})
    )
    assert [t.shape for t in outs] == [t.shape for t in expected]


@over(CASES)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(case, use_reentrant):
    x = case.inputs()
    expected, leaves = run(case.op, x), leaves_of(x)

    def call(*tensors):
        named = dict(zip(leaves, tensors, strict=True))
        return case.op(**named, **x.options, output_final_state=True)

    outs = checkpoint(call, *leaves.values(), use_reentrant=use_reentrant)
    pairs = [(y, dy) for y, dy in zip(outs, (x.do, x.dht), strict=True) if y.requires_grad]
    torch.autograd.backward(*zip(*pairs, strict=True))
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[f"d{name}"]), name


@over(CASES)
def test_outputs_may_be_changed_in_place(case):
    """Autograd lets them, and the backward pass is right, or notices where it reads them."""
    x = case.inputs()
    leaves = leaves_of(x)
    outs = case.op(**leaves, **x.options, output_final_state=True)
    pairs = [(y.mul_(2), dy / 2) for y, dy in zip(outs, (x.do, x.dht), strict=True) if y.grad_fn]
    try:
        torch.autograd.backward(*zip(*pairs, strict=True))
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return
    expected = run(case.op, x)
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[f"d{name}"]), name


# The definition of the recurrent cells has its own in `tests/reference`, with their options.
@over([case for case in CASES if case not in RECURRENT])
def test_gradcheck_reference(case):
    """The definition's gradients agree with finite differences in float64, and theirs too."""
    assert_gradcheck(case.definition, case.inputs(**{**case.tiny, "B": 1}))


# Of the state-space op every view has its own.
@over(
    [case for case in CASES if case not in LSSL],
    T=lambda case: (case.tiny["T"], (2, 0, 3)) if case.lengths else (case.tiny["T"],),
)
def test_second_derivatives(case, T):
    assert_second_derivatives(case.op, case.inputs(**{**case.tiny, "T": T}), case.shared)


@over(CASES)
def test_second_derivatives_of_one_input(case):
    """``create_graph=True`` changes no gradient where a single tensor has one."""
    x = case.inputs(**case.tiny)
    for name, t in x.tensors.items():
        leaf = t.clone().requires_grad_()
        outs = case.op(**{**x.tensors, name: leaf}, **x.options, output_final_state=True)
        loss = sum((y * dy).sum() for y, dy in zip(outs, (x.do, x.dht), strict=True))
        (plain,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        (again,) = torch.autograd.grad(loss, leaf, create_graph=True)
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-4, msg=name)


@over(CASES)
def test_second_derivatives_of_one_output(case):
    """``create_graph=True`` changes no gradient of a loss that leaves an output unread."""
    x = case.inputs(**case.tiny)
    for i, dy in enumerate((x.do, x.dht)):
        leaves = leaves_of(x)
        out = case.op(**leaves, **x.options, output_final_state=True)[i]
        if not out.requires_grad:
            continue
        plain, again = (
            torch.autograd.grad(
                out,
                list(leaves.values()),
                dy,
                retain_graph=True,
                create_graph=twice,
                materialize_grads=True,
            )
            for twice in (False, True)
        )
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-4)


CLIP = {"gradient_recurrent_clipval": 1e-3}


@over((*CASES, replace(RECURRENT[0], id="clipped", tiny={**RECURRENT[0].tiny, **CLIP})))
def test_function_transforms(case):
    """torch.func.grad finds the gradients of autograd, in either order with torch.vmap."""
    x = case.inputs(**case.tiny)
    both = {name: torch.stack([t, 0.8 * t]) for name, t in x.tensors.items()}

    def loss(tensors):
        outs = case.op(**tensors, **x.options, output_final_state=True)
        return sum((y * dy).sum() for y, dy in zip(outs, (x.do, x.dht), strict=True))

    expected = []
    for i in range(2):
        leaves = {name: t[i].clone().requires_grad_() for name, t in both.items()}
        expected.append(torch.autograd.grad(loss(leaves), list(leaves.values())))
    one = torch.func.grad(loss)(x.tensors)
    inside = torch.vmap(torch.func.grad(loss))(both)
    outside = torch.func.grad(lambda both: torch.vmap(loss)(both).sum())(both)
    for name, *grads in zip(x.tensors, *expected, strict=True):
        torch.testing.assert_close(one[name], grads[0], rtol=1e-4, atol=1e-4)
        for mapped in (inside, outside):
            torch.testing.assert_close(mapped[name], torch.stack(grads), rtol=1e-4, atol=1e-4)


@over((CONVOLUTION, *NORMS, *SELECTIVE_SCAN))
def test_autocast_changes_nothing(case):
    """The result has the dtype of the input, and sums are float32 as without."""
    x = case.inputs(torch.bfloat16, weight=torch.float32, bias=torch.float32)
    expected = run(case.op, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(run(case.op, x), expected)
        slow = run(case.op, x, backend="reference")
    assert_same(slow, run(case.definition, x))


@over(MAIN)
def test_strides_beyond_int32(case):
    """The kernel reads the second sequence of a batch that lies 2**31 elements behind the first."""
    x = case.inputs(torch.bfloat16, B=2)
    far = {n: far_apart(t) if n in case.time else t for n, t in x.tensors.items()}
    outs, expected = (
        case.op(**tensors, **x.options, output_final_state=True) for tensors in (far, x.tensors)
    )
    assert_all_equal(outs, expected)
