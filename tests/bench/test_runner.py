# SPDX-License-Identifier: Apache-2.0
"""The runner's own behavior, on toy contests: order, checks, refusals, records, table, plot."""

import json
import math
import time

import pytest
import torch

from bench import machine, plots, registry, report, timing
from bench.checks import Finding
from bench.peers import PeerMissingError
from bench.registry import Bar, Contest, Entry, Row, Size, at_least, at_most, within
from bench.runner import Options, Runner

FAST = Options(seconds_per_row=0.01)


def _slow(x):
    time.sleep(0.002)
    return x * 2


def _toy(**more) -> Contest:
    x = torch.ones(4)
    return Contest(
        Entry("seqkern", lambda x: x * 2, {"x": x}, flops=1e6, tokens=1),
        Entry("slow peer", _slow, {"x": x}, tokens=1),
        **more,
    )


def _row(build, metric="speedup", bar=None) -> Row:
    return Row("toy", "toy", "fwd", "toy", metric, bar, Size(T=1), build)


def test_sides_take_turns_and_the_order_alternates(monkeypatch):
    monkeypatch.setattr(timing, "MAX_ROUNDS", 6)
    seen = []
    sides = [timing.Side(name, lambda name=name: seen.append(name)) for name in "AB"]
    for side in sides:
        side.prepare = lambda: None
    timing.interleave(sides, budget_s=60)
    assert "".join(seen) == "AABB" + "ABBA" * 3
    assert [len(side.ms) for side in sides] == [6, 6]


def test_a_spent_budget_still_leaves_three_rounds():
    side = timing.Side("slow", lambda: time.sleep(0.002))
    timing.interleave([side], budget_s=1e-4)
    assert len(side.ms) == 3


class _Clock:
    """Time that passes in calls alone, so that a test does not depend on the machine's load."""

    def __init__(self, *ns: int):
        self.now, self.steps = 0, list(ns)

    def call(self) -> None:
        self.now += self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def perf_counter_ns(self) -> int:
        return self.now

    def perf_counter(self) -> float:
        return self.now / 1e9


@pytest.mark.parametrize("first_ns", [10_000, 900_000], ids=["steady", "cold first call"])
def test_quick_calls_are_repeated_until_a_sample_is_long_enough(monkeypatch, first_ns):
    clock = _Clock(first_ns, 10_000)
    monkeypatch.setattr(timing, "time", clock)
    side = timing.Side("quick", clock.call)
    timing.interleave([side], budget_s=0.01)
    assert side.calls == 100
    assert side.ms == pytest.approx([0.01] * len(side.ms))


@pytest.mark.parametrize(("p", "expected"), [(0, 1), (0.2, 1.8), (0.5, 3), (0.8, 4.2), (1, 5)])
def test_quantile(p, expected):
    assert timing.quantile([5, 3, 1, 2, 4], p) == pytest.approx(expected)


def test_backward_is_timed_without_its_forward():
    forwards = []

    def call(x):
        forwards.append(1)
        return x * x

    side = timing.make_side(Entry("ours", call, {"x": torch.ones(3)}, "bwd"))
    before = len(forwards)
    timing.interleave([side], budget_s=0.0)
    assert len(forwards) - before == len(side.ms) + 1
    assert side.calls == 1


def test_a_speed_up_is_measured_and_judged():
    result = Runner(FAST).run(_row(lambda s: _toy(), bar=at_least(2.0, aim=1e9)))
    assert result.value > 2
    assert result.met is True
    assert result.aim_met is False


def test_a_wrong_answer_gets_no_speed_up():
    wrong = Finding("dq", 0.5, 1e-4)
    result = Runner(FAST).run(_row(lambda s: _toy(check=lambda: [wrong]), bar=at_least(2.0)))
    line = result.as_dict()
    assert line["value"] is None
    assert line["met"] is None
    assert report.result_text(line) == "withheld"
    assert "dq is off by 5.0e-01 (allowed 1.0e-04)" in line["notes"][0]


def test_a_nan_is_a_wrong_answer():
    assert not Finding("o", float("nan"), 1.0).ok


def test_red_tests_withhold_every_result():
    options = Options(seconds_per_row=0.01, tests="failed")
    result = Runner(options).run(_row(lambda s: _toy(), bar=at_least(2.0)))
    assert result.as_dict()["value"] is None
    assert result.notes == ["the tests are red"]


