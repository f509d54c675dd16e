# SPDX-License-Identifier: Apache-2.0
"""The training loop: schedule, steps, evaluations, checkpoints, interruption."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from seqkern.models import ByteLM, ByteLMConfig
from seqkern.train import checkpoint
from seqkern.train.errors import CheckpointError, TrainingError
from seqkern.train.evaluate import bits_per_byte
from seqkern.train.progress import Progress
from seqkern.train.settings import TrainSettings
from seqkern.train.text import Batches, Corpus

WARM_UP = 0.05
MAX_GRADIENT_NORM = 1.0
_EVALUATIONS = 8


@dataclass
class History:
    """What a run has seen so far; it is part of every checkpoint.

    Attributes:
        step: finished optimizer steps.
        seconds: training time, without evaluations and checkpoints.
        loss: [step, seconds, bits per byte] of every training batch.
        validation: [step, seconds, bits per byte] of the held-out text.
    """

    step: int = 0
    seconds: float = 0.0
    loss: list[list[float]] = field(default_factory=list)
    validation: list[list[float]] = field(default_factory=list)


class Stop:
    """Turns SIGINT and SIGTERM into a request to stop after the current step."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Catch the first signal; a second one interrupts at once."""
        previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: Any) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


def choose_precision(wanted: str) -> str:
    """Resolve "auto": bfloat16 where the CPU multiplies it natively, else float32."""
    if wanted != "auto":
        return wanted
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bfloat16" if native else "float32"


