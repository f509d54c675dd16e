# SPDX-License-Identifier: Apache-2.0
"""The command line: help, check, bench and the errors of train."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import seqkern
from seqkern import cli, ops
from seqkern._runtime import library
from seqkern.cli import _check_cases, bench, check, train
from seqkern.cli._group import COMMANDS, group
from seqkern.train import TrainSettings
from seqkern.train.errors import NothingToDoError

needs_library = pytest.mark.skipif(
    library.load_error() is not None, reason=str(library.load_error())
)


@pytest.fixture
def fails(monkeypatch, capsys):
    """Run the command line here, expect status 1, and return the one line it says."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["seqkern", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def test_help_lists_the_commands_without_importing_torch():
    code = "import sys; sys.argv = ['seqkern', '--help']\nfrom seqkern.cli import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for name in COMMANDS:
        assert f"  {name}" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_version():
    result = CliRunner().invoke(group, ["--version"])
    assert seqkern.__version__ in result.output


@pytest.mark.parametrize("module", ["seqkern", "seqkern.cli"])
def test_python_m(module):
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True)
    assert seqkern.__version__ in done.stdout.decode()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads(name):
    context = group.make_context("seqkern", ["--help"], resilient_parsing=True)
    assert group.get_command(context, name).name is not None


def test_an_unknown_command_is_refused():
    result = CliRunner().invoke(group, ["fly"])
    assert result.exit_code == 2
    assert "No such command 'fly'" in result.output


@needs_library
def test_check_passes_and_prints_a_row_per_op_and_dtype():
    result = CliRunner().invoke(check.command, ["--quick", "--only", "gla"])
    assert result.exit_code == 0, result.output
    for op in ("chunk_gla", "fused_recurrent_simple_gla"):
        for dtype in check.DTYPES:
            assert any(
                line.startswith(op) and dtype in line and line.endswith("ok")
                for line in result.output.splitlines()
            )
    assert "12 of 12 are within what is allowed" in result.output


@needs_library
def test_check_json():
    arguments = ["--quick", "--only", "rms_norm", "--json", "--isa", "scalar"]
    result = CliRunner().invoke(check.command, arguments)
    report = json.loads(result.output)
    assert {row["isa"] for row in report["rows"]} == {"scalar"}
    assert all(row["ok"] for row in report["rows"])
    assert set(report["rows"][0]["output"]) == {"tensor", "measure", "error", "allowed"}


@needs_library
def test_check_fails_when_an_op_is_wrong(monkeypatch):
    right = ops.chunk_gla

    def wrong(*arguments, backend, **options):
        o, ht = right(*arguments, backend=backend, **options)
        return (o * 1.1, ht) if backend == "cpu" else (o, ht)

    case = next(case for case in _check_cases.CASES if case.name == "chunk_gla")
    broken = _check_cases.Case(case.name, wrong, case.inputs)
    monkeypatch.setattr(check, "CASES", (broken,))
    result = CliRunner().invoke(check.command, ["--quick"])
    assert result.exit_code == 1
    assert "FAILED" in result.output
    assert "o: max" in result.output
    assert "0 of 3 are within" in result.output


@needs_library
def test_a_nan_is_not_ok():
    case = next(case for case in _check_cases.CASES if case.name == "rms_norm")

    def poisoned(*arguments, backend, **options):
        y, stream = case.op(*arguments, backend=backend, **options)
        return (y * torch.nan, stream) if backend == "cpu" else (y, stream)

    row = check.check(
        _check_cases.Case("rms_norm", poisoned, case.inputs),
        _check_cases.sizes(quick=True),
        torch.float32,
    )
    assert not row["ok"]


def test_check_covers_every_op():
    matrices = {"Quasiseparable", "hippo"}
    assert {case.name for case in _check_cases.CASES} == set(ops.__all__) - matrices


@needs_library
def test_check_shows_an_op_without_gradients():
    result = CliRunner().invoke(check.command, ["--quick", "--only", "conv1d_update"])
    assert result.exit_code == 0, result.output
    assert sum(" none " in line for line in result.output.splitlines()) == 6


@needs_library
def test_check_on_every_instruction_set(monkeypatch):
    """Small inputs only where they are asked for; what was capped before is not capped after."""
    seen = []

    def note(case, shape, dtype):
        seen.append((library.cpu_info()["in_use"], shape))
        exact = {"tensor": "o", "error": 0.0, "allowed": 0.0}
        return {"op": "x", "dtype": "y", "output": exact, "gradient": None, "ok": True, "over": []}

    monkeypatch.setattr(check, "check", note)
    best = library.cpu_info()["in_use"]
    for how in (["--quick"], []):
        seen.clear()
        arguments = ["--isa", "all", "--only", "flashrnn_step lstm", *how]
        assert CliRunner().invoke(check.command, arguments).exit_code == 0
        assert seen[0][0] == best
        assert {isa for isa, _ in seen} == set(check._isas())
        assert {shape for _, shape in seen} == {_check_cases.sizes(quick=bool(how))}
        assert len(seen) == len(check._isas()) * len(check.DTYPES)
    assert library.cpu_info()["in_use"] == best


@needs_library
def test_check_refuses_an_unknown_instruction_set(fails):
    line = fails("check", "--quick", "--isa", "mmx")
    assert line.startswith('seqkern: check: instruction set "mmx" is not compiled in')


@pytest.mark.parametrize("how", [[], ["--json"]], ids=["table", "json"])
@needs_library
def test_check_says_what_there_is_when_nothing_matches(fails, how):
    line = fails("check", "--only", "zzz", *how)
    assert line.startswith("seqkern: check: no op's name contains 'zzz'; there are: chunk_gla, ")
    assert "linear_scan" in line


