# SPDX-License-Identifier: Apache-2.0
"""Causal depthwise convolution over time, the short convolution in front of every recurrence.

    z_t = bias + sum_{i=0}^{W-1} weight_i * h_{t-W+1+i}        h: the initial state, then x
    y_t = act(z_t) + residual_t

`seqkern.reference.causal_conv1d` is the definition. `seqkern.ops.causal_conv1d_mamba` has the
names and layouts of the causal-conv1d package.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seqkern._runtime import backends, library
from seqkern.errors import DTypeError, OptionError, SeqkernError, ShapeError
from seqkern.ops import _checks
from seqkern.ops._causal_conv1d_function import (
    FORWARD,
    MAX_WIDTH,
    UPDATE,
    CausalConv1dFunction,
)
from seqkern.ops._gradients import overwritten
from seqkern.reference.causal_conv1d import causal_conv1d as reference_conv
from seqkern.reference.causal_conv1d import causal_conv1d_update as reference_update

_FLOATS = _checks.FLOAT_DTYPES


def causal_conv1d(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool | None = False,
    activation: str | None = None,
    backend: str = "auto",
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    cp_context: object = None,
    *,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Convolve every channel along time, looking back only.

    Second derivatives (``create_graph=True``) go through the reference.

    Args:
        x: [B, T, D] (or [B, T, ...] with D = the product of the rest), float32, bfloat16, float16
            or float64. The result has its dtype, under autocast too; sums are float32.
        weight: [D, W], W >= 1, any float dtype; required, the last column meets the newest input.
        bias: [D] or None.
        residual: the shape of ``x`` or None; added after the activation.
        initial_state: [N, D, W], the last W inputs before ``x``, or None for zeros. Differentiable.
            Its first column never meets a weight; it is there so that a final state fits.
        output_final_state: return the last W inputs of each sequence, its initial state included.
        activation: None, "silu" or "swish" (the same).
        backend: "auto", "cpu", "triton", "cuda" or "reference".
        cu_seqlens: [N + 1] int32 or int64; packs N sequences into B = 1. Empty ones are legal.
        cu_seqlens_cpu: the same on the CPU; taken instead of ``cu_seqlens`` when given.
        chunk_indices: accepted and not needed.
        cp_context: must be None.
        seq_idx: [B, T] integers naming the sequence of every token, instead of ``cu_seqlens``:
            tokens see only neighbors of their own run, and those with a negative name yield 0.

    Returns:
        ``y`` in the shape and dtype of ``x``, and the final state [N, D, W] in the dtype of ``x``
        (None unless ``output_final_state``).

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Source:
        Poli et al. 2023, "Hyena Hierarchy", and Gu and Dao 2023, "Mamba", section 3.4.

    Example:
        >>> y, state = causal_conv1d(x, weight, activation="silu", output_final_state=True)
        >>> y2, state = causal_conv1d(x2, weight, activation="silu", initial_state=state,
        ...                           output_final_state=True)
    """
    op = "causal_conv1d"
    _checks.no_context_parallel(op, cp_context)
    cu_seqlens = cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu
    _checks.tensor(op, "x", x)
    shape = x.shape
    if len(shape) > 3:
        x = x.flatten(2)
        if isinstance(residual, Tensor) and residual.shape == shape:
            residual = residual.flatten(2)
    weight, silu = _check(op, x, weight, bias, activation)
    B, T, D = x.shape
    if residual is not None:
        residual = _like(op, "residual", "the shape of `x`", residual, (B, T, D), x)
    if seq_idx is not None:
        excluded = initial_state is not None or output_final_state or cu_seqlens is not None
        y = _separated(x, weight, bias, residual, activation, backend, seq_idx, excluded)
        return y.view(shape), None
    N = B
    if cu_seqlens is not None:
        _checks.packing(op, cu_seqlens, B, T)
        N = cu_seqlens.shape[0] - 1
    if initial_state is not None:
        expected = (N, D, weight.shape[1])
        initial_state = _like(op, "initial_state", "[N, D, W]", initial_state, expected, x)
    carried = ("initial_state", initial_state)
    obstacle = _obstacle(op, x, weight, bias, residual, carried, "causal_conv1d_fwd")
    if backends.use_kernel(op, backend, obstacle):
        cu_seqlens = _checks.kernel_offsets(cu_seqlens, x)
        output = bool(output_final_state)
        if torch.is_grad_enabled() and (
            x.requires_grad
            or weight.requires_grad
            or (bias is not None and bias.requires_grad)
            or (residual is not None and residual.requires_grad)
            or (initial_state is not None and initial_state.requires_grad)
        ):
            run = CausalConv1dFunction.apply
        else:
            run = FORWARD
        y, ht = run(x, weight, bias, residual, initial_state, cu_seqlens, silu, output)
    else:
        y, ht = reference_conv(x, weight, bias, residual, initial_state, activation, cu_seqlens)
    return y if y.shape == shape else y.view(shape), ht if output_final_state else None


