# SPDX-License-Identifier: Apache-2.0
"""Run rows: check, time turn by turn, judge against the bar, keep records.

A row whose check fails keeps its times in the records but gets no result: no speed-up is printed
for a wrong answer, nor for any answer when the tests were run and were red.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from bench import machine, memory
from bench.peers import PeerMissingError
from bench.registry import Contest, Entry, MemoryTrial, Row
from bench.timing import Side, interleave, make_side, median, quantile

WITHHELD = "withheld"


@dataclass(frozen=True)
class Options:
    """What the command line chose. ``threads``: of rows that do not set their own."""

    seconds_per_row: float = 6.0
    threads: int = 1
    isa: str = ""
    quick: bool = False
    tests: str = "not run"


@dataclass
class Result:
    """One line of the table. Times in ms per call; ``value`` in the unit of the metric."""

    row: Row
    ours: dict[str, Any] = field(default_factory=dict)
    rival: dict[str, Any] = field(default_factory=dict)
    value: float = math.nan
    met: bool | None = None
    aim_met: bool | None = None
    status: str = "measured"
    notes: list[str] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the line as JSON-ready data."""
        bar = self.row.bar
        return {
            "id": self.row.id,
            "title": self.row.title,
            "op": self.row.op,
            "pass": self.row.pass_,
            "metric": self.row.metric,
            "shape": self.row.shape(),
            "ours": self.ours,
            "rival": self.rival,
            "value": None if math.isnan(self.value) else self.value,
            "bar": None if bar is None else f"{bar.sense} {bar.value:g}",
            "aim": None if bar is None else bar.aim,
            "met": self.met,
            "aim_met": self.aim_met,
            "status": self.status,
            "notes": self.notes,
            "peaks_gflops": self.peaks,
        }


