# SPDX-License-Identifier: Apache-2.0
"""The linear state-space layer: modes, definition, caching, rate, optimiser groups, rejects."""

import copy
import math

import pytest
import torch
from lssl_layer_cases import make_layer
from torch.nn import functional

from seqkern import reference
from seqkern._runtime import backends
from seqkern.errors import DTypeError, OptionError, ShapeError
from seqkern.nn import LSSL
from seqkern.ops import Quasiseparable

MEASURES = ("legs", "legt", "lagt", "random", "identity")
each_measure = pytest.mark.parametrize("measure", MEASURES)


@each_measure
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_agree(measure, channels):
    layer = make_layer(measure, channels)
    u = torch.randn(3, 45, 10)
    results = []
    for mode in ("parallel", "recurrent", "auto"):
        layer.mode = mode
        results.append(layer(u)[0])
    state, steps = None, []
    for u_t in u.unbind(1):
        y, state = layer.step(u_t, state)
        steps.append(y)
    for y in (*results[1:], torch.stack(steps, 1)):
        torch.testing.assert_close(y, results[0], rtol=1e-4, atol=1e-5)
    last = layer(u, output_final_state=True)[1] if layer.mode != "parallel" else state
    torch.testing.assert_close(last, state, rtol=1e-4, atol=1e-5)


@each_measure
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_is_its_definition(measure, backend, grad):
    """In every view, at another rate, with another transform, and from a state of another type."""
    layer = make_layer(measure, alpha=0.3).double()
    u, x0 = torch.randn(2, 30, 10, dtype=torch.float64), torch.randn(2, 10, 8)
    A, dt = layer.state_matrix(), 2 * layer.log_dt.exp()
    A = A.dense() if isinstance(A, Quasiseparable) else A

    def definition(u, x0=None):
        y, state = reference.lssl_scan(u, A, layer.B, layer.C, dt, layer.D, 0.3, x0)
        return layer.output_linear(functional.gelu(y).transpose(2, 3).flatten(2)), state

    def close(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)

    with torch.set_grad_enabled(grad), backends.override(backend):
        for layer.mode in ("parallel", "recurrent"):
            y, state = layer(u, rate=2.0)
            close(y, definition(u)[0])
            assert state is None
        layer.mode = "auto"
        close(layer(u, output_final_state=True, rate=2.0), definition(u))
        expected = definition(u, x0.double())
        close(layer(u, x0, True, 2.0), expected)
        close(layer(u, x0, rate=2.0)[0], expected[0])
        y, state = definition(u[:, :1], x0.double())
        close(layer.step(u[:, 0], x0, 2.0), (y[:, 0], state))
        close(layer.step(u[:1, 0], rate=2.0)[0], definition(u[:1, :1])[0][:, 0])


@each_measure
@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_gradients_of_all_parameters(measure, mode):
    layer = make_layer(measure, mode=mode).double()
    u = torch.randn(2, 30, 10, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(_loss(layer, u, "reference"), [u, *layer.parameters()])
    got = torch.autograd.grad(_loss(layer, u, "auto"), [u, *layer.parameters()])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8 * b.abs().max().item())


def _loss(layer, u, backend):
    with backends.override(backend):
        return layer(u)[0].square().sum()


@pytest.mark.parametrize("why", ["no library", "the reference is asked for"])
@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_without_a_kernel(mode, why, monkeypatch):
    layer, u = make_layer(mode=mode), torch.randn(2, 12, 10)
    expected = layer(u)[0]
    monkeypatch.setattr("seqkern.nn.lssl.run_system", None)
    if why == "no library":
        monkeypatch.setattr("seqkern.nn.lssl.FORWARD", None)
    with backends.override("auto" if why == "no library" else "reference"):
        torch.testing.assert_close(layer(u)[0], expected)


def test_split_and_carry_equals_whole():
    layer = make_layer()
    u = torch.randn(2, 30, 10)
    whole, last = layer(u, output_final_state=True)
    first, state = layer(u[:, :13], output_final_state=True)
    second, state = layer(u[:, 13:], initial_state=state, output_final_state=True)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert torch.equal(state, last)


