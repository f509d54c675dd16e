# SPDX-License-Identifier: Apache-2.0
"""Whole runs on tiny models: they learn, resume bit for bit, and survive interruption."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from seqkern.models import LAYERS
from seqkern.train import TrainSettings, checkpoint, train
from seqkern.train.errors import CheckpointError, TrainingError
from seqkern.train.progress import Progress
from seqkern.train.text import load_corpus
from seqkern.train.trainer import Stop, Trainer

TINY = TrainSettings(
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    mlp_size=24,
    context=24,
    batch=2,
    steps=12,
    precision="float32",
)
SIZES = ["--hidden-size=16", "--num-layers=1", "--num-heads=2", "--mlp-size=24", "--context=24"]
SIZES += ["--batch=2", "--no-timings", "--precision=float32"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    words = ("the", "state", "of", "a", "head", "decays", "and", "is", "written", "again")
    draw = random.Random(0)
    path.write_text(" ".join(draw.choice(words) for _ in range(4000)))
    return path


class StopAfter(Stop):
    """Asks to stop once a number of steps is done."""

    def __init__(self, trainer, steps):
        self._trainer, self._steps = trainer, steps

    @property
    def signal(self):
        return signal.SIGINT if self._trainer.history.step >= self._steps else None


def _trainer(settings, directory, text):
    return Trainer(settings, load_corpus(text, settings.context), directory)


def _run(trainer, stop=None):
    return trainer.run(stop or Stop(), Progress(quiet=True))


def _command(*arguments):
    return [sys.executable, "-m", "seqkern.cli", "train", *SIZES, *map(str, arguments)]


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_learns(layer, tmp_path, text):
    settings = dataclasses.replace(TINY, layer=layer, steps=40)
    trainer = _trainer(settings, tmp_path / "run", text)
    assert _run(trainer)
    losses = [loss for _, _, loss in trainer.history.loss]
    assert losses[0] > 7.5
    assert losses[-1] < losses[0] - 1
    assert trainer.history.validation[-1][2] < 7


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, text):
    whole = _trainer(TINY, tmp_path / "whole", text)
    assert _run(whole)
    first = _trainer(TINY, tmp_path / "parts", text)
    assert not _run(first, StopAfter(first, 5))
    torch.manual_seed(999)
    path = tmp_path / "parts" / checkpoint.LATEST
    second = _trainer(TINY, tmp_path / "parts", text)
    second.restore(checkpoint.load(path), path)
    assert second.history.step == 5
    assert _run(second)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    states = whole.optimizer.state_dict()["state"], second.optimizer.state_dict()["state"]
    for a, b in zip(states[0].values(), states[1].values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert [p[2] for p in whole.history.loss] == [p[2] for p in second.history.loss]
    assert [p[2] for p in whole.history.validation] == [p[2] for p in second.history.validation]
    assert torch.equal(
        checkpoint.load(tmp_path / "whole" / checkpoint.LATEST)["rng"],
        checkpoint.load(path)["rng"],
    )


def test_the_report_holds_every_backend(tmp_path, text, capsys):
    settings = dataclasses.replace(TINY, steps=3, text=str(text))
    status = train(settings, tmp_path / "run")
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert status in (0, 1)
    assert printed.splitlines()[-1].startswith("PASS: " if status == 0 else "FAIL: ")
    assert {"torch, chunked", 'backend="reference"'} <= set(result["step_seconds"])
    assert set(result["baselines"]) == {"uniform", "gzip", "xz", "xz after the training text"}
    assert result["steps"] == 3
    assert result["decode_tokens_per_second"] > 0
    assert len(result["sample"]) > 100


def test_a_finished_run_resumes_to_its_report(tmp_path, text, capsys):
    settings = dataclasses.replace(TINY, text=str(text))
    train(settings, tmp_path, timings=False)
    first = json.loads((tmp_path / "result.json").read_text())
    train(settings, tmp_path, resume=tmp_path / checkpoint.LATEST, timings=False)
    again = json.loads((tmp_path / "result.json").read_text())
    assert "at step 12" in capsys.readouterr().out
    assert again["bits_per_byte"] == first["bits_per_byte"]
    assert again["sample"] == first["sample"]


def test_more_steps_can_be_asked_for(tmp_path, text):
    settings = dataclasses.replace(TINY, text=str(text), steps=4)
    train(settings, tmp_path, timings=False, quiet=True)
    latest = tmp_path / checkpoint.LATEST
    train(settings, tmp_path, latest, {"steps": 9}, timings=False, quiet=True)
    assert checkpoint.load(latest)["history"]["step"] == 9


def test_the_same_command_resumes(tmp_path, text):
    """Also one that left the precision to the machine."""
    settings = dataclasses.replace(TINY, text=str(text), steps=2, precision="auto")
    train(settings, tmp_path, timings=False, quiet=True)
    latest = tmp_path / checkpoint.LATEST
    train(settings, tmp_path, latest, {"precision": "auto", "steps": 3}, timings=False, quiet=True)
    assert checkpoint.load(latest)["history"]["step"] == 3


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        ({"layer": "gla"}, "`layer` is 'gated_deltanet' in .*latest.ckpt, and cannot become 'gla'"),
        ({"seed": 3}, "`seed` is 0 in"),
    ],
    ids=["layer", "seed"],
)
def test_resume_refuses_another_run(tmp_path, text, explicit, message):
    settings = dataclasses.replace(TINY, text=str(text), steps=1)
    train(settings, tmp_path, timings=False, quiet=True)
    with pytest.raises(TrainingError, match=message):
        train(settings, tmp_path, tmp_path / checkpoint.LATEST, explicit)


def test_resume_refuses_another_text(tmp_path, text):
    settings = dataclasses.replace(TINY, text=str(text), steps=1)
    train(settings, tmp_path, timings=False, quiet=True)
    text.write_text(text.read_text() + "more")
    with pytest.raises(CheckpointError, match="was trained on another text"):
        train(settings, tmp_path, tmp_path / checkpoint.LATEST)


def test_a_new_run_keeps_the_checkpoint_of_the_old_one(tmp_path, text):
    settings = dataclasses.replace(TINY, text=str(text), steps=2)
    train(settings, tmp_path, timings=False, quiet=True)
    train(dataclasses.replace(settings, steps=1), tmp_path, timings=False, quiet=True)
    assert checkpoint.load(tmp_path / checkpoint.EARLIER)["history"]["step"] == 2
    assert checkpoint.load(tmp_path / checkpoint.LATEST)["history"]["step"] == 1


def test_a_diverged_run_stops_and_keeps_its_checkpoint(tmp_path, text):
    trainer = _trainer(TINY, tmp_path, text)
    trainer.save()
    with torch.no_grad():
        trainer.model.embedding.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="the loss is nan at step 0"):
        _run(trainer)
    saved = checkpoint.load(tmp_path / checkpoint.LATEST)["model"]
    assert all(torch.isfinite(x).all() for x in saved.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("steps", 0),
        ("minutes", 0.0),
        ("learning_rate", -1.0),
        ("precision", "int8"),
        ("threads", 0),
        ("weight_decay", -0.1),
        ("seed", 2**33),
    ],
)
def test_rejects(name, value):
    with pytest.raises(TrainingError, match=f"`{name}` must be"):
        dataclasses.replace(TINY, **{name: value})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on(number, tmp_path, text):
    run = tmp_path / "run"
    long = ["--text", text, "--out", run, "--checkpoint-seconds", 0.05, "--steps", 1_000_000]
    with subprocess.Popen(_command(*long), stdout=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 120
        while not (run / checkpoint.PREVIOUS).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(number)
        printed = child.communicate(timeout=60)[0]
    step = checkpoint.load(run / checkpoint.LATEST)["history"]["step"]
    if number == signal.SIGKILL:
        assert child.returncode == -number
    else:
        assert child.returncode == 128 + number
        assert f"stopped by {number.name} at step {step}, which is saved" in printed
        assert f"--resume --out {run}" in printed
    done = subprocess.run(
        _command("--resume", "--out", run, "--steps", step + 2),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert f"at step {step}" in done.stdout, done.stderr
    assert checkpoint.load(run / checkpoint.LATEST)["history"]["step"] == step + 2
