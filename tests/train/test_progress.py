# SPDX-License-Identifier: Apache-2.0
"""What the progress of a run looks like."""

import io

import pytest

from seqkern.train import progress


def test_lines_without_a_terminal(capsys):
    """One every few seconds, and none of a quiet run."""
    for quiet, printed in (
        (False, " 50%  step 3  2.000 bits/byte  1,000 tokens/s\na note\n"),
        (True, ""),
    ):
        with progress.Progress(quiet) as shown:
            for step in (3, 4):
                shown.update(0.5, step, 2.0, 1000.0)
            shown.note("a note")
        assert capsys.readouterr().out == printed


def test_a_note_beside_the_bar_is_printed_as_it_is(monkeypatch):
    console = pytest.importorskip("rich.console").Console(
        file=io.StringIO(), force_terminal=True, width=30
    )
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("rich.progress.get_console", lambda: console)
    note = "the checkpoint is now runs/[old] :x:/earlier.ckpt"
    with progress.Progress() as shown:
        shown.update(0.5, 1, 2.0, 3.0)
        shown.note(note)
    assert f"{note}\n" in console.file.getvalue()
