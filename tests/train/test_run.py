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
from tiny_settings import TINY

from seqkern.models import LAYERS
from seqkern.train import checkpoint, compare, report, train
from seqkern.train import run as run_module
from seqkern.train.errors import CheckpointError, NothingToDoError, TrainingError
from seqkern.train.progress import Progress
from seqkern.train.text import load_corpus
from seqkern.train.trainer import Stop, Trainer

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


def _step(path):
    return checkpoint.load(path)["history"]["step"]


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


def test_a_run_resumes_from_another_folder(tmp_path, text, monkeypatch):
    monkeypatch.chdir(text.parent)
    settings = dataclasses.replace(TINY, text=text.name, steps=1)
    train(settings, tmp_path, timings=False, quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    latest = tmp_path / checkpoint.LATEST
    train(settings, tmp_path, latest, {"steps": 2}, timings=False, quiet=True)
    assert _step(latest) == 2


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
    assert _step(tmp_path / checkpoint.EARLIER) == 2
    assert _step(tmp_path / checkpoint.LATEST) == 1


def test_a_third_run_keeps_everything_of_both(tmp_path, text, capsys):
    for steps in (3, 2, 1):
        settings = dataclasses.replace(TINY, text=str(text), steps=steps)
        train(settings, tmp_path, timings=False)
    aside = tmp_path / "earlier-2.ckpt"
    printed = capsys.readouterr().out
    size = sum(path.stat().st_size for path in tmp_path.glob("earlier*")) / 1e6
    assert size > 0.01
    assert f"the checkpoint of an earlier run is now {aside}; all that is set" in printed
    assert f"takes {size:,.1f} MB" in printed
    for stem, steps in (("earlier", 3), ("earlier-2", 2)):
        assert _step(tmp_path / f"{stem}.ckpt") == steps
        assert json.loads((tmp_path / f"{stem}.json").read_text())["steps"] == steps


def test_a_new_run_leaves_the_old_one_alone_until_it_saves(tmp_path, text):
    old = _trainer(TINY, tmp_path, text)
    old.save()
    new = _trainer(TINY, tmp_path, text)
    assert not (tmp_path / checkpoint.EARLIER).exists()
    new.save()
    assert (tmp_path / checkpoint.EARLIER).exists()
    new.save()
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == [
        checkpoint.EARLIER,
        checkpoint.LATEST,
        checkpoint.PREVIOUS,
    ]


def test_a_checkpoint_continued_elsewhere_overwrites_nothing(tmp_path, text, capsys):
    first, other = tmp_path / "first", tmp_path / "other"
    for directory, steps in ((first, 3), (other, 5)):
        settings = dataclasses.replace(TINY, text=str(text), steps=steps)
        train(settings, directory, timings=False)
    train(settings, other, first / checkpoint.LATEST, {"steps": 4}, timings=False)
    assert f"earlier run is now {other / checkpoint.EARLIER}" in capsys.readouterr().out
    assert _step(first / checkpoint.LATEST) == 3
    assert _step(other / checkpoint.LATEST) == 4
    assert _step(other / checkpoint.EARLIER) == 5
    assert json.loads((other / "earlier.json").read_text())["steps"] == 5


def test_what_was_set_aside_can_go_on_beside_the_new_run(tmp_path, text):
    settings = dataclasses.replace(TINY, text=str(text), steps=3)
    train(settings, tmp_path, timings=False, quiet=True)
    train(dataclasses.replace(settings, steps=5), tmp_path, timings=False, quiet=True)
    earlier = tmp_path / checkpoint.EARLIER
    train(settings, tmp_path, earlier, {"steps": 4}, timings=False, quiet=True)
    assert _step(earlier) == 3
    assert _step(tmp_path / checkpoint.LATEST) == 4
    assert _step(tmp_path / "earlier-2.ckpt") == 5


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"steps": 2}, "nothing to do: the run is at step 6, beyond the 2 asked for. Ask for more"),
        ({"minutes": 1e-9}, "the run has trained for .* minutes, longer than the 1e-09 asked for"),
    ],
    ids=["steps", "minutes"],
)
def test_less_than_was_done_is_refused(tmp_path, text, asked, message):
    settings = dataclasses.replace(TINY, text=str(text), steps=6)
    train(settings, tmp_path, timings=False, quiet=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path != text}
    with pytest.raises(NothingToDoError, match=message):
        train(settings, tmp_path, tmp_path / checkpoint.LATEST, asked, timings=False)
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_of_minutes_resumes_to_its_report(tmp_path, text):
    settings = dataclasses.replace(TINY, text=str(text), steps=None, minutes=1e-4)
    train(settings, tmp_path, timings=False, quiet=True)
    (tmp_path / report.RESULT).unlink()
    asked = {"minutes": 1e-4}
    train(settings, tmp_path, tmp_path / checkpoint.LATEST, asked, timings=False, quiet=True)
    assert (tmp_path / report.RESULT).exists()


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
    ("value", "message"),
    [(torch.nan, "a weight is not finite at step 0"), (1e38, "the loss is (nan|inf) at step 0")],
    ids=["weights", "loss"],
)
def test_a_diverged_model_is_not_saved(tmp_path, text, value, message):
    directory = tmp_path / "run"
    trainer = _trainer(TINY, directory, text)
    with torch.no_grad():
        trainer.model.embedding.weight.mul_(1e10)
        trainer.model.norm.weight.fill_(value)
    with pytest.raises(
        TrainingError, match=f"{message}. There is no checkpoint of this run. Start"
    ):
        trainer.save()
    assert not directory.exists()


