# SPDX-License-Identifier: Apache-2.0
"""The `seqkern` command; each subcommand is imported only when it is called."""

import sys


def main() -> None:
    """Run the command line of this process."""
    from seqkern._runtime.errors import SeqkernError
    from seqkern.cli._group import group

    try:
        group(prog_name="seqkern")
    except SeqkernError as error:
        print(f"seqkern: {error}", file=sys.stderr)
        raise SystemExit(1) from None
