# SPDX-License-Identifier: Apache-2.0
"""The layers under test, each restated in plain torch, and how close they must come."""

from __future__ import annotations

import copy
import statistics
import warnings
from typing import NamedTuple

import torch
from torch.nn import functional

from seqkern import nn, reference

HIDDEN = 48


class Case(NamedTuple):
    id: str
    cls: type
    options: dict


CASES = [
    Case("gla", nn.GatedLinearAttention, {"num_heads": 3}),
    Case(
        "gla-grouped-conv",
        nn.GatedLinearAttention,
        {
            "num_heads": 4,
            "num_kv_heads": 2,
            "use_short_conv": True,
            "conv_bias": True,
            "feature_map": "sqrelu",
            "clamp_min": -0.05,
        },
    ),
    Case(
        "gla-gelu-gate",
        nn.GatedLinearAttention,
        {"gate_fn": "gelu", "expand_k": 1.0, "feature_map": "relu"},
    ),
    Case(
        "gla-ungated",
        nn.GatedLinearAttention,
        {"use_output_gate": False, "elementwise_affine": False, "expand_v": 2.0},
    ),
    Case(
        "gla-neg",
        nn.GatedLinearAttention,
        {"num_heads": 3, "allow_neg_eigval": True, "gate_logit_normalizer": 1},
    ),
    Case("delta_net", nn.DeltaNet, {"num_heads": 3}),
    Case(
        "delta_net-gate-neg",
        nn.DeltaNet,
        {
            "num_heads": 2,
            "use_gate": True,
            "allow_neg_eigval": True,
            "conv_bias": True,
            "conv_size": 3,
        },
    ),
    Case("delta_net-relu-sum", nn.DeltaNet, {"qk_activation": "relu", "qk_norm": "sum"}),
    Case("delta_net-elu-bare", nn.DeltaNet, {"qk_activation": "elu", "use_short_conv": False}),
    Case("delta_net-no-beta", nn.DeltaNet, {"use_beta": False, "qk_activation": "identity"}),
    Case("gated_delta_net", nn.GatedDeltaNet, {"head_dim": 16, "num_heads": 2, "expand_v": 1.5}),
    Case(
        "gated_delta_net-grouped",
        nn.GatedDeltaNet,
        {
            "head_dim": 12,
            "num_heads": 2,
            "num_v_heads": 4,
            "output_gate_activation": "sigmoid",
            "allow_neg_eigval": True,
            "conv_bias": True,
        },
    ),
    Case(
        "gated_delta_net-bare",
        nn.GatedDeltaNet,
        {"head_dim": 16, "num_heads": 2, "use_gate": False, "use_short_conv": False},
    ),
    Case("gated_delta_product", nn.GatedDeltaProduct, {"head_dim": 16, "num_heads": 2}),
    Case(
        "gated_delta_product-grouped",
        nn.GatedDeltaProduct,
        {
            "head_dim": 12,
            "num_heads": 2,
            "num_v_heads": 4,
            "num_householder": 3,
            "allow_neg_eigval": False,
        },
    ),
    Case(
        "gated_delta_product-bare",
        nn.GatedDeltaProduct,
        {
            "head_dim": 16,
            "num_heads": 2,
            "use_forget_gate": False,
            "use_output_gate": False,
            "use_short_conv": False,
        },
    ),
]
# One per class, for what does not depend on the options.
MAIN = [case for case in CASES if case.id in ("gla-grouped-conv", "delta_net-gate-neg")]
MAIN += [case for case in CASES if case.id in ("gated_delta_net", "gated_delta_product-grouped")]


def build(case: Case, dtype=torch.float32, seed=0, **more):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = case.cls(hidden_size=HIDDEN, **{"layer_idx": 0, **case.options, **more})
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "norm" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return layer.to(dtype)


def inputs(B, T, dtype=torch.float32, seed=1):
    return torch.randn(B, T, HIDDEN, generator=torch.Generator().manual_seed(seed)).to(dtype)


def double(layer):
    return copy.deepcopy(layer).double()


