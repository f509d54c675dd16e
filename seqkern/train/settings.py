# SPDX-License-Identifier: Apache-2.0
"""Settings of a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from seqkern.train.errors import NothingToDoError, TrainingError

# What a resumed run may change: when to stop, where the text lies, and how often to save.
FREE_ON_RESUME = frozenset({"minutes", "steps", "text", "checkpoint_seconds", "threads"})

# The batches of every epoch are drawn with a multiple of the seed, which has to fit in 64 bits.
MAX_SEED = 2**32

# More than any machine has processors; a few times as many, and threads cannot be started.
MAX_THREADS = 4096


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a run.

    Attributes:
        layer: mixer of the model, a key of `seqkern.models.LAYERS`.
        hidden_size, num_layers, num_heads, mlp_size: sizes of the model.
        text: path of the training text, or None for CPython's documentation topics.
        context: bytes per training sequence.
        batch: sequences per step.
        minutes: training time; evaluations and checkpoints are not counted. Used without ``steps``.
        steps: number of optimizer steps; the schedule then depends on nothing but the step.
        learning_rate: peak of the schedule (warm-up over 5 %, then a cosine to zero).
        weight_decay: on matrices only.
        seed: of the weights, the batches and the sample.
        precision: "float32" or "bfloat16" (autocast), or "auto" for what this CPU does best.
        checkpoint_seconds: an interrupted run loses at most this much time.
        threads: of torch; None leaves them as they are.
    """

    layer: str = "gated_deltanet"
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    mlp_size: int = 704
    text: str | None = None
    context: int = 256
    batch: int = 4
    minutes: float = 2.0
    steps: int | None = None
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0
    precision: str = "auto"
    checkpoint_seconds: float = 20.0
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work."""
        positive = ("hidden_size", "num_layers", "num_heads", "mlp_size", "context", "batch")
        for name in positive:
            value = getattr(self, name)
            if value < 1:
                raise TrainingError(f"train: `{name}` must be at least 1, got {value}.")
        for name in ("steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"train: `{name}` must be at least 1, got {value}.")
        if self.threads is not None and self.threads > MAX_THREADS:
            raise TrainingError(
                f"train: `threads` must be at most {MAX_THREADS}, got {self.threads}."
            )
        if not self.checkpoint_seconds > 0:
            raise TrainingError(
                f"train: `checkpoint_seconds` must be above 0, got {self.checkpoint_seconds}."
            )
        for name in ("minutes", "learning_rate"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise TrainingError(f"train: `{name}` must be above 0 and finite, got {value}.")
        if not 0 <= self.weight_decay < math.inf:
            raise TrainingError(
                f"train: `weight_decay` must be at least 0 and finite, got {self.weight_decay}."
            )
        if not abs(self.seed) <= MAX_SEED:
            raise TrainingError(
                f"train: `seed` must be between -{MAX_SEED} and {MAX_SEED}, got {self.seed}."
            )
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise TrainingError(
                f"train: `precision` must be auto, float32 or bfloat16, got {self.precision!r}."
            )
        if self.text == "":
            raise TrainingError("train: `text` must be the path of a file, got ''.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    def resumed(self, explicit: dict[str, Any], path: Path) -> TrainSettings:
        """Apply what the caller named explicitly to the settings of a checkpoint.

        Raises:
            TrainingError: one of them would make another model or another run of it.
        """
        if explicit.get("precision") == "auto":  # what it chose for the run is saved
            explicit = {**explicit, "precision": self.precision}
        for name, value in explicit.items():
            if name not in FREE_ON_RESUME and value != getattr(self, name):
                raise TrainingError(
                    f"train: `{name}` is {getattr(self, name)!r} in {path}, and cannot become "
                    f"{value!r} there. Leave it out, or start again without --resume."
                )
        changed = {**self.to_dict(), **explicit}
        if "minutes" in explicit and "steps" not in explicit:
            changed["steps"] = None
        return TrainSettings(**changed)

    def check_budget(self, saved: TrainSettings, step: int, seconds: float) -> None:
        """Refuse a new budget that a run has already passed.

        Args:
            saved: the settings the run had so far; their own budget may be spent.
            step, seconds: what the run has done.

        Raises:
            NothingToDoError: it is below ``step``, or below ``seconds``.
        """
        if (self.steps, self.minutes) == (saved.steps, saved.minutes):
            return
        if self.steps is not None and self.steps < step:
            raise NothingToDoError(
                f"train: nothing to do: the run is at step {step}, beyond the {self.steps} asked "
                f"for. Ask for more than {step} steps."
            )
        if self.steps is None and 60 * self.minutes < seconds:
            raise NothingToDoError(
                f"train: nothing to do: the run has trained for {seconds / 60:.3g} minutes, longer "
                f"than the {self.minutes:g} asked for. Ask for more minutes."
            )


def settings_from(saved: dict[str, Any], path: Path) -> TrainSettings:
    """Rebuild the settings that a checkpoint holds.

    Raises:
        TrainingError: another version wrote other names.
    """
    names = {field.name for field in fields(TrainSettings)}
    if set(saved) != names:
        different = ", ".join(sorted(set(saved) ^ names))
        raise TrainingError(
            f"train: {path} was written by another version (it differs in {different}). "
            "Start again without --resume."
        )
    return TrainSettings(**saved)
