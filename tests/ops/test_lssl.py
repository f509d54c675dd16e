# SPDX-License-Identifier: Apache-2.0
"""The linear state-space ops against their definition: values, gradients, splits, strides, bits."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from harness import RESTRIDE, assert_same
from lssl_inputs import (
    MEASURES,
    SHAPES,
    SMALL,
    Shape,
    conv,
    definition,
    dense_kernel,
    gather_A,
    kernel,
    kernel_inputs,
    make,
    scan,
    state_matrix,
    truth_and_peers,
)

from seqkern import reference
from seqkern.ops import hippo, lssl_conv, lssl_kernel, lssl_scan, lssl_step
from seqkern.testing import Inputs, assert_close, run, yardstick

each_matrix = pytest.mark.parametrize(
    ("measure", "trained"),
    [(m, t) for m in MEASURES for t in (False, True)],
    ids=[f"{m}{' trained' if t else ''}" for m in MEASURES for t in (False, True)],
)


@each_matrix
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: s.id)
def test_matches_the_definition(shape, measure, trained, isa, threads):
    x, truth, peers = truth_and_peers(shape, measure, trained)
    for count in (1, 2):
        threads(count)
        assert_close(run(scan, x, backend="cpu"), truth, no_worse_than=peers)


@each_matrix
def test_kernel_matches_the_definition(measure, trained, isa):
    shape = Shape(1, 75, 18, 7, 2)
    x, truth, peers = truth_and_peers(shape, measure, trained, "kernel")
    assert_close(run(kernel, x, backend="cpu"), truth, no_worse_than=peers)


# An order and a number of steps from which on what features share is kept once.
LONG = {"scan": Shape(13, 20, 19, 200, 1), "kernel": Shape(1, 260, 3, 200, 1)}


@functools.cache
def _long_states(kind, differs):
    x = (make if kind == "scan" else kernel_inputs)(LONG[kind], measure="legs", trained=True)
    h = torch.arange(LONG[kind].H).unsqueeze(-1)
    if differs == "the input":
        x.tensors["B"] = x.tensors["B"] * (1 + 1e-4 * h)
    if differs == "what is solved":  # and no more than that: B / P is the same
        x.tensors["A_P"] = x.tensors["A_P"] * (1 + h % 2)
        x.tensors["B"] = x.tensors["B"] * (1 + h % 2)
    return x, *yardstick(definition if kind == "scan" else dense_kernel, x)


@pytest.mark.parametrize("differs", ["nothing", "the input", "what is solved"])
@pytest.mark.parametrize("kind", LONG)
def test_long_states_match_the_definition(kind, differs, isa, threads):
    """Also where features differ in one thing alone."""
    x, truth, peers = _long_states(kind, differs)
    for count in (1, 2):
        threads(count)
        got = run(scan if kind == "scan" else kernel, x, backend="cpu")
        assert_close(got, truth, no_worse_than=peers)


def _without_gradients(view, x):
    with torch.no_grad():
        o, ht = view(**x.tensors, **x.options, backend="cpu")
    return {"o": o, "ht": ht}


@pytest.mark.parametrize(("long", "measure"), [(False, "legs"), (False, "legt"), (True, "legt")])
@pytest.mark.parametrize("kind", LONG)
def test_values_without_gradients(kind, long, measure, isa):
    """Nothing is then discretised feature by feature, if all share a matrix."""
    shape = LONG[kind] if long else Shape(2, 61, 35, 9, 2)
    x, truth, peers = truth_and_peers(shape, measure, False, kind)
    got = _without_gradients(scan if kind == "scan" else kernel, x)

    def values(figures):
        return {name: figures[name] for name in got}

    assert_close(got, values(truth), no_worse_than=[values(peer) for peer in peers])


@each_matrix
@pytest.mark.parametrize("view", [scan, kernel])
def test_float64_without_gradients(view, measure, trained, isa):
    draw = make if view is scan else kernel_inputs
    x = draw(Shape(2, 61, 19, 12, 2), torch.float64, measure=measure, trained=trained)
    got, same = _without_gradients(view, x), run(view, x, backend="cpu")
    for name, t in got.items():
        scale = same[name].abs().max().item()
        torch.testing.assert_close(t, same[name], rtol=0, atol=1e-12 * scale, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("measure", ["legs", "legt"])
@pytest.mark.parametrize(("H", "channels"), [(48, 1), (48, 3), (24, 2)])
def test_large_outputs(H, channels, measure, dtype, isa, threads):
    """Rows that begin at cache lines are written past the caches; the numbers are the same."""
    A, B = hippo(measure, 6)
    draw = torch.Generator().manual_seed(0)
    C = torch.randn(H, channels, 6, generator=draw, dtype=dtype)
    dt = 1e-3 * 100 ** torch.rand(H, generator=draw)
    u = torch.randn(4, 750, H, generator=draw, dtype=dtype)
    few = slice(0, H - 13)
    for count in (1, 2):
        threads(count)
        K = lssl_kernel(A, B, C, dt, 3000)
        assert K.numel() * K.element_size() >= 1 << 19  # bytes
        assert torch.equal(K[few], lssl_kernel(A, B, C[few], dt[few], 3000))
        y, _ = lssl_scan(u, A, B, C, dt)
        assert torch.equal(y[:, :, few], lssl_scan(u[:, :, few], A, B, C[few], dt[few])[0])


@pytest.mark.parametrize("kind", ["scan", "kernel"])
def test_dense_matches_the_definition(kind):
    shape = Shape(2, 150, 5, 7, 2)
    x, truth, peers = truth_and_peers(shape, "legt", False, kind, dense=True)
    assert_close(run(scan if kind == "scan" else kernel, x), truth, no_worse_than=peers)


@pytest.mark.parametrize("L", [0, 1, 2, 3, 5, 17, 31])
def test_a_dense_matrix_at_any_length(L):
    x = make(Shape(2, L, 3, 4, 3), torch.float64, dense=True).tensors
    u, A, B, C, dt = (x[name] for name in ("u", "A", "B", "C", "dt"))
    y, state = lssl_scan(u, A, B, C, dt, output_final_state=True)
    expected = reference.lssl_scan(u, A, B, C, dt)
    torch.testing.assert_close((y, state), expected, rtol=1e-10, atol=1e-10)
    K = lssl_kernel(A, B, C, dt, L)
    torch.testing.assert_close(K, reference.lssl_kernel(A, B, C, dt, L), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("measure", MEASURES)
def test_float64(measure, alpha, isa):
    """The compiled kernels in float64 against dense steps: 1e-8, values and all gradients."""
    for trained in (False, True):
        x = make(Shape(2, 70, 19, 12, 2), torch.float64, measure, trained, alpha=alpha)
        got, truth = run(scan, x, backend="cpu"), run(definition, x)
        for name, t in got.items():
            scale = truth[name].abs().max().item()
            torch.testing.assert_close(t, truth[name], rtol=0, atol=1e-8 * scale, msg=name)


def _dense_powers(A, B, C, dt, L):
    """K by doubling in float64."""
    A_bar, X = reference.lssl_discretize(A, B, dt)
    X = X.unsqueeze(-1)
    while X.shape[-1] < L:
        X, A_bar = torch.cat([X, A_bar @ X], dim=-1), A_bar @ A_bar
    return C @ X[..., :L]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("N", "L", "allowed"), [(64, 1024, 2e-4), (256, 4096, 2e-3)])
def test_long_kernels_against_dense_powers(N, L, allowed, measure):
    A, B = hippo(measure, N, torch.float64)
    C = torch.randn(3, 1, N, dtype=torch.float64)
    dt = torch.tensor([1e-3, 1e-2, 1e-1], dtype=torch.float64)
    truth = _dense_powers(A.dense(), B, C, dt, L)
    scale = truth.abs().max()
    assert ((lssl_kernel(A, B, C, dt, L) - truth).abs().max() / scale) < 1e-8
    narrow = lssl_kernel(A, B, C.float(), dt, L)
    assert narrow.dtype is torch.float32
    assert ((narrow - truth).abs().max() / scale) < allowed


@pytest.mark.parametrize("kind", ["legs", "legt", "lagt", "identity", "dense", "per feature"])
@pytest.mark.parametrize("shape", [Shape(2, 90, 6, 8, 2), Shape(1, 5, 6, 8, 1)], ids=str)
def test_views_agree(shape, kind):
    """Convolution, recurrence and steps are the same map; so is the dense form of the matrix."""
    x = make(shape, torch.float64).tensors
    A, B = hippo(kind if kind in (*MEASURES, "identity") else "legs", 8, torch.float64)
    if kind == "dense":
        A = A.dense()
    if kind == "per feature":
        A = A._replace(P=A.P * (1 + torch.rand(6, 1)).double())
        B = B * torch.rand(6, 1, dtype=torch.float64)
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    whole, state = reference.lssl_scan(
        x["u"], A.dense() if kind != "dense" else A, B, x["C"], x["dt"], x["D"], 0.3
    )
    for backend, learn in (("auto", False), ("auto", True), ("reference", False)):
        common = (A, B, x["C"].requires_grad_(learn), x["dt"], x["D"], 0.3)
        y, last = lssl_scan(x["u"], *common, output_final_state=True, backend=backend)
        close((y, last), (whole, state))
        assert lssl_scan(x["u"], *common, backend=backend)[1] is None
        close(lssl_conv(x["u"], *common, backend=backend), whole)
        now, ys = None, []
        for u in x["u"].unbind(1):
            y, now = lssl_step(u, now, *common, backend=backend)
            ys.append(y)
        close((torch.stack(ys, 1), now), (whole, state))


@each_matrix
def test_gradients_of_the_views_agree(measure, trained):
    x = make(SMALL, torch.float64, measure, trained)
    tensors = {name: t for name, t in x.tensors.items() if name != "initial_state"}
    x = Inputs(tensors, {}, x.do, None)

    def recurrence(output_final_state=True, **named):
        return scan(output_final_state=False, **named)[0], named["u"].new_zeros(())

    a, b = run(conv, x), run(recurrence, x)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("cuts", [(0, 1, 37), (0, 8, 24, 37), (0, 13, 36, 37)], ids=str)
def test_split_and_carry_of_a_dense_matrix(cuts):
    tensors = dict(make(SMALL, dense=True).tensors)
    u, state = tensors.pop("u"), tensors.pop("initial_state")
    whole, last = scan(u=u, initial_state=state, **tensors)
    ys = []
    for begin, end in itertools.pairwise(cuts):
        y, state = scan(u=u[:, begin:end], initial_state=state, **tensors)
        ys.append(y)
    torch.testing.assert_close(torch.cat(ys, 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)
    _, same = scan(u=u[:, :0], initial_state=state, **tensors)
    assert torch.equal(same, state)
    assert same.data_ptr() != state.data_ptr()


@pytest.mark.parametrize(
    "shape", [Shape(0, 5, 3, 4), Shape(2, 0, 3, 4), Shape(2, 5, 0, 4)], ids=str
)
def test_empty_and_single_step(shape, isa):
    x = make(shape)
    got = run(scan, x, backend="cpu")
    assert got["o"].shape == (shape.B, shape.L, shape.H, 1)
    if shape.L == 0:
        assert torch.equal(got["ht"], x.tensors["initial_state"])
        assert torch.equal(got["dinitial_state"], x.dht)
    for name in ("dC", "dD", "ddt", "dA_P"):
        assert shape.H == 0 or not got[name].any(), name
    assert lssl_kernel(
        *state_matrix("legs", 4, torch.float32), torch.zeros(3, 1, 4), torch.ones(3), 0
    ).shape == (3, 1, 0)
    single = make(Shape(2, 1, 5, 4))
    y, state = scan(**single.tensors)
    tensors = dict(single.tensors)
    u, x0 = tensors.pop("u")[:, 0], tensors.pop("initial_state")
    step, after = lssl_step(u, x0, gather_A(tensors), **tensors)
    assert torch.equal(step, y[:, 0])
    assert torch.equal(after, state)


def test_the_kernel_writes_every_output(isa, poisoned):
    assert torch.empty(3).isnan().all()
    for measure in ("legs", "legt"):
        for name, t in run(kernel, kernel_inputs(SMALL, measure=measure)).items():
            assert not t.isnan().any(), name


@pytest.mark.parametrize("restride", RESTRIDE)
def test_rows_of_a_gradient_lie_anywhere(restride):
    """The kernel reads features that lie next to each other, whatever is between the rows."""
    x = make(SMALL)
    do = restride(x.do.transpose(2, 3)).transpose(2, 3)
    assert_same(run(scan, replace(x, do=do)), run(scan, x))


@pytest.mark.parametrize("measure", MEASURES)
def test_frozen_parameters(measure):
    """Gradients that nobody wants change none of the others."""
    x = make(SMALL, measure=measure)
    everything = run(scan, x)
    for wanted in (("u",), ("C", "D"), ("dt",), ("initial_state", "u", "A_P")):
        leaves = {n: t.detach().clone().requires_grad_(n in wanted) for n, t in x.tensors.items()}
        grads = torch.autograd.grad(scan(**leaves), [leaves[n] for n in wanted], (x.do, x.dht))
        for name, grad in zip(wanted, grads, strict=True):
            torch.testing.assert_close(grad, everything[f"d{name}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_one_element_above_the_diagonal_counts(grad):
    """It is the last that is read, of the last feature."""
    A, B = hippo("legs", 6, torch.float64)
    x = make(SMALL, torch.float64).tensors
    upper = torch.zeros(SMALL.H, 6, dtype=torch.float64)
    upper[-1, -2] = 0.5
    with torch.set_grad_enabled(grad):
        y, expected = (
            lssl_scan(x["u"], A._replace(upper=upper), B, x["C"], x["dt"], backend=backend)[0]
            for backend in ("cpu", "reference")
        )
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


def test_zeros_above_the_diagonal_have_gradients():
    """T's upper diagonal may start at zero and still be trained."""
    A, B = hippo("legs", 6, torch.float64)
    x = make(SMALL, torch.float64).tensors
    upper = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    grads = []
    for backend in ("cpu", "reference"):
        y, _ = lssl_scan(
            x["u"], A._replace(upper=upper), B, x["C"], x["dt"], x["D"], backend=backend
        )
        grads.append(torch.autograd.grad(y.square().sum(), upper)[0])
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    assert grads[0][:-1].abs().min() > 0