class Trainer:
    """One run: model, optimizer, batches and their common state."""

    def __init__(self, settings: TrainSettings, corpus: Corpus, directory: Path):
        self.settings = settings
        self.corpus = corpus
        self.directory = directory
        self.precision = choose_precision(settings.precision)
        torch.manual_seed(settings.seed)
        self.model = ByteLM(
            ByteLMConfig(
                layer=settings.layer,
                hidden_size=settings.hidden_size,
                num_layers=settings.num_layers,
                num_heads=settings.num_heads,
                mlp_size=settings.mlp_size,
            )
        )
        self.optimizer = make_optimizer(self.model, settings)
        self.batches = Batches(corpus.train, settings.context, settings.batch, settings.seed)
        self.history = History()
        self._saved: Path | None = None  # the last checkpoint of this run
        self._aside: Path | None = None  # what another run left, once it is set aside

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Take over everything a checkpoint holds.

        Raises:
            CheckpointError: it belongs to another text or model.
        """
        if state["text_digest"] != self.corpus.digest:
            raise CheckpointError(
                f"checkpoint: {path} was trained on another text than {self.corpus.name}. Name the "
                "same text with --text, or start again without --resume."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = History(**state["history"])
        torch.set_rng_state(state["rng"])
        self._saved = path

    def save(self) -> Path:
        """Write a checkpoint; see `seqkern.train.checkpoint.save`.

        Whatever another run left in the directory is set aside first.

        Raises:
            TrainingError: a weight or the loss is not finite, so nothing was written.
        """
        self._check_finite()
        last = self._saved

        def make_room() -> None:
            if last is None or not checkpoint.is_latest(last, self.directory):
                self._aside = checkpoint.set_aside(self.directory, keep=last)

        text = self.settings.text
        saved = {
            "precision": self.precision,
            # A resumed run may start in another folder.
            "text": None if text is None else str(Path(text).absolute()),
        }
        state = {
            "settings": {**self.settings.to_dict(), **saved},
            "text_digest": self.corpus.digest,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": vars(self.history),
            "rng": torch.get_rng_state(),
        }
        self._saved = checkpoint.save(self.directory, state, make_room)
        return self._saved

    def last_checkpoint(self) -> str:
        """Say which checkpoint of this run there is, or of another one in the directory."""
        if self._saved is not None:
            return f"The last checkpoint, {self._saved}, is from before."
        other = checkpoint.newest(self.directory)
        said = "There is no checkpoint of this run"
        return f"{said}." if other is None else f"{said}; {other} is of an earlier one."

    def _check_finite(self) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            raise self._diverged("a weight is not finite")
        with torch.no_grad():
            loss = loss_of(self.model, self.batches[self.history.step], self.precision).item()
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"train: {what} at step {self.history.step}. {self.last_checkpoint()} Start again with "
            "a lower --learning-rate."
        )

    def done(self) -> float:
        """Return the finished share of the run, 0 to 1."""
        if self.settings.steps is not None:
            return min(1.0, self.history.step / self.settings.steps)
        return min(1.0, self.history.seconds / (60 * self.settings.minutes))

    def run(self, stop: Stop, progress: Progress) -> bool:
        """Train until the budget is spent; return False if ``stop`` came first.

        Raises:
            TrainingError: the loss or a weight is not a number any more.
            CheckpointError: a checkpoint cannot be written.
        """
        last_save = time.perf_counter()
        next_evaluation = math.floor(self.done() * _EVALUATIONS + 1) / _EVALUATIONS
        while self.done() < 1 and stop.signal is None:
            started = time.perf_counter()
            loss = train_step(
                self.model,
                self.optimizer,
                self.batches[self.history.step],
                self.precision,
                self._learning_rate(),
            )
            self._record(loss, time.perf_counter() - started)
            progress.update(self.done(), self.history.step, loss, self._tokens_per_second())
            if self.done() >= next_evaluation:
                self.evaluate()
                progress.note(self._validation_line())
                next_evaluation = math.floor(self.done() * _EVALUATIONS + 1) / _EVALUATIONS
            if time.perf_counter() - last_save >= self.settings.checkpoint_seconds:
                self._save(progress)
                last_save = time.perf_counter()
        self._save(progress)
        return stop.signal is None

    def evaluate(self) -> float:
        """Measure bits per byte of the held-out text and add them to the history."""
        before = self.corpus.train[-1]
        result = bits_per_byte(
            self.model, self.corpus.held_out, before, self.settings.context, self.precision
        )
        self.history.validation.append([self.history.step, self.history.seconds, result])
        return result

    def tokens(self, steps: int) -> int:
        """Count the bytes that ``steps`` steps read."""
        return steps * self.settings.batch * self.settings.context

    def _save(self, progress: Progress) -> None:
        self.save()
        if self._aside is not None:
            size = checkpoint.size_aside(self.directory) / 1e6
            progress.note(
                f"the checkpoint of an earlier run is now {self._aside}; all that is set aside in "
                f"its folder takes {size:,.1f} MB"
            )
            self._aside = None

    def _record(self, loss: float, seconds: float) -> None:
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        self.history.step += 1
        self.history.seconds += seconds
        self.history.loss.append([self.history.step, self.history.seconds, loss])

    def _learning_rate(self) -> float:
        done = self.done()
        if done < WARM_UP:
            return self.settings.learning_rate * max(done / WARM_UP, 0.01)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _tokens_per_second(self) -> float:
        window = self.history.loss[-20:]
        if len(window) < 2:
            return self.tokens(1) / window[0][1]
        return self.tokens(len(window) - 1) / (window[-1][1] - window[0][1])

    def _validation_line(self) -> str:
        step, seconds, bits = self.history.validation[-1]
        return f"step {step:5.0f}  {seconds:5.0f} s  held-out {bits:.3f} bits/byte"


def make_optimizer(model: ByteLM, settings: TrainSettings) -> torch.optim.Optimizer:
    """Build AdamW; only matrices decay, the embedding and the layers' gate parameters do not."""
    decaying = [
        p for name, p in model.named_parameters() if p.dim() == 2 and name != "embedding.weight"
    ]
    known = {id(p) for p in decaying}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [
        {"params": decaying, "weight_decay": settings.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def loss_of(
    model: ByteLM, batch: tuple[torch.Tensor, torch.Tensor], precision: str
) -> torch.Tensor:
    """Return the loss of a model on (inputs, targets) in nats per byte, a float32 scalar."""
    inputs, targets = batch
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        logits, _ = model(inputs)
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def train_step(
    model: ByteLM,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    precision: str,
    learning_rate: float,
) -> float:
    """Do one optimizer step on (inputs, targets) and return the loss in bits per byte.

    When a gradient is not finite the weights stay as they are and the result is nan.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(model, batch, precision)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
    if not torch.isfinite(norm):
        return math.nan
    optimizer.step()
    return loss.item() / math.log(2)
