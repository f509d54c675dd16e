# SPDX-License-Identifier: Apache-2.0
"""The causal convolution against its definition: values, gradients, packing, the same bits."""

import pytest
import torch
from conv_inputs import SHAPES, SMALL, definition, make, truth_and_peer
from harness import assert_all_equal, assert_same, each_dtype

from seqkern._runtime import backends
from seqkern.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import causal_conv1d
from seqkern.ops._causal_conv1d_function import MAX_WIDTH
from seqkern.testing import Inputs, assert_close, run


@each_dtype
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_definition(shape, activation, dtype, isa, threads):
    x, truth, peer = truth_and_peer(shape, dtype, activation)
    for count in (1, 2):
        threads(count)
        assert_close(run(causal_conv1d, x, backend="cpu"), truth, no_worse_than=peer, factor=2)


@each_dtype
def test_parameters_of_other_dtypes(dtype):
    """Weight and bias are read as float32 whatever they are; states and residuals are cast."""
    kinds = {"weight": torch.float32, "bias": torch.bfloat16, "initial_state": torch.float64}
    x = make(SMALL, dtype, **kinds)
    got = run(causal_conv1d, x, backend="cpu")
    cast = {n: t.to(dtype) if n == "initial_state" else t for n, t in x.tensors.items()}
    same = Inputs(cast, x.options, x.do, x.dht)
    truth, peer = run(definition, same.double()), run(definition, same)
    peer["dinitial_state"] = peer["dinitial_state"].double()
    assert_close(got, truth, no_worse_than=peer, factor=2)


def test_only_what_is_given():
    """Without bias, residual and state nothing is added and no state comes back."""
    x = make(SMALL, states=False, extras=False, activation=None)
    y, state = causal_conv1d(**x.tensors, output_final_state=None)
    assert state is None
    assert torch.equal(y, causal_conv1d(**x.tensors, initial_state=torch.zeros(2, 20, 4))[0])
    conv = torch.nn.functional.conv1d(
        x.tensors["x"].transpose(1, 2), x.tensors["weight"].unsqueeze(1), padding=3, groups=20
    )
    torch.testing.assert_close(y, conv[..., :37].transpose(1, 2))


def test_heads_are_flattened():
    """[B, T, H, K] is convolved as [B, T, H K], and so is what has more axes."""
    x = make((2, 9, 24, 4))
    flat = causal_conv1d(**x.tensors, **x.options)[0]
    for size in ((2, 9, 4, 6), (2, 9, 2, 2, 6)):
        tensors = x.tensors | {n: x.tensors[n].view(size) for n in ("x", "residual")}
        assert torch.equal(causal_conv1d(**tensors, **x.options)[0], flat.view(size))


def test_names_of_runs_beside_heads_and_a_residual():
    """They separate the rows of [B, T, H, K] as offsets do; names may fall, and come back."""
    seq_idx = torch.tensor([[5, 5, 3, 3, 5], [0, 0, 0, 0, -2]]).int()
    x, weight, bias, residual = make((2, 5, 6, 4), states=False).tensors.values()
    y, _ = causal_conv1d(
        x.view(2, 5, 3, 2), weight, bias, residual.view(2, 5, 3, 2), seq_idx=seq_idx
    )
    packed = {"residual": residual.view(1, 10, 6), "cu_seqlens": torch.tensor([0, 2, 4, 5, 9, 10])}
    expected = causal_conv1d(x.view(1, 10, 6), weight, bias, **packed)[0].view(2, 5, 3, 2)
    expected[1, 4] = 0
    assert torch.equal(y, expected)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_offsets_on_the_cpu(kind):
    """They separate sequences with and without the others, and count instead of them."""
    x, weight = torch.randn(1, 9, 6), torch.randn(6, 4)
    packed = torch.tensor([0, 4, 9]).to(kind)
    expected = causal_conv1d(x, weight, cu_seqlens=packed, output_final_state=True)
    wrong = torch.tensor([0, 9])
    for others in ({}, *({"cu_seqlens": x} for x in (packed, packed.to("meta"), wrong))):
        got = causal_conv1d(x, weight, cu_seqlens_cpu=packed, output_final_state=True, **others)
        assert_all_equal(got, expected)
    spread = packed.repeat_interleave(2)[::2]
    assert_all_equal(causal_conv1d(x, weight, cu_seqlens=spread, output_final_state=True), expected)


