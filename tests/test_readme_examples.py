# SPDX-License-Identifier: Apache-2.0
"""The examples in the README run as they stand, given the tensors that they only name."""

import re
from pathlib import Path

import pytest
import torch

from seqkern.nn import GatedLinearAttention

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"### ([^\n]*)\n(?:(?!###).)*?```python\n(.*?)```", README, re.DOTALL)


def _attention():
    q, k, v = torch.randn(3, 2, 8, 4, 16)
    return {"q": q, "k": k, "v": v}


def _fla():
    state = GatedLinearAttention(hidden_size=1024, num_heads=4).state_dict()
    gate, h0 = -torch.rand(2, 8, 4, 16), torch.zeros(2, 4, 16, 16)
    return {**_attention(), "g": gate, "h0": h0, "state_dict_of_fla": state}


def _torch_nn():
    layer = torch.nn.LSTM(768, 768, num_layers=2, batch_first=True, bidirectional=True)
    model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
    return {"state_dict_of_torch": layer.state_dict(), "x": torch.randn(2, 5, 768), "model": model}


def _flashrnn():
    inputs = {name: torch.randn(2, 5, 4, 2, 16) for name in ("Wx", "Wx2")}
    weights = {"R": torch.randn(4, 2, 16, 16), "b": torch.randn(4, 2, 16)}
    return {**inputs, **weights, "Wx3": torch.randn(2, 4, 2, 16)}


def _mamba():
    inputs = {name: torch.rand(2, 8, 5) for name in ("u", "delta", "z")}
    inputs |= {"A": -torch.rand(8, 4), "D": torch.rand(8), "x": torch.randn(2, 5, 256)}
    inputs |= {name: torch.randn(2, 4, 5) for name in "BC"}
    scan = {name: torch.rand(2, 5, 3) for name in "ab"}
    return {**inputs, **scan, **_attention(), "decay": torch.rand(2, 8, 4, 16)}


def _serving():
    return {"torch": torch, "prompt": torch.randn(1, 5, 256), "next_token": torch.randn(1, 1, 256)}


GIVEN = {
    "Coming from flash-linear-attention": _fla,
    "Coming from torch.nn": _torch_nn,
    "Coming from FlashRNN": _flashrnn,
    "Mamba": _mamba,
    "Serving": _serving,
}


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_an_example_runs(title, code):
    given = next((make for start, make in GIVEN.items() if title.startswith(start)), dict)
    exec(code, given())


def test_every_example_is_run():
    assert len(BLOCKS) == README.count("```python\n")
