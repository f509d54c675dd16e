# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


def scratch(path: Path) -> Path:
    """Return the name that ``path`` has while it is written, with the same ending."""
    return path.with_stem(f"{path.stem}.part")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a file to write beside ``path``, which takes its name once it is whole."""
    part = scratch(path)
    try:
        yield part
        part.replace(path)
    finally:  # there is none after the renaming, only after a failure or an interruption
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
