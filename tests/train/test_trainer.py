# SPDX-License-Identifier: Apache-2.0
"""The parts of a training run: schedule, optimizer, a single step."""

import dataclasses
import math
import os
import signal

import pytest
import torch
from tiny_settings import TINY

from seqkern.models import ByteLM, ByteLMConfig
from seqkern.train import run as run_module
from seqkern.train import trainer as trainer_module
from seqkern.train.errors import TrainingError
from seqkern.train.progress import Progress
from seqkern.train.text import Corpus
from seqkern.train.trainer import (
    MAX_GRADIENT_NORM,
    Stop,
    Trainer,
    choose_precision,
    loss_of,
    make_optimizer,
    train_step,
)

SETTINGS = dataclasses.replace(TINY, context=8, steps=100, learning_rate=0.5, weight_decay=0.25)
TRAINED, HELD_OUT = bytes(range(200)) * 2, b"held out"
SIZES = ("layer", "hidden_size", "num_layers", "num_heads", "mlp_size")


@pytest.fixture
def model():
    return ByteLM(ByteLMConfig(**{name: getattr(SETTINGS, name) for name in SIZES}))


@pytest.fixture
def batch():
    ids = torch.randint(256, (2, 9))
    return ids[:, :-1], ids[:, 1:]


def _trainer(directory, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return Trainer(settings, Corpus("a text", TRAINED, HELD_OUT, "0"), directory)


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.01), (1, 0.2), (4, 0.8), (5, 0.5 + 0.5 * math.cos(0.05 * math.pi)), (50, 0.5), (100, 0)],
)
def test_learning_rate_warms_up_and_falls_to_zero(tmp_path, step, share):
    trainer = _trainer(tmp_path)
    trainer.history.step = step
    assert trainer._learning_rate() == pytest.approx(0.5 * share)


def test_a_run_of_minutes_is_done_by_its_seconds(tmp_path):
    trainer = _trainer(tmp_path, steps=None, minutes=2.0)
    trainer.history.seconds = 30.0
    assert trainer.done() == 0.25
    trainer.history.seconds = 130.0
    assert trainer.done() == 1.0


def test_speed_is_that_of_the_last_steps(tmp_path):
    trainer = _trainer(tmp_path)
    trainer._record(8.0, 0.5)
    assert trainer._tokens_per_second() == 32
    for _ in range(30):
        trainer._record(8.0, 0.25)
    assert trainer._tokens_per_second() == 64
    assert trainer.history.seconds == 8.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop_and_a_second_one_interrupts(number):
    before, stop = signal.getsignal(number), Stop()
    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop.signal is number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_precision_is_what_the_machine_does_best(monkeypatch):
    for native, best in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert choose_precision("auto") == best
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert choose_precision("auto") == choose_precision("float32") == "float32"
    assert choose_precision("bfloat16") == "bfloat16"


def test_the_held_out_text_is_read_eight_times(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(trainer_module, "bits_per_byte", lambda *given: read.append(given[1:]) or 8)
    trainer = _trainer(tmp_path, steps=16)
    assert trainer.run(Stop(), Progress(quiet=True))
    assert [step for step, _, _ in trainer.history.validation] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert set(read) == {(HELD_OUT, TRAINED[-1], 8, "float32")}


def test_threads_are_those_asked_for(tmp_path, monkeypatch):
    def stop(*arguments):
        raise TrainingError("stopped")

    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    monkeypatch.setattr(run_module, "load_corpus", stop)
    for threads in (None, 3):
        with pytest.raises(TrainingError, match="stopped"):
            run_module.train(dataclasses.replace(SETTINGS, threads=threads), tmp_path)
    assert seen == [3]


def test_seed_decides_about_weights_and_batches(tmp_path):
    trainers = [_trainer(tmp_path, seed=seed) for seed in (1, 1, 2)]
    first, same, other = (trainer.model.state_dict()["embedding.weight"] for trainer in trainers)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    starts = [[trainer.batches._start(i) for i in range(20)] for trainer in trainers]
    assert starts[0] == starts[1] != starts[2]


def test_only_matrices_decay(model):
    decaying, rest = make_optimizer(model, SETTINGS).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert decaying["weight_decay"] == 0.25
    assert rest["weight_decay"] == 0
    assert all(p.dim() == 2 for p in decaying["params"])
    assert {names[id(p)] for p in rest["params"] if p.dim() == 2} == {"embedding.weight"}
    assert len(decaying["params"]) + len(rest["params"]) == len(names)
    assert decaying["lr"] == rest["lr"] == 0.5


def test_a_step_uses_its_own_gradients_and_rate(model, batch):
    """Gradients are cut to their largest norm, and neither they nor the rate outlive a step."""
    with torch.no_grad():
        model.norm.weight.mul_(50)
    optimizer = make_optimizer(model, SETTINGS)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    seen = []
    for inputs in (batch, [ids.flip(0, 1) for ids in batch], batch):
        train_step(model, optimizer, inputs, "float32", learning_rate=0.0)
        seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert seen[0].norm().item() == pytest.approx(MAX_GRADIENT_NORM, rel=1e-3)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    torch.testing.assert_close(seen[2], seen[0])
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name


def test_a_gradient_that_is_not_finite_changes_no_weight(model, batch):
    optimizer = make_optimizer(model, SETTINGS)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.embedding.weight.register_hook(lambda grad: grad * math.inf)
    assert math.isnan(train_step(model, optimizer, batch, "float32", 0.1))
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name


def test_bfloat16_is_used_when_asked_for(model, batch):
    optimizer = make_optimizer(model, SETTINGS)
    narrow, wide = (train_step(model, optimizer, batch, p, 0.0) for p in ("bfloat16", "float32"))
    nats = loss_of(model, batch, "float32").item()
    assert wide == pytest.approx(nats / math.log(2))
    assert narrow != wide
    assert narrow == pytest.approx(wide, rel=0.05)
