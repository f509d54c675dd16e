# SPDX-License-Identifier: Apache-2.0
"""The compared ways to run a model compute the same thing."""

import pytest
import torch

from seqkern._runtime import backends, library
from seqkern.models import LAYERS, ByteLM, ByteLMConfig
from seqkern.models.recurrent_mixer import RECURRENT
from seqkern.train import compare


@pytest.mark.parametrize("layer", LAYERS)
def test_every_way_gives_the_same_gradients(layer):
    model = ByteLM(ByteLMConfig(layer, hidden_size=16, num_layers=1, num_heads=2, mlp_size=24))
    ids = torch.randint(256, (2, 70))
    found = {}
    for name, way in compare.ways(layer).items():
        model.zero_grad()
        with way():
            logits, _ = model(ids)
            logits.logsumexp(-1).sum().backward()
        found[name] = [logits, *(p.grad.clone() for p in model.parameters())]
    assert (compare.CHUNKED in found) == (layer not in RECURRENT)
    assert compare.COMPILED in found
    for name, tensors in found.items():
        for a, b in zip(tensors, found[compare.REFERENCE], strict=True):
            scale = b.abs().max().item()
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * scale + 1e-7, msg=name)


def test_chunked_torch_is_really_used(monkeypatch):
    calls = []
    original = compare.chunked_linear_attention
    monkeypatch.setattr(
        compare,
        "chunked_linear_attention",
        lambda *arguments: calls.append(1) or original(*arguments),
    )
    model = ByteLM(ByteLMConfig("gla", hidden_size=16, num_layers=3, num_heads=2, mlp_size=24))
    with compare.chunked_torch(), torch.no_grad():
        model(torch.randint(256, (1, 5)))
    assert len(calls) == 3


def test_a_seed_decides_about_the_sample():
    model = ByteLM(ByteLMConfig("gla", hidden_size=16, num_layers=1, num_heads=2, mlp_size=24))
    samples = [compare.time_decoding(model, b"a", 20, seed)[0] for seed in (1, 1, 2)]
    assert len(samples[0]) == 20
    assert samples[0] == samples[1] != samples[2]


@pytest.mark.skipif(library.load_error() is not None, reason=str(library.load_error()))
def test_the_compiled_way_is_compiled_whatever_auto_means_outside():
    with backends.override("reference"), compare.ways("gla")[compare.COMPILED]():
        assert backends.use_kernel("chunk_gla", "auto", None)