def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve the next token of every sequence and move ``cache`` on, in place.

    Not differentiable: `causal_conv1d` with ``initial_state`` is.

    Args:
        x: [N, D], [N, T, D] (T tokens each) or [1, N, D] (one token each).
        cache: [N, D, W] or wider, at least W - 1, dtype of ``x``, the latest input last.
            **Overwritten.**
        residual: the shape of ``x`` or None; added after the activation.
        weight: [D, W], any float dtype; required.
        bias: [D] or None.
        activation: None, "silu" or "swish" (the same).
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``y`` in the shape and dtype of ``x``, and ``cache``.

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        SeqkernError: a gradient was asked for.

    Example:
        >>> y, state = causal_conv1d(prompt, weight, output_final_state=True)
        >>> y, state = causal_conv1d_update(token, state, weight=weight)
    """
    op = "causal_conv1d_update"
    _checks.tensor(op, "x", x)
    _checks.tensor(op, "cache", cache)
    _checks.dense(op, "cache", cache)
    shape, held = x.shape, cache.shape
    x, residual = _by_sequence(op, x, residual, held[0] if held else 0)
    weight, silu = _check(op, x, weight, bias, activation)
    N, _, D = x.shape
    W = weight.shape[1]
    if len(held) != 3 or held[0] != N or held[1] != D or held[2] < W - 1:
        raise ShapeError(
            f"{op}: `cache` must be [N, D, W] = [{N}, {D}, {W}] (or any width from W - 1 on) to "
            f"fit `x` and `weight`, got {list(held)}."
        )
    _checks.written(op, "cache", cache, x.dtype)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or cache.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    ):
        raise SeqkernError(
            f"{op}: the update has no gradient. Call it under torch.no_grad(), or use "
            "`causal_conv1d` with `initial_state` to train."
        )
    carried = ("cache", cache)
    obstacle = _obstacle(op, x, weight, bias, residual, carried, "causal_conv1d_update")
    if backends.use_kernel(op, backend, obstacle, in_place=True):
        y = UPDATE(x, cache, weight, bias, residual, silu)
        overwritten(cache)
    else:
        y, state = reference_update(x, cache, weight, bias, residual, activation)
        cache.copy_(state)
    return y if y.shape == shape else y.view(shape), cache


def _by_sequence(
    op: str, x: Tensor, residual: Tensor | None, N: int
) -> tuple[Tensor, Tensor | None]:
    """Bring [N, D], [N, T, D] or [1, N, D] to [N, T, D]."""
    if residual is not None:
        residual = _like(op, "residual", "the shape of `x`", residual, x.shape, x)
    if x.dim() == 2:
        return x.unsqueeze(1), None if residual is None else residual.unsqueeze(1)
    if x.dim() == 3 and x.shape[0] != N and x.shape[:2] == (1, N):
        return x.transpose(0, 1), None if residual is None else residual.transpose(0, 1)
    return x, residual


def _check(
    op: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, activation: str | None
) -> tuple[Tensor, bool]:
    """Check x (a tensor), weight, bias and activation; return weight and whether it is SiLU."""
    if not (
        isinstance(weight, Tensor)
        and not weight.is_nested
        and len(xs := x.shape) == 3
        and len(ws := weight.shape) == 2
        and ws[0] == xs[2]
        and ws[1] >= 1
        and x.dtype in _FLOATS
        and weight.dtype in _FLOATS
        and x.layout is torch.strided
        and weight.layout is torch.strided
        and (
            bias is None
            or (
                isinstance(bias, Tensor)
                and bias.shape == (xs[2],)
                and bias.dtype in _FLOATS
                and bias.layout is torch.strided
            )
        )
    ):
        raise _misfit(op, x, weight, bias)
    if activation is None or activation in ("silu", "swish"):
        return weight, activation is not None
    raise OptionError(f'{op}: `activation` must be None, "silu" or "swish", got {activation!r}.')


def _misfit(op: str, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> SeqkernError:
    """Return the error that says what is wrong with x, weight or bias."""
    if weight is None:
        return OptionError(f"{op}: `weight` is required, a [D, W] tensor.")
    _checks.tensor(op, "weight", weight)
    if x.dim() != 3:
        return ShapeError(f"{op}: `x` must be [B, T, D], got {list(x.shape)}.")
    D = x.shape[2]
    if weight.dim() != 2 or weight.shape[0] != D or weight.shape[1] < 1:
        hint = ""
        if weight.dim() == 3 and weight.shape[1] == 1:
            hint = "\nThat looks like the weight of a torch.nn.Conv1d: pass `weight.squeeze(1)`."
        elif x.shape[1] == weight.shape[0]:
            hint = "\nFor [B, D, T] tensors use `causal_conv1d_fn`."
        return ShapeError(
            f"{op}: `weight` must be [D, W] = [{D}, at least 1] to fit `x`, got "
            f"{list(weight.shape)}.{hint}"
        )
    if bias is not None:
        _checks.tensor(op, "bias", bias)
        if bias.shape != (D,):
            return ShapeError(
                f"{op}: `bias` must be [D] = [{D}] to fit `x`, got {list(bias.shape)}."
            )
    named = [(n, t) for n, t in (("x", x), ("weight", weight), ("bias", bias)) if t is not None]
    for name, t in named:
        _checks.dense(op, name, t)
    name, t = next((n, t) for n, t in named if t.dtype not in _FLOATS)
    return DTypeError(
        f"{op}: `{name}` must be float32, bfloat16, float16 or float64, got {t.dtype}."
    )


def _like(op: str, name: str, layout: str, t: Tensor, expected: Sequence[int], x: Tensor) -> Tensor:
    """Check the shape of a tensor that accompanies ``x``, and return it in the dtype of ``x``."""
    _checks.tensor(op, name, t)
    if t.shape != expected:
        raise ShapeError(
            f"{op}: `{name}` must be {layout} = {list(expected)}, got {list(t.shape)}."
        )
    if t.dtype not in _FLOATS:
        raise DTypeError(f"{op}: `{name}` must be a floating tensor, got {t.dtype}.")
    _checks.dense(op, name, t)
    return t if t.dtype is x.dtype else t.to(x.dtype)


def _obstacle(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    carried: tuple[str, Tensor | None],
    kernel: str,
) -> str | None:
    """Return why the compiled kernel cannot serve these tensors, or None when it can.

    ``carried`` is the state under its name in ``op``.
    """
    name, state = carried
    if (
        FORWARD is not None
        and x.dtype is not torch.float64
        and x.is_cpu
        and weight.is_cpu
        and weight.shape[1] <= MAX_WIDTH
        and (bias is None or bias.is_cpu)
        and (residual is None or residual.is_cpu)
        and (state is None or state.is_cpu)
    ):
        return None
    named = {"x": x, "weight": weight, "bias": bias, "residual": residual, name: state}
    _checks.same_device(op, named)
    if not (x.is_cpu or x.is_meta):
        return f"there is no compiled kernel for {x.device.type} tensors"
    if x.dtype is torch.float64:
        return "float64 has no compiled kernel"
    if weight.shape[1] > MAX_WIDTH:
        return f"the compiled kernel takes a weight of width {MAX_WIDTH} at most"
    return library.missing_reason(kernel)


def _separated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    backend: str,
    seq_idx: Tensor,
    excluded: bool,
) -> Tensor:
    """Convolve with ``seq_idx`` by packing every run of equal names as a sequence of its own."""
    B, T, D = x.shape
    if excluded:
        raise OptionError(
            "causal_conv1d: `seq_idx` excludes `cu_seqlens`, `initial_state` and "
            "`output_final_state`. Use `cu_seqlens` to carry states between packed sequences."
        )
    _checks.integers("causal_conv1d", "seq_idx", "[B, T]", seq_idx, (B, T))
    _checks.same_device("causal_conv1d", {"x": x, "seq_idx": seq_idx})
    starts = torch.ones_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    run = starts.flatten().cumsum(0) - 1
    # Room for one run a token: the ones that do not exist are empty sequences at the end.
    at = torch.arange(B * T, device=x.device)
    cu_seqlens = torch.full((B * T + 1,), B * T, device=x.device)
    cu_seqlens = cu_seqlens.scatter_reduce(0, run, at, "amin")
    rows = x.reshape(1, B * T, D)
    more = residual if residual is None else residual.reshape(1, B * T, D)
    y, _ = causal_conv1d(
        rows, weight, bias, more, activation=activation, backend=backend, cu_seqlens=cu_seqlens
    )
    return y.view(B, T, D).masked_fill((seq_idx < 0).unsqueeze(-1), 0.0)
