# SPDX-License-Identifier: Apache-2.0
"""The `seqkern` command; each subcommand is imported only when it is called."""

import io
import sys
from typing import NoReturn

INTERRUPTED = "seqkern: interrupted"


def main() -> None:
    """Run the command line of this process."""
    # A sample or a path may hold what the terminal's encoding does not: no reason to end a run.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _main()
    except KeyboardInterrupt:
        interrupted()


def interrupted() -> NoReturn:
    """End the process as one that Ctrl-C stopped."""
    print(INTERRUPTED, file=sys.stderr)
    raise SystemExit(130) from None


def _main() -> None:
    from seqkern.cli._group import group
    from seqkern.errors import SeqkernError

    try:
        group(prog_name="seqkern")
    except SeqkernError as error:
        print(f"seqkern: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_status", 1)) from None
    except OSError as error:
        if error.filename is not None:
            raise
        print(f"seqkern: the output cannot be written: {error.strerror}.", file=sys.stderr)
        raise SystemExit(1) from None
