# SPDX-License-Identifier: Apache-2.0
"""The verdict says what was measured, and the files hold it."""

import json
import lzma
import random
from dataclasses import replace
from pathlib import Path

import pytest

from seqkern.train import evaluate, report
from seqkern.train.compare import CHUNKED, COMPILED, REFERENCE
from seqkern.train.evaluate import baselines
from seqkern.train.text import Corpus

RESULT = report.Result(
    settings={"layer": "gla", "precision": "float32"},
    text={"name": "a text", "sha256": "0", "train_bytes": 900, "held_out_bytes": 100},
    parameters=1_000_000,
    steps=2,
    seconds=118.0,
    epochs=1.5,
    bits_per_byte=2.1,
    baselines={"uniform": 8.0, "gzip": 2.6, "xz": 2.53, "xz after the training text": 1.9},
    train_tokens_per_second=5000.0,
    decode_tokens_per_second=300.0,
    sample="The sample\nhas lines",
    machine={"cpu": "a cpu"},
    step_seconds={COMPILED: 0.1, CHUNKED: 0.3, REFERENCE: 0.93},
    step_shape=[2, 256],
    loss=[[1, 0.5, 8.0], [2, 1.0, 7.0]],
    validation=[[2, 1.0, 7.1]],
)


@pytest.mark.parametrize(
    ("changes", "good", "line"),
    [
        (
            {},
            True,
            "PASS: 2.10 bits/byte after 118 s of training, below xz (2.53); a training step "
            "is 9.3x the speed of the reference backend",
        ),
        ({"bits_per_byte": 2.6}, False, "FAIL: 2.60 bits/byte after 118 s of training, not below"),
        (
            {"bits_per_byte": 8.01, "baselines": {"uniform": 8.0, "gzip": 8.06, "xz": 8.1}},
            False,
            "not below uniform (8.00)",
        ),
        ({"step_seconds": {}}, True, "PASS: 2.10 bits/byte after 118 s of training, below xz"),
        ({"step_seconds": {REFERENCE: 1.0}}, False, "the compiled kernels are not there"),
        ({"step_seconds": {COMPILED: 2.0, REFERENCE: 1.0}}, False, "0.5x the speed"),
    ],
    ids=["good", "learned too little", "noise", "not timed", "no kernels", "slow"],
)
def test_verdict(changes, good, line):
    verdict = report.verdict(replace(RESULT, **changes))
    assert verdict[0] is good
    assert line in verdict[1]
    assert "\n" not in verdict[1]


def test_table_shows_every_figure():
    table = report.table(RESULT)
    for part in (
        "1.00 M parameters",
        "xz after the training text",
        "1.900",
        "5,000",
        "300",
        "2 x 256 bytes",
        "930 ms",
        "9.3x the time",
        "| has lines",
    ):
        assert part in table


def test_a_sample_cannot_drive_the_terminal():
    table = report.table(replace(RESULT, sample="a\x1b[2Jb\x07c"))
    assert "| a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c" in table


def test_json_holds_the_whole_result(tmp_path):
    written = json.loads(report.write_json(RESULT, tmp_path).read_text())
    assert written["step_seconds"][REFERENCE] == 0.93
    assert report.Result(**written) == RESULT


def test_plot_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    assert report.write_plot(RESULT, tmp_path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("write", [report.write_json, report.write_plot])
def test_an_interrupted_file_leaves_the_older_one(write, tmp_path, monkeypatch):
    def interrupt(self, target, **options):
        path = self if isinstance(self, Path) else target
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    figure = pytest.importorskip("matplotlib.figure")
    path = write(RESULT, tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_text", interrupt)
    monkeypatch.setattr(figure.Figure, "savefig", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(RESULT, tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_xz_reads_no_more_of_a_long_text_than_it_remembers(monkeypatch):
    read = []
    monkeypatch.setattr(evaluate, "_xz", lambda data: read.append(len(data)) or len(data))
    found = baselines(Corpus("a text", bytes(70 << 20), bytes(1000), "0"))
    assert sorted(read) == [1000, 64 << 20, (64 << 20) + 1000]
    assert found["xz after the training text"] == 8.0


def test_xz_is_read_in_pieces_to_the_same_end():
    data = random.Random(0).randbytes(1 << 20) * 2 + b"the end"
    assert evaluate._xz(data) == len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def test_baselines_are_what_the_compressors_say():
    text = b"the quick brown fox jumps over the lazy dog. " * 100
    found = baselines(Corpus("a text", text, text, "0"))
    assert found["uniform"] == 8.0
    assert 0 < found["xz after the training text"] < found["xz"] < 1
    assert 0 < found["gzip"] < 1
