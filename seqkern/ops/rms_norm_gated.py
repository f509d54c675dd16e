# SPDX-License-Identifier: Apache-2.0
"""Root-mean-square norm over the last axis, plain and with an output gate.

    r = x + residual
    y = r / sqrt(mean(r^2) + eps) * weight + bias
    y = y * act(g)                                       act: swish (= silu) or sigmoid

`seqkern.reference.rms_norm_gated` is the definition.
"""

import torch
from torch import Tensor

from seqkern._runtime import backends, library
from seqkern.errors import DTypeError, OptionError, ShapeError
from seqkern.ops import _checks
from seqkern.ops._rms_norm_gated_function import ACTIVATIONS, FORWARD, RMSNormGatedFunction
from seqkern.reference.rms_norm_gated import rms_norm_gated as reference_norm


def rms_norm_gated(
    x: Tensor,
    g: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    activation: str = "swish",
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalize the last axis of ``x`` and multiply by the activated gate, in one pass.

    Second derivatives (``create_graph=True``) go through the reference.

    Args:
        x: [..., D], float32, bfloat16, float16 or float64; computed in float32 (float64).
        g: [..., D], the gate before its activation. Another dtype than that of ``x`` is allowed;
            both are then read in the wider one.
        weight: [D], any float dtype, or None for ones.
        bias: [D], any float dtype, or None for zeros.
        activation: "swish", "silu" (the same) or "sigmoid".
        residual: [..., D] in the dtype of ``x`` or float32, or None; added to ``x`` first.
        prenorm: also return the residual stream r.
        residual_in_fp32: without a ``residual``, return the stream in float32.
        eps: added to the mean square, > 0.
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``y`` [..., D] in the dtype of ``x``; with ``prenorm`` a pair of it and r [..., D] in the
        dtype of ``residual`` (without one: that of ``x``, or float32 if asked).

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Source:
        Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".

    Example:
        >>> y = rms_norm_gated(o, gate, weight)
    """
    op = "rms_norm_gated"
    _checks.tensor(op, "g", g)
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise OptionError(
            f'{op}: `activation` must be "swish", "silu" or "sigmoid", got {activation!r}.'
        )
    y, r = _norm(op, x, g, weight, bias, activation, residual, residual_in_fp32, eps, backend)
    return (y, r) if prenorm else y


def rms_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalize the last axis of ``x``: `rms_norm_gated` without the gate.

    Args:
        x: [..., D], float32, bfloat16, float16 or float64; computed in float32 (float64).
        weight: [D], any float dtype, or None for ones.
        bias: [D], any float dtype, or None for zeros.
        residual: [..., D] in the dtype of ``x`` or float32, or None; added to ``x`` first.
        eps: added to the mean square, > 0.
        prenorm: also return the residual stream r = x + residual.
        residual_in_fp32: without a ``residual``, return the stream in float32.
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``y`` [..., D] in the dtype of ``x``; with ``prenorm`` a pair of it and r [..., D].

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Example:
        >>> y, stream = rms_norm(x, weight, residual=stream, prenorm=True)
    """
    op = "rms_norm"
    y, r = _norm(op, x, None, weight, bias, "swish", residual, residual_in_fp32, eps, backend)
    return (y, r) if prenorm else y


def _norm(
    op: str,
    x: Tensor,
    g: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    residual_in_fp32: bool,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Check, choose a backend and run; return ``y`` and the residual stream."""
    _check(op, x, g, weight, bias, residual, eps)
    if g is not None and g.dtype is not x.dtype:
        wide = torch.promote_types(x.dtype, g.dtype)
        stream = x.dtype if residual is None else residual.dtype
        if residual is None and residual_in_fp32 and x.dtype is not torch.float64:
            stream = torch.float32
        residual = residual if residual is None else residual.to(wide)
        y, r = _norm(
            op, x.to(wide), g.to(wide), weight, bias, activation, residual, False, eps, backend
        )
        return y.to(x.dtype), r.to(stream)
    obstacle = _obstacle(op, x, g, weight, bias, residual)
    if not backends.use_kernel(op, backend, obstacle):
        return reference_norm(x, g, weight, bias, activation, residual, residual_in_fp32, eps)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or (g is not None and g.requires_grad)
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        y, stream = RMSNormGatedFunction.apply(
            x, g, weight, bias, residual, activation, residual_in_fp32, eps
        )
    else:
        code = ACTIVATIONS[activation]
        y, stream, _ = FORWARD(x, g, weight, bias, residual, code, residual_in_fp32, eps)
    separate = residual is not None or (residual_in_fp32 and x.dtype is not torch.float32)
    return y, stream if separate else x


def _check(
    op: str,
    x: Tensor,
    g: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
) -> None:
    """Check shapes, dtypes and eps."""
    _checks.tensor(op, "x", x)
    if x.dim() < 1 or x.shape[-1] == 0:
        raise ShapeError(f"{op}: `x` must be [..., D] with D >= 1, got {list(x.shape)}.")
    _checks.dense(op, "x", x)
    if x.dtype not in _checks.FLOAT_DTYPES:
        raise DTypeError(f"{op}: `x` must be float32, bfloat16, float16 or float64, got {x.dtype}.")
    if g is not None:
        if g.shape != x.shape:
            raise ShapeError(
                f"{op}: `g` must have the shape of `x`, {list(x.shape)}, got {list(g.shape)}."
            )
        _checks.dense(op, "g", g)
        if g.dtype not in _checks.FLOAT_DTYPES:
            raise DTypeError(f"{op}: `g` must be a floating tensor, got {g.dtype}.")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is None:
            continue
        _checks.tensor(op, name, t)
        if t.shape != x.shape[-1:]:
            raise ShapeError(
                f"{op}: `{name}` must be [D] = [{x.shape[-1]}] to fit `x`, got {list(t.shape)}."
            )
        _checks.dense(op, name, t)
        if t.dtype not in _checks.FLOAT_DTYPES:
            raise DTypeError(f"{op}: `{name}` must be a floating tensor, got {t.dtype}.")
    if residual is not None:
        _checks.tensor(op, "residual", residual)
        if residual.shape != x.shape:
            raise ShapeError(
                f"{op}: `residual` must have the shape of `x`, {list(x.shape)}, got "
                f"{list(residual.shape)}."
            )
        _checks.dense(op, "residual", residual)
        if residual.dtype is not x.dtype and (
            residual.dtype is not torch.float32 or x.dtype is torch.float64
        ):
            wider = "" if x.dtype is torch.float64 else ", or float32"
            raise DTypeError(
                f"{op}: `residual` must have the dtype of `x`, {x.dtype}{wider}, got "
                f"{residual.dtype}. Cast it."
            )
    if not _checks.real(op, "eps", "> 0", eps) > 0:
        raise OptionError(f"{op}: `eps` must be > 0, got {eps!r}.")


def _obstacle(
    op: str,
    x: Tensor,
    g: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> str | None:
    """Return why the compiled kernel cannot serve these tensors, or None when it can."""
    if (
        FORWARD is not None
        and x.is_cpu
        and x.dtype is not torch.float64
        and (g is None or g.is_cpu)
        and (weight is None or weight.is_cpu)
        and (bias is None or bias.is_cpu)
        and (residual is None or residual.is_cpu)
    ):
        return None
    named = {"x": x, "g": g, "weight": weight, "bias": bias, "residual": residual}
    _checks.same_device(op, named)
    if not (x.is_cpu or x.is_meta):
        return f"there is no compiled kernel for {x.device.type} tensors"
    if x.dtype is torch.float64:
        return "float64 has no compiled kernel"
    return library.missing_reason("rms_norm_gated_fwd")
