# SPDX-License-Identifier: Apache-2.0
"""The Mamba layer: its definition, transformers' mixer, the cache, padding, single steps."""

import copy

import pytest
import torch
from layer_cases import assert_no_worse, convolve, outputs_and_grads, truth_and_peers
from torch.nn import functional

from seqkern import nn, ops, reference
from seqkern.errors import DTypeError, OptionError, SeqkernError, ShapeError

D_MODEL = 24
each_sign = pytest.mark.parametrize("negative", [False, True], ids=["[0, 1]", "[-1, 1]"])
OPTIONS = {
    "usual": {},
    "small": {"d_state": 5, "d_conv": 3, "expand": 1, "dt_rank": 7},
    "biases": {"bias": True, "conv_bias": False, "dt_init": "constant", "dt_scale": 2.0},
}


def build(negative=False, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    layer = nn.Mamba(D_MODEL, layer_idx=0, allow_neg_eigval=negative, **options)
    with torch.no_grad():
        layer.D += 0.1 * torch.randn_like(layer.D)
        layer.A_log += 0.1 * torch.randn_like(layer.A_log)
        layer.dt_proj.bias += 3  # steps large enough that signs differ
    return layer.to(dtype)


def inputs(B, T, dtype=torch.float32, seed=1):
    return torch.randn(B, T, D_MODEL, generator=torch.Generator().manual_seed(seed)).to(dtype)


def definition(layer, x):
    u, z = layer.in_proj(x).chunk(2, -1)
    u = functional.silu(convolve(u, layer.conv1d))
    sizes = [layer.dt_rank, layer.d_state, layer.d_state]
    dt, b, c = layer.x_proj(u).split(sizes, -1)
    y, _ = reference.selective_scan(
        u.transpose(1, 2),
        functional.linear(dt, layer.dt_proj.weight).transpose(1, 2),
        -layer.A_log.exp(),
        b.transpose(1, 2),
        c.transpose(1, 2),
        layer.D,
        z.transpose(1, 2),
        layer.dt_proj.bias,
        True,
        None,
        layer.allow_neg_eigval,
    )
    return layer.out_proj(y.transpose(1, 2))


@each_sign
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_matches_the_definition(options, negative):
    layer, x = build(negative, **options), inputs(2, 45)
    truth, peers = truth_and_peers(layer, x, definition)
    assert_no_worse(outputs_and_grads(layer, x, lambda m, t: m(t)[0]), truth, peers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_sign
def test_other_dtypes(dtype, negative):
    layer, x = build(negative, dtype), inputs(2, 45, dtype)
    o, _, cache = layer(x, use_cache=True)
    assert o.dtype is dtype
    assert cache[0]["recurrent_state"].dtype is torch.float32
    truth = definition(copy.deepcopy(layer).double(), x.double())
    error = (o.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    assert error < 4 * torch.finfo(dtype).eps


def test_float64_takes_the_references():
    """A layer in float64 is its definition, step by step, too."""
    layer, x = build(True, torch.float64), inputs(2, 9, torch.float64)
    with torch.no_grad():
        o, cache = carry(layer, x, [1] * 9)
        torch.testing.assert_close(o, definition(layer, x))
    assert cache[0]["recurrent_state"].dtype is torch.float64


@pytest.mark.parametrize("sizes", [[1] * 9, [6, 1, 2]], ids=str)
def test_autocast(sizes):
    """The projections run in 16 bits; states that start there can be carried on."""
    layer, x = build(), inputs(2, 9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        o, cache = carry(layer, x, sizes)
    assert o.dtype is torch.bfloat16
    assert cache[0]["recurrent_state"].dtype is torch.float32
    truth = definition(copy.deepcopy(layer).double(), x.double())
    error = (o.double() - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    assert error < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("first", [True, False], ids=["prompt", "tokens"])
def test_autocast_of_a_part(first):
    """A prompt and its tokens may differ in autocast: the convolution's state is cast."""
    layer, x = build(), inputs(2, 9)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16, enabled=first):
            o, cache = carry(layer, x[:, :6], [6])
        with torch.autocast("cpu", torch.bfloat16, enabled=not first):
            more, _ = carry(layer, x[:, 6:], [1, 1, 1], cache)
    o = torch.cat([o.double(), more.double()], 1)
    truth = definition(copy.deepcopy(layer).double(), x.double())
    error = (o - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    assert error < 4 * torch.finfo(torch.bfloat16).eps


def test_negative_eigenvalues_change_the_result():
    layer, x = build(True), inputs(1, 20)
    with torch.no_grad():
        signed = layer(x)[0]
        layer.allow_neg_eigval = False
        assert (layer(x)[0] - signed).abs().max() > 1e-3


def test_takes_the_state_dict_of_transformers():
    """Same names, same shapes, same results as transformers' mixer, gradients included."""
    modeling = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    config = pytest.importorskip("transformers").MambaConfig(
        hidden_size=D_MODEL, state_size=16, num_hidden_layers=1
    )
    torch.manual_seed(0)
    theirs, ours = modeling.MambaMixer(config, 0), nn.Mamba(D_MODEL)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = inputs(2, 33)
    truth = outputs_and_grads(copy.deepcopy(theirs).double().eval(), x.double(), lambda m, t: m(t))
    peer = outputs_and_grads(theirs.eval(), x, lambda m, t: m(t))
    assert_no_worse(outputs_and_grads(ours, x, lambda m, t: m(t)[0]), truth, [peer], factor=4)


def test_parameters():
    """mamba_ssm's names and shapes, and its initial values."""
    layer = nn.Mamba(D_MODEL, dt_min=0.01, dt_max=0.05)
    shapes = {name: list(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "A_log": [48, 16],
        "D": [48],
        "in_proj.weight": [96, 24],
        "conv1d.weight": [48, 1, 4],
        "conv1d.bias": [48],
        "x_proj.weight": [2 + 32, 48],
        "dt_proj.weight": [48, 2],
        "dt_proj.bias": [48],
        "out_proj.weight": [24, 48],
    }
    torch.testing.assert_close(layer.A_log.exp()[3], torch.arange(1.0, 17.0))
    dt = functional.softplus(layer.dt_proj.bias)
    assert 0.0099 < dt.min() < dt.max() < 0.0501
    assert all(p._no_weight_decay for p in (layer.A_log, layer.D))
    assert layer.conv1d.padding == (3,)
    assert all(p.is_meta for p in nn.Mamba(D_MODEL, device="meta").parameters())


def test_options_may_be_read_again():
    options = {"d_state": 5, "d_conv": 3, "expand": 1.5, "dt_rank": 7, "use_fast_path": False}
    layer = nn.Mamba(D_MODEL, layer_idx=2, allow_neg_eigval=True, **options)
    assert {name: getattr(layer, name) for name in options} == options
    assert (layer.d_model, layer.d_inner, layer.layer_idx) == (D_MODEL, 36, 2)


def test_options_of_the_parameters():
    layer = nn.Mamba(D_MODEL, bias=True, conv_bias=False)
    biases = {name for name, _ in layer.named_parameters() if name.endswith("bias")}
    assert biases == {"in_proj.bias", "dt_proj.bias", "out_proj.bias"}
    for default, options in ((torch.float32, {"dtype": torch.bfloat16}), (torch.bfloat16, {})):
        torch.set_default_dtype(default)
        try:
            layer = nn.Mamba(D_MODEL, **options)
        finally:
            torch.set_default_dtype(torch.float32)
        wide = {name for name, p in layer.named_parameters() if p.dtype is torch.float32}
        assert wide == {"A_log", "D"}


def test_initial_time_steps():
    """``softplus(dt_proj.bias)`` lies between the bounds, the weights within their size."""
    torch.manual_seed(0)
    layer = nn.Mamba(64, dt_rank=4, dt_min=0.1, dt_max=0.1, dt_scale=0.5, dt_init="constant")
    steps = functional.softplus(layer.dt_proj.bias)
    torch.testing.assert_close(steps, torch.full_like(steps, 0.1))
    assert (layer.dt_proj.weight == 0.25).all()
    layer = nn.Mamba(64, dt_rank=4, dt_min=0.001, dt_max=0.1, dt_scale=2.0, dt_init_floor=0.03)
    steps = functional.softplus(layer.dt_proj.bias)
    torch.testing.assert_close(steps.min(), torch.tensor(0.03))
    assert 0.05 < steps.max() <= 0.1 * (1 + 1e-5)
    weight = layer.dt_proj.weight
    assert -1 <= weight.min() < -0.95 < 0.95 < weight.max() <= 1
    layer = nn.Mamba(64, dt_min=1e-6, dt_max=1e-6, dt_scale=0.0, dt_init_floor=0.0)
    steps = functional.softplus(layer.dt_proj.bias)
    torch.testing.assert_close(steps, torch.full_like(steps, 1e-6), rtol=1e-4, atol=0)
    assert (layer.dt_proj.weight == 0).all()


@pytest.mark.parametrize("T", [1, 5])
def test_decays_are_never_narrower_than_float32(T, monkeypatch):
    given = []

    def watch(op, at):
        return lambda *a, **options: given.append(a[at]) or op(*a, **options)

    for name, at in (("selective_scan", 2), ("selective_state_update", 3)):
        monkeypatch.setattr(ops, name, watch(getattr(ops, name), at))
    layer = build(False, torch.bfloat16)
    with torch.no_grad():
        layer(inputs(2, T, torch.bfloat16), use_cache=True)
        (A,) = given
        assert torch.equal(A, -layer.A_log.float().exp())


SPLITS = {
    "token by token": [1] * 19,
    "several at once": [7, 5, 1, 6],
    "prompt and tokens": [16, 1, 1, 1],
    "an empty call": [9, 0, 10],
}


def carry(layer, x, sizes, cache=None):
    outs = []
    for piece in x.split(sizes, 1):
        o, _, cache = layer(piece, past_key_values=cache, use_cache=True)
        outs.append(o)
    return torch.cat(outs, 1), cache


@each_sign
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_split_and_carry_equals_whole(split, negative):
    layer, x = build(negative), inputs(2, 19)
    with torch.no_grad():
        o, cache = carry(layer, x, split)
        whole, _, other = layer(x, use_cache=True)
    torch.testing.assert_close(o, whole, rtol=1e-4, atol=1e-6)
    assert cache.get_seq_length() == 19
    torch.testing.assert_close(
        cache[0]["recurrent_state"], other[0]["recurrent_state"], rtol=1e-4, atol=1e-6
    )


@each_sign
def test_gradients_run_through_the_cache(negative):
    layer, x = build(negative), inputs(2, 19)
    truth, peers = truth_and_peers(layer, x, definition, draws=4)
    ours = outputs_and_grads(layer, x, lambda m, t: carry(m, t, [6, 1, 2, 10])[0])
    assert_no_worse(ours, truth, peers)


def test_a_cache_that_is_not_written_stays():
    layer, x = build(), inputs(2, 9)
    with torch.no_grad():
        _, _, cache = layer(x, use_cache=True)
        before = {k: copy.deepcopy(v) for k, v in cache[0].items()}
        first = layer(x[:, :1], past_key_values=cache)[0]
        second = layer(x[:, :1], past_key_values=cache)[0]
    assert torch.equal(first, second)
    assert torch.equal(before["recurrent_state"], cache[0]["recurrent_state"])
    assert torch.equal(before["conv_state"][0], cache[0]["conv_state"][0])


@each_sign
def test_mask_equals_separate(negative):
    layer, x, mask = build(negative), inputs(3, 19), torch.ones(3, 19)
    mask[1, :3], mask[2, 5:], mask[0, ::4] = 0, 0, 0
    with torch.no_grad():
        o, _, cache = layer(x, mask, use_cache=True)
        for b in range(3):
            keep = mask[b] > 0
            alone, _, other = layer(x[b : b + 1, keep], use_cache=True)
            torch.testing.assert_close(o[b, keep], alone[0], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(
                cache[0]["recurrent_state"][b],
                other[0]["recurrent_state"][0],
                rtol=1e-4,
                atol=1e-6,
            )
            assert (o[b, ~keep] == 0).all()


def test_packed_equals_separate():
    layer, x, offsets = build(), inputs(1, 19), torch.tensor([0, 4, 4, 11, 19])
    with torch.no_grad():
        o = layer(x, cu_seqlens=offsets)[0]
        parts = [layer(t)[0] for t in x.split([4, 7, 8], 1)]
    torch.testing.assert_close(o, torch.cat(parts, 1), rtol=1e-4, atol=1e-6)


def test_one_packed_token_leaves_the_other_sequences_alone():
    layer, x = build(), inputs(1, 9)
    with torch.no_grad():
        _, _, cache = layer(x[:, :8], cu_seqlens=torch.tensor([0, 3, 8]), use_cache=True)
        before = cache[0]["recurrent_state"].clone()
        bounds = torch.tensor([0, 0, 1])
        o, _, cache = layer(x[:, 8:], past_key_values=cache, use_cache=True, cu_seqlens=bounds)
        whole = layer(x[:, 3:])[0]
    torch.testing.assert_close(o, whole[:, 5:], rtol=1e-4, atol=1e-6)
    assert torch.equal(cache[0]["recurrent_state"][0], before[0])
    assert not torch.equal(cache[0]["recurrent_state"][1], before[1])


def test_cache_of_transformers():
    """A transformers 5 cache carries the state as ours does."""
    transformers = pytest.importorskip("transformers")
    layer, x = build(), inputs(2, 19)
    with torch.no_grad():
        whole = layer(x)[0]
        o, _ = carry(layer, x, [16, 1, 1, 1], transformers.DynamicCache())
    torch.testing.assert_close(o, whole, rtol=1e-4, atol=1e-6)


def test_compiles_fullgraph():
    torch._dynamo.reset()
    layer, x = build(), inputs(2, 19)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dt_init": "zeros"}, OptionError, "`dt_init` must be 'random' or 'constant'"),
        ({"dt_rank": "full"}, OptionError, "`dt_rank` must be an integer or 'auto'"),
        ({"dt_min": 1.0}, OptionError, "0 < dt_min <= dt_max"),
        ({"dt_min": 0.0}, OptionError, "0 < dt_min <= dt_max, got 0.0 and 0.1"),
        ({"expand": 1.3}, ShapeError, "must be a whole number"),
        ({"expand": 0}, ShapeError, "must be a whole number >= 1, got 0"),
        ({"expand": "2"}, OptionError, "`expand` must be a number, got '2'"),
        ({"d_state": 0}, OptionError, "`d_state` must be an integer >= 1, got 0"),
        ({"d_state": 16.0}, OptionError, "`d_state` must be an integer >= 1, got 16.0"),
        ({"d_conv": 0}, OptionError, "`d_conv` must be an integer >= 1, got 0"),
        ({"dt_rank": 0}, OptionError, "`dt_rank` must be an integer >= 1, got 0"),
        ({"dt_rank": 1.5}, OptionError, "`dt_rank` must be an integer >= 1, got 1.5"),
        ({"dt_max": float("inf")}, OptionError, "must be finite numbers 0 < dt_min <= dt_max"),
        ({"dt_min": "fast"}, OptionError, "`dt_min` must be a number, got 'fast'"),
        ({"dt_max": "slow"}, OptionError, "`dt_max` must be a number, got 'slow'"),
        ({"dt_scale": float("inf")}, OptionError, "`dt_scale` must be a finite number >= 0"),
        ({"dt_scale": -1.0}, OptionError, "`dt_scale` must be a finite number >= 0, got -1.0"),
        ({"layer_idx": -1}, OptionError, "`layer_idx` must be an integer >= 0, got -1"),
        ({"dt_init_floor": float("nan")}, OptionError, "`dt_init_floor` must be a finite number"),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_rejects(options, error, message):
    with pytest.raises(error, match=message):
        nn.Mamba(D_MODEL, **options)


@pytest.mark.parametrize("width", [0, 24.0, "24"], ids=repr)
def test_rejects_widths(width):
    with pytest.raises(OptionError, match="`d_model` must be an integer >= 1, got"):
        nn.Mamba(width)


def test_rejects_inputs():
    layer = nn.Mamba(D_MODEL)
    with pytest.raises(ShapeError, match=r"\[B, T, d_model\] = \[B, T, 24\], got \[2, 5, 7\]"):
        layer(torch.zeros(2, 5, 7))
    with pytest.raises(DTypeError, match="`hidden_states` must have the dtype of the weights"):
        layer(torch.zeros(2, 5, D_MODEL, dtype=torch.bfloat16))
    with pytest.raises(SeqkernError, match="without `layer_idx`"):
        layer(torch.zeros(2, 5, D_MODEL), use_cache=True)
