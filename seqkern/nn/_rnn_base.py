# SPDX-License-Identifier: Apache-2.0
"""What the drop-ins for torch's recurrent layers share: everything but the cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from seqkern._runtime import backends
from seqkern.errors import OptionError, SeqkernError, ShapeError
from seqkern.nn import _rnn_checks as checks
from seqkern.nn._packed import Order, Permute, sequence_order
from seqkern.ops._checks import KERNEL_DTYPES, integer
from seqkern.ops._flashrnn_function import STEP, Projection
from seqkern.ops.flashrnn import flashrnn_of

# Bytes of the projection of one piece of a long input: so long that packing R anew for every piece
# and joining the outputs cost little.
_PIECE_BYTES = 64 << 20
_CELLS = {
    "LSTM": "lstm",
    "GRU": "gru",
    "RNN_TANH": "elman",
    "RNN_RELU": "elman_relu",
    "SLSTM": "slstm",
}


class RecurrentBase(nn.RNNBase):
    """Layers, directions, dropout, packing and states around `seqkern.ops.flashrnn`.

    Construction, parameter names, initialization and printing are torch's; the computation is not.
    With ``num_heads`` = N heads of width D = hidden_size / N, ``weight_hh`` is [G * hidden_size, D]
    instead of [G * hidden_size, hidden_size]: its rows run over gate, head and output of the head,
    and its columns over the inputs of that head. Head n of gate g is
    ``weight_hh.view(G, N, D, D)[g, n]``.
    """

    state_names: tuple[str, ...] = ("h_0",)
    # Also what a torch layer has after `seqkern.nn.convert` changed its class.
    num_heads: int = 1
    backend: str = "auto"

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        num_heads: int,
        backend: str,
    ):
        name = type(self).__name__
        checks.flag(name, "bias", bias)
        checks.flag(name, "batch_first", batch_first)
        checks.probability(name, "dropout", dropout)
        super().__init__(
            mode,
            checks.size(name, "input_size", input_size),
            checks.size(name, "hidden_size", hidden_size),
            checks.size(name, "num_layers", num_layers),
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        heads = integer(num_heads)
        if heads is None or heads < 1 or hidden_size % heads:
            raise ShapeError(
                f"{name}: `num_heads` must be an int that divides `hidden_size`, got {num_heads!r} "
                f"and {hidden_size}."
            )
        if backend not in backends.BACKENDS:
            known = ", ".join(f'"{name}"' for name in backends.BACKENDS)
            raise OptionError(f"{name}: `backend` must be one of {known}, got {backend!r}.")
        self.backend = backend
        self.num_heads = heads
        if heads > 1:
            for _, weight_hh, *_ in self._all_weights:
                whole = getattr(self, weight_hh)
                block = whole.new_empty(whole.shape[0], hidden_size // heads)
                setattr(self, weight_hh, nn.Parameter(block))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from +-1/sqrt(fan), fan = hidden_size, or D for ``weight_hh``."""
        super().reset_parameters()
        if self.num_heads > 1:
            bound = math.sqrt(self.num_heads / self.hidden_size)
            for _, weight_hh, *_ in self._all_weights:
                nn.init.uniform_(getattr(self, weight_hh), -bound, bound)

    def flatten_parameters(self) -> None:
        """Do nothing; kept for programs that call it."""

    def __prepare_scriptable__(self) -> None:
        """Refuse `torch.jit.script`, which would stumble over something less telling."""
        raise SeqkernError(
            f"{type(self).__name__}: TorchScript cannot compile this layer. Use torch.compile, "
            "torch.export, torch.jit.trace under torch.no_grad(), or script torch.nn's layer with "
            "its state dict."
        )

    def extra_repr(self) -> str:
        """Show the sizes as torch does, and what differs from its layers."""
        heads = "" if self.num_heads == 1 else f", num_heads={self.num_heads}"
        backend = "" if self.backend == "auto" else f", backend={self.backend!r}"
        return super().extra_repr() + heads + backend

    def forward(self, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
        """Run all layers over whole sequences.

        Args:
            input: [T, B, input_size], or [B, T, input_size] with ``batch_first``, or
                [T, input_size] for one sequence, or a PackedSequence, sorted or not; in the dtype
                of the weights (under autocast any dtype of up to 32 bits).
            hx: the states to start from, [layers * directions, B, hidden_size] each (without B for
                one sequence), or None for zeros.

        Returns:
            ``output``, shaped like ``input`` with hidden_size * directions channels, and the states
            after the last step, shaped like ``hx``.

        Raises:
            ShapeError, DTypeError: the message names the argument.
        """
        if isinstance(input, torch.fx.Proxy):  # torch.fx takes torch's layers as they are, too
            tracer: Any = input.tracer
            path = tracer.path_of_module(self)
            return cast(Any, tracer.create_proxy("call_module", path, (input, hx), {}))
        if torch.jit.is_tracing() and "reference" not in (self.backend, backends.preferred):
            checks.no_onnx(type(self).__name__)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        name = type(self).__name__
        checks.rank(name, input, self.batch_first)
        batched = input.dim() == 3
        states = checks.states(name, self.state_names, hx, batched)
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
        self._check(input, states, input.shape[0 if self.batch_first else 1])
        output, states = self._run(input, states, not self.batch_first, None)
        if not batched:
            output = output.squeeze(0 if self.batch_first else 1)
            states = tuple(s.squeeze(1) for s in states)
        return output, states if len(states) > 1 else states[0]

    def _forward_packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        """Run a PackedSequence: sequence by sequence, or as a batch if all are equally long."""
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        checks.packed(type(self).__name__, data, batch_sizes)
        N = int(batch_sizes[0])
        states = checks.states(type(self).__name__, self.state_names, hx, True)
        self._check(data, states, N)
        if states is not None and sorted_indices is not None:
            states = tuple(s.index_select(1, sorted_indices) for s in states)
        if int(batch_sizes[-1]) == N:
            output, states = self._run(data.view(-1, N, self.input_size), states, True, None)
            output = output.flatten(0, 1)
        else:
            order = sequence_order(batch_sizes, data.device)
            x = Permute.apply(data, order.sequences, order.times).unsqueeze(0)
            output, states = self._run(x, states, False, order)
            output = Permute.apply(output.squeeze(0), order.times, order.sequences)
        if unsorted_indices is not None:
            states = tuple(s.index_select(1, unsorted_indices) for s in states)
        wrapped = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return wrapped, states if len(states) > 1 else states[0]

    def _check(self, x: Tensor, states: tuple[Tensor, ...] | None, B: int) -> None:
        name = type(self).__name__
        weight = getattr(self, self._all_weights[0][0])
        checks.width_and_dtype(name, x, self.input_size, weight.dtype)
        checks.device(name, "input", x, weight.device)
        if states is not None:
            directions = 2 if self.bidirectional else 1
            expected = (self.num_layers * directions, B, self.hidden_size)
            checks.state_sizes(name, self.state_names, states, expected)
            for state_name, s in zip(self.state_names, states, strict=True):
                checks.device(name, state_name, s, weight.device)

    def _run(
        self,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        time_major: bool,
        order: Order | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run every layer on x [B, T, ...] or [T, B, ...]; return the output and the last states.

        States are [layers * directions, N, hidden_size] each. ``order`` is None for a batch.
        """
        cu_seqlens = None if order is None else order.cu_seqlens
        directions = 2 if self.bidirectional else 1
        if states is not None:  # autocast stacks no 16 bits but its own
            states = tuple(s.float() if s.dtype in KERNEL_DTYPES else s for s in states)
        last = []
        for layer in range(self.num_layers):
            outs = []
            for i in range(directions):
                k = layer * directions + i
                s0 = None
                if states is not None:
                    s0 = torch.stack([s[k] for s in states])
                    s0 = s0.unsqueeze(2).unflatten(-1, (self.num_heads, self._width))
                weights = [getattr(self, name) for name in self._all_weights[k]]
                if weights[0].dtype is not weights[1].dtype:
                    checks.weights(type(self).__name__, self._all_weights[k], weights)
                single = cu_seqlens is None and x.shape[0 if time_major else 1] == 1
                step = self._step if single and self._decodes(x, s0, weights) else self._whole
                out, s = step(x, weights, s0, time_major, cu_seqlens, i == 1)
                outs.append(out)
                last.append(s)
            x = outs[0] if directions == 1 else torch.cat(outs, -1)
            if self.dropout > 0 and self.training and layer < self.num_layers - 1:
                x = self._drop(x, time_major, order)
        ends = last[0] if len(last) == 1 else torch.stack(last, 1).flatten(0, 1)
        # No views in the eyes of autograd, for those may not be detached in place.
        return x, tuple(self._narrow(ends, x.dtype).unsafe_split(len(last)))

    def _drop(self, x: Tensor, time_major: bool, order: Order | None) -> Tensor:
        """Drop elements of x between two layers, for a seed the same as torch's layer drops."""
        if time_major:
            return F.dropout(x, self.dropout)
        # Torch's layer has time first in memory, and draws in that order.
        like = x.transpose(0, 1) if order is None else x.squeeze(0)
        mask = torch.ones_like(like, memory_format=torch.contiguous_format)
        mask = F.dropout(mask, self.dropout)
        mask = mask.transpose(0, 1) if order is None else mask.index_select(0, order.sequences)
        return x * mask

    @property
    def _width(self) -> int:
        return self.hidden_size // self.num_heads

    def _narrow(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the last states in the dtype that callers get."""
        return states.to(dtype)

    def _whole(
        self,
        x: Tensor,
        weights: list[Tensor],
        s0: Tensor | None,
        time_major: bool,
        cu_seqlens: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run one direction of one layer; return its output and its last states [S, N, hidden]."""
        weight_ih, weight_hh, *bias = weights
        R, b = self._recurrent(weight_hh), self._bias(*bias) if bias else None
        pieces = [x] if cu_seqlens is not None else self._pieces(x, weight_ih, time_major)
        outs, last = [], s0
        for part in reversed(pieces) if reverse else pieces:
            source = Projection(part, weight_ih, time_major)
            every, last = flashrnn_of(
                source,
                source.project(self.num_heads, self._width),
                R,
                b,
                last,
                _CELLS[self.mode],
                self.backend,
                output_all_states=False,
                cu_seqlens=cu_seqlens,
                reverse=reverse,
            )
            h = every.squeeze(0)
            outs.append((h.transpose(0, 1) if time_major else h).flatten(2))
        outs = outs[::-1] if reverse else outs
        h = outs[0] if len(outs) == 1 else torch.cat(outs, 0 if time_major else 1)
        return h, cast(Tensor, last).flatten(2)

    def _pieces(self, x: Tensor, weight_ih: Tensor, time_major: bool) -> Sequence[Tensor]:
        """Cut a long x along time where nothing is kept, so that its projections share memory."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not x.is_cpu:
            return [x]
        time = 0 if time_major else 1
        step = x.shape[1 - time] * weight_ih.shape[0] * x.element_size()
        if x.shape[time] * step < 2 * _PIECE_BYTES:
            return [x]
        return x.split(max(1, _PIECE_BYTES // step), time)

    def _recurrent(self, weight_hh: Tensor) -> Tensor:
        """Return ``weight_hh`` as [G, heads, D, D] in the order of `seqkern.ops.flashrnn`."""
        return weight_hh.view(-1, self.num_heads, self._width, self._width)

    def _bias(self, bias_ih: Tensor, bias_hh: Tensor) -> Tensor:
        """Return both biases as one [G, heads, D]."""
        return (bias_ih + bias_hh).view(-1, self.num_heads, self._width)

    def _decodes(self, x: Tensor, s0: Tensor | None, weights: list[Tensor]) -> bool:
        """Tell whether a single step can take the kernel that has no gradients."""
        return (
            STEP is not None
            and self.backend == "auto" == backends.preferred
            and x.is_cpu
            and x.dtype in KERNEL_DTYPES
            and all(w.dtype is x.dtype for w in weights)
            and not torch.is_autocast_enabled("cpu")
            and backends.transform() is None
            and not (
                torch.is_grad_enabled()
                and (
                    x.requires_grad
                    or (s0 is not None and s0.requires_grad)
                    # Whatever they are: parameters, or made by a parametrization or a hypernetwork.
                    or any(w.requires_grad for w in weights)
                )
            )
        )

    # How far the gates of `weight_hh` are rotated against those of `seqkern.ops.flashrnn`.
    _first_gate = 0

    def _step(
        self,
        x: Tensor,
        weights: list[Tensor],
        s0: Tensor | None,
        time_major: bool,
        cu_seqlens: Tensor | None,
        reverse: bool,
    ) -> tuple[Tensor, Tensor]:
        """Do what `_whole` does, for one step of which nothing is kept and no weight is copied."""
        weight_ih, weight_hh, *bias = weights
        N, D = self.num_heads, self._width
        B = x.shape[1 if time_major else 0]
        gates = weight_ih.shape[0] // (N * D)
        bias_ih, bias_hh = bias if bias else (None, None)
        Wx = F.linear(x, weight_ih, bias_ih).view(B, gates, N, D)
        if s0 is None:
            s = x.new_zeros(self._states, B, N, D, dtype=torch.float32)
        else:
            s = s0.view(self._states, B, N, D).float()
        b = None if bias_hh is None else self._step_bias(bias_hh)
        R = weight_hh.view(-1, N, D, D)
        s = STEP(Wx, R, b, s, _CELLS[self.mode], 0.0, self._first_gate).view(self._states, B, N * D)
        # A copy, for who writes into the output must not change the state.
        return s[0].to(x.dtype, copy=True).unsqueeze(0 if time_major else 1), s

    @property
    def _states(self) -> int:
        return len(self.state_names)

    def _step_bias(self, bias_hh: Tensor) -> Tensor:
        """Return the recurrent bias alone as [G, heads, D]."""
        return bias_hh.view(-1, self.num_heads, self._width)
