# SPDX-License-Identifier: Apache-2.0
"""Bad arguments of the linear state-space ops raise before anything runs, and say what to do."""

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
A, B = hippo("legs", 4)
GOOD = {"u": Z(2, 9, 3), "A": A, "B": B, "C": Z(3, 2, 4), "dt": torch.ones(3), "D": Z(3, 2)}
SCAN = {
    "C is no tensor": ({"C": [1.0]}, DTypeError, "`C` must be a torch.Tensor, got list"),
    "C is missing": ({"C": None}, DTypeError, "`C` must be a torch.Tensor, got NoneType"),
    "C": ({"C": Z(3, 4)}, ShapeError, r"`C` must be \[H, M, N\] with M, N >= 1, got \[3, 4\]"),
    "C is integer": ({"C": Z(3, 2, 4).int()}, DTypeError, "`C` must be a floating tensor"),
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
    "alpha is long": ({"alpha": Z(2)}, OptionError, "`alpha` must be a number .* got tensor"),
    "u": ({"u": Z(2, 9, 4)}, ShapeError, r"`u` must be \[B, L, H\] with H = 3 like `C`"),
    "u is integer": ({"u": Z(2, 9, 3).int()}, DTypeError, "`u` must be a floating tensor"),
    "device": ({"B": Z(4, device="meta")}, DeviceError, "`B` must be on the device of `C`"),
    "no kernel": ({"backend": "cuda"}, BackendUnavailableError, "no cuda kernel"),
    "backend": ({"backend": "fast"}, OptionError, "`backend` must be one of"),
}


@pytest.mark.parametrize("op", [lssl_scan, lssl_conv])
@pytest.mark.parametrize(("change", "error", "message"), SCAN.values(), ids=SCAN)
def test_rejects(op, change, error, message):
    with pytest.raises(error, match=message):
        op(**{**GOOD, **change})


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
            lambda: lssl_step(**{**GOOD, "u": Z(2, 3)}, state=Z(1, 3, 4)),
            ShapeError,
            r"`state` must be \[B, H, N\] = \[2, 3, 4\], got \[1, 3, 4\]",
        ),
        (lambda: hippo("fourier", 4), OptionError, '`measure` must be one of "legs"'),
        (lambda: hippo("legs", 0), OptionError, "`N` must be an integer >= 1, got 0"),
        (lambda: hippo("legs", 4.5), OptionError, "`N` must be an integer >= 1, got 4.5"),
        (lambda: hippo("legs", 4, torch.int64), DTypeError, "`dtype` must be a floating-point"),
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


@pytest.mark.parametrize("L", [np.int64(5), torch.tensor(5)])
def test_takes_any_integer(L):
    named = {name: GOOD[name] for name in ("A", "B", "C", "dt")}
    assert lssl_kernel(**named, L=L).shape == (3, 2, 5)