def test_a_missing_peer_skips_the_row_and_says_how_to_get_it():
    def build(s):
        raise PeerMissingError("transformers is missing: run `python bench/install_peers.py`")

    result = Runner(FAST).run(_row(build, bar=at_least(1)))
    assert result.status == "skipped"
    assert "install_peers" in result.notes[0]


def test_a_capped_row_is_skipped_when_the_run_is_capped_alike():
    if machine.compiled_op("set_isa_cap") is None:
        pytest.skip("no compiled kernels")
    try:
        runner = Runner(Options(seconds_per_row=0.01, isa="scalar"))
        capped = _toy()
        capped.ours.isa = "scalar"
        assert runner.run(_row(lambda s: capped)).status == "skipped"
    finally:
        machine.set_isa("")


def test_a_broken_row_fails_alone():
    def build(s):
        raise KeyError("q")

    runner = Runner(FAST)
    results = [runner.run(_row(build)), runner.run(_row(lambda s: _toy()))]
    assert [r.status for r in results] == ["failed", "measured"]
    assert runner.report("toy", results)["summary"]["failed"] == 1


@pytest.mark.parametrize(
    ("bar", "good", "bad"),
    [
        (at_least(2.0), 2.0, 1.99),
        (at_most(3.5), 3.5, 3.51),
        (within(1.2), 1.19, 1.21),
        (within(1.2), 0.84, 0.83),
        (within(1.2), 1.0, math.nan),
    ],
)
def test_bars(bar: Bar, good, bad):
    assert bar.met(good)
    assert not bar.met(bad)


def test_records_have_every_field():
    runner = Runner(FAST)
    runner.run(_row(lambda s: _toy()))
    wanted = (
        "op pass backend isa threads dtype B T H K V ms_p20 ms_p50 ms_p80 n tokens_per_s gflops "
        "device torch triton commit tests"
    )
    for record in runner.records:
        assert set(wanted.split()) <= set(record)


def test_table_and_plot_come_from_the_json_alone(tmp_path):
    runner = Runner(FAST)
    results = [runner.run(_row(lambda s: _toy(), bar=at_least(2.0)))]
    document = json.loads(json.dumps(runner.report("toy", results)))
    table = report.table(document["rows"])
    assert "slow peer" in table
    assert table.splitlines()[-1].endswith("| yes |")
    assert report.verdict(document["summary"]) == "1 of 1 bars met"
    pytest.importorskip("matplotlib")
    assert plots.draw(document, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_an_interrupted_plot_leaves_the_older_one(tmp_path, monkeypatch):
    def interrupt(self, path, **options):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(figure.Figure, "savefig", interrupt)
    runner, path = Runner(FAST), tmp_path / "plot.png"
    document = runner.report("toy", [runner.run(_row(lambda s: _toy()))])
    path.write_bytes(b"whole")
    with pytest.raises(KeyboardInterrupt):
        plots.draw(document, path)
    assert path.read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("suite", "quick", "sizes"),
    [
        ("linear_attention", False, "B=1, T=2048, H=4, K=V=128, "),
        ("linear_attention", True, ""),
        ("rnn", False, "B=16, T=512, "),
        ("lssl", False, ""),
        ("constrint", False, ""),
    ],
)
def test_the_heading_names_only_sizes_of_its_suite(suite, quick, sizes):
    runner = Runner(Options(quick=quick))
    heading = report.heading(runner.report(suite, [])["summary"])
    assert heading.splitlines()[-1].startswith(f"{sizes}float32, ")


@pytest.mark.parametrize(
    ("x", "text"), [(0, "0"), (0.01234, "0.0123"), (3.456, "3.46"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits(x, text):
    assert report.number(x) == text


def test_the_same_row_cannot_be_registered_twice():
    register = registry.case("toy", "fwd", title="twice", suite="test_twice")
    register(lambda s: None)
    with pytest.raises(ValueError, match="registered twice"):
        register(lambda s: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("toy", "sideways"), "`pass_` must be one of"), (("toy", "fwd"), "`metric` must be one of")],
)
def test_case_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        registry.case(*arguments, title="x", metric="beauty")
