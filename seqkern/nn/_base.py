# SPDX-License-Identifier: Apache-2.0
"""What the linear-attention layers share: short convolutions, heads, output norm."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn as nn
from torch.nn.functional import silu, softplus

from seqkern.errors import OptionError, ShapeError
from seqkern.nn._cached import CachedLayer
from seqkern.nn._state import LayerState
from seqkern.nn.convolution import ShortConvolution
from seqkern.ops._checks import at_least, positive

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class RecurrentLayer(CachedLayer):
    """Projections, short convolutions, one recurrence, a norm, the output projection.

    A subclass builds its parameters and says what differs: `_activate` (q, k, v when there is no
    short convolution), `_recur` (the op) and `_normalize` (between the op and ``o_proj``).
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module

    def __init__(
        self,
        hidden_size: int,
        mode: str,
        layer_idx: int | None,
        norm_eps: float,
        conv_size: int | None,
    ):
        """Check what the layers share; ``conv_size`` is None without short convolutions."""
        super().__init__()
        name = type(self).__name__
        if mode not in ("chunk", "fused_recurrent"):
            raise OptionError(
                f"{name}: `mode` must be 'chunk' or 'fused_recurrent', got {mode!r}."
                " Both run the same kernel here."
            )
        self.hidden_size = at_least(name, "hidden_size", 1, hidden_size)
        self.mode = mode
        self.layer_idx = None if layer_idx is None else at_least(name, "layer_idx", 0, layer_idx)
        self.use_short_conv = False
        positive(name, "norm_eps", norm_eps)
        if conv_size is not None:
            at_least(name, "conv_size", 1, conv_size)

    def _mix(
        self, x: torch.Tensor, state: LayerState, keep: bool, cu_seqlens: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerState]:
        q, k, v, conv = self._project(x, state.conv, keep, cu_seqlens)
        o, recurrent = self._recur(x, q, k, v, state.recurrent, keep, cu_seqlens)
        o = self.o_proj(self._normalize(x, o).flatten(-2))
        return o, LayerState(recurrent, conv)

    def _project(
        self,
        x: torch.Tensor,
        state: tuple[torch.Tensor, ...] | None,
        keep: bool,
        cu_seqlens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """q, k, v as [B, T, channels] each, and the new state of their convolutions."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if not self.use_short_conv:
            return (*self._activate(q, k, v), None)
        sq, sk, sv = (None, None, None) if state is None else state
        q, sq = self.q_conv1d(q, cache=sq, output_final_state=keep, cu_seqlens=cu_seqlens)
        k, sk = self.k_conv1d(k, cache=sk, output_final_state=keep, cu_seqlens=cu_seqlens)
        v, sv = self.v_conv1d(v, cache=sv, output_final_state=keep, cu_seqlens=cu_seqlens)
        return q, k, v, (sq, sk, sv) if keep else None

    def _activate(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Tensors:
        """What stands in for the convolutions' activation when there are none."""
        return silu(q), silu(k), silu(v)

    def _recur(
        self,
        x: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        state: torch.Tensor | None,
        keep: bool,
        cu_seqlens: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the op: o [B, T, HV, V], and the state [N, HV, K, V] if ``keep``."""
        raise NotImplementedError

    def _normalize(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        """Norm and output gate of ``o`` [B, T, HV, V]."""
        raise NotImplementedError

    def _steps(self, x: torch.Tensor) -> bool:
        """Whether this call goes through the op for decoding."""
        return self.mode == "fused_recurrent" or x.shape[1] == 1

    def _conv_widths(self) -> tuple[int, ...]:
        if not self.use_short_conv:
            return ()
        return tuple(c.hidden_size for c in (self.q_conv1d, self.k_conv1d, self.v_conv1d))

    def _add_short_convolutions(
        self,
        widths: tuple[int, int, int],
        conv_size: int,
        conv_bias: bool,
        qk_activation: str | None = "silu",
    ) -> None:
        """Build ``q_conv1d``, ``k_conv1d`` and ``v_conv1d`` over ``widths`` channels."""
        q, k, v = widths
        self.use_short_conv = True
        self.q_conv1d = ShortConvolution(q, conv_size, conv_bias, activation=qk_activation)
        self.k_conv1d = ShortConvolution(k, conv_size, conv_bias, activation=qk_activation)
        self.v_conv1d = ShortConvolution(v, conv_size, conv_bias, activation="silu")

    def _add_decay(self, heads: int) -> None:
        """Build the decay's ``A_log`` = log U(0, 16) and ``dt_bias``, [heads] float32.

        ``softplus(dt_bias)`` is log-uniform in [1e-3, 1e-1].
        """
        self.A_log = nn.Parameter(torch.empty(heads, dtype=torch.float32).uniform_(0, 16).log())
        low, high = math.log(1e-3), math.log(1e-1)
        dt = torch.exp(low + (high - low) * torch.rand(heads, dtype=torch.float32))
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        for parameter in (self.A_log, self.dt_bias):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def _log_decay(self, a: torch.Tensor) -> torch.Tensor:
        """``-exp(A_log) softplus(a + dt_bias)``, [B, T, heads], at least float32."""
        return -wide(self.A_log).exp() * softplus(wide(a) + wide(self.dt_bias))


def wide(x: torch.Tensor) -> torch.Tensor:
    """``x`` in float32, unless it is float64: gates and write strengths are never narrower."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def split_heads(x: torch.Tensor, width: int) -> torch.Tensor:
    """[B, T, H * width] as [B, T, H, width], without a copy."""
    return x.unflatten(-1, (x.shape[-1] // width, width))


def times(layer: str, size_name: str, size: int, factor_name: str, factor: float) -> int:
    """``size * factor`` as an int, or an error that says it must be one."""
    value = size * positive(layer, factor_name, factor)
    if not math.isclose(value, round(value), rel_tol=1e-5):
        raise ShapeError(
            f"{layer}: `{size_name} * {factor_name}` must be a whole number >= 1, got {value} = "
            f"{size} * {factor}."
        )
    return round(value)


def divides(part: int, total: int, what: str, layer: str) -> int:
    """``total // part``, or an error that says ``what``."""
    if total % part:
        raise ShapeError(f"{layer}: {what}, got {total} and {part}.")
    return total // part


def warn_without_convolution(layer: str, stacklevel: int = 3) -> None:
    """Say once per call site that the layer learns worse without short convolutions.

    ``stacklevel`` is 3 if the caller is the layer's own constructor, one more for its base class's.
    """
    warnings.warn(
        f"{layer} without short convolutions usually learns much worse; "
        "pass use_short_conv=True unless the comparison is the point.",
        stacklevel=stacklevel,
    )
