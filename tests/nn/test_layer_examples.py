# SPDX-License-Identifier: Apache-2.0
"""The example in every layer's docstring runs as it stands, and its shapes are what it says."""

import re

import pytest
import torch

from seqkern import nn

LAYERS = [
    layer
    for layer in map(vars(nn).get, nn.__all__)
    if isinstance(layer, type) and issubclass(layer, torch.nn.Module)
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda c: c.__name__)
def test_an_example_runs(layer):
    lines = re.findall(r">>> (.*)", layer.__doc__)
    assert lines
    names = {"torch": torch, **{name: getattr(nn, name) for name in nn.__all__}}
    for line in lines:
        exec(line, names)
        output, shape = re.match(r"(\w+)[^#]*(?:# (\[.*\]))?", line).groups()
        if shape:
            assert str(list(names[output].shape)) == shape
