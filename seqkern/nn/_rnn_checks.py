# SPDX-License-Identifier: Apache-2.0
"""What the drop-in recurrent layers refuse, as classes that torch's callers already catch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch

from seqkern._runtime.autocast import autocasts
from seqkern.errors import DeviceError, DTypeError, OptionError, SeqkernError, ShapeError
from seqkern.ops import _checks
from seqkern.ops._checks import FLOAT_DTYPES, KERNEL_DTYPES, abbreviate, integer, misfit_of_weights


class LayerShapeError(ShapeError, RuntimeError):
    """A `ShapeError` that is also the RuntimeError which torch's layers raise here."""


class LayerDeviceError(DeviceError, RuntimeError):
    """A `DeviceError` that is also the RuntimeError which torch's layers raise here."""


class LayerDTypeError(DTypeError, ValueError):
    """A `DTypeError` that is also the ValueError which torch's layers raise here."""


def size(layer: str, name: str, x: Any) -> int:
    """Check a size, and return it as one of Python's integers; as in torch, the type first."""
    number = integer(x)
    if number is None or number < 1:
        error = DTypeError if number is None else OptionError
        raise error(f"{layer}: `{name}` must be an integer >= 1, got {x!r}.")
    return number


def flag(layer: str, name: str, x: object) -> None:
    """Check an option that is True or False; anything else is a TypeError, as in torch."""
    if not isinstance(x, bool):
        raise DTypeError(f"{layer}: `{name}` must be True or False, got {x!r}.")


def probability(layer: str, name: str, x: Any) -> None:
    """Check a probability."""
    if not isinstance(x, Real) or isinstance(x, bool) or not 0 <= float(x) <= 1:
        raise OptionError(f"{layer}: `{name}` must be a number from 0 to 1, got {x!r}.")


def no_onnx(layer: str) -> None:
    """Refuse the ONNX exporter that traces, which would stumble over the kernel's name."""
    if torch.onnx.is_in_onnx_export():
        raise SeqkernError(
            f"{layer}: ONNX has no operator for the kernel of this layer. Export torch.nn's layer "
            'with its state dict, or set `backend = "reference"` on this one, which unrolls all '
            "steps."
        )


def tensor(layer: str, x: object) -> None:
    """Check that the input is a tensor."""
    if not isinstance(x, torch.Tensor):
        raise LayerDTypeError(
            f"{layer}: `input` must be a torch.Tensor or a PackedSequence, got {type(x).__name__}."
        )


def dense(layer: str, name: str, x: torch.Tensor) -> None:
    """Check that a tensor has strides, and sequences of one length."""
    if x.is_nested:
        raise LayerDTypeError(
            f"{layer}: `{name}` must be no nested tensor. Pass sequences of different lengths as "
            f"torch.nn.utils.rnn.pack_sequence({name}.unbind(), enforce_sorted=False)."
        )
    _checks.dense(layer, name, x)


def rank(layer: str, x: torch.Tensor, batch_first: bool) -> None:
    """Check that an input that is no PackedSequence has two or three dimensions."""
    tensor(layer, x)
    dense(layer, "input", x)
    if x.dim() not in (2, 3):
        batched = "[B, T, input_size]" if batch_first else "[T, B, input_size]"
        raise LayerDTypeError(
            f"{layer}: `input` must be {batched}, or [T, input_size] for one sequence, got "
            f"{list(x.shape)}."
        )


def packed(layer: str, data: torch.Tensor, batch_sizes: torch.Tensor) -> None:
    """Check that a PackedSequence has one row of data per step, the longest sequences first."""
    if data.dim() != 2:
        raise LayerShapeError(
            f"{layer}: a PackedSequence must be made of sequences [T, input_size], so that its "
            f"`data` is [all steps, input_size], got {list(data.shape)}."
        )
    if torch.compiler.is_compiling():
        return
    sizes = batch_sizes.tolist()
    falling = bool(sizes) and sizes[-1] > 0 and sizes == sorted(sizes, reverse=True)
    if not falling or sum(sizes) != data.shape[0]:
        raise LayerShapeError(
            f"{layer}: the `batch_sizes` of a PackedSequence must be positive, never rise and sum "
            f"to the {data.shape[0]} rows of its `data`, got {abbreviate(sizes)} with a sum of "
            f"{sum(sizes)}. Make it with torch.nn.utils.rnn.pack_sequence."
        )


