# SPDX-License-Identifier: Apache-2.0
"""The command group, with its subcommands imported on demand."""

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import click

import seqkern
from seqkern.cli import INTERRUPTED, interrupted

# Command, and what the list of commands says about it.
COMMANDS = {
    "info": "Show versions, instruction sets and backends of this machine.",
    "check": "Compare every op with its reference on this machine.",
    "bench": "Measure the ops against their peers.",
    "train": "Train a byte-level language model and judge it.",
}


class LazyGroup(click.Group):
    """Imports ``seqkern.cli.<command>`` when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            return None
        with _interruptible():
            return importlib.import_module(f"seqkern.cli.{cmd_name}").command

    def invoke(self, ctx: click.Context) -> Any:
        """Import and run one command; Ctrl-C gets the status that shells expect, 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # click would make it status 1
            interrupted()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process at once; code that torch imports swallows some interrupts."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def leave(number: int, frame: Any) -> None:
        sys.stderr.write(f"{INTERRUPTED}\n")
        sys.stderr.flush()
        os._exit(128 + number)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(seqkern.__version__, prog_name="seqkern")
def group() -> None:
    """Fast, exact recurrent sequence kernels for PyTorch."""
