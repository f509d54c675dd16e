# SPDX-License-Identifier: Apache-2.0
"""The command group, with its subcommands imported on demand."""

import importlib

import click

import seqkern

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
        return importlib.import_module(f"seqkern.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(seqkern.__version__, prog_name="seqkern")
def group() -> None:
    """Fast, exact recurrent sequence kernels for PyTorch."""