def width_and_dtype(layer: str, x: torch.Tensor, size: int, dtype: torch.dtype) -> None:
    """Check the last axis of the input, and its dtype against that of the weights."""
    if x.shape[-1] != size:
        raise LayerShapeError(
            f"{layer}: the last axis of `input` must be input_size = {size}, got {list(x.shape)}."
        )
    if dtype not in FLOAT_DTYPES:
        raise LayerDTypeError(
            f"{layer}: the weights must be float32, bfloat16, float16 or float64, got {dtype}. "
            "Call `.to(torch.float32)` on the layer."
        )
    if (misfit := misfit_of_weights(layer, "input", x, dtype)) is not None:
        raise LayerDTypeError(misfit)


def weights(layer: str, names: Sequence[str], given: Sequence[torch.Tensor]) -> None:
    """Check ``weight_hh``, the second, whose dtype is not that of ``weight_ih``, the first."""
    weight_ih, weight_hh, *_ = given
    both = {weight_ih.dtype, weight_hh.dtype}
    if both <= KERNEL_DTYPES and (
        weight_hh.dtype is torch.float32 or autocasts(weight_ih.device.type)
    ):
        return
    raise LayerDTypeError(
        f"{layer}: `{names[1]}` must have the dtype of `{names[0]}`, {weight_ih.dtype}, or be "
        f"float32 beside 16 bits, got {weight_hh.dtype}. Call `.to({weight_ih.dtype})` on the "
        "layer."
    )


def device(layer: str, name: str, x: torch.Tensor, expected: torch.device) -> None:
    """Check that the input or a state lies where the weights are."""
    if x.device != expected:
        raise LayerDeviceError(
            f"{layer}: `{name}` must be on the device of the weights, {expected}, got {x.device}. "
            f'Pass `{name}.to("{expected}")`, or call `.to("{x.device}")` on the layer.'
        )


def states(
    layer: str, names: Sequence[str], hx: object, batched: bool
) -> tuple[torch.Tensor, ...] | None:
    """Return ``hx`` as a tuple of [.., B, hidden] tensors, or None.

    Args:
        layer: for messages.
        names: what a caller calls each state.
        hx: None, a tensor (one state) or a sequence of tensors.
        batched: whether the input has a batch axis; if not, the states get one.
    """
    if hx is None:
        return None
    given = (hx,) if len(names) == 1 else hx
    wanted = f"{names[0]}, a tensor" if len(names) == 1 else f"({', '.join(names)}), tensors"
    if not (
        isinstance(given, (tuple, list))
        and len(given) == len(names)
        and all(isinstance(s, torch.Tensor) for s in given)
    ):
        got = type(hx).__name__
        if isinstance(hx, (tuple, list)):
            kinds = ", ".join(sorted({type(s).__name__ for s in hx}))
            got = f"{len(hx)} of {kinds}" if hx else f"an empty {got}"
        raise LayerDTypeError(f"{layer}: `hx` must be {wanted}, or None for zeros, got {got}.")
    axes = 3 if batched else 2
    for name, s in zip(names, given, strict=True):
        dense(layer, name, s)
        if s.dim() != axes:
            layout = "[layers * directions, B, hidden_size]"
            layout = layout if batched else "[layers * directions, hidden_size]"
            raise LayerShapeError(
                f"{layer}: `{name}` must be {layout} because `input` has "
                f"{'a' if batched else 'no'} batch axis, got {list(s.shape)}."
            )
    return tuple(given) if batched else tuple(s.unsqueeze(1) for s in given)


def state_sizes(
    layer: str,
    names: Sequence[str],
    given: tuple[torch.Tensor, ...],
    expected: tuple[int, int, int],
) -> None:
    """Check the states against [layers * directions, B, hidden_size]."""
    for name, s in zip(names, given, strict=True):
        if s.shape != expected:
            hint = ""
            if s.transpose(0, 1).shape == expected:
                hint = f" Pass `{name}.transpose(0, 1)`: states have B second, also if batch_first."
            raise LayerShapeError(
                f"{layer}: `{name}` must be [layers * directions, B, hidden_size] = "
                f"{list(expected)}, got {list(s.shape)}.{hint}"
            )
        if not s.is_floating_point():
            raise LayerDTypeError(f"{layer}: `{name}` must be a floating tensor, got {s.dtype}.")
