# SPDX-License-Identifier: Apache-2.0
"""What is special about single ops: names that share a kernel, raw gates, logits, reversal."""

import inspect

import pytest
import torch
from specs import DELTA, GATED_DELTA, GLA, LINEAR, PRODUCT_2, SIMPLE_GLA, SMALL

from seqkern import ops, reference
from seqkern.testing import Shape, assert_close, make_inputs, run, yardstick

SIGNATURES = {
    "chunk_gla": "q k v g scale initial_state output_final_state state_v_first cu_seqlens "
    "cu_seqlens_cpu",
    "fused_recurrent_gla": "q k v gk gv scale initial_state output_final_state reverse "
    "state_v_first cu_seqlens",
    "chunk_simple_gla": "q k v g g_gamma scale initial_state output_final_state state_v_first "
    "cu_seqlens cu_seqlens_cpu",
    "fused_recurrent_simple_gla": "q k v g g_gamma scale initial_state output_final_state "
    "reverse state_v_first cu_seqlens",
    "chunk_delta_rule": "q k v beta scale initial_state output_final_state "
    "use_qk_l2norm_in_kernel cu_seqlens cu_seqlens_cpu",
    "fused_recurrent_delta_rule": "q k v beta scale initial_state output_final_state "
    "use_qk_l2norm_in_kernel cu_seqlens",
    "chunk_gated_delta_rule": "q k v g beta scale initial_state output_final_state "
    "use_qk_l2norm_in_kernel use_beta_sigmoid_in_kernel allow_neg_eigval state_v_first "
    "cu_seqlens cu_seqlens_cpu chunk_indices cp_context",
    "fused_recurrent_gated_delta_rule": "q k v g gk gv beta scale initial_state "
    "output_final_state use_qk_l2norm_in_kernel use_gate_in_kernel A_log dt_bias "
    "use_beta_sigmoid_in_kernel allow_neg_eigval state_v_first cu_seqlens",
    "chunk_gated_delta_product": "q k v g beta num_householder scale initial_state "
    "output_final_state use_qk_l2norm_in_kernel cu_seqlens cu_seqlens_cpu cp_context",
    "fused_recurrent_gated_delta_product": "q k v g beta num_householder scale initial_state "
    "output_final_state use_qk_l2norm_in_kernel cu_seqlens",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_argument_order(name):
    """The positional arguments are those of flash-linear-attention 0.6.0, in their order."""
    parameters = inspect.signature(getattr(ops, name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == SIGNATURES[name].split()
    assert next(p for p in parameters if p.name == "backend").default == "auto"


PAIRS = {
    "gla": (GLA, ops.fused_recurrent_gla, {"g": "gk"}),
    "simple_gla": (SIMPLE_GLA, ops.fused_recurrent_simple_gla, {}),
    "delta_rule": (DELTA, ops.fused_recurrent_delta_rule, {}),
    "gated_delta_rule": (GATED_DELTA, ops.fused_recurrent_gated_delta_rule, {}),
    "gated_delta_product": (PRODUCT_2, ops.fused_recurrent_gated_delta_product, {}),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_recurrent_equals_chunk(pair):
    spec, recurrent, renamed = pair
    x = spec.inputs(SMALL)
    tensors = {renamed.get(name, name): t for name, t in x.tensors.items()}
    expected = spec.op(**x.tensors, **x.options, output_final_state=True)
    got = recurrent(**tensors, **x.options, output_final_state=True)
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)
    tensors["initial_state"] = x.tensors["initial_state"].transpose(-1, -2)
    o, ht = recurrent(**tensors, **x.options, output_final_state=True, state_v_first=True)
    assert torch.equal(o, expected[0])
    assert torch.equal(ht.transpose(-1, -2), expected[1])


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_scale(pair):
    """``scale`` is a factor on the queries as they meet the state, whatever scales them before."""
    spec, recurrent, renamed = pair
    x = spec.inputs(SMALL)
    renamed = {renamed.get(name, name): t for name, t in x.tensors.items()}
    expected = spec.definition(**x.tensors, **x.options, scale=2.0)[0]
    for op, tensors in ((spec.op, x.tensors), (recurrent, renamed)):
        doubled = op(**tensors, **x.options, scale=2.0)[0]
        assert torch.equal(doubled, 2 * op(**tensors, **x.options, scale=1.0)[0])
        torch.testing.assert_close(doubled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_offsets_on_the_cpu_win(pair):
    spec, recurrent, renamed = pair
    x = spec.inputs(Shape(H=2, K=8, V=8, lengths=(9, 4)))
    tensors = {renamed.get(name, name): t for name, t in x.tensors.items()}
    expected = recurrent(**tensors, **x.options)[0]
    for given in (None, torch.tensor([0, 1, 13])):
        options = {**x.options, "cu_seqlens": given, "cu_seqlens_cpu": x.options["cu_seqlens"]}
        assert torch.equal(spec.op(**x.tensors, **options)[0], expected)


REVERSED = {
    "gla": (ops.fused_recurrent_gla, reference.gla, {"gate": "vector"}, {"g": "gk"}),
    "simple_gla": (
        ops.fused_recurrent_simple_gla,
        reference.simple_gla,
        {"gate": "scalar"},
        {},
    ),
}


@pytest.mark.parametrize("row", REVERSED.values(), ids=REVERSED.keys())
@pytest.mark.parametrize(
    "shape",
    [SMALL, Shape(H=2, K=8, V=5, lengths=(0, 7, 1, 0, 20)), Shape(H=1, K=4, V=4, lengths=())],
    ids=lambda s: s.id,
)
def test_reverse(row, shape):
    """``reverse=True`` runs every sequence from its end, packed ones each on its own."""
    op, definition, making, renamed = row
    x = make_inputs(shape, **making)
    truth, peers = yardstick(definition, x, reverse=True, scale=0.7)

    def named(**arguments):
        return op(**{renamed.get(name, name): value for name, value in arguments.items()})

    for backend in ("cpu", "reference"):
        got = run(named, x, reverse=True, scale=0.7, backend=backend)
        assert_close(got, truth, no_worse_than=peers, factor=2)


def test_reverse_beside_another_default_device():
    x = torch.randn(3, 1, 7, 2, 4)
    packed = torch.tensor([0, 3, 7])
    expected, _ = ops.fused_recurrent_gla(*x, reverse=True, cu_seqlens=packed)
    narrow, _ = ops.fused_recurrent_gla(*x, reverse=True, cu_seqlens=packed.int())
    assert torch.equal(narrow, expected)
    with torch.device("meta"):
        got, _ = ops.fused_recurrent_gla(*x, reverse=True, cu_seqlens=packed)
    assert torch.equal(got, expected)


def test_column_decay_takes_the_reference():
    x = make_inputs(SMALL)
    gv = -torch.rand(SMALL.B, SMALL.T, SMALL.HV, SMALL.V)
    expected = reference.gla(**x.tensors, gv=gv)[0]
    tensors = {"gk" if name == "g" else name: t for name, t in x.tensors.items()}
    assert torch.equal(ops.fused_recurrent_gla(**tensors, gv=gv)[0], expected)


def test_row_and_column_decay_of_the_delta_rule():
    x = GATED_DELTA.inputs(SMALL)
    gk = -torch.rand(SMALL.B, SMALL.T, SMALL.HV, SMALL.K)
    gv = -torch.rand(SMALL.B, SMALL.T, SMALL.HV, SMALL.V)
    got = ops.fused_recurrent_gated_delta_rule(**x.tensors, **x.options, gk=gk, gv=gv)[0]
    expected = reference.gated_delta_rule(**x.tensors, **x.options, gk=gk, gv=gv)[0]
    assert torch.equal(got, expected)


def test_constant_gate():
    """``g_gamma`` is ``g`` repeated, and its gradient the sum."""
    x = LINEAR.inputs(SMALL)
    gamma = (-torch.rand(SMALL.HV)).requires_grad_()
    g = gamma.detach().expand(SMALL.B, SMALL.T, -1).clone().requires_grad_()
    outs = [ops.chunk_simple_gla(**x.tensors, **gate)[0] for gate in ({"g_gamma": gamma}, {"g": g})]
    assert torch.equal(*outs)
    for o in outs:
        (o * x.do).sum().backward()
    torch.testing.assert_close(gamma.grad, g.grad.sum((0, 1)), rtol=1e-4, atol=1e-4)
    recurrent = ops.fused_recurrent_simple_gla(**x.tensors, g_gamma=gamma)[0]
    assert torch.equal(recurrent, outs[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("op", [ops.chunk_gated_delta_rule, ops.fused_recurrent_gated_delta_rule])
def test_raw_gate_and_logits(op, negative, dtype):
    """The fused activations are the ones of the layers, and all their inputs have gradients."""
    x = make_inputs(SMALL, gate="scalar", beta="scalar", gate_dtype=dtype)
    extra = {"A_log": torch.randn(SMALL.HV), "dt_bias": torch.randn(SMALL.HV)}
    leaves = {n: t.clone().requires_grad_() for n, t in {**x.tensors, **extra}.items()}
    o, _ = op(
        **leaves,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        allow_neg_eigval=negative,
    )
    wide = torch.promote_types(dtype, torch.float32)
    raw, bias = leaves["g"].to(wide), leaves["dt_bias"]
    g = -leaves["A_log"].to(wide).exp() * torch.nn.functional.softplus(raw + bias)
    beta = leaves["beta"].to(wide).sigmoid() * (2 if negative else 1)
    plain = {n: leaves[n] for n in ("q", "k", "v", "initial_state")}
    expected, _ = op(**plain, g=g, beta=beta)
    assert torch.equal(o, expected)
    inputs = list(leaves.values())
    for a, b in zip(
        torch.autograd.grad(o, inputs, x.do),
        torch.autograd.grad(expected, inputs, x.do),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert a.count_nonzero() > 0


@pytest.mark.parametrize(
    "op", [ops.fused_recurrent_delta_rule, ops.fused_recurrent_gated_delta_rule]
)
def test_strength_of_one(op):
    x = make_inputs(SMALL, gate=None, beta="scalar")
    tensors = {name: t for name, t in x.tensors.items() if name != "beta"}
    ones = torch.ones(SMALL.B, SMALL.T, SMALL.HV)
    assert torch.equal(op(**tensors)[0], op(**tensors, beta=ones)[0])


def test_one_update_per_token_is_the_gated_delta_rule():
    x = make_inputs(SMALL, gate="scalar", beta="scalar")
    a = ops.chunk_gated_delta_product(**x.tensors, num_householder=1)[0]
    assert torch.equal(a, ops.chunk_gated_delta_rule(**x.tensors)[0])


def test_options_without_effect():
    """Arguments that tune the peer's kernels are taken and change nothing."""
    x = GATED_DELTA.inputs(Shape(H=2, K=8, V=8, lengths=(9, 4)))
    expected = GATED_DELTA.op(**x.tensors, **x.options)[0]
    offsets = x.options["cu_seqlens"]
    got = GATED_DELTA.op(
        **x.tensors,
        **{**x.options, "cu_seqlens": offsets.int()},
        cu_seqlens_cpu=offsets,
        chunk_indices=torch.zeros(2, 2),
        chunk_size=32,
        head_first=False,
    )[0]
    assert torch.equal(got, expected)
    for size in (16, 64):
        assert torch.equal(GATED_DELTA.op(**x.tensors, **x.options, chunk_size=size)[0], expected)
    narrow = GATED_DELTA.op(**x.tensors, **{**x.options, "cu_seqlens": offsets.int()})[0]
    assert torch.equal(narrow, expected)
