# SPDX-License-Identifier: Apache-2.0
"""Properties that hold for every shape: random sizes, packings, options and dtypes."""

import itertools
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqkern import ops, reference
from seqkern.testing import Shape, assert_close, grads_of, make_inputs, run, yardstick

fixed = settings(max_examples=30, deadline=None, derandomize=True)

sizes = st.integers(1, 70)
few = st.integers(1, 3)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
packings = st.lists(st.integers(0, 40), max_size=5).map(tuple)


@st.composite
def shapes(draw):
    """Any batch or packing, any heads, any widths."""
    H = draw(few)
    lengths = draw(st.none() | packings)
    return Shape(
        B=draw(st.integers(0, 3)),
        T=draw(st.integers(0, 90)),
        H=H,
        HV=H * draw(few),
        K=draw(sizes),
        V=draw(sizes),
        lengths=lengths,
    )


def check(op, definition, x):
    """Compare with the definition where there is anything to compare."""
    truth, peers = yardstick(definition, x)
    assert_close(run(op, x, backend="cpu"), truth, no_worse_than=peers, factor=2)


@fixed
@given(shape=shapes(), dtype=dtypes, gate=st.sampled_from(["scalar", "vector", None]))
def test_additive_rule_of_any_shape(shape, dtype, gate):
    x = make_inputs(shape, dtype, gate=gate)
    if gate == "scalar":
        check(ops.chunk_simple_gla, reference.simple_gla, x)
    elif gate is None:
        check(ops.fused_recurrent_gla, reference.gla, x)
    else:
        check(ops.chunk_gla, reference.gla, x)


@fixed
@given(
    shape=shapes(),
    dtype=dtypes,
    gate=st.sampled_from(["scalar", None]),
    beta=st.sampled_from(["scalar", "vector"]),
    n=few,
    l2norm=st.booleans(),
)
def test_delta_rule_of_any_shape(shape, dtype, gate, beta, n, l2norm):
    shape = replace(shape, num_householder=n)
    options = {"num_householder": n, "use_qk_l2norm_in_kernel": l2norm}
    if gate is None:
        options["g"] = None
    x = make_inputs(shape, dtype, gate=gate, beta=beta, **options)
    check(ops.chunk_gated_delta_product, reference.gated_delta_product, x)


@fixed
@given(shape=shapes(), cut=st.integers(0, 90), n=few)
def test_any_cut_carries_over(shape, cut, n):
    """Two halves joined by their state give the whole, gradients included."""
    shape = replace(shape, num_householder=n, lengths=None)
    cut = min(cut, shape.T)
    x = make_inputs(shape, gate="scalar", beta="scalar", num_householder=n)
    results = []
    for bounds in ((0, shape.T), (0, cut, shape.T)):
        leaves = {name: t.clone().requires_grad_() for name, t in x.tensors.items()}
        state, outs = leaves["initial_state"], []
        for a, b in itertools.pairwise(bounds):
            o, state = ops.chunk_gated_delta_product(
                leaves["q"][:, a:b],
                leaves["k"][:, a * n : b * n],
                leaves["v"][:, a * n : b * n],
                leaves["g"][:, a:b],
                leaves["beta"][:, a * n : b * n],
                n,
                initial_state=state,
                output_final_state=True,
            )
            outs.append(o)
        o = torch.cat(outs, 1)
        results.append([o, state, *grads_of((o, state), list(leaves.values()), (x.do, x.dht))])
    for whole, parts in zip(*results, strict=True):
        scale = whole.abs().max().item() if whole.numel() else 0.0
        torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5 * scale + 1e-30)


@fixed
@given(lengths=packings, K=sizes, V=sizes, order=st.randoms(use_true_random=False))
def test_sequences_do_not_see_each_other(lengths, K, V, order):
    """Packing in another order permutes the results and changes no bit."""
    shape = Shape(H=1, K=K, V=V, lengths=lengths)
    x = make_inputs(shape, gate="scalar", beta="scalar")
    offsets = shape.cu_seqlens
    o, ht = ops.chunk_gated_delta_rule(**x.tensors, **x.options, output_final_state=True)
    places = list(range(len(lengths)))
    order.shuffle(places)
    rows = [torch.arange(int(offsets[i]), int(offsets[i + 1])) for i in places]
    index = torch.cat([torch.arange(0), *rows])
    tensors = {
        name: t[places] if name == "initial_state" else t[:, index] for name, t in x.tensors.items()
    }
    other = Shape(H=1, K=K, V=V, lengths=tuple(lengths[i] for i in places)).cu_seqlens
    o2, ht2 = ops.chunk_gated_delta_rule(**tensors, cu_seqlens=other, output_final_state=True)
    assert torch.equal(o2, o[:, index])
    assert torch.equal(ht2, ht[places])
