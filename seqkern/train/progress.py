# SPDX-License-Identifier: Apache-2.0
"""A progress bar with rich, or plain lines without it."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows how far a run is: a bar on a terminal, else one line every few seconds."""

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._last_line = -_SECONDS_BETWEEN_LINES
        self._bar: Any = None
        self._task: Any = None
        if not quiet and sys.stdout.isatty():
            self._bar = _rich_bar()

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("training", total=1.0, status="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: float, step: int, loss: float, tokens_per_second: float) -> None:
        """Show the finished share (0 to 1), the step, the loss (bits per byte) and the speed."""
        if self._quiet:
            return
        status = f"step {step}  {loss:.3f} bits/byte  {tokens_per_second:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, status=status)
        elif time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(f"{done:4.0%}  {status}", flush=True)

    def note(self, line: str) -> None:
        """Print a line that stays."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.out(line, highlight=False)
        else:
            print(line, flush=True)


def _rich_bar() -> Any:
    try:
        from rich import progress
    except ImportError:
        return None
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[status]}"),
        progress.TimeElapsedColumn(),
    )
