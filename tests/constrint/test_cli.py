# SPDX-License-Identifier: Apache-2.0
"""``python -m constrint``: output, exit status, plots."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from constrint import Model, ModelError, plot
from constrint._cli import main
from constrint._plot import best_per_point

ROOT = Path(__file__).resolve().parents[2]
TILE = (
    'model "t"; var x in [8, 16, 32]; var y in 1..20; "fits": x * y <= 100;'
    "maximize x * y; order x smallest;"
)
NEVER = '"odd": x * 2 == 7; x <= 9; "small": y <= 3;'


@pytest.fixture
def run(tmp_path, capsys):
    def run(text, *options):
        path = tmp_path / "m.constrint"
        path.write_text(text)
        status = main([str(path), *options])
        return status, *capsys.readouterr()

    return run


def test_solved(run):
    status, out, _ = run(TILE)
    assert status == 0
    assert out.splitlines()[0].startswith("t: optimal (")
    assert [line.strip() for line in out.splitlines()[1:]] == ["x = 8", "y = 12", "objective 96"]


def test_json(run):
    status, out, _ = run(TILE, "--json")
    answer = json.loads(out)
    assert status == 0
    assert answer["status"] == "optimal"
    assert answer["values"]["x"] * answer["values"]["y"] == answer["objectives"][0] == 96
    assert answer["bounds"] == [96]
    assert answer["backend"] in ("cpp", "python")


def test_all_and_count(run):
    text = "var x in 1..3; var y in 1..3; x + y == 4;"
    status, out, _ = run(text, "--all")
    assert status == 0
    assert sorted(out.splitlines()) == ["x = 1, y = 3", "x = 2, y = 2", "x = 3, y = 1"]
    status, out, _ = run(text, "--all", "--json")
    assert [json.loads(line)["x"] + json.loads(line)["y"] for line in out.splitlines()] == [4] * 3
    assert run(text, "--count")[:2] == (0, "3\n")
    assert run(text, "--count", "--json")[:2] == (0, '{"count": 3}\n')


def test_infeasible(run):
    status, out, _ = run(NEVER)
    assert status == 1
    assert "infeasible" in out
    status, out, _ = run(NEVER, "--explain")
    assert status == 1
    assert "odd: `x * 2 == 7`" in out
    assert "small" not in out
    status, out, _ = run(NEVER, "--explain", "--json")
    assert json.loads(out)["conflict"]["rules"] == ["odd"]
    status, out, _ = run('var x in 1..3; "many": x >= 5;', "--explain", "--json")
    assert json.loads(out)["conflict"] == {
        "rules": ["many"],
        "domains": ["x"],
        "lines": ["many: `x >= 5`", "x in 1..3"],
        "minimal": True,
    }
    assert run(NEVER, "--all", "--json")[:2] == (1, "")
    assert run(NEVER, "--all")[0] == run(NEVER, "--count")[0] == 1


def test_errors(run, tmp_path, capsys):
    status, out, err = run("x == ;")
    assert (status, out) == (2, "")
    assert err.splitlines()[1:] == ["  x == ;", "       ^"]
    assert ":1:6: a number, a name or a bracket is needed" in err
    assert main([str(tmp_path / "none")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["--time-limit", "-1", "x"])
    assert stop.value.code == 2


def test_errors_of_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x == ;"))
    assert main(["-"]) == 2
    assert capsys.readouterr().err.startswith("error: standard input:1:6: a number")


def test_budget(run):
    hard = "x * x * x + y * y * y + z * z * z == w * w * w + 4; w <= 999999;"
    for limit in (["--nodes", "3"], ["--time-limit", "0"]):
        status, out, _ = run(hard, *limit)
        assert status == 3
        assert "exhausted" in out
        assert run(hard, "--count", *limit)[0] == 3


def test_as_a_program_with_standard_input():
    done = subprocess.run(
        [sys.executable, "-m", "constrint", "-"],
        cwd=ROOT,
        input="x * x == 49;",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "x = 7" in done.stdout


def test_plot_from_the_command_line(run, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "p.png"
    status, _, err = run(TILE, "--plot", "x", "y", str(picture))
    assert status == 0
    assert str(picture) in err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(TILE, "--plot", "x", "q", str(picture))[0] == 2
    for name in ("p.xyz", "p", "."):
        status, _, err = run(TILE, "--plot", "x", "y", name)
        assert status == 2
        assert err.startswith("error: plot: the picture must end in one of ")
        assert err.endswith(f"; got {name!r}.\n")


def test_plot_colors_pairs_by_their_best_solution(tmp_path):
    m = Model("p")
    x, y, z = m.int("x", 1, 3), m.int("y", 1, 2), m.int("z", 1, 4)
    m.require(x + y + z <= 6)
    assert best_per_point(m, "x", "y", z * 10, largest=True)[1, 1] == 40
    assert best_per_point(m, "x", "y", z * 10, largest=False)[1, 1] == 10
    assert best_per_point(m, "x", "y", None, largest=False) == {
        (a, b): 6 - a - b for a in (1, 2, 3) for b in (1, 2)
    }
    pytest.importorskip("matplotlib")
    assert plot(m, x, "y", tmp_path / "a.png", by=z).stat().st_size > 5000
    m.require(z >= 5)
    with pytest.raises(ModelError, match="no solution to draw"):
        plot(m, x, y, tmp_path / "b.png")


def test_all_explains_itself_in_json_too(run):
    status, out, _ = run(NEVER, "--all", "--json", "--explain")
    assert status == 1
    assert json.loads(out)["conflict"]["rules"] == ["odd"]


def test_options_that_make_no_sense(run, monkeypatch, capsys):
    for seconds in ("abc", "-1", "nan", "inf"):
        with pytest.raises(SystemExit, match="2"):
            run(TILE, "--time-limit", seconds)
        assert f"seconds must be a number of at least 0, got '{seconds}'" in capsys.readouterr().err
    monkeypatch.setenv("CONSTRINT_BACKEND", "gpu")
    status, _, err = run(TILE)
    assert status == 2
    assert err.startswith("error: backend must be one of")


def test_interrupted(tmp_path):
    path = tmp_path / "m.constrint"
    path.write_text("var x in 1..1000000000; var y in 1..1000000000; x * x == 2 * y * y;")
    script = (
        "import os, signal, sys, threading, constrint._cli as cli\n"
        "threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_leaves_early(tmp_path):
    path = tmp_path / "m.constrint"
    path.write_text("var x in 1..1000000; var y in 1..1000000; x * y % 7 == 3;")
    command = [sys.executable, "-m", "constrint", str(path), "--all"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline() == "x = 1, y = 3\n"
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(20) == 2
