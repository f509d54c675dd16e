# SPDX-License-Identifier: Apache-2.0
"""What the settings of a training run refuse."""

import dataclasses
from pathlib import Path

import pytest

from seqkern.train import TrainSettings
from seqkern.train.errors import TrainingError
from seqkern.train.settings import FREE_ON_RESUME, settings_from


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
        ("seed", -(2**33)),
        ("checkpoint_seconds", 0.0),
    ],
)
def test_rejects(name, value):
    with pytest.raises(TrainingError, match=f"`{name}` must be"):
        dataclasses.replace(TrainSettings(), **{name: value})


def test_what_a_resumed_run_may_change():
    path, saved = Path("latest.ckpt"), TrainSettings(text="a", steps=5, threads=1)
    asked = {"minutes": 7.0, "steps": 9, "text": "b", "checkpoint_seconds": 3.0, "threads": 2}
    assert set(asked) == FREE_ON_RESUME
    assert saved.resumed(asked, path) == dataclasses.replace(saved, **asked)
    assert saved.resumed({"minutes": 7.0}, path).steps is None
    for name in set(saved.to_dict()) - FREE_ON_RESUME:
        with pytest.raises(TrainingError, match=f"`{name}` is .* in latest.ckpt, and cannot"):
            saved.resumed({name: "another"}, path)


@pytest.mark.parametrize("change", [{"layers": 2}, {"seed": None}], ids=["more", "fewer"])
def test_settings_of_another_version_are_refused(change):
    saved = {**TrainSettings().to_dict(), **change}
    saved = {name: value for name, value in saved.items() if value is not None or name != "seed"}
    (name,) = change
    with pytest.raises(TrainingError, match=rf"another version \(it differs in {name}\)"):
        settings_from(saved, Path("latest.ckpt"))
