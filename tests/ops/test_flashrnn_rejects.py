# SPDX-License-Identifier: Apache-2.0
"""Every mistake is refused before a kernel runs, in words that name the way out."""

import pytest
import torch
from harness import assert_refuses

from seqkern import ops
from seqkern._runtime import library
from seqkern.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    OptionError,
    SeqkernError,
    ShapeError,
)

B, T, N, D = 2, 6, 3, 4
GOOD = {
    "Wx": torch.zeros(B, T, 4, N, D),
    "R": torch.zeros(4, N, D, D),
    "b": torch.zeros(4, N, D),
    "states": torch.zeros(2, B, 1, N, D),
}


def rnn(**changes):
    return lambda: ops.flashrnn(**{**GOOD, **changes})


def step(**changes):
    return lambda: ops.flashrnn_step(**{**GOOD, "Wx": GOOD["Wx"][:, 0], **changes})


def packed(offsets, **changes):
    if not isinstance(offsets, torch.Tensor):
        offsets = torch.tensor(offsets, dtype=torch.int64)
    given = {**GOOD, "Wx": GOOD["Wx"][:1], "states": None, "cu_seqlens": offsets, **changes}
    return lambda: ops.flashrnn(**given)


ROWS = {
    "function": (
        rnn(function="rnn"),
        OptionError,
        'flashrnn: `function` must be one of "elman", "elman_relu", "lstm", "gru", "slstm", "mgu", '
        "got 'rnn'.",
    ),
    "Wx is no tensor": (rnn(Wx=[1]), DTypeError, "`Wx` must be a torch.Tensor, got list"),
    "R is missing": (rnn(R=None), DTypeError, "`R` must be a torch.Tensor, got NoneType"),
    "b is no tensor": (rnn(b=0.0), DTypeError, "`b` must be a torch.Tensor, got float"),
    "states are no tensor": (
        rnn(states=(1, 2)),
        DTypeError,
        "`states` must be a torch.Tensor, got tuple. Stack states [sequences, 1, N, D]: pass "
        "`torch.stack(states)`.",
    ),
    "states in a list": (rnn(states=[1, 2]), DTypeError, "got list. Stack states"),
    "rank of Wx": (
        rnn(Wx=torch.zeros(B, T, 4 * D)),
        ShapeError,
        "flashrnn: `Wx` must be [B, T, G, N, D], got [2, 6, 16].\nFor one dense head view its last "
        "axis, G * D wide, as [G, 1, D].",
    ),
    "Wx without heads": (
        rnn(Wx=torch.zeros(B, T, 4, D)),
        ShapeError,
        "got [2, 6, 4, 4].\nFor one dense head view its last axis, G * D wide, as [G, 1, D].",
    ),
    "gates of Wx": (
        rnn(Wx=torch.zeros(B, T, 3, N, D)),
        ShapeError,
        "`Wx` must be [B, T, G, N, D] with G = 4 input gates, got [2, 6, 3, 3, 4].",
    ),
    "no width": (
        rnn(Wx=torch.zeros(B, T, 4, N, 0)),
        ShapeError,
        "the head width D must be at least 1, got [2, 6, 4, 3, 0].",
    ),
    "integers": (
        rnn(Wx=torch.zeros(B, T, 4, N, D, dtype=torch.int32)),
        DTypeError,
        "`Wx` must be float32, bfloat16, float16 or float64, got torch.int32.",
    ),
    "shape of R": (
        rnn(R=torch.zeros(4, N, D, D + 1)),
        ShapeError,
        "`R` must be [G, N, D out, D in] = [4, 3, 4, 4] to fit `Wx`, got [4, 3, 4, 5].",
    ),
    "heads before gates": (
        rnn(R=torch.zeros(N, 4, D, D)),
        ShapeError,
        "Gates come first, then heads: pass `R.transpose(0, 1)`.",
    ),
    "shape of b": (
        rnn(b=torch.zeros(4 * N * D)),
        ShapeError,
        "`b` must be [G, N, D] = [4, 3, 4] to fit `Wx`, got [48].\nPass `b.view(4, 3, 4)`.",
    ),
    "gates of the bias of a gru": (
        rnn(
            Wx=torch.zeros(B, T, 3, N, D),
            R=torch.zeros(3, N, D, D),
            b=torch.zeros(3, N, D),
            states=None,
            function="gru",
        ),
        ShapeError,
        "`b` must be [G, N, D] = [4, 3, 4] to fit `Wx`, got [3, 3, 4].",
    ),
    "number of states": (
        rnn(states=torch.zeros(1, B, 1, N, D)),
        ShapeError,
        "`states` must be [S, sequences, 1, N, D] = [2, 2, 1, 3, 4] to fit `Wx`, got "
        "[1, 2, 1, 3, 4].",
    ),
    "states without time": (
        rnn(states=torch.zeros(2, B, N, D)),
        ShapeError,
        "Pass `states.unsqueeze(2)`: the third axis is time, one step.",
    ),
    "integer states": (
        rnn(states=GOOD["states"].int()),
        DTypeError,
        "`states` must be a floating tensor, got torch.int32.",
    ),
    "integer R": (rnn(R=GOOD["R"].int()), DTypeError, "`R` must be a floating tensor, got"),
    "integer b": (rnn(b=GOOD["b"].int()), DTypeError, "`b` must be a floating tensor, got"),
    "mixed dtypes": (
        rnn(R=GOOD["R"].bfloat16()),
        DTypeError,
        "flashrnn: `R` must have the dtype of `Wx`, torch.float32, or float32 beside a 16-bit `Wx`,"
        " got torch.bfloat16. Cast one of them, pass `dtype`, or run under torch.autocast.",
    ),
    "float32 R beside float64": (
        rnn(Wx=GOOD["Wx"].double()),
        DTypeError,
        "`R` must have the dtype of `Wx`, torch.float64",
    ),
    "float64 Wx under autocast": (
        lambda: torch.autocast("cpu")(rnn(Wx=GOOD["Wx"].double()))(),
        DTypeError,
        "`R` must have the dtype of `Wx`, torch.float64",
    ),
    "float64 R under autocast": (
        lambda: torch.autocast("cpu")(rnn(R=GOOD["R"].double()))(),
        DTypeError,
        "`R` must have the dtype of `Wx`, torch.float32, or",
    ),
    "dtype": (
        rnn(dtype="int8"),
        OptionError,
        "`dtype` must be None, float32, bfloat16, float16 or float64 (a torch.dtype or its name), "
        "got 'int8'.",
    ),
    "an integer dtype": (rnn(dtype=torch.int32), OptionError, "got torch.int32."),
    "forward clip": (
        rnn(forward_clipval=-1),
        OptionError,
        "`forward_clipval` must be a number >= 0 or None (no clipping), got -1.",
    ),
    "gradient clip": (
        rnn(gradient_recurrent_clipval=float("nan")),
        OptionError,
        "`gradient_recurrent_clipval` must be a number >= 0 or None (no clipping), got nan.",
    ),
    "a clip that is no number": (
        rnn(gradient_recurrent_clipval="1"),
        OptionError,
        "`gradient_recurrent_clipval` must be a number >= 0 or None (no clipping), got '1'.",
    ),
    "a clip beyond every float": (
        rnn(forward_clipval=10**400),
        OptionError,
        "`forward_clipval` must be a number >= 0 or None (no clipping), got 1000",
    ),
    "a clip that is a flag": (rnn(forward_clipval=True), OptionError, "(no clipping), got True."),
    "a flag that is a word": (
        rnn(reverse="no"),
        OptionError,
        "flashrnn: `reverse` must be True or False, got 'no'.",
    ),
    "a flag that is a number": (
        rnn(output_all_states=0),
        OptionError,
        "flashrnn: `output_all_states` must be True or False, got 0.",
    ),
    "a cut that is a number": (
        rnn(gradient_recurrent_cut=0.3),
        OptionError,
        "flashrnn: `gradient_recurrent_cut` must be True or False, got 0.3.",
    ),
    "a function that is a list": (
        rnn(function=["lstm"]),
        OptionError,
        "`function` must be one of",
    ),
    "sparse R": (
        rnn(R=GOOD["R"].to_sparse()),
        DTypeError,
        "flashrnn: `R` must be a dense tensor, got torch.sparse_coo. Pass `R.to_dense()`.",
    ),
    "nested Wx": (
        rnn(Wx=torch.nested.nested_tensor(list(GOOD["Wx"]), layout=torch.jagged)),
        DTypeError,
        "flashrnn: `Wx` must be a dense tensor, got a nested one. Pass",
    ),
    "sparse Wx": (rnn(Wx=GOOD["Wx"].to_sparse()), DTypeError, "`Wx` must be a dense tensor, got"),
    "device of the offsets": (
        lambda: ops.flashrnn(
            GOOD["Wx"][:1], GOOD["R"], cu_seqlens=torch.tensor([0, T], device="meta")
        ),
        DeviceError,
        "`cu_seqlens` must be on the device of `Wx`, cpu, got meta.",
    ),
    "shape of reset": (
        rnn(reset=torch.zeros(B, T + 1, dtype=torch.bool)),
        ShapeError,
        "`reset` must be [B, T] = [2, 6] to fit `Wx`, got [2, 7].",
    ),
    "reset of another batch": (
        rnn(reset=torch.zeros(B + 1, T, dtype=torch.bool)),
        ShapeError,
        "`reset` must be [B, T] = [2, 6] to fit `Wx`, got [3, 6].",
    ),
    "sparse reset": (
        rnn(reset=torch.zeros(B, T, dtype=torch.bool).to_sparse()),
        DTypeError,
        "flashrnn: `reset` must be a dense tensor, got torch.sparse_coo.",
    ),
    "dtype of reset": (
        rnn(reset=torch.zeros(B, T)),
        DTypeError,
        "`reset` must be bool or uint8, got torch.float32. Pass `reset != 0`.",
    ),
    "reset is no tensor": (rnn(reset=[0]), DTypeError, "`reset` must be a torch.Tensor, got list"),
    "packing a batch": (
        rnn(cu_seqlens=torch.tensor([0, 6])),
        ShapeError,
        "with `cu_seqlens` the batch size must be 1, got 2.",
    ),
    "offsets that end early": (packed([0, 5]), ShapeError, "end at T = 6, got [0, 5]."),
    "offsets that fall": (packed([0, 4, 2, 6]), ShapeError, "got [0, 4, 2, 6]."),
    "states of packed sequences": (
        packed([0, 2, 6], states=GOOD["states"][:, :1]),
        ShapeError,
        "`states` must be [S, sequences, 1, N, D] = [2, 2, 1, 3, 4] to fit `Wx`, got "
        "[2, 1, 1, 3, 4].",
    ),
    "devices": (
        rnn(R=GOOD["R"].to("meta")),
        DeviceError,
        "`R` must be on the device of `Wx`, cpu, got meta. Move it with `.to(Wx.device)`.",
    ),
    "device of reset": (
        rnn(reset=torch.zeros(B, T, dtype=torch.bool, device="meta")),
        DeviceError,
        "`reset` must be on the device of `Wx`, cpu, got meta.",
    ),
    "an unknown backend": (
        rnn(backend="gpu"),
        OptionError,
        '`backend` must be one of "auto", "cpu", "triton", "cuda", "reference", got \'gpu\'.',
    ),
    "a backend of another package": (
        rnn(backend="cuda_fused"),
        OptionError,
        'flashrnn: `backend="cuda_fused"` is a backend of another package. Pass backend="auto".',
    ),
    "the vanilla backend": (rnn(backend="vanilla"), OptionError, 'Pass backend="reference".'),
    "a backend that is not there": (
        rnn(backend="cuda"),
        BackendUnavailableError,
        'backend="cuda" for `flashrnn`: this version has no cuda kernel for it.',
    ),
    "a kernel for float64": (
        rnn(**{name: x.double() for name, x in GOOD.items()}, backend="cpu"),
        BackendUnavailableError,
        'backend="cpu" for `flashrnn`: float64 has no compiled kernel.',
    ),
    "rank of a step": (
        step(Wx=GOOD["Wx"]),
        ShapeError,
        "flashrnn_step: `Wx` must be [B, G, N, D], got [2, 6, 4, 3, 4].",
    ),
    "states of a step": (
        step(states=GOOD["states"][:, :1]),
        ShapeError,
        "flashrnn_step: `states` must be [S, sequences, 1, N, D] = [2, 2, 1, 3, 4]",
    ),
    "a step on a backend that is not there": (
        step(backend="triton"),
        BackendUnavailableError,
        'backend="triton" for `flashrnn_step`: this version has no triton kernel for it.',
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_rejects(row):
    assert_refuses(row)


@pytest.mark.parametrize(
    "call",
    [
        rnn(Wx=torch.zeros(B, T)),
        rnn(R=torch.zeros(N, 5, D, D)),
        rnn(b=torch.zeros(3, N, D)),
        rnn(states=torch.zeros(2, B, N, D + 1)),
    ],
    ids=list(GOOD),
)
def test_gives_no_advice_that_would_not_help(call):
    with pytest.raises(ShapeError) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", GOOD)
def test_a_step_has_no_gradient(name):
    good = {**GOOD, "Wx": GOOD["Wx"][:, 0]}
    leaf = good[name].clone().requires_grad_()
    message = (
        "flashrnn_step: the step has no gradient. Call it under torch.no_grad(), or use `flashrnn` "
        "with T = 1 to train."
    )
    with pytest.raises(SeqkernError) as caught:
        step(**{name: leaf})()
    assert str(caught.value) == message
    with torch.no_grad():
        step(**{name: leaf})()


@pytest.mark.parametrize("name", ["flashrnn", "flashrnn_step"])
def test_rejects_unknown_keywords(name):
    with pytest.raises(TypeError, match="unexpected keyword argument 'grad_clip'"):
        getattr(ops, name)(**GOOD, grad_clip=1.0)


def test_rejects_a_missing_library(monkeypatch):
    """Without the library ``auto`` takes the reference, and ``cpu`` refuses."""
    import sys

    module = sys.modules["seqkern.ops.flashrnn"]
    monkeypatch.setattr(module, "FORWARD", None)
    monkeypatch.setattr(library, "missing_reason", lambda name: "the compiled library is gone")
    with pytest.raises(BackendUnavailableError, match=r"the compiled library is gone\. Reinstall"):
        rnn(backend="cpu")()
    assert torch.isfinite(rnn()()[0]).all()
    assert torch.isfinite(step()()).all()


def test_the_good_arguments_are_good():
    rnn()()
    step()()
    packed([0, 2, 6])()
