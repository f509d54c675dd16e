# SPDX-License-Identifier: Apache-2.0
"""`seqkern train`: the training run as a command."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from seqkern.train import TrainSettings, train
from seqkern.train.checkpoint import LATEST
from seqkern.train.errors import TrainingError

_DEFAULT = TrainSettings()
_LINEAR = ["gla", "deltanet", "gated_deltanet", "gated_deltaproduct"]
_LAYERS = click.Choice([*_LINEAR, "lstm", "gru", "rnn", "slstm"])
_OUT = Path("runs/demo")
_PRECISIONS = click.Choice(["auto", "float32", "bfloat16"])


def _option(name: str, kind: Any, text: str) -> Any:
    """Make the option of a `TrainSettings` field, with that field's default."""
    default = getattr(_DEFAULT, name.removeprefix("--").replace("-", "_"))
    return click.option(name, type=kind, default=default, show_default=True, help=text)


@click.command()
@_option("--layer", _LAYERS, "Mixer of every block.")
@click.option("--text", help="File to train on, read as bytes.  [default: CPython's documentation]")
@_option("--minutes", float, "Training time.")
@click.option("--steps", type=int, help="Number of steps, instead of --minutes.")
@_option("--batch", int, "Sequences per step.")
@_option("--context", int, "Bytes per sequence.")
@_option("--learning-rate", float, "Peak of the schedule.")
@_option("--weight-decay", float, "Of AdamW, on matrices.")
@_option("--hidden-size", int, "Width of the model.")
@_option("--num-layers", int, "Blocks of the model.")
@_option("--num-heads", int, "Heads per mixer.")
@_option("--mlp-size", int, "Inner width of the MLPs.")
@_option("--precision", _PRECISIONS, "Of products in the forward and backward passes.")
@_option("--seed", int, "Of weights, batches and sample.")
@_option("--checkpoint-seconds", float, "Time between checkpoints.")
@click.option("--threads", type=int, help="Threads of torch.  [default: torch's choice]")
@click.option(
    "--out",
    metavar="DIRECTORY",
    help="Folder of checkpoints and results; what another run left there is set aside."
    f"  [default: {_OUT}, or the folder of the checkpoint named with --resume]",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[CHECKPOINT]",
    help="Continue from a checkpoint: the latest in --out, or the one named. The run goes on in "
    "--out, or, where only a checkpoint is named, in the folder it lies in.",
)
@click.option(
    "--timings/--no-timings", default=True, show_default=True, help="Time the other backends too."
)
@click.option("--quiet", is_flag=True, help="Print the verdict only.")
@click.pass_context
def command(
    ctx: click.Context,
    out: str | None,
    resume: str | None,
    timings: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a byte-level language model, measure it, and judge it in one line.

    The exit status is 0 if the model beats gzip and xz on text it has not seen, and its compiled
    kernels beat the reference, 1 if not, and 130 after Ctrl-C, which saves the run.
    """
    explicit = {
        name: value
        for name, value in options.items()
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if out == "":
        raise TrainingError("train: `out` must be the path of a folder, got ''.")
    checkpoint = Path(resume) if resume else None
    directory = Path(out) if out else checkpoint.parent if checkpoint else _OUT
    if resume == "":
        checkpoint = directory / LATEST
    status = train(TrainSettings(**options), directory, checkpoint, explicit, timings, quiet)
    raise SystemExit(status)
