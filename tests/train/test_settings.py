# SPDX-License-Identifier: Apache-2.0
"""What the settings of a training run refuse."""

import dataclasses

import pytest

from seqkern.train import TrainSettings
from seqkern.train.errors import TrainingError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("steps", 0),
        ("minutes", 0.0),
        ("learning_rate", -1.0),
        ("learning_rate", float("inf")),
        ("learning_rate", float("nan")),
        ("minutes", float("inf")),
        ("precision", "int8"),
        ("threads", 0),
        ("threads", 5000),
        ("text", ""),
        ("weight_decay", -0.1),
        ("weight_decay", float("inf")),
        ("seed", 2**33),
    ],
)
def test_rejects(name, value):
    with pytest.raises(TrainingError, match=f"`{name}` must be"):
        dataclasses.replace(TrainSettings(), **{name: value})
