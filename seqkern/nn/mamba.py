# SPDX-License-Identifier: Apache-2.0
"""The Mamba-1 layer, with eigenvalues in [0, 1] or [-1, 1]."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn as nn

from seqkern import ops
from seqkern._runtime.matmul import linear
from seqkern.errors import OptionError, ShapeError
from seqkern.nn._base import wide
from seqkern.nn._cached import CachedLayer
from seqkern.nn._linear import Linear
from seqkern.nn._state import LayerState
from seqkern.ops._checks import at_least, real


class Mamba(CachedLayer):
    """A selective state space between a short convolution and a gate.

        u, z        = in_proj(x)                            [B, T, d_inner] each
        u           = silu(conv1d(u))
        dt, B, C    = x_proj(u);  delta = dt_proj(dt)
        o           = out_proj(selective_scan(u, delta, -exp(A_log), B, C, D, z))

    Constructor, parameter names and shapes are mamba_ssm's, so that its checkpoints load and those
    of transformers' mixer, too; what `forward` takes and returns is what every layer here does. The
    cached state is [N, d_inner, d_state] float32, and one [N, d_inner, d_conv] of the convolution.

    Args:
        d_model: width of the input and the output.
        d_state: states per channel.
        d_conv: taps of the convolution, >= 1.
        expand: d_inner over d_model; their product must be whole.
        dt_rank: rank of the projection to the time steps, or "auto" for ceil(d_model / 16).
        dt_min, dt_max: the initial time steps are log-uniform between them, > 0.
        dt_init: "random" or "constant" weights of ``dt_proj``.
        dt_scale: factor on those weights' initial size, dt_rank**-0.5; >= 0.
        dt_init_floor: least initial time step, >= 0.
        conv_bias: a bias in ``conv1d``.
        bias: biases in ``in_proj`` and ``out_proj``.
        use_fast_path: accepted and not needed; there is one path.
        layer_idx: position in the model, >= 0; the key into a cache.
        device, dtype: of the parameters; A_log and D are float32 at first, whatever ``dtype`` says.
        allow_neg_eigval: eigenvalues ``2 exp(dt A) - 1`` in [-1, 1] instead of ``exp(dt A)``, which
            lets the layer keep track of parities.
    Source:
        Gu and Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
        section 3.4; Grazzi et al. 2025, "Unlocking State-Tracking in Linear RNNs Through Negative
        Eigenvalues", section 4.

    Example:
        >>> layer = Mamba(256, allow_neg_eigval=True)
        >>> y, _, _ = layer(torch.randn(8, 128, 256))        # [8, 128, 256]
    """

    _WIDTH = "d_model"
    _ENTRANCE = "in_proj"

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        allow_neg_eigval: bool = False,
    ):
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise OptionError(f"Mamba: `dt_init` must be 'random' or 'constant', got {dt_init!r}.")
        d_model = at_least("Mamba", "d_model", 1, d_model)
        d_state = at_least("Mamba", "d_state", 1, d_state)
        d_conv = at_least("Mamba", "d_conv", 1, d_conv)
        if isinstance(dt_rank, str):
            if dt_rank != "auto":
                raise OptionError(
                    f"Mamba: `dt_rank` must be an integer or 'auto', got {dt_rank!r}."
                )
            dt_rank = math.ceil(d_model / 16)
        dt_rank = at_least("Mamba", "dt_rank", 1, dt_rank)
        dt_min = real("Mamba", "dt_min", "a number", dt_min)
        dt_max = real("Mamba", "dt_max", "a number", dt_max)
        if not 0 < dt_min <= dt_max < math.inf:
            raise OptionError(
                "Mamba: `dt_min` and `dt_max` must be finite numbers 0 < dt_min <= dt_max, got "
                f"{dt_min} and {dt_max}."
            )
        for name, x in (("dt_scale", dt_scale), ("dt_init_floor", dt_init_floor)):
            if not 0 <= real("Mamba", name, "a number >= 0", x) < math.inf:
                raise OptionError(f"Mamba: `{name}` must be a finite number >= 0, got {x}.")
        width = real("Mamba", "expand", "a number", expand) * d_model
        if not width.is_integer() or width < 1:
            raise ShapeError(f"Mamba: `expand * d_model` must be a whole number >= 1, got {width}.")
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model = d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.expand = expand
        self.d_inner = d_inner = int(width)
        self.dt_rank = dt_rank
        self.use_fast_path = use_fast_path
        self.layer_idx = None if layer_idx is None else at_least("Mamba", "layer_idx", 0, layer_idx)
        self.allow_neg_eigval = allow_neg_eigval

        self.in_proj = Linear(d_model, 2 * d_inner, bias=bias, **options)
        self.conv1d = nn.Conv1d(
            d_inner,
            d_inner,
            d_conv,
            groups=d_inner,
            padding=d_conv - 1,
            bias=conv_bias,
            **options,
        )
        self.x_proj = Linear(d_inner, dt_rank + 2 * d_state, bias=False, **options)
        self.dt_proj = Linear(dt_rank, d_inner, bias=True, **options)
        self._init_steps(dt_init, dt_rank**-0.5 * dt_scale, dt_min, dt_max, dt_init_floor)
        states = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(states.log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner, dtype=torch.float32, device=device))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.out_proj = Linear(d_inner, d_model, bias=bias, **options)

    def _init_steps(
        self, kind: str, size: float, dt_min: float, dt_max: float, floor: float
    ) -> None:
        """Let ``softplus(dt_proj.bias)`` be log-uniform in [dt_min, dt_max]."""
        weight, bias = self.dt_proj.weight, self.dt_proj.bias
        if kind == "constant":
            nn.init.constant_(weight, size)
        else:
            nn.init.uniform_(weight, -size, size)
        low, high = math.log(dt_min), math.log(dt_max)
        dt = torch.exp(low + (high - low) * torch.rand(self.d_inner, device=bias.device))
        dt = dt.clamp_min(floor)
        with torch.no_grad():
            bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def _conv_widths(self) -> tuple[int, ...]:
        return (self.d_inner,)

    def _mix(
        self, x: torch.Tensor, state: LayerState, keep: bool, cu_seqlens: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerState]:
        # A single token without gradients updates its state in place.
        if x.shape[1] == 1 and keep and cu_seqlens is None and not torch.is_grad_enabled():
            return self._step(x, state)
        return self._scan(x, state, keep, cu_seqlens)

    def _scan(
        self, x: torch.Tensor, state: LayerState, keep: bool, cu_seqlens: torch.Tensor | None
    ) -> tuple[torch.Tensor, LayerState]:
        """Whole sequences: o [B, T, d_model], and the state after them if ``keep``."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv = ops.causal_conv1d(
            u,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            initial_state=None if state.conv is None else state.conv[0],
            output_final_state=keep,
            activation="silu",
            cu_seqlens=cu_seqlens,
        )
        delta, b, c = self._coefficients(u)
        # Time-major tensors as [B, D, T] views: the scan reads them as they lie.
        u, delta, b, c, z = (t.transpose(1, 2) for t in (u, delta, b, c, z))
        y, recurrent = ops.selective_scan(
            u,
            delta,
            -wide(self.A_log).exp(),
            b,
            c,
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            return_last_state=True,
            initial_state=state.recurrent,
            allow_neg_eigval=self.allow_neg_eigval,
            cu_seqlens=cu_seqlens,
        )
        o = self.out_proj(y.transpose(1, 2))
        return o, LayerState() if conv is None else LayerState(recurrent, (conv,))

    def _step(self, x: torch.Tensor, state: LayerState) -> tuple[torch.Tensor, LayerState]:
        """One token per sequence: o [B, 1, d_model], and the state, updated in place."""
        u, z = self.in_proj(x.squeeze(1)).chunk(2, dim=-1)
        if state.recurrent is None or state.conv is None:
            rows = u.new_zeros(*u.shape, self.d_conv)
            states = wide(u).new_zeros(*u.shape, self.d_state)
            state = LayerState(states, (rows,))
        recurrent, (conv,) = cast(torch.Tensor, state.recurrent), state.conv or ()
        # Autocast may have begun or ended since the last token.
        conv = conv.to(u.dtype)
        u, _ = ops.causal_conv1d_update(
            u,
            conv,
            weight=self.conv1d.weight.squeeze(1),
            bias=self.conv1d.bias,
            activation="silu",
        )
        delta, b, c = self._coefficients(u)
        y = ops.selective_state_update(
            recurrent,
            u,
            delta,
            -wide(self.A_log).exp(),
            b,
            c,
            self.D,
            z,
            self.dt_proj.bias,
            dt_softplus=True,
            allow_neg_eigval=self.allow_neg_eigval,
        )
        return self.out_proj(y).unsqueeze(1), LayerState(recurrent, (conv,))

    def _coefficients(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """delta without its bias [..., d_inner], B and C [..., d_state]."""
        sizes = [self.dt_rank, self.d_state, self.d_state]
        dt, b, c = self.x_proj(u).split(sizes, dim=-1)
        return linear(dt, self.dt_proj.weight), b, c
