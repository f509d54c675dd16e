# SPDX-License-Identifier: Apache-2.0
"""The classifier of linear state-space layers."""

import pytest
import torch

from seqkern.errors import DTypeError, OptionError, ShapeError
from seqkern.models import LSSLClassifier


@pytest.mark.parametrize("prenorm", [False, True])
def test_remembers_the_first_step(prenorm):
    """A task that needs memory: was the first of 20 steps positive?"""
    torch.manual_seed(0)
    model = LSSLClassifier(
        1, 2, 16, 2, dropout=0.0, prenorm=prenorm, state_size=8, dt_min=0.01, dt_max=0.5
    )
    optimizer = torch.optim.AdamW(model.optimizer_groups(lr=0.02))
    for _ in range(160):
        x = torch.randn(32, 20, 1)
        label = (x[:, 0, 0] > 0).long()
        loss = torch.nn.functional.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(500, 20, 1)
    label = (x[:, 0, 0] > 0).long()
    with torch.no_grad():
        assert (model.eval()(x).argmax(1) == label).float().mean() > 0.85


def test_defaults_are_the_papers():
    model = LSSLClassifier(1, 10)
    assert len(model.blocks) == 6
    layer = model.blocks[0].layer
    assert (layer.hidden_size, layer.state_size, layer.channels) == (128, 128, 1)
    assert layer.dropout.p == 0.2
    every = sum(len(g["params"]) for g in model.optimizer_groups(lr=0.004))
    assert every == len(list(model.parameters()))


def test_rejects():
    with pytest.raises(OptionError, match="`num_classes` must be an integer >= 1, got 0"):
        LSSLClassifier(1, 0)
    with pytest.raises(ShapeError, match=r"`x` must be \[B, L, input_size\] = \[B, L, 3\]"):
        LSSLClassifier(3, 2, 8, 1, state_size=4)(torch.zeros(2, 5, 1))
    with pytest.raises(ShapeError, match=r"with L >= 1, got \[2, 0, 3\]"):
        LSSLClassifier(3, 2, 8, 1, state_size=4)(torch.zeros(2, 0, 3))
    with pytest.raises(OptionError, match="LSSLClassifier: `hidden_size` must be an integer >= 1"):
        LSSLClassifier(3, 2, hidden_size="wide")
    with pytest.raises(DTypeError, match=r"`x` must be a torch\.Tensor, got list"):
        LSSLClassifier(3, 2, 8, 1, state_size=4)([1.0])
    for dtype in (torch.float64, torch.int64):
        with pytest.raises(DTypeError, match=rf"`x` is {dtype}, the model torch\.float32"):
            LSSLClassifier(3, 2, 8, 1, state_size=4)(torch.zeros(2, 5, 3, dtype=dtype))
