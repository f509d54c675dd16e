# SPDX-License-Identifier: Apache-2.0
"""The byte-level language model: shapes, gradients, and decoding that equals reading."""

import pytest
import torch

from seqkern._runtime.errors import ShapeError
from seqkern.models import LAYERS, ByteLM, ByteLMConfig

TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "mlp_size": 24}


def _model(layer):
    return ByteLM(ByteLMConfig(layer=layer, **TINY))


@pytest.mark.parametrize("layer", LAYERS)
def test_every_parameter_gets_a_gradient(layer):
    model = _model(layer)
    logits, cache = model(torch.randint(256, (2, 9)))
    assert logits.shape == (2, 9, 256)
    assert cache is None
    logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("layer", LAYERS)
def test_split_and_carry_equals_whole(layer):
    model = _model(layer).eval()
    ids = torch.randint(256, (2, 21))
    with torch.no_grad():
        whole, _ = model(ids)
        parts, cache = [], None
        for part in ids.split([13, 1, 1, 6], dim=1):
            logits, cache = model(part, past_key_values=cache, use_cache=True)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_the_most_likely_bytes_are_those_of_the_whole_sequence():
    model = _model("gated_deltanet").eval()
    prompt = b"some text"
    sample = model.generate(prompt, 8, temperature=0)
    with torch.no_grad():
        logits, _ = model(torch.tensor([list(prompt + sample)]))
    assert bytes(logits[0, len(prompt) - 1 : -1].argmax(-1).tolist()) == sample


def test_sampling_is_reproducible_and_top_k_limits_it():
    model = _model("gla").eval()
    draws = [
        model.generate(b"a", 30, top_k=5, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert draws[0] == draws[1]
    greedy = model.generate(b"a", 30, temperature=0)
    assert model.generate(b"a", 30, top_k=1) == greedy


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: _model("attention"), ValueError, "`layer` must be one of gla, deltanet"),
        (
            lambda: ByteLM(ByteLMConfig(hidden_size=10, num_heads=4)),
            ShapeError,
            "`hidden_size` must be a multiple of `num_heads`, got 10 and 4",
        ),
        (lambda: _model("gla").generate(b"", 1), ValueError, "`prompt` must hold at least one"),
        (
            lambda: _model("gla").generate(b"a", 1, temperature=-1),
            ValueError,
            "`temperature` must be >= 0",
        ),
        (lambda: _model("gla").generate(b"a", 1, top_k=0), ValueError, "`top_k` >= 1"),
    ],
    ids=["layer", "heads", "prompt", "temperature", "top_k"],
)
def test_rejects(call, error, message):
    with pytest.raises(error, match=message):
        call()