class Runner:
    """Runs rows one after the other and collects results and records."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.peaks = machine.Peaks()
        self.summary = machine.describe()
        self.records: list[dict[str, Any]] = []
        self._isa = machine.set_isa(options.isa)
        self._setting = (torch.get_num_threads(), options.isa)

    def run(self, row: Row) -> Result:
        """Measure one row; a missing peer skips it and an error fails it, both saying why."""
        row = row.quick() if self.options.quick else row
        result = Result(row)
        if self.options.tests == "failed":
            result.status = WITHHELD
            result.notes.append("the tests are red")
        try:
            built = row.build(row.size)
            if isinstance(built, MemoryTrial):
                self._weigh(row, built, result)
            else:
                self._compete(row, built, result)
        except (PeerMissingError, memory.MemoryUnavailableError) as e:
            result.status = "skipped"
            result.notes.append(str(e))
        except Exception as e:  # one broken row must not cost the others their minutes
            result.status = "failed"
            result.notes.append(f"{type(e).__name__}: {e}")
        self._judge(result)
        return result

    def _enter(self, entry: Entry) -> Callable[[], None]:
        """Return what sets threads and ISA before a sample, only if they differ from now."""
        wanted = (entry.threads or self.options.threads, entry.isa or self.options.isa)

        def enter() -> None:
            threads, isa = wanted
            if self._setting[0] != threads:
                torch.set_num_threads(threads)
            if self._setting[1] != isa:
                machine.set_isa(isa)
            if self._setting != wanted:
                self._setting = wanted
                # The first call under a new setting wakes threads and refills caches: not timed.
                with torch.no_grad():
                    entry.call(**entry.inputs)

        return enter

    def _compete(self, row: Row, contest: Contest, result: Result) -> None:
        if self.options.isa and contest.ours.isa == self.options.isa:
            result.status = "skipped"
            result.notes.append(f"the whole run is capped at {self.options.isa} already")
            return
        entries = [e for e in (contest.ours, contest.rival, contest.floor) if e is not None]
        self._enter(contest.ours)()
        if contest.check is not None:
            wrong = [str(f) for f in contest.check() if not f.ok]
            if wrong:
                result.status = WITHHELD
                result.notes.append(f"check failed: {'; '.join(wrong)}")
        sides = [make_side(e, self._enter(e)) for e in entries]
        near = {"f32": [self.peaks.sample("f32")], "bf16": [self.peaks.sample("bf16")]}
        often = row.metric == "peak_share"
        interleave(
            sides,
            self.options.seconds_per_row,
            (lambda: near["f32"].append(self.peaks.sample("f32"))) if often else None,
        )
        near["f32"].append(self.peaks.sample("f32"))
        result.peaks = {kind: median(values) for kind, values in near.items()}
        described = [
            self._record(row, e, s, result.peaks) for e, s in zip(entries, sides, strict=True)
        ]
        result.ours = described[0]
        if contest.rival is not None:
            result.rival = described[1]
        if result.status == "measured":
            result.value = self._value(row, contest, result.ours["ms_p50"], result)
            result.notes.extend(_facts(row, result.ours))
        if contest.floor is not None and result.status == "measured":
            floor = described[-1]["ms_p50"]
            result.notes.append(self._floor_note(row, contest, floor, result))

    def _floor_note(self, row: Row, contest: Contest, floor: float, result: Result) -> str:
        """Say what part of the time no kernel can change, and the value if that were all of it."""
        label = contest.floor.label if contest.floor is not None else ""
        said = f"{label} takes {floor:.4g} ms"
        if row.metric == "speedup":
            most = self._value(row, contest, floor, result)
            return f"{said}; were ours as fast as that, the result would be {most:.2f}x"
        rest = self._value(row, contest, result.ours["ms_p50"] - floor, result)
        return f"{said}; without it the result would be {rest:.2f}x"

    def _value(self, row: Row, contest: Contest, ours: float, result: Result) -> float:
        """Return the row's value, were our median ``ours`` ms."""
        if row.metric == "peak_share":
            return result.ours["share_of_f32_peak"] or math.nan
        if row.metric == "latency_us":
            return 1000 * ours
        theirs = result.rival["ms_p50"]
        if row.metric == "speedup":
            return theirs / ours
        if row.metric == "per_token" and contest.rival is not None:
            return (ours / contest.ours.tokens) / (theirs / contest.rival.tokens)
        return ours / theirs

    def _weigh(self, row: Row, trial: MemoryTrial, result: Result) -> None:
        options = self.options
        for name, into in ((trial.ours, result.ours), (trial.rival, result.rival)):
            if name:
                extra, whole = memory.extra_bytes(name, row.size, options.threads, options.isa)
                into.update(
                    label=name.replace("_chunk", " chunk"),
                    extra_mib=extra / 2**20,
                    inputs_mib=whole / 2**20,
                )
        if result.status == "measured":
            result.value = result.ours["extra_mib"] / result.ours["inputs_mib"]
        self.records.append(
            self._head(row, row.pass_, options.threads, self._isa, trial.ours) | result.ours
        )

    def _judge(self, result: Result) -> None:
        bar = result.row.bar
        if bar is None or result.status != "measured" or math.isnan(result.value):
            return
        if self.options.quick:  # the sizes are not the bar's
            return
        result.met = bar.met(result.value)
        if bar.aim is not None:
            result.aim_met = result.value >= bar.aim

    def _head(self, row: Row, pass_: str, threads: int, isa: str, label: str) -> dict[str, Any]:
        size = row.shape()
        return {
            "op": row.op,
            "row": row.id,
            "pass": pass_,
            "backend": label,
            "isa": isa,
            "threads": threads,
            "dtype": size.pop("dtype"),
            **size,
            **{key: self.summary[key] for key in ("device", "torch", "triton", "commit")},
            "tests": self.options.tests,
        }

    def _record(
        self, row: Row, entry: Entry, side: Side, peaks: dict[str, float]
    ) -> dict[str, Any]:
        """Append the record of one side and return it, shares of the peak included."""
        p50 = median(side.ms)
        threads = entry.threads or self.options.threads
        gflops = entry.flops / p50 / 1e6
        single = threads == 1 and entry.flops > 0
        record = self._head(row, entry.pass_, threads, self._isa_of(entry), entry.label) | {
            "ms_p20": quantile(side.ms, 0.2),
            "ms_p50": p50,
            "ms_p80": quantile(side.ms, 0.8),
            "n": len(side.ms),
            "calls_per_sample": side.calls,
            "tokens_per_s": 1000 * entry.tokens / p50,
            "gflops": gflops,
            "share_of_f32_peak": gflops / peaks["f32"] if single and peaks["f32"] else None,
            "share_of_bf16_peak": gflops / peaks["bf16"] if single and peaks["bf16"] else None,
            "state_gb_per_s": entry.state_bytes / p50 / 1e6,
        }
        record["dtype"] = _dtype_of(entry) or record["dtype"]
        record["label"] = entry.label
        record["peer"] = entry.peer
        self.records.append(record)
        return record

    def _isa_of(self, entry: Entry) -> str:
        return entry.isa or self._isa

    def report(self, suite: str, results: list[Result]) -> dict[str, Any]:
        """Return everything as one JSON-ready document."""
        judged = [r for r in results if r.met is not None]
        return {
            "summary": {
                "suite": suite,
                **self.summary,
                "threads": self.options.threads,
                "isa_cap": self.options.isa,
                "quick": self.options.quick,
                "seconds_per_row": self.options.seconds_per_row,
                "tests": self.options.tests,
                "f32_fma_peak_gflops": self.peaks.typical("f32"),
                "bf16_dot_peak_gflops": self.peaks.typical("bf16"),
                "bars_met": sum(bool(r.met) for r in judged),
                "bars_judged": len(judged),
                "withheld": sum(r.status == WITHHELD for r in results),
                "skipped": sum(r.status == "skipped" for r in results),
                "failed": sum(r.status == "failed" for r in results),
            },
            "rows": [r.as_dict() for r in results],
            "records": self.records,
        }


def _facts(row: Row, ours: dict[str, Any]) -> list[str]:
    """What our own times say beyond the row's value: shares of the peaks, bytes per second."""
    if ours["state_gb_per_s"]:
        return [f"the state is read and written at {ours['state_gb_per_s']:.1f} GB/s"]
    if row.metric == "peak_share" or ours["share_of_f32_peak"] is None:
        return []
    text = f"{ours['share_of_f32_peak']:.0%} of the float32 FMA peak"
    if ours["dtype"] == "bfloat16" and ours["share_of_bf16_peak"] is not None:
        text += f", {ours['share_of_bf16_peak']:.0%} of the bf16 dot peak"
    return [text]


def _dtype_of(entry: Entry) -> str:
    q = entry.inputs.get("q")
    return str(q.dtype).removeprefix("torch.") if torch.is_tensor(q) else ""
