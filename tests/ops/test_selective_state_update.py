# SPDX-License-Identifier: Apache-2.0
"""Single steps of the selective scan: equal to the scan, in place, any dtype of the state."""

import pytest
import torch
from harness import DRAWS, DTYPES, MISFITS, assert_names_the_misfit, each_dtype
from scan_inputs import each_sign, make, op

from seqkern import reference
from seqkern.errors import SeqkernError, ShapeError
from seqkern.ops import selective_state_update
from seqkern.testing import compare, pooled

# batch, D, N, kinds of B and C
SHAPES = {
    "usual": (2, 70, 16, "11"),
    "one of each": (1, 1, 1, "11"),
    "groups": (3, 36, 19, "33"),
    "constant": (2, 33, 8, "cc"),
    "half constant": (2, 20, 40, "1c"),
    "wide": (2, 300, 64, "22"),
    "large enough for threads": (8, 640, 16, "11"),
}


def step_of(x, **named):
    """The step on the only row of ``x``: y [B, D] and the new state."""
    t = {
        n: v.squeeze(-1) if n in ("u", "delta", "z") or (n in "BC" and v.dim() > 2) else v
        for n, v in x.tensors.items()
    }
    state = named.pop("state", t["initial_state"].clone())
    y = selective_state_update(
        state,
        t["u"],
        t["delta"],
        t["A"],
        t["B"],
        t["C"],
        t.get("D"),
        t.get("z"),
        t.get("delta_bias"),
        dt_softplus=x.options["delta_softplus"],
        allow_neg_eigval=x.options["allow_neg_eigval"],
        **named,
    )
    return y, state


@each_sign
@each_dtype
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_matches_the_definition(shape, dtype, negative, isa, threads):
    """A step is a scan of length 1, within the errors of one, and writes the state in place."""
    batch, D, N, kinds = shape
    draws = []
    for seed in range(DRAWS):
        x = make((batch, 1, D, N, kinds, "t"), dtype, negative, seed=seed)
        y, state = step_of(x, backend="cpu")
        truth, *peers = (
            dict(zip(("o", "ht"), reference.selective_scan(**t.tensors, **t.options), strict=True))
            for t in (x.double(), x, x.nudged(0), x.nudged(1))
        )
        got = {"o": y.unsqueeze(2), "ht": state}
        draws.append((compare(got, truth, no_worse_than=peers), truth))
    over = [str(budget) for budget in pooled(draws) if not budget.ok]
    assert not over, "\n".join(over)


@each_sign
def test_steps_equal_the_scan(negative, isa):
    x = make((2, 40, 24, 16, "22", "t"), negative=negative)
    whole, final = op(**x.tensors, **x.options)
    state, outs = x.tensors["initial_state"].clone(), []
    for t in range(40):
        one = make((2, 1, 24, 16, "22", "t"), negative=negative)
        tensors = {
            n: v[..., t : t + 1] if n in ("u", "delta", "B", "C", "z") else v
            for n, v in x.tensors.items()
        }
        one.tensors.update(tensors)
        outs.append(step_of(one, state=state)[0])
    torch.testing.assert_close(torch.stack(outs, 2), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [(), ("D",), ("z",), ("delta_bias",)], ids=str)
