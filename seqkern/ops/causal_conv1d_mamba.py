# SPDX-License-Identifier: Apache-2.0
"""The causal convolution under the names, layouts and states of the causal-conv1d package.

Channels come before time ([B, D, T]) and a state holds W - 1 inputs, not W. A tensor that lies in
memory as [B, T, D] (``x.transpose(1, 2)`` of one) is read as it is; the other layout is copied.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from seqkern.errors import DTypeError, OptionError, ShapeError
from seqkern.ops import _checks
from seqkern.ops.causal_conv1d import causal_conv1d, causal_conv1d_update


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve every channel along time, looking back only.

    Args:
        x: [B, D, T], float32, bfloat16, float16 or float64.
        weight: [D, W], any float dtype.
        bias: [D] or None.
        seq_idx: [B, T] integers; tokens see only neighbors of their own run, and those with a
            negative name yield 0. Excludes the states.
        initial_states: [B, D, W - 1], the inputs before ``x``, or None for zeros. Differentiable.
        return_final_states: also return the last W - 1 inputs.
        final_states_out: [B, D, W - 1] to write the final states to, or None.
        activation: None, "silu" or "swish".
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``y`` [B, D, T] in the dtype of ``x``; with ``return_final_states`` a pair of it and the
        final states [B, D, W - 1].

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Example:
        >>> y, state = causal_conv1d_fn(x, weight, bias, return_final_states=True)
        >>> y2 = causal_conv1d_fn(x2, weight, bias, initial_states=state)
    """
    op = "causal_conv1d_fn"
    _channels_first(op, x, weight)
    if seq_idx is not None and (initial_states is not None or return_final_states):
        raise OptionError(
            f"{op}: `seq_idx` excludes `initial_states` and `return_final_states`. "
            "`causal_conv1d` with `cu_seqlens` carries states between packed sequences."
        )
    expected = (x.shape[0], x.shape[1], weight.shape[1] - 1)
    if final_states_out is not None:
        if not return_final_states:
            raise OptionError(f"{op}: `final_states_out` needs return_final_states=True.")
        _states(op, "final_states_out", final_states_out, expected)
        _checks.written(op, "final_states_out", final_states_out)
    if initial_states is not None:
        _states(op, "initial_states", initial_states, expected)
        initial_states = pad(initial_states, (1, 0))
    y, state = causal_conv1d(
        x.transpose(1, 2),
        weight,
        bias,
        None,
        initial_states,
        return_final_states,
        activation,
        backend,
        seq_idx=seq_idx,
    )
    y = y.transpose(1, 2)
    if state is None:
        return y
    state = state[..., 1:]
    return y, state if final_states_out is None else final_states_out.copy_(state)