def test_rate_scales_the_time_step():
    """Half the samples at ``rate=2``: close to every second output; the rate alone is not."""
    layer = make_layer(channels=1, dt_min=0.002, dt_max=0.01)
    t = torch.arange(400) / 400
    u = torch.sin(6.3 * t[:, None] * torch.arange(1, 11) / 3).unsqueeze(0)
    y, half = layer(u)[0][:, ::2], layer(u[:, ::2], rate=2.0)[0]
    without = layer(u[:, ::2])[0]
    assert (half - y).norm() < 0.05 * y.norm()
    assert (without - y).norm() > 3 * (half - y).norm()


def test_fixed_layer_discretises_once(monkeypatch):
    layer = make_layer(learn_A=False, learn_dt=False)
    assert {n for n, _ in layer.named_parameters()} == {
        "C",
        "D",
        "output_linear.weight",
        "output_linear.bias",
    }
    calls = []
    from seqkern.nn import lssl

    original = lssl.tridiagonal_system
    monkeypatch.setattr(lssl, "tridiagonal_system", lambda *a: calls.append(1) or original(*a))
    u = torch.randn(1, 12, 10)
    for _ in range(3):
        layer(u)[0].sum().backward()
    assert len(calls) == 1
    layer(u, rate=2.0)
    assert len(calls) == 2


