# SPDX-License-Identifier: Apache-2.0
"""The table of ops that `test_every_op.py` and `test_every_op_in_torch.py` run through.

Here an op says once how its inputs are drawn, and where time and sequences lie in them.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import conv_inputs as conv
import linear_scan_inputs as linear
import lssl_inputs as lssl
import norm_inputs as norm
import pytest
import rnn_inputs as rnn
import scan_inputs as scan
import torch
from harness import DTYPES
from specs import GLA, SPECS, with_signs

from seqkern import ops
from seqkern.testing import Inputs, Shape


@dataclass(frozen=True, eq=False)
class OpCase:
    """One op in one configuration, called as `seqkern.testing.run` calls ops.

    Attributes:
        id: names the case in the ids of the tests.
        op: takes the tensors and options by keyword and returns two outputs.
        definition: the same of `seqkern.reference`.
        make: draws the inputs of ``make(T, dtype, B=, width=)``; T is the length of each of B
            sequences, or the lengths of packed ones. Some take more keywords.
        time: the axis of time of every argument that has one, and of the output "o".
        T: a length at which nothing divides.
        lengths: of packed sequences, or None for an op that does not pack.
        state: the argument that is the initial state, or None.
        carries: the second output is the state to go on with.
        state_axis: on which the sequences lie in the states.
        exact_cuts: a sequence cut in two, with the state carried over, has the same bits.
        dtypes: those that the op is tested in.
        traced: those in which it is compiled; none where another case has the same graph.
        shared: arguments that may be one tensor in the test of second derivatives.
        tiny: what makes inputs small enough for finite differences.
        large: by name, what makes inputs large enough for several threads.
    """

    id: str
    op: Callable[..., Any]
    definition: Callable[..., Any]
    make: Callable[..., Inputs]
    time: Mapping[str, int]
    T: int = 37
    lengths: tuple[int, ...] | None = (5, 0, 33, 16)
    state: str | None = "initial_state"
    carries: bool = True
    state_axis: int = 0
    exact_cuts: bool = False
    dtypes: tuple[torch.dtype, ...] = DTYPES
    traced: tuple[torch.dtype, ...] = (torch.float32,)
    shared: tuple[str, ...] = ()
    tiny: Mapping[str, Any] = field(default_factory=dict)
    large: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        packed = {} if self.lengths is None else {"packed": {"T": self.lengths}}
        return {"batch": {"T": self.T}, **packed}

    def inputs(self, dtype=torch.float32, size="batch", **making: Any) -> Inputs:
        """Draw inputs; ``size`` is a name of ``sizes`` or ``large``, ``making`` changes it."""
        return self.make(dtype=dtype, **{**{**self.sizes, **self.large}[size], **making})

    def steps(self, name: str, t: Any, T: int, begin: int, end: int) -> Any:
        """Cut the steps from ``begin`` to ``end`` out of an argument that runs over T steps."""
        if name not in self.time:
            return t
        rows = t.shape[self.time[name]] // T
        return t.narrow(self.time[name], begin * rows, (end - begin) * rows)

    @property
    def states(self) -> tuple[str | None, ...]:
        """The names of what has one element a sequence."""
        return (self.state, "ht") if self.carries else (self.state,)


def over(cases, **each):
    """Parametrise a test by ``case``, and by what functions of the case say of it.

    @over(CASES, dtype=lambda case: case.dtypes)
    """
    rows = [
        (case, *values)
        for case in cases
        for values in itertools.product(*(values_of(case) for values_of in each.values()))
    ]
    ids = ["-".join((row[0].id, *map(str, row[1:]))) for row in rows]
    return pytest.mark.parametrize(("case", *each), rows, ids=ids)


def _linear_attention(spec, signs=False):
    def make(T, dtype=torch.float32, B=2, width=2, K=20, V=12, **making):
        sizes = {"H": width, "HV": 2 * width, "K": K, "V": V}
        shape = Shape(B=B, T=T, **sizes) if isinstance(T, int) else Shape(lengths=T, **sizes)
        x = spec.inputs(shape, dtype, **making)
        return with_signs(x) if signs else x

    return OpCase(
        f"{spec.id}, signs" if signs else spec.id,
        spec.op,
        spec.definition,
        make,
        time={"q": 1, "k": 1, "v": 1, "g": 1, "beta": 1, "o": 1},
        shared=("q", "k") if spec.n == 1 else ("q",),
        tiny={"T": 4, "width": 1, "K": 3, "V": 2},
    )


LINEAR_ATTENTION = (
    *(_linear_attention(spec) for spec in SPECS),
    _linear_attention(GLA, signs=True),
)


def _cell(name):
    def make(T, dtype=torch.float32, B=3, width=2, D=20, **making):
        shape = rnn.RnnShape("", B=B, T=T, N=width, D=D)
        if not isinstance(T, int):
            shape = rnn.RnnShape("", N=width, D=D, lengths=T)
        return rnn.rnn_inputs(name, shape, dtype, **making)

    return OpCase(
        name,
        rnn.op,
        rnn.definition,
        make,
        time={"Wx": 1, "reset": 1, "o": 2},
        T=13,
        lengths=(5, 0, 11, 3),
        state="states",
        state_axis=1,
        shared=("Wx",),
        tiny={"T": 4, "D": 3},
        large={
            "large batch": {"T": 7, "B": 40},
            "packed": {"T": (5, 0, 11, 3)},
            "team": {"T": 4, "B": 8, "width": 1, "D": 288},
        },
    )


RECURRENT = tuple(_cell(name) for name in rnn.CELLS)


def _make_convolution(T, dtype=torch.float32, B=2, width=20, W=4, **making):
    return conv.make((B if isinstance(T, int) else 1, T, width, W), dtype, **making)


CONVOLUTION = OpCase(
    "causal_conv1d",
    ops.causal_conv1d,
    conv.definition,
    _make_convolution,
    time={"x": 1, "residual": 1, "o": 1},
    lengths=(5, 0, 2, 30),
    exact_cuts=True,
    shared=("x", "residual"),
    tiny={"T": 6, "width": 3},
    large={
        "large batch": {"T": 700, "width": 200},
        "large packed": {"T": (5, 0, 900, 64), "width": 40},
    },
)


def _norm(id, gate, stream=None, eps=None):
    def make(T, dtype=torch.float32, B=2, width=20, **making):
        residual = stream or dtype
        return norm.make((B, T, width), dtype, gate, eps=eps, residual=residual, **making)

    return OpCase(
        id,
        norm.op,
        norm.definition,
        make,
        time={"x": 1, "g": 1, "residual": 1, "o": 1},
        lengths=None,
        state=None,
        carries=False,
        traced=DTYPES[:2],
        shared=("x", "g") if gate else ("x",),
        tiny={"T": 3, "width": 5},
        large={"wide": {"T": 1500, "width": 40}, "narrow": {"T": 1500, "width": 4}},
    )


NORMS = (
    _norm("rms_norm", None, torch.float32),
    _norm("rms_norm_gated", "swish"),
    _norm("rms_norm_gated, wide stream", "sigmoid", torch.float32, eps=0.5),
)


def _selective_scan(id, kinds, layout, negative, **fields):
    def make(T, dtype=torch.float32, B=2, width=20, N=8, kinds=kinds, layout=layout, **making):
        shape = (B if isinstance(T, int) else 1, T, width, N, kinds, layout)
        return scan.make(shape, dtype, negative, **making)

    constant = {name for name, kind in zip("BC", kinds, strict=True) if kind == "c"}
    over_time = {"u", "delta", "B", "C", "z", "o"} - constant
    return OpCase(
        f"selective_scan{', signs' if negative else ''}{id}",
        scan.op,
        scan.definition,
        make,
        time=dict.fromkeys(over_time, -1),
        T=70,
        lengths=(5, 0, 40, 30),
        exact_cuts=True,
        shared=("u", "z"),
        tiny={"T": 3, "width": 4, "N": 2},
        **fields,
    )


def _selective_scans(negative):
    return (
        _selective_scan("", "11", "t", negative, traced=DTYPES[:2]),
        _selective_scan(", channels last", "11", "d", negative, traced=DTYPES[:2]),
        _selective_scan(
            ", groups",
            "22",
            "t",
            negative,
            traced=(),
            large={
                "large batch": {"T": 200, "width": 200},
                "large packed": {"T": (5, 0, 200, 64), "width": 150, "kinds": "c1", "layout": "d"},
            },
        ),
        _selective_scan(", constant", "cc", "t", negative, traced=()),
    )


SELECTIVE_SCAN = (*_selective_scans(False), *_selective_scans(True))


def _linear_scan(id, heads=(), **fields):
    def make(T, dtype=torch.float32, B=2, width=20, **making):
        return linear.make((B if isinstance(T, int) else 1, T, (*heads, width)), dtype, **making)

    return OpCase(
        id,
        linear.op,
        linear.definition,
        make,
        time={"a": 1, "b": 1, "o": 1},
        lengths=(5, 0, 40, 30),
        state="h0",
        carries=False,
        shared=("a",),
        tiny={"T": 4, "width": 3},
        large={"large batch": {"T": 200, "B": 3, "width": 1500 // math.prod(heads)}},
        **fields,
    )


LINEAR_SCAN = (_linear_scan("linear_scan"), _linear_scan("linear_scan, heads", (3, 4), traced=()))


def _lssl(measure, **fields):
    def make(T, dtype=torch.float32, B=2, width=5, N=6, M=2, **making):
        return lssl.make(lssl.Shape(B, T, width, N, M), dtype, measure, **making)

    return OpCase(
        f"lssl {measure}",
        lssl.scan,
        lssl.definition,
        make,
        time={"u": 1, "o": 1},
        lengths=None,
        exact_cuts=True,
        dtypes=(torch.float32,),
        tiny={"T": 4, "width": 2, "N": 3, "M": 1},
        large={"large batch": {"T": 70, "B": 11, "width": 40, "N": 8, "M": 1}},
        **fields,
    )


LSSL = (_lssl("legs"), _lssl("legt", traced=()))

CASES = (
    *LINEAR_ATTENTION,
    *RECURRENT,
    CONVOLUTION,
    *NORMS,
    *SELECTIVE_SCAN,
    *LINEAR_SCAN,
    *LSSL,
)
# One for each kernel, for what does not depend on options.
MAIN = [
    case
    for case in CASES
    if case.id in ("gla", "lstm", "causal_conv1d", "selective_scan", "linear_scan")
]
