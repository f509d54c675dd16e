# SPDX-License-Identifier: Apache-2.0
"""What `seqkern check` runs: every public op, with inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from seqkern import ops
from seqkern.cli import _check_lssl as lssl
from seqkern.reference.flashrnn import CELLS
from seqkern.testing import Inputs, Shape, make_inputs

_FULL = Shape(B=2, T=150, H=2, HV=4, K=64, V=48)
_QUICK = Shape(B=2, T=35, H=2, HV=4, K=24, V=20)
_CHANNELS = 64


@dataclass(frozen=True)
class Case:
    """One op with one way to make its inputs.

    Attributes:
        name: of the public function.
        op: called with the tensors and options by keyword; returns two outputs.
        inputs: makes `Inputs` from a shape, a dtype and a seed.
        differentiable: False for an op without gradients.
        variant: tells apart several cases of one function.
    """

    name: str
    op: Callable[..., Any]
    inputs: Callable[[Shape, torch.dtype, int], Inputs]
    differentiable: bool = True
    variant: str = ""

    @property
    def title(self) -> str:
        """Return what the table calls the case."""
        return f"{self.name} {self.variant}".rstrip()


@dataclass(frozen=True)
class _Family:
    """Inputs of one op of the linear-attention family."""

    making: dict[str, Any] = field(default_factory=dict)
    grouped: bool = True
    num_householder: int = 1

    def __call__(self, shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
        shape = replace(shape, num_householder=self.num_householder)
        if not self.grouped:
            shape = replace(shape, HV=shape.H)
        return make_inputs(shape, dtype, seed=seed, **self.making)


def _normal(seed: int, *sizes: tuple[int, ...]) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=draw) for size in sizes]


def _convolution(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
    B, T, D, W = shape.B, shape.T, _CHANNELS, 4
    sizes = (B, T, D), (D, W), (D,), (B, T, D), (B, D, W), (B, T, D), (B, D, W)
    x, weight, bias, residual, state, do, dht = (x.to(dtype) for x in _normal(seed, *sizes))
    tensors = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "residual": residual,
        "initial_state": state,
    }
    return Inputs(tensors, {"activation": "silu"}, do, dht)


def _step(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
    B, D, W = shape.B, _CHANNELS, 4
    sizes = (B, D), (B, D, W), (D, W), (D,), (B, D), (B, D, W)
    x, cache, weight, bias, do, dht = (x.to(dtype) for x in _normal(seed, *sizes))
    tensors = {"x": x, "cache": cache, "weight": weight, "bias": bias}
    return Inputs(tensors, {"activation": "silu"}, do, dht)


def _update(output_final_state: bool, cache: Tensor, **arguments: Any) -> Any:
    """Run the step, which has no gradient, on a copy of the cache that it overwrites."""
    with torch.no_grad():
        return ops.causal_conv1d_update(cache=cache.clone(), **arguments)


def _channels_first(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
    B, T, D, W = shape.B, shape.T, _CHANNELS, 4
    sizes = (B, D, T), (D, W), (D,), (B, D, W - 1), (B, D, T), (B, D, W - 1)
    x, weight, bias, state, do, dht = (x.to(dtype) for x in _normal(seed, *sizes))
    tensors = {"x": x, "weight": weight, "bias": bias, "initial_states": state}
    return Inputs(tensors, {"activation": "silu"}, do, dht)


def _fn(output_final_state: bool, **arguments: Any) -> Any:
    return ops.causal_conv1d_fn(**arguments, return_final_states=output_final_state)


def _update_fn(output_final_state: bool, cache: Tensor, **arguments: Any) -> Any:
    state = cache.clone()
    with torch.no_grad():
        return ops.causal_conv1d_update_fn(conv_state=state, **arguments), state


def _norm(*names: str) -> Callable[[Shape, torch.dtype, int], Inputs]:
    def inputs(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
        rows, row = (shape.B, shape.T, _CHANNELS), (_CHANNELS,)
        sizes = [row if name in ("weight", "bias") else rows for name in names]
        *tensors, do, dht = (x.to(dtype) for x in _normal(seed, *sizes, rows, rows))
        return Inputs(dict(zip(names, tensors, strict=True)), {}, do, dht)

    return inputs


def _prenorm(op: Callable[..., Any]) -> Callable[..., Any]:
    """Let a norm return two outputs: the result and the residual stream."""

    def call(output_final_state: bool, **arguments: Any) -> Any:
        return op(**arguments, prenorm=True)

    return call


def _cell(function: str, step: bool = False) -> Callable[[Shape, torch.dtype, int], Inputs]:
    """Make inputs of one recurrent cell; K is the width of its heads."""
    cell = CELLS[function]

    def inputs(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
        B, T, N, D = shape.B, shape.T, shape.H, shape.K
        last = (cell.states, B, 1, N, D)
        sizes = (B, T, cell.input, N, D), (cell.recurrent, N, D, D), (cell.bias, N, D), last
        Wx, R, b, states, do, dht = _normal(seed, *sizes, (cell.states, B, T, N, D), last)
        if function == "slstm":  # the normalizer of a state that was reached is at least 1
            states[2] = states[2].abs() + 1
            if dtype != torch.float32:  # c, n and m have kinks, which rounding crosses; h has none
                do[1:], dht[1:] = 0, 0
        Wx, R, do = Wx.to(dtype), (R / D**0.5).to(dtype), do.to(dtype)
        tensors = {"Wx": Wx[:, 0] if step else Wx, "R": R, "b": b, "states": states}
        return Inputs(tensors, {"function": function}, dht if step else do, dht)

    return inputs


def _rnn(output_final_state: bool, **arguments: Any) -> Any:
    return ops.flashrnn(**arguments)


def _rnn_step(output_final_state: bool, **arguments: Any) -> Any:
    with torch.no_grad():
        states = ops.flashrnn_step(**arguments)
    return states[:1], states


def _scan(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
    B, T, D, N = shape.B, shape.T, _CHANNELS, 16
    rows, states = (B, D, T), (B, D, N)
    sizes = rows, rows, (D, N), (B, N, T), (B, N, T), (D,), rows, (D,), rows, states, states
    u, delta, A, b, c, skip, z, bias, do, state, dht = _normal(seed, *sizes)
    wide = {"A": -A.abs() - 0.5, "initial_state": state}
    narrow = {"u": u, "delta": delta, "B": b, "C": c, "D": skip, "z": z, "delta_bias": bias}
    tensors = {**{name: x.to(dtype) for name, x in narrow.items()}, **wide}
    return Inputs(tensors, {"delta_softplus": True}, do.to(dtype), dht)


def _with_state(output_final_state: bool, **arguments: Any) -> Any:
    return ops.selective_scan(**arguments, return_last_state=True)


def _with_signs(output_final_state: bool, **arguments: Any) -> Any:
    return _with_state(output_final_state, **arguments, allow_neg_eigval=True)


def _single(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
    x = _scan(replace(shape, T=1), dtype, seed).tensors
    row = {n: x[n].squeeze(-1) if x[n].dim() == 3 else x[n] for n in ("u", "delta", "B", "C", "z")}
    tensors = {
        "state": x["initial_state"],
        "x": row["u"],
        "dt": row["delta"],
        **{name: x[name] for name in ("A", "D")},
        **{name: row[name] for name in ("B", "C", "z")},
        "dt_bias": x["delta_bias"],
    }
    return Inputs(tensors, {"dt_softplus": True}, row["u"], x["initial_state"])


def _one_step(output_final_state: bool, state: Tensor, **arguments: Any) -> Any:
    """Run the step, which has no gradient, on a copy of the state that it overwrites."""
    state = state.clone()
    with torch.no_grad():
        return ops.selective_state_update(state, **arguments), state


def _linear(shape: Shape, dtype: torch.dtype, seed: int) -> Inputs:
    rows, row = (shape.B, shape.T, _CHANNELS), (shape.B, _CHANNELS)
    a, b, do, h0 = _normal(seed, rows, rows, rows, row)
    tensors = {"a": a.tanh().to(dtype), "b": b.to(dtype), "h0": h0}
    return Inputs(tensors, {}, do.to(dtype), h0)


def _rows_and_last(output_final_state: bool, **arguments: Any) -> Any:
    x = ops.linear_scan(**arguments)
    return x, x[:, -1]


def _decayed_delta(n: int = 1, **options: Any) -> _Family:
    making = {"gate": "scalar", "beta": "scalar", **options}
    if n > 1:
        making["num_householder"] = n
    return _Family(making, num_householder=n)


CASES = (
    Case("chunk_gla", ops.chunk_gla, _Family()),
    Case(
        "fused_recurrent_gla",
        ops.fused_recurrent_gla,
        _Family({"gate_name": "gk", "reverse": True}),
    ),
    Case("chunk_simple_gla", ops.chunk_simple_gla, _Family({"gate": "scalar"})),
    Case(
        "fused_recurrent_simple_gla",
        ops.fused_recurrent_simple_gla,
        _Family({"gate": "scalar", "scale": 0.5}),
    ),
    Case(
        "chunk_delta_rule",
        ops.chunk_delta_rule,
        _Family({"gate": None, "beta": "scalar"}, grouped=False),
    ),
    Case(
        "fused_recurrent_delta_rule",
        ops.fused_recurrent_delta_rule,
        _Family({"gate": None, "beta": "vector"}, grouped=False),
    ),
    Case(
        "chunk_gated_delta_rule",
        ops.chunk_gated_delta_rule,
        _decayed_delta(use_qk_l2norm_in_kernel=True),
    ),
    Case(
        "fused_recurrent_gated_delta_rule",
        ops.fused_recurrent_gated_delta_rule,
        _decayed_delta(),
    ),
    Case("chunk_gated_delta_product", ops.chunk_gated_delta_product, _decayed_delta(2)),
    Case(
        "fused_recurrent_gated_delta_product",
        ops.fused_recurrent_gated_delta_product,
        _decayed_delta(3, use_qk_l2norm_in_kernel=True),
    ),
    Case("causal_conv1d", ops.causal_conv1d, _convolution),
    Case("causal_conv1d_update", _update, _step, differentiable=False),
    Case("causal_conv1d_fn", _fn, _channels_first),
    Case("causal_conv1d_update_fn", _update_fn, _step, differentiable=False),
    Case("rms_norm", _prenorm(ops.rms_norm), _norm("x", "weight", "residual")),
    Case(
        "rms_norm_gated",
        _prenorm(ops.rms_norm_gated),
        _norm("x", "g", "weight", "bias", "residual"),
    ),
    *(Case("flashrnn", _rnn, _cell(name), variant=name) for name in CELLS),
    *(Case("flashrnn_step", _rnn_step, _cell(name, True), False, name) for name in CELLS),
    Case("lssl_kernel", lssl.kernel, lssl.inputs("u", "D", "state")),
    Case("lssl_conv", lssl.conv, lssl.inputs()),
    Case("lssl_scan", lssl.scan, lssl.inputs()),
    Case("lssl_step", lssl.step, lssl.inputs()),
    Case("selective_scan", _with_state, _scan),
    Case("selective_scan", _with_signs, _scan),
    Case("selective_state_update", _one_step, _single, differentiable=False),
    Case("linear_scan", _rows_and_last, _linear),
)


def sizes(quick: bool) -> Shape:
    """Return the shape of every case."""
    return _QUICK if quick else _FULL