def test_cache_notices_a_training_step():
    """In evaluation mode nothing older than the parameters is used."""
    layer = make_layer()
    u = torch.randn(2, 12, 10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    with torch.no_grad():
        before = layer(u)[0]
    layer(u)[0].square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after, fresh = layer(u)[0], copy.deepcopy(layer)
        fresh._cached = None
        assert torch.equal(after, fresh(u)[0])
    assert not torch.allclose(before, after)


def test_cache_notices_every_way_to_write():
    """Also those that leave no trace in autograd, as moving averages of weights do."""
    layer, u = make_layer(), torch.randn(2, 12, 10)

    def through_data():
        layer.log_dt.data.mul_(0.5).add_(1.0)

    def through_numpy():
        layer.B.detach().numpy()[:] *= 2

    def by_another_alpha():
        layer.alpha = 1.0

    def by_another_type():
        layer.double()
        u.data = u.double()

    with torch.no_grad():
        for write in (through_data, through_numpy, by_another_alpha, by_another_type):
            before = layer(u)[0]
            write()
            fresh = copy.deepcopy(layer)
            fresh._cached = None
            assert not torch.equal(layer(u)[0], before)
            assert torch.equal(layer(u)[0], fresh(u)[0])


@each_measure
@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
@pytest.mark.parametrize("whole", [False, True], ids=["mixed", "pure"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype, whole, mode, measure):
    """The whole layer may have the type of the input, or what mixes the features alone."""
    layer, u = make_layer(measure, mode=mode), torch.randn(2, 12, 10).to(dtype)
    (layer if whole else layer.output_linear).to(dtype)
    y, wide = layer(u)[0], copy.deepcopy(layer).double()(u.double())[0]
    assert y.dtype is dtype
    # The output, what is mixed, and the time steps are rounded, these to float32 at best.
    unit = torch.finfo(torch.float32 if dtype is torch.float64 else dtype).eps
    assert (y - wide).abs().max() < 3 * unit * wide.abs().max()


@each_measure
@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_autocast(measure, mode):
    """Only the products of `output_linear` are made of 16 bits."""
    layer, u = make_layer(measure, mode=mode), torch.randn(2, 12, 10)
    seen = []
    layer.output_linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer(u)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(u)[0]
    y.square().sum().backward()
    assert torch.equal(*seen)
    assert y.dtype is torch.bfloat16


@pytest.mark.parametrize("learn_dt", [False, True], ids=["fixed dt", "learned dt"])
@pytest.mark.parametrize("learn_A", [False, True], ids=["fixed A", "learned A"])
@pytest.mark.parametrize("measure", ["legs", "legt", "random"])
def test_what_is_trained(measure, learn_A, learn_dt):
    """The other tensors are buffers of the same names, which a checkpoint holds, too."""
    layer = make_layer(measure, learn_A=learn_A, learn_dt=learn_dt)
    upper = {"A_upper"} if learn_A or measure == "legt" else set()
    fields = {"A_P", "A_D", "A_Q", "A_lower", "A_diagonal"} | upper
    of_A = {"B"} | ({"A"} if measure == "random" else fields)
    rest = {"C", "D", "output_linear.weight", "output_linear.bias"}
    assert f"learn_A={learn_A}, learn_dt={learn_dt}" in repr(layer)
    slow = (of_A if learn_A else set()) | ({"log_dt"} if learn_dt else set())
    parameters = dict(layer.named_parameters())
    assert parameters.keys() == rest | slow
    assert layer.state_dict().keys() == rest | of_A | {"log_dt"}
    assert slow == {n for n, p in parameters.items() if getattr(p, "_no_weight_decay", False)}
    groups = layer.optimizer_groups(0.1, 0.2, lr_A=0.3, lr_dt=0.04)
    groups += layer.optimizer_groups(0.1, 0.2, lr_A=0.05, lr_dt=0.6)
    name = {p: n for n, p in parameters.items()}
    found = [({name[p] for p in g["params"]}, g["lr"], g["weight_decay"]) for g in groups]
    expected = [
        *((rest, 0.1, 0.2), (of_A, 0.1, 0.0), ({"log_dt"}, 0.04, 0.0)),
        *((rest, 0.1, 0.2), (of_A, 0.05, 0.0), ({"log_dt"}, 0.1, 0.0)),
    ]
    assert found == [g for g in expected if g[0] <= parameters.keys()]
    torch.optim.AdamW(groups[: len(groups) // 2])


def test_initial_values():
    """C and D are normal, a random A of norm about 1, and the time steps uniform in logarithm."""
    layer = LSSL(1000, 40, 2, "random", dt_min=1e-3, dt_max=1e-1, dropout=0.3, alpha=1)
    for x, scale in ((layer.C, 1), (layer.D, 1), (layer.A, 1 / 40), (layer.B, 1)):
        assert abs(x.mean() / scale) < 5 / x.numel() ** 0.5
        assert abs(x.std() / scale - 1) < 5 / x.numel() ** 0.5
    powers = layer.log_dt.detach() / math.log(10)
    assert -3 <= powers.min() < -2.98
    assert -1.02 < powers.max() <= -1
    assert abs(powers.mean() + 2) < 0.1
    assert layer.dropout.p == 0.3
    assert type(layer.alpha) is float
    assert LSSL(3, dt_min=0.25, dt_max=0.25).log_dt.exp().tolist() == [0.25] * 3


def test_dropout():
    """It sets elements of what is mixed to 0, in training alone."""
    layer, u, seen = make_layer(dropout=0.5), torch.randn(2, 12, 10), []
    layer.output_linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    layer(u)
    layer.eval()(u)
    kept = seen[0] != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(seen[0][kept], 2 * seen[1][kept])


@pytest.mark.parametrize("name", ["lr", "weight_decay", "lr_A", "lr_dt"])
@pytest.mark.parametrize("value", ["fast", None, -0.1, float("nan")], ids=str)
def test_optimizer_groups_reject(name, value):
    with pytest.raises(OptionError, match=f"`{name}` must be a number >= 0, got"):
        make_layer().optimizer_groups(**{"lr": 0.1, name: value})


def test_state_dict_round_trip():
    a, b = make_layer(), make_layer()
    with torch.no_grad():
        for p in a.parameters():
            p.add_(0.01)
    b.load_state_dict(a.state_dict())
    u = torch.randn(1, 9, 10)
    assert torch.equal(a(u)[0], b(u)[0])


def test_triangular_stays_so_and_cheaper_view_is_taken():
    layer = make_layer(triangular=True)
    assert layer.state_matrix().upper is None
    u = torch.zeros(2, 50, 10)
    assert layer._recurrent(u)
    for layer.mode, recurrent in (("recurrent", True), ("parallel", False)):
        assert layer._recurrent(u) is recurrent
    assert not LSSL(10, 512, measure="legt")._recurrent(torch.zeros(64, 5, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "`hidden_size` must be an integer >= 1, got 0"),
        ({"state_size": 0}, "`state_size` must be an integer >= 1, got 0"),
        ({"channels": 0}, "`channels` must be an integer >= 1, got 0"),
        ({"hidden_size": 3.5}, "`hidden_size` must be an integer >= 1, got 3.5"),
        ({"dropout": 1.5}, r"`dropout` must be a number in \[0, 1\], got 1.5"),
        ({"measure": "fourier"}, "`measure` must be one of legs"),
        ({"measure": "legt", "triangular": True}, "`triangular` needs a lower triangular matrix"),
        ({"measure": "random", "triangular": True}, 'and "random" is not'),
        ({"dt_min": 0.2}, "`dt_min` and `dt_max` must satisfy .* got 0.2 and 0.1"),
        ({"dt_min": 0.0}, "`dt_min` and `dt_max` must satisfy"),
        ({"dt_min": float("nan")}, "`dt_min` and `dt_max` must satisfy"),
        ({"dt_max": float("inf")}, "must satisfy 0 < dt_min <= dt_max < inf, got 0.001 and inf"),
        ({"dt_max": None}, "`dt_max` must be a number, > 0 and finite, got None"),
        ({"alpha": -0.1}, r"`alpha` must be a number in \[0, 1\]"),
        ({"mode": "fast"}, "`mode` must be one of auto"),
    ],
)
def test_rejects_options(options, message):
    with pytest.raises(OptionError, match=message):
        LSSL(**{"hidden_size": 4, **options})


def test_rejects_inputs():
    layer = make_layer(mode="parallel")
    with pytest.raises(ShapeError, match=r"`u` must be \[B, L, H\] with H = 10"):
        layer(torch.zeros(2, 5, 9))
    with pytest.raises(ShapeError, match=r"`u` must be \[B, H\] with H = 10"):
        layer.step(torch.zeros(2, 5, 10))
    with pytest.raises(OptionError, match="starts from zeros and has no state"):
        layer(torch.zeros(2, 5, 10), output_final_state=True)
    for rate in (0.0, float("inf"), "2", None):
        with pytest.raises(OptionError, match="`rate` must be a number, > 0 and finite, got"):
            layer(torch.zeros(2, 5, 10), rate=rate)
        with pytest.raises(OptionError, match="`rate` must be a number, > 0 and finite, got"):
            layer.step(torch.zeros(2, 10), rate=rate)
    words = "`u` must have the dtype of the weights, torch.float32, got torch.float64"
    for on in (False, True):
        with torch.autocast("cpu", enabled=on), pytest.raises(DTypeError, match=words):
            layer(torch.zeros(2, 5, 10).double())


def test_rejects_states_and_types():
    layer, u, N = make_layer(), torch.zeros(2, 5, 10), make_layer().state_size
    with pytest.raises(ShapeError, match=rf"`initial_state` must be \[B, H, N\] = \[2, 10, {N}\]"):
        layer(u, torch.zeros(3, 10, N))
    with pytest.raises(ShapeError, match=rf"`state` must be \[B, H, N\] = \[2, 10, {N}\]"):
        layer.step(u[:, 0], torch.zeros(2, 10, N + 1))
    with pytest.raises(DTypeError, match="`initial_state` must be a floating tensor"):
        layer(u, torch.zeros(2, 10, N, dtype=torch.int64))
    with pytest.raises(DTypeError, match=r"`u` must be a floating tensor, got torch.int64"):
        layer(u.long())
    with pytest.raises(DTypeError, match=r"`u` must be a torch.Tensor, got list"):
        layer([1.0])
