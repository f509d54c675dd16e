# SPDX-License-Identifier: Apache-2.0
"""One run from the text to the verdict: what `seqkern train` and `make demo` do."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import torch

from seqkern._runtime import environment
from seqkern.train import checkpoint, compare, report
from seqkern.train.errors import TrainingError
from seqkern.train.evaluate import baselines
from seqkern.train.progress import Progress
from seqkern.train.settings import TrainSettings, settings_from
from seqkern.train.text import Corpus, load_corpus, memory
from seqkern.train.trainer import Stop, Trainer

SAMPLE_BYTES = 400
_PROMPT = b"\n\nThe "


def train(
    settings: TrainSettings,
    directory: Path,
    resume: Path | None = None,
    explicit: dict[str, Any] | None = None,
    timings: bool = True,
    quiet: bool = False,
) -> int:
    """Train, measure, report.

    Args:
        settings: of a new run; a resumed one takes them from its checkpoint.
        directory: where checkpoints and results go. What another run left there is set aside when
            this one writes its first checkpoint.
        resume: the checkpoint to continue from, or None for a new run.
        explicit: settings the caller named, which have to agree with those of the checkpoint.
        timings: also time the same step with the other backends.
        quiet: print nothing but the verdict.

    Returns:
        The exit status: 0 for a good verdict, 1 for a bad one, 128 + the signal when interrupted.

    Raises:
        SeqkernError: of the settings, the text, the checkpoint, the folder or the training.
    """
    say = (lambda line: None) if quiet else (lambda line: print(line, flush=True))
    state = None if resume is None else checkpoint.load(resume)
    if state is not None and resume is not None:
        saved = settings_from(state["settings"], resume)
        settings = saved.resumed(explicit or {}, resume)
        settings.check_budget(saved, state["history"]["step"], state["history"]["seconds"])
    _check_memory(settings)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    corpus = load_corpus(None if settings.text is None else Path(settings.text), settings.context)
    try:
        with checkpoint.prepare(directory):
            trainer = Trainer(settings, corpus, directory)
            if state is not None and resume is not None:
                trainer.restore(state, resume)
                say(f"continuing {resume} at step {trainer.history.step} in {directory}")
            say(_introduction(trainer))
            return _run(trainer, timings, quiet, say)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise TrainingError(
            f"train: the memory of this machine is not enough for {_sizes(settings)}. Ask for less."
        ) from error


def _run(trainer: Trainer, timings: bool, quiet: bool, say: Any) -> int:
    """Train and report, or say how to go on after a signal; return the exit status."""
    stop = Stop()
    again = _again(trainer)
    finished = False
    try:
        with stop.listening(), Progress(quiet) as progress:
            finished = trainer.run(stop, progress)
        if finished:
            return _finish(trainer, timings, say)
        said = f"at step {trainer.history.step}, which is saved. Continue with: {again}"
    except KeyboardInterrupt:
        if finished:
            said = f"after the training, which is saved. For the report: {again}"
        else:
            said = f"a second time, at step {trainer.history.step}. {trainer.last_checkpoint()}"
    number = stop.signal or signal.SIGINT
    print(f"stopped by {number.name} {said}", flush=True)
    return 128 + number


def _again(trainer: Trainer) -> str:
    return f"seqkern train --resume --out {shlex.quote(str(trainer.directory))}"


def _sizes(settings: TrainSettings) -> str:
    names = ("hidden_size", "mlp_size", "num_layers", "batch", "context")
    return ", ".join(f"{name} = {getattr(settings, name)}" for name in names)


def _check_memory(settings: TrainSettings) -> None:
    """Refuse sizes beyond the memory of this machine before the system ends the process for them.

    Raises:
        TrainingError: what every layer needs at the very least is more than there is.
    """
    s = settings
    weights = s.num_layers * s.hidden_size * (3 * s.mlp_size + 2 * s.hidden_size)
    values = s.batch * s.context * (256 + s.num_layers * (s.hidden_size + s.mlp_size))
    # A weight has two moments and a gradient; the values (2 bytes at least) are gone by then.
    needed = 12 * weights + max(4 * weights, 2 * values)
    there = memory()
    if needed > there:
        raise TrainingError(
            f"train: {_sizes(s)} need at least {needed >> 30:,} GiB, and this machine has "
            f"{there >> 30:,}. Ask for less."
        )


def _introduction(trainer: Trainer) -> str:
    corpus, settings = trainer.corpus, trainer.settings
    budget = (
        f"{settings.minutes:g} minutes" if settings.steps is None else f"{settings.steps} steps"
    )
    return (
        f"training {settings.layer} ({trainer.model.num_parameters() / 1e6:.2f} M parameters, "
        f"{trainer.precision}, {torch.get_num_threads()} threads) for {budget} on "
        f"{len(corpus.train):,} bytes: {corpus.name}"
    )


def _finish(trainer: Trainer, timings: bool, say: Any) -> int:
    """Evaluate a trained model, time it, write the report; return the exit status."""
    history, settings = trainer.history, trainer.settings
    known = history.validation and history.validation[-1][0] == history.step
    bits = history.validation[-1][2] if known else trainer.evaluate()
    sample, decode_speed = compare.time_decoding(
        trainer.model, _PROMPT, SAMPLE_BYTES, settings.seed
    )
    result = report.Result(
        settings={**settings.to_dict(), "precision": trainer.precision},
        text=_describe(trainer.corpus),
        parameters=trainer.model.num_parameters(),
        steps=history.step,
        seconds=history.seconds,
        epochs=trainer.batches.epochs(history.step),
        bits_per_byte=bits,
        baselines=baselines(trainer.corpus),
        train_tokens_per_second=trainer.tokens(history.step) / history.seconds,
        decode_tokens_per_second=decode_speed,
        sample=(_PROMPT.lstrip() + sample).decode("utf-8", errors="replace"),
        machine=environment.summary(),
        loss=history.loss,
        validation=history.validation,
    )
    if timings:
        inputs, targets = trainer.batches[history.step]
        part = slice(0, compare.MAX_SEQUENCES)
        batch = (inputs[part], targets[part])
        result.step_shape = list(batch[0].shape)
        result.step_seconds = compare.time_steps(
            trainer.model, settings, batch, trainer.precision, say
        )
    say(report.table(result))
    try:
        say(f"figures    {report.write_json(result, trainer.directory)}")
        plot = report.write_plot(result, trainer.directory)
    except OSError as error:
        raise TrainingError(
            f"train: {error.filename or trainer.directory} cannot be written: {error.strerror}. "
            f"The run is saved; for the report: {_again(trainer)}"
        ) from error
    say(f"plot       {plot or 'none: matplotlib is not installed'}")
    good, line = report.verdict(result)
    print(line)
    return 0 if good else 1


def _describe(corpus: Corpus) -> dict[str, Any]:
    return {
        "name": corpus.name,
        "sha256": corpus.digest,
        "train_bytes": len(corpus.train),
        "held_out_bytes": len(corpus.held_out),
    }
