# SPDX-License-Identifier: Apache-2.0
"""Every row of every suite runs at its smallest size and passes its own check."""

import json
import sys

import pytest
from click.testing import CliRunner

from bench import lssl_mnist, machine, peers, registry
from bench.__main__ import main
from bench.runner import Options, Runner

QUICK = Options(seconds_per_row=0.01, quick=True)
ROWS = {row.id: row for suite in registry.suites() for row in registry.rows(suite)}
# A memory row starts four processes; one row stands for all.
SMOKE = [i for i, row in ROWS.items() if row.metric != "memory" or row.op == "chunk_simple_gla"]


@pytest.fixture(scope="module")
def runner():
    return Runner(QUICK)


@pytest.mark.parametrize("row_id", SMOKE)
def test_row_runs_and_its_check_passes(runner, row_id):
    result = runner.run(ROWS[row_id])
    if result.status == "skipped":
        pytest.skip(result.notes[0])
    assert result.status == "measured", result.notes
    assert result.met is None


def test_every_bar_of_the_family_is_there():
    bars = [row for row in registry.rows("linear_attention") if row.bar is not None]
    by_metric = {}
    for row in bars:
        by_metric.setdefault(row.metric, []).append(row.bar.value)
    assert sorted(by_metric["peak_share"]) == [0.55, 0.60]
    assert set(by_metric["speedup"]) == {1.0, 1.8, 3.0, 6.0, 8.0, 30.0}
    assert set(by_metric["ratio"]) == {1.8, 3.5}
    assert set(by_metric["per_token"]) == {1.1}
    assert by_metric["latency_us"] == [25]
    assert set(by_metric["memory"]) == {1.0}


def test_command_line_writes_what_it_is_asked_to(tmp_path):
    """Seen from the folder it was called in."""
    arguments = ["linear_attention", "--quick", "--seconds-per-row", "0.01"]
    only = ["--only", "chunk_gla/chunk_gla-backward", "--json", "new/out.json"]
    here = ["--relative-to", str(tmp_path)]
    done = CliRunner().invoke(main, [*arguments, *only, *here], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "quick run: nothing is judged" in done.output
    document = json.loads((tmp_path / "new" / "out.json").read_text())
    assert document["summary"]["quick"] is True
    assert all(row["op"] == "chunk_gla" for row in document["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_suite"], "no suite 'no_such_suite'"),
        (["--only", "no_such_row"], "no row of linear_attention matches no_such_row"),
        (["--threads", "0"], "--threads"),
        (["--threads", "5000"], "--threads"),
        (["--isa", "sse9"], 'Error: instruction set "sse9" is not compiled in'),
        (["--json", "/dev"], "--json: /dev cannot be written: Is a directory."),
        (["--plot", "p.txt"], "--plot must end in .png, .pdf, .svg, got p.txt."),
        (["rnn", "--suite", "lssl"], "the suite is either rnn or --suite lssl: name one."),
        (["--seconds-per-row", "0"], "--seconds-per-row"),
        (["--seconds-per-row", "nan"], "'--seconds-per-row': nan is not a finite number."),
        (["--seconds-per-row", "inf"], "'--seconds-per-row': inf is not a finite number."),
    ],
)
def test_command_line_rejects(arguments, message):
    if "--isa" in arguments and machine.compiled_op("set_isa_cap") is None:
        pytest.skip("no compiled kernels")
    done = CliRunner().invoke(main, [*arguments, "--quick"])
    assert done.exit_code == 2
    assert message in done.output
    assert "[1/" not in done.output


def test_a_folder_for_no_results_is_refused_before_the_training(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(lssl_mnist.main, ["--out", str(tmp_path / "file")])
    assert done.exit_code == 2
    assert "'--out': nothing can be written to" in done.output
    assert "choosing" not in done.output


def test_a_full_disk_costs_no_table(tmp_path, monkeypatch):
    def full(path, document):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.__main__._write", full)
    arguments = ["--quick", "--seconds-per-row", "0.01", "--only", "chunk_gla/chunk_gla-backward"]
    done = CliRunner().invoke(main, [*arguments, "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 1
    assert "quick run: nothing is judged" in done.output
    assert "Error: the results cannot be written: No space left on device." in done.output


def test_missing_peers_say_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "PEERS", tmp_path)
    peers._fla_naive.cache_clear()
    with pytest.raises(peers.PeerMissingError, match=r"fla-core .*install_peers"):
        peers.fla_delta_rule_chunkwise()
    name = "transformers.models.qwen3_next.modeling_qwen3_next"
    monkeypatch.setitem(sys.modules, name, None)
    peers._qwen3_next.cache_clear()
    with pytest.raises(peers.PeerMissingError, match=r"transformers .*install_peers"):
        peers.transformers_chunk()
    peers._qwen3_next.cache_clear()
