# SPDX-License-Identifier: Apache-2.0
"""The competitors, imported only when a row needs them.

transformers is installed like any package. fla is not: with it installed, transformers can no
longer import Qwen3-Next on a CPU, so one file of its unpacked wheel is loaded by path. FlashRNN is
imported from its unpacked wheel too: it declares none of its dependencies.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PEERS = Path(__file__).resolve().parent / ".peers"
TRANSFORMERS = "5.23.0"
FLA_CORE = "0.6.0"
FLASHRNN = "1.0.8"
HOW = "run `python bench/install_peers.py`"


class PeerMissingError(RuntimeError):
    """A peer is not installed; the message says how to get it."""


@cache
def _qwen3_next() -> ModuleType:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        return importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    except ImportError as e:
        raise PeerMissingError(f"transformers {TRANSFORMERS} is not usable ({e}): {HOW}") from e


@cache
def _fla_naive(family: str) -> ModuleType:
    path = PEERS / f"fla_core-{FLA_CORE}" / "fla" / "ops" / family / "naive.py"
    if not path.exists():
        raise PeerMissingError(f"fla-core {FLA_CORE} is not unpacked in {PEERS.name}: {HOW}")
    spec = importlib.util.spec_from_file_location(f"bench_peer_fla_{family}", path)
    if spec is None or spec.loader is None:
        raise PeerMissingError(f"fla-core {FLA_CORE}: {path.name} cannot be loaded: {HOW}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as e:
        raise PeerMissingError(f"fla-core {FLA_CORE} needs a package ({e}): {HOW}") from e
    return module


@cache
def _flashrnn() -> ModuleType:
    folder = PEERS / f"flashrnn-{FLASHRNN}"
    if not folder.exists():
        raise PeerMissingError(f"flashrnn {FLASHRNN} is not unpacked in {PEERS.name}: {HOW}")
    sys.path.insert(0, str(folder))
    try:
        # It prints about CUDA, which it does not need for its vanilla code.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            return importlib.import_module("flashrnn")
    except ImportError as e:
        raise PeerMissingError(f"flashrnn {FLASHRNN} needs a package ({e}): {HOW}") from e
    finally:
        sys.path.remove(str(folder))


def flashrnn(function: str, backend: str) -> Callable[..., Any]:
    """FlashRNN's torch code ("vanilla" or "vanilla_fwbw"): (Wx, R, b) to h [B, T, N, D]."""
    op = _flashrnn().flashrnn

    def call(Wx: Any, R: Any, b: Any) -> Any:
        dtype = str(Wx.dtype).removeprefix("torch.")
        return op(Wx, R, b, function=function, backend=backend, dtype=dtype)[0][0]

    return call


def transformers_chunk(*, l2norm: bool = False) -> Callable[..., Any]:
    """transformers' chunked gated delta rule in torch: (q, k, v, g, beta) in [B, T, H, .]."""
    op = _qwen3_next().torch_chunk_gated_delta_rule

    def call(q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
        return op(q, k, v, g, beta, use_qk_l2norm_in_kernel=l2norm)

    return call


def transformers_step() -> Callable[..., Any]:
    """transformers' recurrent gated delta rule, one token from a state to the next."""
    op = _qwen3_next().torch_recurrent_gated_delta_rule

    def call(q: Any, k: Any, v: Any, g: Any, beta: Any, initial_state: Any) -> Any:
        return op(q, k, v, g, beta, initial_state=initial_state, output_final_state=True)

    return call


def transformers_layer(**config: Any) -> torch.nn.Module:
    """Qwen3-Next's gated delta-rule layer, on the torch code it runs on a CPU."""
    settings = importlib.import_module("transformers.models.qwen3_next.configuration_qwen3_next")
    modeling = _qwen3_next()
    return modeling.Qwen3NextGatedDeltaNet(settings.Qwen3NextConfig(**config), layer_idx=0)


def fla_delta_rule_chunkwise() -> Callable[..., Any]:
    """fla's chunked torch delta rule: (q, k, v, beta) in [B, H, T, .], T a multiple of 32."""
    return _fla_naive("delta_rule").delta_rule_chunkwise


def fla_gated_delta_rule_chunk() -> Callable[..., Any]:
    """fla's chunked torch gated delta rule: (q, k, v, g, beta) in [B, T, H, .]."""
    return _fla_naive("gated_delta_rule").naive_chunk_gated_delta_rule


def causal_attention() -> Callable[..., Any]:
    """torch's scaled dot-product attention, causal: (q, k, v) in [B, H, T, .]."""
    attention = torch.nn.functional.scaled_dot_product_attention

    def call(q: Any, k: Any, v: Any) -> Any:
        return attention(q, k, v, is_causal=True)

    return call
