# SPDX-License-Identifier: Apache-2.0
"""Bad arguments of the linear state-space ops raise before anything runs, and say what to do."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from seqkern.errors import (
    BackendUnavailableError,
    DeviceError,
    DTypeError,
    OptionError,
    ShapeError,
)
from seqkern.ops import hippo, lssl_conv, lssl_kernel, lssl_scan, lssl_step

Z = torch.zeros


def kernel(u, D, **named):
    return lssl_kernel(**named, L=9)


def step(u, state=None, **named):
    return lssl_step(u[:, 0], state, **named)


OPS = (lssl_scan, lssl_conv, kernel, step)
A, B = hippo("legs", 4)
GOOD = {"u": Z(2, 9, 3), "A": A, "B": B, "C": Z(3, 2, 4), "dt": torch.ones(3), "D": Z(3, 2)}
SCAN = {
    "C is no tensor": ({"C": [1.0]}, DTypeError, "`C` must be a torch.Tensor, got list"),
    "C is missing": ({"C": None}, DTypeError, "`C` must be a torch.Tensor, got NoneType"),
    "C": ({"C": Z(3, 4)}, ShapeError, r"`C` must be \[H, M, N\] with M, N >= 1, got \[3, 4\]"),
    "C is integer": ({"C": Z(3, 2, 4).int()}, DTypeError, "`C` must be a floating tensor"),
    "no channel": ({"C": Z(3, 0, 4), "D": None}, ShapeError, r"with M, N >= 1, got \[3, 0, 4\]"),
    "no order": ({"C": Z(3, 2, 0)}, ShapeError, r"with M, N >= 1, got \[3, 2, 0\]"),
    "another order": (
        dict(zip("AB", hippo("legs", 5), strict=True)),
        ShapeError,
        r"`A.P` must be \[N\] = \[4\] or \[H, N\] = \[3, 4\] to fit `C`, got \[5\]",
    ),
    "A": (
        {"A": Z(4, 5)},
        ShapeError,
        r"`A` must be \[N, N\] = \[4, 4\] or \[H, N, N\] = \[3, 4, 4\] to fit `C`, got \[4, 5\]",
    ),
    "A is neither": ({"A": 1.0}, DTypeError, "or a `Quasiseparable` .* got float"),
    "A.P": ({"A": A._replace(P=Z(5))}, ShapeError, r"`A.P` must be \[N\] = \[4\] or \[H, N\]"),
    "A.upper": ({"A": A._replace(upper=Z(2, 4))}, ShapeError, r"`A.upper` must be \[N\]"),
    "A.D is missing": ({"A": A._replace(D=None)}, DTypeError, "`A.D` must be a torch.Tensor"),
    "B": ({"B": Z(3)}, ShapeError, r"`B` must be \[N\] = \[4\] or \[H, N\] = \[3, 4\]"),
    "dt": ({"dt": Z(2)}, ShapeError, r"`dt` must be \[H\] = \[3\]"),
    "dt is a number": ({"dt": 0.1}, DTypeError, "`dt` must be a torch.Tensor, got float"),
    "D": ({"D": Z(3)}, ShapeError, r"`D` must be \[H, M\] = \[3, 2\]"),
    "alpha": ({"alpha": 1.5}, OptionError, r"`alpha` must be a number in \[0, 1\] .* got 1.5"),
    "alpha is text": (
        {"alpha": "half"},
        OptionError,
        "`alpha` must be a number .* got 'half'",
    ),
    "alpha is missing": ({"alpha": None}, OptionError, "`alpha` must be a number .* got None"),
    "alpha is negative": ({"alpha": -0.5}, OptionError, "`alpha` must be a number .* got -0.5"),
    "alpha is to be learned": (
        {"alpha": torch.tensor(0.5, requires_grad=True)},
        OptionError,
        r"`alpha` is a number and gets no gradient. Pass `alpha.item\(\)`",
    ),
    "alpha is long": ({"alpha": Z(2)}, OptionError, "`alpha` must be a number .* got tensor"),
    "u": ({"u": Z(2, 9, 4)}, ShapeError, r"`u` must be \[B,( L,)? H\] with H = 3 like `C`"),
    "u is integer": ({"u": Z(2, 9, 3).int()}, DTypeError, "`u` must be a floating tensor"),
    "no kernel": ({"backend": "cuda"}, BackendUnavailableError, "no cuda kernel"),
    "backend": ({"backend": "fast"}, OptionError, "`backend` must be one of"),
}


REJECTED = {
    f"{op.__name__}, {what}": (op, *row)
    for op in OPS
    for what, row in SCAN.items()
    if op is not kernel or not {"u", "D"} & row[0].keys()
}


@pytest.mark.parametrize(("op", "change", "error", "message"), REJECTED.values(), ids=REJECTED)
def test_rejects(op, change, error, message):
    with pytest.raises(error, match=message):
        op(**{**GOOD, **change})


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dense", [False, True], ids=["structured", "dense"])
def test_rejects_other_devices(op, dense):
    tensors = {**GOOD, "A": A.dense() if dense else A}
    tensors |= {lssl_scan: {"initial_state": Z(2, 3, 4)}, step: {"state": Z(2, 3, 4)}}.get(op, {})
    read = tensors.keys() - ({"C", "u", "D"} if op is kernel else {"C"})
    for name in sorted(read):
        x, called = tensors[name], name
        if name == "A" and not dense:
            x, called = x._replace(upper=Z(4, device="meta")), "A.upper"
        else:
            x = x.to("meta")
        with pytest.raises(DeviceError, match=f"`{called}` must be on the device of `C`"):
            op(**{**tensors, name: x})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: lssl_scan(**GOOD, initial_state=Z(2, 3, 5)),
            ShapeError,
            r"`initial_state` must be \[B, H, N\] = \[2, 3, 4\], got \[2, 3, 5\]",
        ),
        (
            lambda: lssl_scan(**GOOD, initial_state=Z(2, 3, 4).int()),
            DTypeError,
            "`initial_state` must be a floating tensor",
        ),
        (lambda: lssl_step(**GOOD, state=None), ShapeError, r"`u` must be \[B, H\] with H = 3"),
        (
            lambda: lssl_step(**{**GOOD, "u": Z(())}, state=None),
            ShapeError,
            r"`u` must be \[B, H\] with H = 3 like `C`, got \[\]",
        ),
        (
            lambda: lssl_step(**{**GOOD, "u": Z(2, 3)}, state=Z(1, 3, 4)),
            ShapeError,
            r"`state` must be \[B, H, N\] = \[2, 3, 4\], got \[1, 3, 4\]",
        ),
        (lambda: hippo("fourier", 4), OptionError, '`measure` must be one of "legs"'),
        (lambda: hippo("legs", 0), OptionError, "`N` must be an integer >= 1, got 0"),
        (lambda: hippo("legs", 4.5), OptionError, "`N` must be an integer >= 1, got 4.5"),
        (lambda: hippo("legs", 4, torch.int64), DTypeError, "`dtype` must be a floating-point"),
        (lambda: hippo("legs", 4, "float32"), DTypeError, "`dtype` must be a floating-point"),
    ],
)
def test_rejects_states_and_measures(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("L", [-1, 2.0, True])
def test_rejects_lengths(L):
    named = {name: GOOD[name] for name in ("A", "B", "C", "dt")}
    with pytest.raises(OptionError, match="`L` must be an integer >= 0"):
        lssl_kernel(**named, L=L)


NUMBERS = (
    ("alpha", np.array(0.25), 0.25),
    ("alpha", Fraction(1, 4), 0.25),
    ("L", np.int64(5), 5),
    ("L", torch.tensor(5), 5),
)


@pytest.mark.parametrize(("name", "given", "number"), NUMBERS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("A", [A, A.dense()], ids=["structured", "dense"])
def test_takes_any_number(A, backend, name, given, number):
    tensors = (A, B, torch.randn(3, 2, 4), GOOD["dt"])
    K, expected = (
        lssl_kernel(*tensors, **{"L": 5, name: x}, backend=backend) for x in (given, number)
    )
    assert torch.equal(K, expected)