def heads(x, width):
    return x.reshape(*x.shape[:-1], -1, width)


def convolve(x, conv):
    T, W = x.shape[1], conv.weight.shape[-1]
    z = functional.conv1d(
        x.transpose(1, 2), conv.weight, conv.bias, padding=W - 1, groups=x.shape[-1]
    )
    return z[..., :T].transpose(1, 2)


def rms_norm(x, norm):
    y = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return y if norm.weight is None else y * norm.weight


def definition(layer, x):
    """The layer's output for ``x`` [B, T, HIDDEN], from its parameters and the references."""
    names = {
        nn.GatedLinearAttention: _gla,
        nn.DeltaNet: _delta_net,
        nn.GatedDeltaNet: _gated_delta_net,
        nn.GatedDeltaProduct: _gated_delta_product,
    }
    return layer.o_proj(names[type(layer)](layer, x).flatten(-2))


def _qkv(layer, x, activations):
    out = []
    for name, act in zip("qkv", activations, strict=True):
        y = getattr(layer, f"{name}_proj")(x)
        if hasattr(layer, "q_conv1d"):
            y = convolve(y, getattr(layer, f"{name}_conv1d"))
        out.append(act(y))
    return out


def _same(x):
    return x


def _gla(layer, x):
    silu = functional.silu if hasattr(layer, "q_conv1d") else _same
    q, k, v = _qkv(layer, x, (silu, silu, silu))
    g = functional.logsigmoid(layer.gk_proj(x)) / layer.gate_logit_normalizer
    if layer.clamp_min is not None:
        g = g.clamp(min=layer.clamp_min)
    if layer.allow_neg_eigval:
        g = 2 * g.exp() - 1
    K, V = layer.key_dim // layer.num_heads, layer.value_dim // layer.num_heads
    q, k, v, g = heads(q, K), heads(k, K), heads(v, V), heads(g, K)
    if layer.feature_map is not None:
        q, k = layer.feature_map(q), layer.feature_map(k)
    index = torch.arange(layer.num_heads) // (layer.num_heads // k.shape[2])
    k, v, g = (t[:, :, index] for t in (k, v, g))
    o, _ = reference.gla(q, k, v, g, signed_gate=layer.allow_neg_eigval)
    if not layer.use_output_gate:
        return rms_norm(o, layer.g_norm)
    gate = heads(layer.g_proj(x), V)
    if hasattr(layer, "g_norm"):
        return rms_norm(o, layer.g_norm) * functional.gelu(gate, approximate="tanh")
    return rms_norm(o, layer.g_norm_swish_gate) * functional.silu(gate)


