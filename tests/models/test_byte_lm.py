# SPDX-License-Identifier: Apache-2.0
"""The byte-level language model: shapes, gradients, and decoding that equals reading."""

import pytest
import torch

from seqkern.errors import DTypeError, OptionError, ShapeError
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
    for temperature in (1e-38, 1e-46):
        assert model.generate(b"a", 30, temperature=temperature) == greedy


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
            OptionError,
            "`temperature` must be a number >= 0, got -1",
        ),
        (
            lambda: _model("gla").generate(b"a", 1, temperature=float("nan")),
            OptionError,
            "`temperature` must be a number >= 0, got nan",
        ),
        (
            lambda: _model("gla").generate(b"a", 1, top_k=0),
            OptionError,
            "`top_k` must be an integer >= 1, got 0",
        ),
        (
            lambda: _model("gla").generate("a", 1),
            DTypeError,
            r"`prompt` must be bytes, as of `prompt.encode\(\)`, got str",
        ),
        (lambda: _model("gla").generate([97], 1), DTypeError, r"`bytes\(\[84, .*, got list"),
        (
            lambda: _model("gla").generate(b"a", -1),
            OptionError,
            "`max_new_bytes` must be an integer >= 0, got -1",
        ),
        (lambda: _model("gla").stream(b""), OptionError, "`prompt` must hold at least one"),
        (lambda: ByteLM(32), DTypeError, "`config` must be a ByteLMConfig, got int"),
        (
            lambda: ByteLM(ByteLMConfig(num_heads=0)),
            OptionError,
            "`num_heads` must be an integer >= 1, got 0",
        ),
        (
            lambda: ByteLM(ByteLMConfig(num_layers=-1)),
            OptionError,
            "`num_layers` must be an integer >= 1, got -1",
        ),
        (lambda: _model("gla")([[1, 2]]), DTypeError, "`ids` must be a torch.Tensor, got list"),
        (lambda: _model("gla")(torch.tensor([1, 2])), ShapeError, r"must be \[B, T\], got \[2\]"),
        (
            lambda: _model("gla")(torch.zeros(1, 2, dtype=torch.uint8)),
            DTypeError,
            r"`ids` must be int64 or int32, got torch.uint8. Cast them with `.long\(\)`",
        ),
        (
            lambda: _model("gla")(torch.tensor([[-1, 256]])),
            OptionError,
            "`ids` must be byte values, 0 to 255, got -1 to 256",
        ),
    ],
    ids=[
        "layer",
        "heads",
        "prompt",
        "temperature",
        "temperature nan",
        "top_k",
        "prompt str",
        "prompt list",
        "fewer bytes",
        "stream",
        "config",
        "no heads",
        "no layers",
        "ids list",
        "ids rank",
        "ids dtype",
        "ids range",
    ],
)
def test_rejects(call, error, message):
    with pytest.raises(error, match=message):
        call()