def test_bench_finds_the_checkout():
    assert (bench.find_checkout(Path("/")) / "bench" / "__main__.py").is_file()


def test_bench_says_where_the_runner_is(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.seqkern, "__file__", str(tmp_path / "seqkern" / "__init__.py"))
    with pytest.raises(bench.BenchNotFoundError, match="from the root of a source checkout"):
        bench.find_checkout(tmp_path)


def test_bench_hands_its_arguments_over():
    done = subprocess.run(
        [sys.executable, "-m", "seqkern.cli", "bench", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python -m bench" in done.stdout


def test_bench_tells_the_runner_where_it_was_called(monkeypatch, tmp_path):
    called = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        bench.subprocess, "call", lambda command, cwd: called.update(command=command, cwd=cwd) or 5
    )
    assert CliRunner().invoke(bench.command, ["rnn", "--json", "x.json"]).exit_code == 5
    assert (called["cwd"] / "bench" / "__main__.py").is_file()
    assert called["command"][3:] == ["--relative-to", str(tmp_path), "rnn", "--json", "x.json"]


@pytest.mark.parametrize(
    ("arguments", "directory", "checkpoint"),
    [
        ([], "runs/demo", None),
        (["--out", "a"], "a", None),
        (["--resume"], "runs/demo", "runs/demo/latest.ckpt"),
        (["--resume", "--out", "a"], "a", "a/latest.ckpt"),
        (["--resume", "b/previous.ckpt"], "b", "b/previous.ckpt"),
        (["--resume", "b/latest.ckpt", "--out", "a"], "a", "b/latest.ckpt"),
    ],
    ids=["new", "new in", "resume", "resume in", "resume another", "resume another in"],
)
def test_where_a_run_is_written(monkeypatch, arguments, directory, checkpoint):
    called = []
    monkeypatch.setattr(train, "train", lambda *arguments: called.extend(arguments))
    CliRunner().invoke(train.command, arguments, catch_exceptions=False)
    assert str(called[1]) == directory
    assert (called[2] and str(called[2])) == checkpoint


def test_what_a_run_is_asked_for(monkeypatch):
    """What was named, which a resumed run has to agree with, and the run's own status."""
    called = []

    def run(*arguments):
        called.append(arguments)
        return 7

    monkeypatch.setattr(train, "train", run)
    assert CliRunner().invoke(train.command, []).exit_code == 7
    CliRunner().invoke(train.command, ["--steps", "3", "--seed", "0", "--no-timings", "--quiet"])
    (plain, *_, none, timings, quiet), (asked, *_, explicit, untimed, hushed) = called
    assert (plain, none, timings, quiet) == (TrainSettings(), {}, True, False)
    assert (explicit, untimed, hushed) == ({"steps": 3, "seed": 0}, False, True)
    assert asked == TrainSettings(steps=3)


def test_help_says_where_a_continued_run_is_written():
    text = " ".join(CliRunner().invoke(train.command, ["--help"]).output.split())
    assert "where only a checkpoint is named, in the folder it lies in" in text
    assert "runs/demo, or the folder of the checkpoint named with --resume" in text


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "seqkern: interrupted"),
        (NothingToDoError("train: nothing to do"), 2, "seqkern: train: nothing to do"),
    ],
    ids=["interrupt", "nothing to do"],
)
def test_exit_status(monkeypatch, capsys, error, status, line):
    def stop(*arguments):
        raise error

    monkeypatch.setattr(train, "train", stop)
    monkeypatch.setattr(sys, "argv", ["seqkern", "train"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == status
    assert capsys.readouterr().err.splitlines() == [line]


def test_an_interrupt_during_imports_cannot_be_swallowed():
    code = "import os, signal\nfrom seqkern.cli import _group\nwith _group._interruptible():\n"
    code += "    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
    code += "    except BaseException:\n        pass\n    print('swallowed')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "")
    assert done.stderr == "seqkern: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "/no/such/file"], "seqkern: text: /no/such/file does not exist"),
        (["--steps", "0"], "seqkern: train: `steps` must be at least 1, got 0"),
        (["--out", "/dev/null/run"], "checkpoint: nothing can be written to /dev/null/run: Not a"),
        (["--resume"], "latest.ckpt does not exist, so there is nothing to resume"),
        (["--out", ""], "train: `out` must be the path of a folder, got ''"),
        (["--text", ""], "train: `text` must be the path of a file, got ''"),
        (
            ["--resume", "/dev"],
            "checkpoint: /dev is a folder. Resume the run in it with --resume --",
        ),
        (["--mlp-size", "1000000000"], "train: hidden_size = 256, mlp_size = 1000000000, num_"),
    ],
    ids=["text", "steps", "folder", "resume", "no out", "no text", "resume folder", "memory"],
)
def test_train_errors_are_one_line(tmp_path, fails, arguments, message):
    assert message in fails("train", "--out", str(tmp_path), *arguments)


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_what_the_terminal_cannot_show_ends_no_run(tmp_path, encoding):
    text = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(text)).write_bytes(bytes(range(256)) * 16)
    command = [sys.executable, "-m", "seqkern", "train", "--text", text, "--out", tmp_path / "run"]
    command += ["--steps=1", "--num-layers=1", "--hidden-size=4", "--mlp-size=4", "--no-timings"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert rb"caf\udce9.txt" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].startswith((b"FAIL: ", b"PASS: "))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    command = [sys.executable, "-m", "seqkern", "check", "--quick", "--only", "rms"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    said = b"seqkern: the output cannot be written: No space left on device.\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_an_unknown_layer_is_refused():
    result = CliRunner().invoke(train.command, ["--layer", "attention"])
    assert result.exit_code == 2
    assert "'gla', 'deltanet', 'gated_deltanet', 'gated_deltaproduct'" in result.output