def causal_conv1d_update_fn(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Convolve the next inputs and move ``conv_state`` on, in place; not differentiable.

    Args:
        x: [B, D] or [B, D, T].
        conv_state: [B, D, S] with S >= W - 1, dtype of ``x``. **Overwritten.**
        weight: [D, W], any float dtype.
        bias: [D] or None.
        activation: None, "silu" or "swish".
        cache_seqlens: [B] integers or None; ``conv_state`` is then a ring buffer, and the inputs
            are written from column ``cache_seqlens % S`` on.
        conv_state_indices: [B] int32 or int64 or None; which rows of a larger ``conv_state`` are
            meant, each once.
        backend: "auto", "cpu", "triton", "cuda" or "reference".

    Returns:
        ``y`` in the shape and dtype of ``x``.

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.
        SeqkernError: a gradient was asked for.

    Example:
        >>> y, state = causal_conv1d_fn(x, weight, bias, return_final_states=True)
        >>> y_next = causal_conv1d_update_fn(x_next, state, weight, bias)
    """
    op = "causal_conv1d_update_fn"
    rows = x.unsqueeze(-1) if isinstance(x, Tensor) and x.dim() == 2 else x
    _channels_first(op, rows, weight)
    _checks.tensor(op, "conv_state", conv_state)
    B, D, T = rows.shape
    held, least = conv_state.shape, weight.shape[1] - 1
    chosen = conv_state_indices is not None
    if len(held) != 3 or held[1] != D or held[2] < least or not (chosen or held[0] == B):
        hint = ""
        if len(held) == 3 and held[0] > B and not chosen:
            hint = "\nTo use some rows of a larger one, pass `conv_state_indices`."
        raise ShapeError(
            f"{op}: `conv_state` must be [B, D, W - 1 or more] = [{'any' if chosen else B}, {D}, "
            f"at least {least}], got {list(held)}.{hint}"
        )
    _checks.written(op, "conv_state", conv_state, x.dtype)
    state = conv_state
    if conv_state_indices is not None:
        _rows(op, conv_state_indices, B, held[0])
        conv_state_indices = conv_state_indices.long()
        state = conv_state.index_select(0, conv_state_indices)
    window = state
    if cache_seqlens is not None:
        _checks.integers(op, "cache_seqlens", "[B]", cache_seqlens, (B,))
        before = torch.arange(1 - weight.shape[1], 0, device=x.device)
        window = state.gather(2, _ring(cache_seqlens, before, state))
    y, _ = causal_conv1d_update(
        rows.transpose(1, 2),
        window,
        weight=weight,
        bias=bias,
        activation=activation,
        backend=backend,
    )
    if cache_seqlens is not None:
        kept = min(T, state.shape[2])
        after = torch.arange(T - kept, T, device=x.device)
        state.scatter_(2, _ring(cache_seqlens, after, state), rows[..., T - kept :])
    if conv_state_indices is not None:
        conv_state.index_copy_(0, conv_state_indices, state)
    return y.transpose(1, 2).reshape(x.shape)


def _rows(op: str, indices: Tensor, B: int, rows: int) -> None:
    """Check ``conv_state_indices``; their values only where they can be read."""
    _checks.tensor(op, "conv_state_indices", indices)
    if indices.shape != (B,) or indices.dtype not in (torch.int32, torch.int64):
        raise ShapeError(
            f"{op}: `conv_state_indices` must be [B] = [{B}] of int32 or int64, got "
            f"{list(indices.shape)} of {indices.dtype}."
        )
    if not indices.is_cpu or type(indices) is not Tensor or torch.compiler.is_compiling():
        return
    given = indices.tolist()
    if given and not (min(given) >= 0 and max(given) < rows):
        raise ShapeError(
            f"{op}: `conv_state_indices` must name rows of `conv_state`, 0 to {rows - 1}, got "
            f"{_checks.abbreviate(given)}."
        )
    if len(set(given)) < len(given):
        raise ShapeError(
            f"{op}: `conv_state_indices` must name every row once, for a row holds one sequence, "
            f"got {_checks.abbreviate(given)}."
        )


def _states(op: str, name: str, states: Tensor, expected: tuple[int, int, int]) -> None:
    """Check states to start from, or to write to."""
    _checks.tensor(op, name, states)
    if states.shape != expected:
        raise ShapeError(
            f"{op}: `{name}` must be [B, D, W - 1] = {list(expected)}, got {list(states.shape)}."
        )
    if states.dtype not in _checks.FLOAT_DTYPES:
        raise DTypeError(f"{op}: `{name}` must be a floating tensor, got {states.dtype}.")


def _ring(cache_seqlens: Tensor, steps: Tensor, state: Tensor) -> Tensor:
    """Return the columns of the ring buffer at ``steps`` from now, [B, D, len(steps)]."""
    columns = (cache_seqlens.unsqueeze(1) + steps).remainder(state.shape[2])
    return columns.unsqueeze(1).expand(-1, state.shape[1], -1)


def _channels_first(op: str, x: Tensor, weight: Tensor) -> None:
    """Check x [B, D, T] against weight [D, W]; the rest is checked with the channels last."""
    _checks.tensor(op, "x", x)
    _checks.tensor(op, "weight", weight)
    if x.dim() != 3:
        raise ShapeError(f"{op}: `x` must be [B, D, T], got {list(x.shape)}.")
    if weight.dim() != 2 or weight.shape[0] != x.shape[1]:
        raise ShapeError(
            f"{op}: `weight` must be [D, W] = [{x.shape[1]}, at least 1] to fit `x`, got "
            f"{list(weight.shape)}.\nFor [B, T, D] tensors use `causal_conv1d`."
        )
