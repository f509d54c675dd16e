# SPDX-License-Identifier: Apache-2.0
"""Bits per byte of the held-out text are those of the model on every byte of it."""

import math

import pytest
import torch
from torch.nn import functional as F

from seqkern.models import ByteLM, ByteLMConfig
from seqkern.train.evaluate import bits_per_byte


@pytest.mark.parametrize("context", [3, 100])
@pytest.mark.parametrize("length", [3, 16, 50])
def test_every_byte_counts_once(length, context):
    """Each of up to 8 streams is read from its beginning, with the byte before it in front."""
    torch.manual_seed(0)
    model = ByteLM(ByteLMConfig("gla", hidden_size=16, num_layers=1, num_heads=2, mlp_size=24))
    ids = torch.randint(256, (length + 1,))
    each, total = -(-length // min(8, length)), 0.0
    with torch.no_grad():
        for start in range(0, length, each):
            stream = ids[start : start + each + 1]
            logits, _ = model(stream[None, :-1])
            total += F.cross_entropy(logits[0], stream[1:], reduction="sum").item()
    data, before = bytes(ids[1:].tolist()), int(ids[0])
    for training in (True, False):
        model.train(training)
        found = bits_per_byte(model, data, before, context, "float32")
        assert found == pytest.approx(total / length / math.log(2), rel=1e-5)
        assert model.training is training
    narrow = bits_per_byte(model, data, before, context, "bfloat16")
    assert narrow != found
    assert narrow == pytest.approx(found, rel=0.05)
