# SPDX-License-Identifier: Apache-2.0
"""Our GatedDeltaNet layer against Qwen3-Next's on transformers' torch code, with equal weights.

Both project, convolve, run the gated delta rule with normalized q and k, norm, gate and project
back. The step is a forward and a backward pass to the input and all weights. As a floor our linear
projections alone are timed too: they go to the fastest library in torch, and no kernel of ours can
make the step shorter than that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench import peers
from bench.checks import Finding, allowed_error, relative_rms
from bench.registry import Contest, Entry, Size
from bench.timing import cotangent_like, output_and_grads
from seqkern._runtime.matmul import linear
from seqkern.nn import GatedDeltaNet

EPS = 1e-5
CONV = 4


def _copy_weights(ours: nn.Module, theirs: Any, s: Size) -> None:
    """Give their layer our weights; theirs packs q, k, v, gate (and beta, decay) head by head."""
    w = {name: p.detach() for name, p in ours.named_parameters()}

    def heads(*names: str) -> torch.Tensor:
        parts = [w[f"{n}.weight"].unflatten(0, (s.H, -1)) for n in names]
        return torch.cat(parts, dim=1).flatten(0, 1)

    with torch.no_grad():
        theirs.in_proj_qkvz.weight.copy_(heads("q_proj", "k_proj", "v_proj", "g_proj"))
        theirs.in_proj_ba.weight.copy_(heads("b_proj", "a_proj"))
        filters = [w[f"{n}_conv1d.weight"].reshape(-1, 1, CONV) for n in ("q", "k", "v")]
        theirs.conv1d.weight.copy_(torch.cat(filters))
        theirs.A_log.copy_(w["A_log"])
        theirs.dt_bias.copy_(w["dt_bias"])
        theirs.norm.weight.copy_(w["o_norm.weight"])
        theirs.out_proj.weight.copy_(w["o_proj.weight"])


def _hidden(s: Size) -> int:
    """Twice the key width of all heads: 1024 at the usual size."""
    return 2 * s.H * s.K


def _entries(s: Size) -> tuple[Entry, Entry, Entry]:
    hidden = _hidden(s)
    torch.manual_seed(0)
    ours = GatedDeltaNet(
        hidden_size=hidden, num_heads=s.H, head_dim=s.K, expand_v=s.V / s.K, norm_eps=EPS
    )
    theirs: Any = peers.transformers_layer(
        hidden_size=hidden,
        linear_num_key_heads=s.H,
        linear_num_value_heads=s.H,
        linear_key_head_dim=s.K,
        linear_value_head_dim=s.V,
        linear_conv_kernel_dim=CONV,
        rms_norm_eps=EPS,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
    )
    _copy_weights(ours, theirs, s)
    ours, theirs = ours.to(s.torch_dtype), theirs.to(s.torch_dtype)
    x = torch.randn(s.B, s.T, hidden, generator=torch.Generator().manual_seed(2))
    y = torch.randn(s.B, s.T, s.H * s.V, generator=torch.Generator().manual_seed(3))
    x, y = x.to(s.torch_dtype), y.to(s.torch_dtype)
    into = [theirs.in_proj_qkvz.weight, theirs.in_proj_ba.weight]

    def linears(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        outputs = [linear(x, w).flatten() for w in into]
        outputs.append(linear(y, theirs.out_proj.weight).flatten())
        return torch.cat(outputs)

    def entry(label: str, call: Any, weights: list[torch.Tensor], **more: torch.Tensor) -> Entry:
        peer = label != "seqkern"
        return Entry(label, call, {"x": x, **more}, "fwd+bwd", weights, tokens=s.tokens, peer=peer)

    return (
        entry("seqkern", lambda x: ours(x)[0], list(ours.parameters())),
        entry("transformers layer", lambda x: theirs(x), list(theirs.parameters())),
        entry("its linear projections alone", linears, [*into, theirs.out_proj.weight], y=y),
    )


def _check(ours: Entry, theirs: Entry) -> list[Finding]:
    """Compare the outputs and the gradients of the input.

    In 16-bit types each layer rounds at every stage, in its own places; ten roundings are allowed.
    """
    o, grads = output_and_grads(ours)
    their_o, their_grads = output_and_grads(theirs, cotangent_like(o))
    dx, their_dx = grads[0], their_grads[0]
    if dx is None or their_dx is None:
        return [Finding("dx", float("nan"), 0.0)]
    allowed = allowed_error(o.dtype) * (1 if o.dtype == torch.float32 else 5)
    return [
        Finding("o", relative_rms(o, their_o), allowed),
        Finding("dx", relative_rms(dx, their_dx), allowed),
    ]


def contest(s: Size) -> Contest:
    """Return the contest of the two layers at hidden size 2 * H * K."""
    ours, theirs, floor = _entries(s)
    return Contest(ours, theirs, lambda: _check(ours, theirs), floor)