def test_wide_kernels_take_the_reference(caplog, monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    x = make((1, 70, 3, MAX_WIDTH + 1))
    for _ in range(2):
        assert_same(run(causal_conv1d, x), run(definition, x))
    (record,) = caplog.records
    assert f"of width {MAX_WIDTH} at most" in record.getMessage()


BAD = {
    "x is no tensor": ({"x": [1.0]}, DTypeError, "`x` must be a torch.Tensor, got list"),
    "x has two axes": ({"x": torch.zeros(5, 6)}, ShapeError, r"`x` must be \[B, T, D\], got"),
    "x is integer": ({"x": torch.zeros(2, 9, 6).int()}, DTypeError, "`x` must be float32"),
    "no weight": ({"weight": None}, OptionError, "`weight` is required"),
    "weight of Conv1d": (
        {"weight": torch.zeros(6, 1, 4)},
        ShapeError,
        r"= \[6, at least 1\] to fit `x`, got \[6, 1, 4\].\n.*weight.squeeze\(1\)",
    ),
    "channels first": ({"x": torch.zeros(2, 6, 9)}, ShapeError, "use `causal_conv1d_fn`"),
    "weight is integer": ({"weight": torch.zeros(6, 4).int()}, DTypeError, "`weight` must be fl"),
    "weight of no taps": (
        {"weight": torch.zeros(6, 0)},
        ShapeError,
        r"= \[6, at least 1\] to fit `x`, got \[6, 0\]",
    ),
    "weight is nested": (
        {"weight": torch.nested.nested_tensor([torch.zeros(4), torch.zeros(2)])},
        DTypeError,
        "`weight` must be a dense tensor, got a nested one",
    ),
    "bias": ({"bias": torch.zeros(5)}, ShapeError, r"`bias` must be \[D\] = \[6\] to fit"),
    "bias of two axes": ({"bias": torch.zeros(6, 1)}, ShapeError, r"to fit `x`, got \[6, 1\]"),
    "bias is integer": ({"bias": torch.zeros(6).int()}, DTypeError, "`bias` must be float32"),
    "bias is no tensor": ({"bias": 1.0}, DTypeError, "`bias` must be a torch.Tensor"),
    "residual": ({"residual": torch.zeros(2, 8, 6)}, ShapeError, "`residual` must be the shape of"),
    "residual is no tensor": (
        {"x": torch.zeros(2, 9, 3, 2), "residual": [1.0]},
        DTypeError,
        "`residual` must be a torch.Tensor, got list",
    ),
    "x is nested": (
        {"x": torch.nested.nested_tensor([torch.zeros(9, 6), torch.zeros(2, 6)])},
        DTypeError,
        "`x` must be a dense tensor, got a nested one",
    ),
    "x is sparse": ({"x": torch.zeros(2, 9, 6).to_sparse()}, DTypeError, "`x` must be a dense"),
    "state": ({"initial_state": torch.zeros(1, 6, 4)}, ShapeError, r"\[N, D, W\] = \[2, 6, 4\]"),
    "activation": ({"activation": "relu"}, OptionError, '`activation` must be None, "silu"'),
    "packed batch": ({"cu_seqlens": torch.tensor([0, 9])}, ShapeError, "batch size must be 1"),
    "context parallel": ({"cp_context": object()}, OptionError, "`cp_context` is not supported"),
    **{
        f"{name} elsewhere": (
            {name: torch.zeros(size, device="meta")},
            DeviceError,
            f"`{name}` must be on",
        )
        for name, size in {
            "weight": (6, 4),
            "bias": (6,),
            "residual": (2, 9, 6),
            "initial_state": (2, 6, 4),
        }.items()
    },
    "backend": ({"backend": "mix"}, OptionError, "`backend` must be one of"),
    "no kernel": ({"backend": "triton"}, BackendUnavailableError, "no triton kernel"),
    "run names": ({"seq_idx": torch.zeros(2, 8).int()}, ShapeError, r"\[B, T\] = \[2, 9\]"),
    **{
        f"run names and {name}": (
            {"seq_idx": torch.zeros(2, 9).int(), name: value},
            OptionError,
            "`seq_idx` excludes",
        )
        for name, value in {
            "output_final_state": True,
            "initial_state": torch.zeros(2, 6, 4),
            "cu_seqlens": torch.tensor([0, 9]),
        }.items()
    },
    "run names and no kernel": (
        {"seq_idx": torch.zeros(2, 9).int(), "backend": "triton"},
        BackendUnavailableError,
        "no triton kernel",
    ),
    "run names are floating": (
        {"seq_idx": torch.zeros(2, 9)},
        ShapeError,
        r"`seq_idx` must be integers \[B, T\] = \[2, 9\], got \[2, 9\] of torch.float32",
    ),
    "run names elsewhere": (
        {"seq_idx": torch.zeros(2, 9, device="meta").int()},
        DeviceError,
        "`seq_idx` must be on",
    ),
    "residual beside run names": (
        {"seq_idx": torch.zeros(2, 9).int(), "residual": torch.zeros(9, 2, 6)},
        ShapeError,
        "`residual` must be the shape of",
    ),
    "residual of other heads": (
        {"x": torch.zeros(2, 9, 2, 3), "residual": torch.zeros(2, 9, 3, 2)},
        ShapeError,
        "`residual` must be the shape of",
    ),
    "residual is complex": (
        {"residual": torch.zeros(2, 9, 6) * 1j},
        DTypeError,
        "`residual` must be a floating tensor, got torch.complex64",
    ),
    "state is integer": (
        {"initial_state": torch.zeros(2, 6, 4).int()},
        DTypeError,
        "`initial_state` must be a floating tensor",
    ),
    "offsets on the CPU": (
        {"x": torch.zeros(1, 9, 6), "cu_seqlens_cpu": torch.tensor([0, 8])},
        ShapeError,
        "end at T = 9, got",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_rejects(change, error, message):
    good = {"x": torch.zeros(2, 9, 6), "weight": torch.zeros(6, 4)}
    with pytest.raises(error, match=message):
        causal_conv1d(**{**good, **change})