def test_only_what_is_given(parts):
    x = make((2, 1, 20, 8, "c2", "t"), parts=(*parts, "initial_state"))
    y, state = step_of(x)
    expected, final = op(**x.tensors, **x.options)
    torch.testing.assert_close(y, expected.squeeze(2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-6)


@each_sign
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "strided"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_states_of_other_dtypes(dtype, dense, negative):
    """They are computed in float32 and written back, as are those that are not dense."""
    x = make((2, 1, 20, 8, "11", "t"), negative=negative)
    start = x.tensors["initial_state"].to(dtype)
    expected, final = step_of(x, state=start.float().clone())
    state = start.clone() if dense else start.transpose(0, 2).contiguous().transpose(0, 2)
    y, state = step_of(x, state=state, backend="cpu" if dtype is not torch.float64 else "auto")
    assert torch.equal(y, expected)
    assert torch.equal(state, final.to(dtype))


def test_autograd_notices_the_overwritten_state():
    """A graph that needs the old state refuses the new one, as with torch's own in-place ops."""
    x = make((2, 1, 20, 8, "11", "t"))
    state, weight = x.tensors["initial_state"].clone(), torch.ones(8, requires_grad=True)
    loss = (state * weight).sum()
    step_of(x, state=state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_batch_of_as_many_as_channels_varies():
    """B and C of [batch, N] and [D, N] look alike where batch = D: they are read as the first."""
    x = make((8, 1, 8, 4, "11", "t"))
    y, state = step_of(x)
    expected, final = op(**x.tensors, **x.options)
    torch.testing.assert_close(y, expected.squeeze(2), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_vmap(grad):
    """Every state of an ensemble is moved on in its place."""
    x = make((2, 1, 20, 8, "11", "t"))
    states = torch.stack([x.tensors["initial_state"], 2 * x.tensors["initial_state"]])
    expected = [step_of(x, state=state.clone()) for state in states]
    with torch.set_grad_enabled(grad):
        y = torch.vmap(lambda state: step_of(x, state=state)[0])(states)
    torch.testing.assert_close(y, torch.stack([y for y, _ in expected]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        states, torch.stack([state for _, state in expected]), rtol=1e-5, atol=1e-6
    )


@each_dtype
def test_same_bits_twice_and_for_every_thread_count(dtype, isa, threads):
    x = make((8, 1, 640, 16, "11", "t"), dtype)
    threads(1)
    y, state = step_of(x)
    for count in (1, 2, 3):
        threads(count)
        again, other = step_of(x)
        assert torch.equal(y, again)
        assert torch.equal(state, other)


@each_sign
@pytest.mark.parametrize("softplus", [True, False])
def test_float64_takes_the_reference(softplus, negative):
    x = make((2, 1, 20, 8, "11", "t"), negative=negative).double()
    x.options["delta_softplus"] = softplus
    y, state = step_of(x)
    expected, final = op(**x.tensors, **x.options)
    torch.testing.assert_close(y, expected.squeeze(2))
    torch.testing.assert_close(state, final)


GOOD = {
    "x": torch.zeros(2, 6),
    "state": torch.zeros(2, 6, 4),
    "dt": torch.zeros(2, 6),
    "A": torch.zeros(6, 4),
    "B": torch.zeros(2, 4),
    "C": torch.zeros(2, 4),
}
OPTIONAL = {"D": torch.zeros(6), "z": torch.zeros(2, 6), "dt_bias": torch.zeros(6)}


@pytest.mark.parametrize("misfit", MISFITS)
def test_names_the_argument_that_is_wrong(misfit):
    assert_names_the_misfit(selective_state_update, {**GOOD, **OPTIONAL}, misfit)


BAD = {
    "a whole sequence": ({"x": torch.zeros(2, 6, 9)}, ShapeError, r"\[batch, D\], one step, got"),
    "state": ({"state": torch.zeros(2, 6, 3)}, ShapeError, r"`state` must be \[batch, D, N\] = "),
    "expanded state": (
        {"state": torch.zeros(1, 6, 4).expand(2, 6, 4)},
        ShapeError,
        "`state` is updated in place, so its elements must not share memory",
    ),
    "dt": ({"dt": torch.zeros(2, 5)}, ShapeError, r"`dt` must be \[batch, D\] = \[2, 6\]"),
    "B": ({"B": torch.zeros(2, 5)}, ShapeError, r"`B` must be \[batch, N\] = \[2, 4\]"),
    "A": ({"A": torch.zeros(5, 4)}, ShapeError, r"\[6, at least 1\] to fit `x`, got \[5, 4\]"),
    "other groups": ({"C": torch.zeros(2, 3, 4)}, ShapeError, "number of groups, got 1 and 3"),
    "D": ({"D": torch.zeros(5)}, ShapeError, r"`D` must be \[D\] = \[6\]"),
    "dt_bias": ({"dt_bias": torch.zeros(5)}, ShapeError, r"`dt_bias` must be \[D\] = \[6\]"),
    "z": ({"z": torch.zeros(2, 5)}, ShapeError, r"`z` must be \[batch, D\]"),
    "gradient": ({"x": torch.zeros(2, 6).requires_grad_()}, SeqkernError, "has no gradient"),
    "gradient of the state": (
        {"state": torch.zeros(2, 6, 4).requires_grad_()},
        SeqkernError,
        "has no gradient",
    ),
}


@pytest.mark.parametrize(("change", "error", "message"), BAD.values(), ids=BAD)
def test_rejects(change, error, message):
    with pytest.raises(error, match=message):
        selective_state_update(**{**GOOD, **change})