def test_a_diverged_run_names_only_checkpoints_that_are_there(tmp_path, text):
    _trainer(TINY, tmp_path, text).save()
    settings = dataclasses.replace(TINY, text=str(text), learning_rate=1e38)
    latest = tmp_path / checkpoint.LATEST
    other = f"There is no checkpoint of this run; {latest} is of an earlier one."
    with pytest.raises(TrainingError, match=other):
        train(settings, tmp_path, quiet=True)
    aside = checkpoint.set_aside(tmp_path)
    with pytest.raises(TrainingError, match=f"{aside} is of an earlier one"):
        train(settings, tmp_path, quiet=True)
    trainer = _trainer(TINY, tmp_path, text)
    trainer.save()
    assert trainer.last_checkpoint() == f"The last checkpoint, {latest}, is from before."


def _interrupt(*arguments, **options):
    raise KeyboardInterrupt


def test_an_interrupted_report_can_be_had_later(tmp_path, text, capsys, monkeypatch):
    directory = tmp_path / "my run"
    settings = dataclasses.replace(TINY, text=str(text))
    with monkeypatch.context() as patch:
        patch.setattr(compare, "time_decoding", _interrupt)
        assert train(settings, directory, timings=False, quiet=True) == 130
    printed = capsys.readouterr().out
    assert "stopped by SIGINT after the training, which is saved. For the report: " in printed
    assert printed.endswith(f"seqkern train --resume --out '{directory}'\n")
    assert not (directory / report.RESULT).exists()
    train(settings, directory, directory / checkpoint.LATEST, timings=False, quiet=True)
    assert json.loads((directory / report.RESULT).read_text())["steps"] == TINY.steps


def test_a_second_signal_stops_at_once(tmp_path, text, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "save", _interrupt)
    settings = dataclasses.replace(TINY, text=str(text))
    assert train(settings, tmp_path, quiet=True) == 130
    printed = capsys.readouterr().out
    assert "SIGINT a second time, at step 12. There is no checkpoint of this run." in printed


def test_a_report_that_cannot_be_written_says_how_to_get_it(tmp_path, text, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "result.json")

    monkeypatch.setattr(report, "write_json", full)
    settings = dataclasses.replace(TINY, text=str(text), steps=1)
    with pytest.raises(TrainingError, match=r"result.json cannot be written: No space .* is saved"):
        train(settings, tmp_path, timings=False, quiet=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mlp_size", 10**9), ("batch", 10**9), ("hidden_size", 10**8), ("num_layers", 10**300)],
)
def test_sizes_beyond_the_memory_are_refused(tmp_path, text, name, value):
    settings = dataclasses.replace(TINY, text=str(text), **{name: value})
    with pytest.raises(TrainingError, match=rf"{name} = {value}.* need at least [\d,]+ GiB"):
        train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_allocation_that_fails_is_one_sentence(tmp_path, text, monkeypatch):
    monkeypatch.setattr(run_module, "Trainer", lambda *arguments: torch.empty(2**60))
    settings = dataclasses.replace(TINY, text=str(text))
    with pytest.raises(
        TrainingError, match="the memory of this machine is not enough for hidden_s"
    ):
        train(settings, tmp_path)


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