def _delta_net(layer, x):
    silu = functional.silu
    after = {
        "silu": _same,
        "relu": functional.relu,
        "elu": lambda t: functional.elu(t) + 1,
        "identity": _same,
    }[layer.qk_activation]
    first = silu if layer.qk_activation == "silu" else _same
    q, k, v = _qkv(layer, x, (first, first, silu))
    q, k = (after(heads(t, layer.key_dim // layer.num_heads)) for t in (q, k))
    if layer.qk_norm == "sum":
        q, k = (t / t.sum(-1, keepdim=True) for t in (q, k))
    beta = layer.b_proj(x).sigmoid() if layer.use_beta else torch.ones_like(q[..., 0])
    o, _ = reference.delta_rule(
        q,
        k,
        heads(v, layer.value_dim // layer.num_heads),
        beta * (2 if layer.allow_neg_eigval else 1),
        use_qk_l2norm_in_kernel=layer.qk_norm == "l2",
    )
    o = rms_norm(o, layer.o_norm)
    return o * silu(heads(layer.g_proj(x), o.shape[-1])) if layer.use_gate else o


def _decay(layer, x):
    return -layer.A_log.exp() * functional.softplus(layer.a_proj(x) + layer.dt_bias)


def _gated_delta_net(layer, x):
    q, k, v = _qkv(layer, x, 3 * (functional.silu,))
    K, V, group = layer.head_k_dim, layer.head_v_dim, layer.num_v_heads // layer.num_heads
    q, k = (heads(t, K).repeat_interleave(group, 2) for t in (q, k))
    beta = layer.b_proj(x).sigmoid() * (2 if layer.allow_neg_eigval else 1)
    o, _ = reference.gated_delta_rule(
        q, k, heads(v, V), _decay(layer, x), beta, use_qk_l2norm_in_kernel=True
    )
    o = rms_norm(o, layer.o_norm)
    if not layer.use_gate:
        return o
    act = {"swish": functional.silu, "sigmoid": torch.sigmoid}[layer.o_norm.activation]
    return o * act(heads(layer.g_proj(x), V))


def _gated_delta_product(layer, x):
    q, k, v = _qkv(layer, x, 3 * (functional.silu,))
    n, group = layer.num_householder, layer.num_v_heads // layer.num_heads
    K, V, (B, T, _) = layer.head_k_dim, layer.head_v_dim, x.shape
    q = q.reshape(B, T, -1, K).repeat_interleave(group, 2)
    k = k.reshape(B, T * n, -1, K).repeat_interleave(group, 2)
    beta = layer.b_proj(x).sigmoid() * (2 if layer.allow_neg_eigval else 1)
    o, _ = reference.gated_delta_product(
        q,
        k,
        v.reshape(B, T * n, -1, V),
        _decay(layer, x) if layer.use_forget_gate else None,
        beta.reshape(B, T * n, -1),
        num_householder=n,
        use_qk_l2norm_in_kernel=True,
    )
    o = rms_norm(o, layer.o_norm)
    return o * functional.silu(heads(layer.g_proj(x), V)) if layer.use_output_gate else o


def outputs_and_grads(layer, x, run, do=None):
    """``run(layer, x)`` and the gradients of ``(o * do).sum()`` wrt x and every parameter."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    o = run(layer, x)
    if do is None:
        do = torch.randn(o.shape, generator=torch.Generator().manual_seed(7))
    (o * do.to(o.dtype)).sum().backward()
    grads = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
    return {"o": o.detach(), "dx": x.grad, **grads}


def truth_and_peers(layer, x, run=definition, draws=8):
    """``run`` in float64, and in the layer's dtype on inputs that are one rounding apart.

    How far a float32 evaluation strays is a matter of luck, most of all for gradients that cancel
    or depend on one number; the peers are that evaluation with x and every parameter changed by up
    to one unit in the last place, ``draws`` times, and once as they are.
    """
    truth = outputs_and_grads(double(layer), x.double(), run)
    peers = [outputs_and_grads(layer, x, run)]
    generator, eps = torch.Generator().manual_seed(11), torch.finfo(x.dtype).eps

    def nudge(t):
        return t * (1 + eps * (2 * torch.rand(t.shape, generator=generator) - 1)).to(t.dtype)

    for _ in range(draws):
        other = copy.deepcopy(layer)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.copy_(nudge(parameter))
        peers.append(outputs_and_grads(other, nudge(x), run))
    return truth, peers


def assert_no_worse(actual, truth, peers, factor=2):
    """Compare dictionaries of tensors: our error is at most ``factor`` times the worst peer's.

    Errors are root mean squares relative to the truth's. A peer may be exact where the numbers are
    few, so every tensor is also allowed the median over all tensors and one rounding.
    """
    assert actual.keys() == truth.keys()
    theirs = {n: max(_error(peer[n], truth[n]) for peer in peers) for n in truth}
    median = statistics.median(theirs.values())
    for name, value in truth.items():
        error = _error(actual[name], value)
        allowed = factor * max(theirs[name], median) + torch.finfo(actual[name].dtype).eps
        assert error <= allowed, f"{name}: relative error {error:.3e}, allowed {allowed:.3e}"


def _error(value, truth):
    assert value.shape == truth.shape
    scale = truth.double().square().mean().sqrt()
    return ((value.double() - truth).square().mean().sqrt() / (scale + 1e-30)).item()
