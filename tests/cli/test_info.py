# SPDX-License-Identifier: Apache-2.0
"""`seqkern info` tells what is there, and works when the library or torch is broken."""

import json
import os
import subprocess
import sys

import pytest

import constrint
from seqkern._runtime import environment, library
from seqkern.cli import info


def _info(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "seqkern.cli", "info", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_json_has_its_keys():
    done = _info("--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert set(report) == {
        "seqkern",
        "python",
        "platform",
        "packages",
        "cpu",
        "threads",
        "isa",
        "library",
        "backends",
        "constrint",
        "settings",
    }
    assert set(report["backends"]) == {"cpu", "triton", "cuda", "reference"}
    assert report["packages"]["torch"]
    assert report["threads"] >= 1
    assert report["constrint"]["engine"] == constrint.backend()
    assert "constrint " in info.render(report)
    if library.load_error() is None:
        assert report["isa"]["in_use"] in report["isa"]["compiled"]
        assert report["backends"]["cpu"] == {"available": True, "reason": None}


def test_a_capped_instruction_set_shows():
    if library.load_error() is not None:
        pytest.skip(library.load_error())
    report = json.loads(_info("--json", SEQKERN_CPU_ISA="scalar").stdout)
    assert report["isa"]["in_use"] == "scalar"
    assert report["settings"]["SEQKERN_CPU_ISA"]["value"] == "scalar"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "is not in"), (b"", "does not load"), (b"not a library", "does not load")],
    ids=["missing", "empty", "garbage"],
)
def test_a_broken_library_is_explained(tmp_path, content, reason):
    path = tmp_path / "broken.so"
    if content is not None:
        path.write_bytes(content)
    done = _info("--json", SEQKERN_LIBRARY=str(path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert reason in report["library"]["problem"]
    assert report["library"]["problem"] in info.render(report)
    assert "correct SEQKERN_LIBRARY, or unset it" in info.render(report)
    report["settings"]["SEQKERN_LIBRARY"]["value"] = None
    assert "install again with a C++ compiler present" in info.render(report)
    assert report["isa"] is None
    assert report["backends"]["cpu"]["available"] is False
    assert report["backends"]["reference"]["available"] is True


def _fake_torch(folder, source):
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(source)
    return str(folder)


def test_a_torch_that_cannot_be_imported_is_explained(tmp_path):
    fake = _fake_torch(tmp_path, "raise ImportError('libtorch is gone')")
    done = _info(PYTHONPATH=fake)
    assert done.returncode == 0, done.stderr
    assert "torch cannot be imported (ImportError: libtorch is gone)" in done.stdout


def test_a_crash_is_explained(tmp_path):
    fake = _fake_torch(tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGILL)")
    done = _info(PYTHONPATH=fake)
    assert done.returncode == 0, done.stderr
    assert "importing torch ended the process (SIGILL)" in done.stdout


def test_the_parent_process_does_not_import_torch():
    code = "import sys; from seqkern._runtime import environment; environment.report(); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_summary_names_the_machine():
    summary = environment.summary()
    assert summary["cpu"]
    assert summary["cores"] >= 1
    assert set(summary) == {"cpu", "cores", "threads", "isa", "python", "torch", "seqkern"}
