# SPDX-License-Identifier: Apache-2.0
"""Every mistake is refused before a kernel runs, in words that name the way out."""

import logging

import numpy as np
import pytest
import torch
from harness import assert_refuses
from linear_attention_calls import (
    BETA,
    EXACT,
    GK,
    H0,
    HV,
    NESTED,
    ONE,
    B,
    G,
    H,
    K,
    T,
    V,
    delta,
    gated,
    gla,
    packed,
    product,
    recurrent,
    simple,
    step,
)

from seqkern import ops
from seqkern._runtime import backends
from seqkern.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    OptionError,
    ShapeError,
)

ROWS = {
    "q is no tensor": (gla(q=[1]), DTypeError, "`q` must be a torch.Tensor, got list"),
    "k is no tensor": (gla(k=None), DTypeError, "`k` must be a torch.Tensor, got NoneType"),
    "v is no tensor": (gla(v=None), DTypeError, "`v` must be a torch.Tensor, got NoneType"),
    "g is missing": (gla(g=None), DTypeError, "`g` must be a torch.Tensor, got NoneType"),
    "beta is missing": (delta(beta=None), DTypeError, "`beta` must be a torch.Tensor"),
    "beta of the gated rule is missing": (gated(beta=None), DTypeError, "`beta` must be a torch."),
    "beta of the product is missing": (product(beta=None), DTypeError, "`beta` must be a torch."),
    "beta of a step is missing": (step(beta=None), DTypeError, "`beta` must be a torch.Tensor"),
    "rank of q": (gla(q=EXACT["q"][0]), ShapeError, "`q` must be [B, T, H, K], got [6, 2, 3]"),
    "shape of k": (
        gla(k=EXACT["k"][:, :5]),
        ShapeError,
        "chunk_gla: `k` must be [B, T, H, K] = [2, 6, 2, 3] to fit `q`, got [2, 5, 2, 3].",
    ),
    "width of k": (
        gla(k=EXACT["k"][..., :2]),
        ShapeError,
        "`k` must be [B, T, H, K] = [2, 6, 2, 3] to fit `q`, got [2, 6, 2, 2].",
    ),
    "batch of k": (gla(k=EXACT["k"][:1]), ShapeError, "to fit `q`, got [1, 6, 2, 3]."),
    "batch of v": (gla(v=EXACT["v"][:1]), ShapeError, "to fit `q`, got [1, 6, 4, 5]."),
    "length of v": (
        gla(v=EXACT["v"][:, :5]),
        ShapeError,
        "`v` must be [B, T, HV, V] = [2, 6, a multiple of 2, any] to fit `q`, got [2, 5, 4, 5].",
    ),
    "rank of v": (gla(v=EXACT["v"][0]), ShapeError, "`v` must be [B, T, HV, V]"),
    "heads of v": (
        gla(v=EXACT["v"][:, :, :3]),
        ShapeError,
        "the heads of `v` must be a multiple of those of `q`, got HV = 3 and H = 2.",
    ),
    "no width": (
        simple(v=EXACT["v"][..., :0]),
        ShapeError,
        "the head widths K and V must be at least 1, got K = 3 and V = 0.",
    ),
    "no width of keys": (
        simple(q=EXACT["q"][..., :0], k=EXACT["k"][..., :0]),
        ShapeError,
        "the head widths K and V must be at least 1, got K = 0 and V = 5.",
    ),
    "a gate per head for gla": (
        gla(g=torch.zeros(B, T, H)),
        ShapeError,
        "`g` must be [B, T, H, K] = [2, 6, 2, 3] to fit `q` and `v`, got [2, 6, 2].\n"
        "For one decay per head use `chunk_simple_gla`.",
    ),
    "a gate per head for a step of gla": (
        lambda: ops.fused_recurrent_gla(**EXACT, gk=G),
        ShapeError,
        "`gk` must be [B, T, H, K] = [2, 6, 2, 3]",
    ),
    "a gate per channel for simple_gla": (
        simple(g=GK),
        ShapeError,
        "`g` must be [B, T, HV] = [2, 6, 4] to fit `q` and `v`, got [2, 6, 2, 3].\n"
        "For one decay per key channel use `chunk_gla`.",
    ),
    "an integer gate": (simple(g=G.long()), DTypeError, "`g` must be a floating tensor"),
    "a gate that is no tensor": (simple(g=-1.0), DTypeError, "`g` must be a torch.Tensor"),
    "shape of beta": (
        delta(beta=BETA[:, :, :2]),
        ShapeError,
        "`beta` must be [B, T, HV] = [2, 6, 4] to fit `q` and `v`, got [2, 6, 2].",
    ),
    "shape of a vector beta": (
        delta(beta=torch.ones(B, T, HV, K)),
        ShapeError,
        "`beta` must be [B, T, HV, V] = [2, 6, 4, 5]",
    ),
    "mixed dtypes": (
        gla(v=EXACT["v"].bfloat16()),
        DTypeError,
        "`q`, `k` and `v` must share one dtype, got torch.float32, torch.float32 and "
        "torch.bfloat16. Cast them to one, or run under torch.autocast.",
    ),
    "keys of another dtype": (gla(k=EXACT["k"].bfloat16()), DTypeError, "must share one dtype"),
    "eight bits": (
        gla(**{name: x.to(torch.float8_e4m3fn) for name, x in EXACT.items()}),
        DTypeError,
        "must be float32, bfloat16, float16 or float64, got torch.float8_e4m3fn.",
    ),
    "integers": (
        gla(**{name: x.int() for name, x in EXACT.items()}),
        DTypeError,
        "must be float32, bfloat16, float16 or float64, got torch.int32.",
    ),
    "number of states": (
        simple(initial_state=H0[:1]),
        ShapeError,
        "`initial_state` must be [N, HV, K, V] = [2, 4, 3, 5], got [1, 4, 3, 5].\n"
        "There must be one state per sequence, 2 in all.",
    ),
    "states the other way round": (
        simple(initial_state=H0.transpose(-1, -2)),
        ShapeError,
        "The widths are swapped: pass state_v_first=True.",
    ),
    "states not the other way round": (
        simple(initial_state=H0, state_v_first=True),
        ShapeError,
        "`initial_state` must be [N, HV, V, K] = [2, 4, 5, 3], got [2, 4, 3, 5].\n"
        "The widths are swapped: pass state_v_first=False.",
    ),
    "a state without axes": (
        simple(initial_state=torch.zeros(())),
        ShapeError,
        "`initial_state` must be [N, HV, K, V] = [2, 4, 3, 5], got [].",
    ),
    "an integer state": (simple(initial_state=H0.int()), DTypeError, "`initial_state` must be a"),
    "a state that is no tensor": (
        simple(initial_state=0),
        DTypeError,
        "`initial_state` must be a torch.Tensor, got int.",
    ),
    "packing a batch": (
        simple(cu_seqlens=torch.tensor([0, 6])),
        ShapeError,
        "with `cu_seqlens` the batch size must be 1, got 2.",
    ),
    "packing no batch": (
        simple(
            **{name: x[:0] for name, x in EXACT.items()}, g=None, cu_seqlens=torch.tensor([0, 6])
        ),
        ShapeError,
        "with `cu_seqlens` the batch size must be 1, got 0.",
    ),
    "states for packed sequences": (
        packed([0, 2, 6], initial_state=H0[:1]),
        ShapeError,
        "`initial_state` must be [N, HV, K, V] = [2, 4, 3, 5]",
    ),
    "offsets as a list": (
        lambda: ops.chunk_simple_gla(**ONE, cu_seqlens=[0, 6]),
        DTypeError,
        "`cu_seqlens` must be a torch.Tensor, got list.",
    ),
    "sparse offsets": (
        packed(torch.tensor([0, 6]).to_sparse()),
        DTypeError,
        "`cu_seqlens` must be a dense tensor",
    ),
    "rank of the offsets": (packed([[0, 6]]), ShapeError, "`cu_seqlens` must be [N + 1]"),
    "no offsets": (packed([]), ShapeError, "`cu_seqlens` must be [N + 1] with N + 1 >= 1, got [0]"),
    "offsets of another dtype": (
        packed(torch.tensor([0.0, 6.0])),
        DTypeError,
        "`cu_seqlens` must be int32 or int64, got torch.float32.",
    ),
    "offsets that start late": (packed([1, 6]), ShapeError, "must start at 0, never fall and end"),
    "offsets that fall": (packed([0, 4, 2, 6]), ShapeError, "got [0, 4, 2, 6]."),
    "offsets that end early": (packed([0, 5]), ShapeError, "end at T = 6, got [0, 5]."),
    "offsets that end late": (packed([0, 7]), ShapeError, "end at T = 6, got [0, 7]."),
    "many wrong offsets": (packed(list(range(20))), ShapeError, "got [0, 1, 2, 3, 4, 5] ... [14"),
    "devices": (
        simple(g=G.to("meta")),
        DeviceError,
        "`g` must be on the device of `q`, cpu, got meta. Move it with `.to(q.device)`.",
    ),
    "head first": (simple(head_first=True), OptionError, "`head_first` was removed"),
    "chunk size": (delta(chunk_size=48), OptionError, "must be a power of two from 16 on, got 48"),
    "a small chunk size": (delta(chunk_size=8), OptionError, "a power of two from 16 on, got 8"),
    "no chunk size": (simple(chunk_size=0), OptionError, "a power of two from 16 on, got 0"),
    "chunk size in words": (delta(chunk_size="64"), OptionError, "a power of two from 16 on, got"),
    "chunk size of the gated rule": (gated(chunk_size=48), OptionError, "from 16 on, got 48"),
    "context parallel": (gated(cp_context=object()), OptionError, "`cp_context` is not supported"),
    "context parallel product": (product(cp_context=1), OptionError, "`cp_context` is not"),
    "a scale in words": (gla(scale="a"), OptionError, "`scale` must be a number or None, got 'a'"),
    "scales": (gla(scale=torch.ones(2)), OptionError, "`scale` must be a number or None, got te"),
    "a scale without a value": (
        gla(scale=torch.ones((), device="meta")),
        OptionError,
        "`scale` must be a number or None, got tensor(",
    ),
    "a scale that learns": (
        gla(scale=torch.tensor(1.0, requires_grad=True)),
        OptionError,
        "`scale` is a number and gets no gradient. Multiply `q` by the tensor and pass scale=1.0",
    ),
    "sparse queries": (
        gla(q=EXACT["q"].to_sparse()),
        DTypeError,
        "`q` must be a dense tensor, got torch.sparse_coo. Pass `q.to_dense()`.",
    ),
    "nested queries": (
        gla(q=NESTED),
        DTypeError,
        "`q` must be a dense tensor, got a nested one. Pass "
        "`torch.nested.to_padded_tensor(q, 0.0)`, or its sequences one behind the other where",
    ),
    "nested gates": (simple(g=NESTED), DTypeError, "`g` must be a dense tensor, got a nested one."),
    "sparse gates": (simple(g=G.to_sparse()), DTypeError, "`g` must be a dense tensor"),
    "sparse states": (simple(initial_state=H0.to_sparse()), DTypeError, "`initial_state` must be"),
    "no values": (recurrent(v=None), DTypeError, "`v` must be a torch.Tensor, got NoneType"),
    "sparse values": (recurrent(v=EXACT["v"].to_sparse()), DTypeError, "`v` must be a dense"),
    "shape of gk": (recurrent(gk=GK), ShapeError, "`gk` must be [B, T, HV, K] = [2, 6, 4, 3]"),
    "shape of gv": (recurrent(gv=GK), ShapeError, "`gv` must be [B, T, HV, V] = [2, 6, 4, 5]"),
    "no updates": (
        product(num_householder=0),
        OptionError,
        "`num_householder` must be an integer >= 1, got 0.",
    ),
    "a truth for the number of updates": (
        product(num_householder=True),
        OptionError,
        "`num_householder` must be an integer >= 1, got True.",
    ),
    "half an update in a step": (
        step(num_householder=1.5),
        OptionError,
        "`num_householder` must be an integer >= 1, got 1.5.",
    ),
    "keys for another number of updates": (
        product(num_householder=2),
        ShapeError,
        "`k` must be [B, T * num_householder, H, K] = [2, 12, 2, 3] to fit `q`, got [2, 6, 2, 3].",
    ),
    "an unknown backend": (
        gla(backend="gpu"),
        OptionError,
        '`backend` must be one of "auto", "cpu", "triton", "cuda", "reference", got \'gpu\'.',
    ),
    "a backend that is not there": (
        gla(backend="cuda"),
        BackendUnavailableError,
        'backend="cuda" for `chunk_gla`: this version has no cuda kernel for it.',
    ),
    "a kernel for float64": (
        gla(**{name: x.double() for name, x in EXACT.items()}, backend="cpu"),
        BackendUnavailableError,
        'backend="cpu" for `chunk_gla`: float64 has no compiled kernel.',
    ),
    "a kernel for gv": (
        recurrent(gv=torch.zeros(B, T, HV, V), backend="cpu"),
        BackendUnavailableError,
        '`gv` has no compiled kernel. Use backend="reference"',
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_rejects(row):
    assert_refuses(row)


@pytest.mark.parametrize("name", ["k", "v", "g", "gk", "gv", "beta", "initial_state"])
def test_rejects_a_tensor_on_another_device(name):
    given = {**EXACT, "g": G, "beta": BETA, "initial_state": H0}
    given |= {"gk": torch.zeros(B, T, HV, K), "gv": torch.zeros(B, T, HV, V)}
    if name not in ("gk", "gv"):
        del given["gk"], given["gv"]
    with pytest.raises(DeviceError, match=f"`{name}` must be on the device of `q`, cpu, got meta"):
        ops.fused_recurrent_gated_delta_rule(**{**given, name: given[name].to("meta")})


@pytest.mark.parametrize("name", ops.__all__)
def test_rejects_unknown_keywords(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'sclae'"):
        getattr(ops, name)(sclae=1.0)


def test_rejects_a_missing_library(monkeypatch):
    """Without the library ``auto`` says once why it is slow, and ``cpu`` refuses."""
    from seqkern._runtime import library
    from seqkern.ops import _linear_attention

    monkeypatch.setattr(_linear_attention, "FORWARD", None)
    monkeypatch.setattr(library, "missing_reason", lambda name: "the compiled library is gone")
    with pytest.raises(BackendUnavailableError, match=r"the compiled library is gone\. Reinstall"):
        gla(backend="cpu")()
    assert torch.isfinite(gla()()[0]).all()


def test_warns_once_per_reason(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    double = {name: x.double() for name, x in EXACT.items()}
    with caplog.at_level(logging.WARNING, "seqkern"):
        for _ in range(2):
            ops.chunk_gla(**double, g=GK)
            ops.fused_recurrent_gla(**EXACT, gv=torch.zeros(B, T, HV, V))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "chunk_gla runs the slow sequential reference: float64 has no" in messages[0]
    assert "`gv` has no compiled kernel" in messages[1]
    caplog.clear()
    ops.chunk_gla(**double, g=GK, backend="reference")
    assert not caplog.records


def test_override_changes_what_auto_means():
    x = {**EXACT, "g": GK}
    slow = ops.chunk_gla(**x, backend="reference")[0]
    with backends.override("reference"):
        assert torch.equal(ops.chunk_gla(**x)[0], slow)
        assert torch.equal(
            ops.chunk_gla(**x, backend="cpu")[0], ops.chunk_gla(**x, backend="cpu")[0]
        )
    with pytest.raises(OptionError), backends.override("fast"):
        pass


def test_takes_any_integer():
    assert torch.equal(product(num_householder=np.int64(1))()[0], product(num_householder=1)()[0])


def test_takes_a_scale_that_learns_where_nothing_does():
    scale = torch.tensor(0.7, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(gla(scale=scale)()[0], gla(scale=0.7)()[0])
