# SPDX-License-Identifier: Apache-2.0
"""Classical recurrent nets with head-wise recurrence: LSTM, GRU, Elman, sLSTM, MGU.

    y_t = R h_{t-1}                       per head and recurrent gate: R [D, D], h [D]
    (h_t, ...) = cell(x_t + y_t + b, (h_{t-1}, ...))

`seqkern.reference.flashrnn` has the equations of every cell and is the definition.
"""

import torch
from torch import Tensor

from seqkern._runtime import backends, library
from seqkern._runtime.autocast import autocasts
from seqkern.errors import SeqkernError
from seqkern.ops import _checks
from seqkern.ops import _flashrnn_checks as checks
from seqkern.ops._flashrnn_function import (
    FORWARD,
    STEP,
    FlashRNNFunction,
    Projection,
    is_time_major,
)
from seqkern.reference.flashrnn import flashrnn as reference_flashrnn


def flashrnn(
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    states: Tensor | None = None,
    function: str = "lstm",
    backend: str = "auto",
    *,
    dtype: torch.dtype | str | None = None,
    output_all_states: bool = True,
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float | None = None,
    forward_clipval: float | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a recurrent net over whole sequences, from inputs that are already projected.

    =========== ================== ============ ============= ======================
    function    gates of R         of Wx        of b          states (h comes first)
    =========== ================== ============ ============= ======================
    elman       a                  a            a             h
    elman_relu  a                  a            a             h
    lstm        i f z o            i f z o      i f z o       h c
    gru         g r u              r u n        g r u n       h
    slstm       i f z o            i f z o      i f z o       h c n m
    mgu         g f                f n          g f n         h
    =========== ================== ============ ============= ======================

    Every tensor is differentiable, from every returned state. Second derivatives
    (``create_graph=True``) go through the reference. Products, gates and states are float32 for
    16-bit inputs, except that the product with a 16-bit R may read h rounded to its dtype, its
    derivatives h and the gradients of the gates, and that beside bfloat16 the gates are kept for
    the backward pass in 16 bits: 11 digits of x, or of 1 - |x| where that is smaller.

    Args:
        Wx: [B, T, G, N, D], N heads of width D; float32, bfloat16, float16 or float64. G, here and
            below, is how many gates the table lists for the tensor. Any strides; the results follow
            its order of batch and time in memory.
        R: [G, N, D out, D in], dtype of ``Wx``, or float32.
        b: [G, N, D], any float dtype, or None for zeros.
        states: [S, sequences, 1, N, D], any float dtype, or None for zeros. An element of an sLSTM
            whose n is zero is fresh.
        function: "lstm", "gru", "elman", "elman_relu", "slstm" or "mgu".
        backend: "auto", "cpu", "triton", "cuda" or "reference".
        dtype: cast ``Wx`` and ``R`` to this dtype (or its name) first; None leaves them.
        output_all_states: False returns h alone for every step, which costs less, most of all in
            training: ``states[0]`` of all states makes zeros for the gradient of the others.
        gradient_recurrent_cut: let no gradient flow to h through the product with R, whose own
            gradient stays.
        gradient_recurrent_clipval: cut the gradient that every step hands to the h before it to
            [-value, value], before the loss's own gradient is added; None or 0 leaves it.
        forward_clipval: cut h to [-value, value] after every step; None or 0 leaves it.
        reset: [B, T] bool or uint8; all states are zeros before the steps where it is set.
        cu_seqlens: [sequences + 1] int32 or int64; packs sequences into B = 1. Empty ones are
            legal.
        reverse: run every sequence from its last step to its first.

    Returns:
        The states of every step, [S, B, T, N, D] (or [1, B, T, N, D]) in the dtype of ``Wx``, and
        the last states [S, sequences, 1, N, D] in float32 (float64 for float64 inputs).

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        BackendUnavailableError: ``backend`` was named but cannot run here.

    Source:
        Poeppel et al. 2024, "FlashRNN"; for "slstm" Beck et al. 2024, "xLSTM",
        section 2.2; for "mgu" Zhou et al. 2016, "Minimal gated unit", with the reset after the
        product; "gru" is torch's.

    Example:
        >>> Wx = F.linear(x, W).view(B, T, 4, N, D)
        >>> states, last = flashrnn(Wx, R, b, function="lstm")
        >>> h = states[0]                                                     # [B, T, N, D]
        >>> states2, last = flashrnn(Wx2, R, b, last, function="lstm")       # continue
    """
    return flashrnn_of(
        None,
        Wx,
        R,
        b,
        states,
        function,
        backend,
        dtype=dtype,
        output_all_states=output_all_states,
        gradient_recurrent_cut=gradient_recurrent_cut,
        gradient_recurrent_clipval=gradient_recurrent_clipval,
        forward_clipval=forward_clipval,
        reset=reset,
        cu_seqlens=cu_seqlens,
        reverse=reverse,
    )


def flashrnn_of(
    source: Projection | None,
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    states: Tensor | None = None,
    function: str = "lstm",
    backend: str = "auto",
    *,
    dtype: torch.dtype | str | None = None,
    output_all_states: bool = True,
    gradient_recurrent_cut: bool = False,
    gradient_recurrent_clipval: float | None = None,
    forward_clipval: float | None = None,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Do what `flashrnn` does; where ``source`` says what Wx is, that is kept in its place."""
    op = "flashrnn"
    kind = checks.cell(op, function)
    checks.inputs(op, kind, Wx, "[B, T, G, N, D]")
    checks.flags(
        op,
        output_all_states=output_all_states,
        gradient_recurrent_cut=gradient_recurrent_cut,
        reverse=reverse,
    )
    given = Wx
    Wx, R = _cast(op, Wx, R, dtype)
    B, T, _, _, _ = Wx.shape
    count = B
    if cu_seqlens is not None:
        _checks.packing(op, cu_seqlens, B, T)
        if cu_seqlens.is_meta:
            _checks.same_device(op, {"Wx": Wx, "cu_seqlens": cu_seqlens})
        count = cu_seqlens.shape[0] - 1
    checks.tensors(op, kind, Wx, R, b, states, count)
    if reset is not None:
        checks.reset(op, reset, B, T)
    clip = checks.limit(op, "gradient_recurrent_clipval", gradient_recurrent_clipval)
    forward_clip = checks.limit(op, "forward_clipval", forward_clipval)
    obstacle = _obstacle(op, Wx, R, b, states, reset, "rnn_fwd")
    if not _compiled(op, backend, obstacle):
        every, last = reference_flashrnn(
            Wx,
            R,
            b,
            states,
            function,
            reset=reset,
            cu_seqlens=cu_seqlens,
            reverse=reverse,
            gradient_recurrent_cut=gradient_recurrent_cut,
            gradient_recurrent_clipval=clip,
            forward_clipval=forward_clip,
        )
        every = every if output_all_states else every[:1]
        if is_time_major(Wx):
            every = every.transpose(1, 2).contiguous().transpose(1, 2)
        return every, last
    cu_seqlens = _checks.kernel_offsets(cu_seqlens, Wx)
    s0 = None if states is None else states.squeeze(2).float()
    R, narrow = R.contiguous(), Wx.dtype
    if narrow is not R.dtype:  # a float32 R beside a 16-bit Wx: its user wants the digits
        Wx = Wx.float()
    out_states = kind.states if output_all_states else 1
    if torch.is_grad_enabled() and (
        Wx.requires_grad
        or R.requires_grad
        or (b is not None and b.requires_grad)
        or (s0 is not None and s0.requires_grad)
    ):
        if torch.jit.is_tracing():
            raise SeqkernError(
                f"{op}: torch.jit.trace cannot record a gradient. Trace under torch.no_grad(), or "
                "use torch.compile or torch.export."
            )
        same = Wx is given and not torch.compiler.is_compiling()
        every, last = FlashRNNFunction.apply(
            Wx,
            R,
            b,
            s0,
            cu_seqlens,
            reset,
            *(source if source is not None and same else (None, None, False)),
            function,
            reverse,
            forward_clip,
            out_states,
            gradient_recurrent_cut,
            clip,
        )
    else:
        every, last, _ = FORWARD(
            Wx, R, b, s0, cu_seqlens, reset, function, reverse, forward_clip, out_states, False
        )
    return every.to(narrow), last.unsqueeze(2)


def flashrnn_step(
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None = None,
    states: Tensor | None = None,
    function: str = "lstm",
    backend: str = "auto",
    *,
    dtype: torch.dtype | str | None = None,
    forward_clipval: float | None = None,
) -> Tensor:
    """Advance every sequence by one step, without gradients: decoding.

    Not differentiable: `flashrnn` with T = 1 is.

    Args:
        Wx: [B, G, N, D], the projected input of the step; see `flashrnn` for the other arguments.
        R: [G, N, D out, D in].
        b: [G, N, D] or None.
        states: [S, B, 1, N, D] or None for zeros; left alone.
        function, backend, dtype, forward_clipval: as in `flashrnn`.

    Returns:
        The new states [S, B, 1, N, D] in float32 (float64 for float64 inputs); h is the first.

    Raises:
        ShapeError, DTypeError, DeviceError, OptionError: the message names the argument.
        SeqkernError: a gradient was asked for.

    Example:
        >>> _, states = flashrnn(Wx_of_prompt, R, b)
        >>> states = flashrnn_step(Wx_of_token, R, b, states)
        >>> h = states[0, :, 0]                                                  # [B, N, D]
    """
    op = "flashrnn_step"
    kind = checks.cell(op, function)
    checks.inputs(op, kind, Wx, "[B, G, N, D]")
    Wx, R = _cast(op, Wx, R, dtype)
    B, _, N, D = Wx.shape
    checks.tensors(op, kind, Wx, R, b, states, B)
    forward_clip = checks.limit(op, "forward_clipval", forward_clipval)
    if torch.is_grad_enabled() and (
        Wx.requires_grad
        or R.requires_grad
        or (b is not None and b.requires_grad)
        or (states is not None and states.requires_grad)
    ):
        raise SeqkernError(
            f"{op}: the step has no gradient. Call it under torch.no_grad(), or use `flashrnn` "
            "with T = 1 to train."
        )
    obstacle = _obstacle(op, Wx, R, b, states, None, "rnn_step")
    if not _compiled(op, backend, obstacle):
        _, last = reference_flashrnn(
            Wx.unsqueeze(1), R, b, states, function, forward_clipval=forward_clip
        )
        return last
    if states is None:
        s = Wx.new_zeros((kind.states, B, N, D), dtype=torch.float32)
    else:
        s = states.squeeze(2).float()
    s = STEP(Wx, R.contiguous(), b, s.contiguous(), function, forward_clip, 0)
    return s.unsqueeze(2)


def _cast(
    op: str, Wx: Tensor, R: Tensor, wanted: torch.dtype | str | None
) -> tuple[Tensor, Tensor]:
    """Cast Wx and R to the dtype that is asked for, or to autocast's; autocast leaves float64."""
    _checks.tensor(op, "R", R)
    if wanted is not None:
        target = checks.dtype(op, wanted)
        return Wx.to(target), R.to(target)
    device = Wx.device.type
    if not autocasts(device):
        return Wx, R
    target = torch.get_autocast_dtype(device)
    kept = Wx.dtype is torch.float64 or R.dtype is torch.float64
    return (Wx, R) if kept else (Wx.to(target), R.to(target))


def _compiled(op: str, backend: str, obstacle: str | None) -> bool:
    """Decide between the compiled kernel (True) and the reference (False)."""
    checks.backend(op, backend)
    return backends.use_kernel(op, backend, obstacle)


def _obstacle(
    op: str,
    Wx: Tensor,
    R: Tensor,
    b: Tensor | None,
    states: Tensor | None,
    reset: Tensor | None,
    kernel: str,
) -> str | None:
    """Return why the compiled kernel cannot serve these tensors, or None when it can."""
    if (
        FORWARD is not None
        and Wx.dtype is not torch.float64
        and Wx.is_cpu
        and R.is_cpu
        and (b is None or b.is_cpu)
        and (states is None or states.is_cpu)
        and (reset is None or reset.is_cpu)
    ):
        return None
    named = {"Wx": Wx, "R": R, "b": b, "states": states, "reset": reset}
    _checks.same_device(op, named)
    if not (Wx.is_cpu or Wx.is_meta):
        return f"there is no compiled kernel for {Wx.device.type} tensors"
    if Wx.dtype is torch.float64:
        return "float64 has no compiled kernel"
    return library.missing_reason(kernel)
