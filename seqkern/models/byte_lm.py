# SPDX-License-Identifier: Apache-2.0
"""A byte-level language model over the recurrent layers.

Each block is ``x + mixer(norm(x))`` and then ``x + mlp(norm(x))``, with RMSNorm and a SwiGLU MLP;
the embedding is also the output projection. The vocabulary is the 256 byte values: no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqkern import nn as snn
from seqkern._runtime.matmul import linear
from seqkern.errors import DTypeError, OptionError, ShapeError
from seqkern.models.recurrent_mixer import RECURRENT, RecurrentMixer
from seqkern.nn._linear import Linear
from seqkern.ops._checks import at_least, real, tensor

VOCABULARY = 256

# A smaller temperature may be zero in float32.
_COLDEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class ByteLMConfig:
    """Sizes of a `ByteLM`.

    Attributes:
        layer: "gla", "deltanet", "gated_deltanet", "gated_deltaproduct", "lstm", "gru", "rnn" or
            "slstm".
        hidden_size: width of the residual stream, a multiple of ``num_heads``.
        num_layers: number of blocks, >= 1.
        num_heads: heads per mixer; the (value) width of a head is ``hidden_size // num_heads``.
        mlp_size: inner width of the SwiGLU MLP, >= 1.
        num_householder: updates per token, >= 1, for "gated_deltaproduct" only.
    """

    layer: str = "gated_deltanet"
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    mlp_size: int = 704
    num_householder: int = 2


def _gla(c: ByteLMConfig, layer_idx: int) -> nn.Module:
    return snn.GatedLinearAttention(
        hidden_size=c.hidden_size,
        num_heads=c.num_heads,
        expand_k=1.0,
        use_short_conv=True,
        layer_idx=layer_idx,
    )


def _deltanet(c: ByteLMConfig, layer_idx: int) -> nn.Module:
    return snn.DeltaNet(hidden_size=c.hidden_size, num_heads=c.num_heads, layer_idx=layer_idx)


def _gated_deltanet(c: ByteLMConfig, layer_idx: int) -> nn.Module:
    return snn.GatedDeltaNet(
        hidden_size=c.hidden_size,
        expand_v=1,
        head_dim=c.hidden_size // c.num_heads,
        num_heads=c.num_heads,
        layer_idx=layer_idx,
    )


def _gated_deltaproduct(c: ByteLMConfig, layer_idx: int) -> nn.Module:
    return snn.GatedDeltaProduct(
        hidden_size=c.hidden_size,
        expand_v=1,
        head_dim=c.hidden_size // c.num_heads,
        num_heads=c.num_heads,
        num_householder=c.num_householder,
        layer_idx=layer_idx,
    )


def _recurrent(layer: str, c: ByteLMConfig, layer_idx: int) -> nn.Module:
    return RecurrentMixer(layer, c.hidden_size, c.num_heads, layer_idx)


LAYERS: dict[str, Callable[[ByteLMConfig, int], nn.Module]] = {
    "gla": _gla,
    "deltanet": _deltanet,
    "gated_deltanet": _gated_deltanet,
    "gated_deltaproduct": _gated_deltaproduct,
    **{layer: partial(_recurrent, layer) for layer in RECURRENT},
}


class SwiGLU(nn.Module):
    """``down(silu(gate(x)) * up(x))``, [..., hidden_size] to [..., hidden_size]."""

    def __init__(self, hidden_size: int, inner_size: int):
        super().__init__()
        self.gate_up = Linear(hidden_size, 2 * inner_size, bias=False)
        self.down = Linear(inner_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP to x [..., hidden_size]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One mixer and one MLP, each behind a norm and a residual connection."""

    def __init__(self, config: ByteLMConfig, layer_idx: int):
        super().__init__()
        self.mixer_norm = snn.RMSNorm(config.hidden_size)
        self.mixer = LAYERS[config.layer](config, layer_idx)
        self.mlp_norm = snn.RMSNorm(config.hidden_size)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_size)

    def forward(self, x: Tensor, cache: Any, use_cache: bool) -> tuple[Tensor, Any]:
        """Return the new residual stream [B, T, hidden_size] and the cache."""
        mixed, _, cache = self.mixer(self.mixer_norm(x), past_key_values=cache, use_cache=use_cache)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class ByteLM(nn.Module):
    """A language model over bytes.

    Example:
        >>> model = ByteLM(ByteLMConfig(layer="gla", num_layers=2))
        >>> logits, _ = model(torch.randint(256, (1, 64)))        # [1, 64, 256]
        >>> text = model.generate(b"The ", 32)
    """

    def __init__(self, config: ByteLMConfig):
        super().__init__()
        if not isinstance(config, ByteLMConfig):
            raise DTypeError(
                f"ByteLM: `config` must be a ByteLMConfig, got {type(config).__name__}. Pass the "
                "sizes as ByteLMConfig(hidden_size=256, num_layers=4)."
            )
        if config.layer not in tuple(LAYERS):
            raise OptionError(
                f"ByteLM: `layer` must be one of {', '.join(LAYERS)}, got {config.layer!r}."
            )
        for name in ("hidden_size", "num_layers", "num_heads", "mlp_size", "num_householder"):
            at_least("ByteLM", name, 1, getattr(config, name))
        if config.hidden_size % config.num_heads:
            raise ShapeError(
                "ByteLM: `hidden_size` must be a multiple of `num_heads`, got "
                f"{config.hidden_size} and {config.num_heads}."
            )
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config.hidden_size)
        blocks = [Block(config, i) for i in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = snn.RMSNorm(config.hidden_size)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():  # keeps the residual stream's variance independent of depth
            for block in blocks:
                block.mlp.down.weight.mul_((2 * config.num_layers) ** -0.5)

    def forward(
        self, ids: Tensor, past_key_values: Any = None, use_cache: bool = False
    ) -> tuple[Tensor, Any]:
        """Predict the next byte at every position.

        Args:
            ids: [B, T] int64 or int32 byte values, 0 to 255.
            past_key_values: a `seqkern.nn.Cache` that holds the bytes before ``ids``, or None.
            use_cache: return a cache that includes ``ids``.

        Returns:
            logits [B, T, 256], and the cache (None unless ``use_cache``).
        """
        tensor("ByteLM", "ids", ids)
        if ids.dim() != 2:
            raise ShapeError(f"ByteLM: `ids` must be [B, T], got {list(ids.shape)}.")
        if ids.dtype not in (torch.int64, torch.int32):
            raise DTypeError(
                f"ByteLM: `ids` must be int64 or int32, got {ids.dtype}. Cast them with `.long()`."
            )
        cache = past_key_values
        if use_cache and cache is None:
            cache = snn.Cache()
        try:
            x = self.embedding(ids)
        except IndexError:
            raise OptionError(
                f"ByteLM: `ids` must be byte values, 0 to 255, got {int(ids.min())} to "
                f"{int(ids.max())}."
            ) from None
        for block in self.blocks:
            x, cache = block(x, cache, use_cache)
        return linear(self.norm(x), self.embedding.weight), cache

    def num_parameters(self) -> int:
        """Count the trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def stream(
        self,
        prompt: bytes,
        temperature: float = 0.8,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[int]:
        """Yield bytes after ``prompt`` without end, one recurrent step each.

        Args:
            prompt: at least one byte; read once, in one call.
            temperature: >= 0; 0 takes the most likely byte.
            top_k: sample among the k >= 1 most likely bytes only.
            generator: source of the random numbers.
        """
        if not isinstance(prompt, (bytes, bytearray, memoryview)):
            way = "prompt.encode()" if isinstance(prompt, str) else "bytes([84, 104, 101])"
            raise DTypeError(
                f"ByteLM: `prompt` must be bytes, as of `{way}`, got {type(prompt).__name__}."
            )
        if not prompt:
            raise OptionError("ByteLM: `prompt` must hold at least one byte, got none.")
        heat = real("ByteLM", "temperature", "a number >= 0", temperature)
        if not heat >= 0:
            raise OptionError(f"ByteLM: `temperature` must be a number >= 0, got {temperature!r}.")
        if top_k is not None:
            top_k = at_least("ByteLM", "top_k", 1, top_k)
        return self._stream(bytes(prompt), heat, top_k, generator)

    def _stream(
        self,
        prompt: bytes,
        temperature: float,
        top_k: int | None,
        generator: torch.Generator | None,
    ) -> Iterator[int]:
        """Yield what `stream` promises; it has checked the arguments when it was called."""
        ids = torch.tensor([list(prompt)], device=self.embedding.weight.device)
        cache = None
        while True:
            with torch.no_grad():
                logits, cache = self(ids, past_key_values=cache, use_cache=True)
                ids = _sample(logits[:, -1].float(), temperature, top_k, generator)
            yield int(ids)

    def generate(
        self,
        prompt: bytes,
        max_new_bytes: int,
        temperature: float = 0.8,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> bytes:
        """Return ``max_new_bytes`` bytes that follow ``prompt``; see `stream` for the arguments."""
        max_new_bytes = at_least("ByteLM", "max_new_bytes", 0, max_new_bytes)
        stream = self.stream(prompt, temperature, top_k, generator)
        return bytes(next(stream) for _ in range(max_new_bytes))


def _sample(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> Tensor:
    """Choose one byte [B, 1] from logits [B, 256]."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # Less the largest, so that a tiny temperature makes no other infinity than -inf.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, _COLDEST)
    if top_k is not None and top_k < logits.shape[-1]:
        floor = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)
