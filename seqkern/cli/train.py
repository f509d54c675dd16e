# SPDX-License-Identifier: Apache-2.0
"""`seqkern train`: the training run as a command."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from seqkern.train import TrainSettings, train
from seqkern.train.checkpoint import LATEST

_DEFAULT = TrainSettings()
_LINEAR = ["gla", "deltanet", "gated_deltanet", "gated_deltaproduct"]
_LAYERS = click.Choice([*_LINEAR, "lstm", "gru", "rnn", "slstm"])
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
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder of checkpoints and results.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[CHECKPOINT]",
    help="Continue from a checkpoint: the latest in --out, or the one named.",
)
@click.option(
    "--timings/--no-timings", default=True, show_default=True, help="Time the other backends too."
)
@click.option("--quiet", is_flag=True, help="Print the verdict only.")
@click.pass_context
def command(
    ctx: click.Context, out: Path, resume: str | None, timings: bool, quiet: bool, **options: Any
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
    checkpoint = None
    if resume is not None:
        checkpoint = Path(resume) if resume else out / LATEST
    status = train(TrainSettings(**options), out, checkpoint, explicit, timings, quiet)
    raise SystemExit(status)
