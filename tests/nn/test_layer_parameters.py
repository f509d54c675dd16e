# SPDX-License-Identifier: Apache-2.0
"""Constructors, parameter names, shapes and initial values that checkpoints and users rely on."""

import inspect

import pytest
import torch

from seqkern import nn, ops

SIGNATURES = {
    nn.GatedLinearAttention: "mode='chunk', hidden_size=1024, expand_k=0.5, expand_v=1.0, "
    "num_heads=4, num_kv_heads=None, feature_map=None, use_short_conv=False, conv_size=4, "
    "conv_bias=False, use_output_gate=True, gate_fn='swish', elementwise_affine=True, "
    "norm_eps=1e-05, gate_logit_normalizer=16, gate_low_rank_dim=16, clamp_min=None, "
    "fuse_norm=True, layer_idx=None, allow_neg_eigval=False",  # the last is ours
    nn.DeltaNet: "mode='chunk', d_model=None, hidden_size=1024, expand_k=1.0, expand_v=1.0, "
    "num_heads=4, use_beta=True, use_gate=False, use_short_conv=True, conv_size=4, "
    "conv_bias=False, allow_neg_eigval=False, layer_idx=None, qk_activation='silu', "
    "qk_norm='l2', norm_eps=1e-05",
    nn.GatedDeltaNet: "hidden_size=2048, expand_v=2, head_dim=256, num_heads=6, num_v_heads=None, "
    "mode='chunk', use_gate=True, use_short_conv=True, allow_neg_eigval=False, conv_size=4, "
    "conv_bias=False, layer_idx=None, norm_eps=1e-05, output_gate_activation='swish'",
    nn.GatedDeltaProduct: "hidden_size=2048, expand_v=2, head_dim=256, num_heads=6, "
    "num_v_heads=None, mode='chunk', use_output_gate=True, use_short_conv=True, conv_size=4, "
    "conv_bias=False, layer_idx=None, norm_eps=1e-05, use_forget_gate=True, "
    "allow_neg_eigval=True, num_householder=2",
    nn.RMSNorm: "hidden_size, elementwise_affine=True, bias=False, eps=1e-05, device=None, "
    "dtype=None",
    nn.FusedRMSNormGated: "hidden_size, elementwise_affine=True, eps=1e-05, activation='swish', "
    "device=None, dtype=None",
    nn.ShortConvolution: "hidden_size, kernel_size, bias=False, activation='silu', "
    "backend='auto', device=None, dtype=None",
}


@pytest.mark.parametrize("cls", SIGNATURES, ids=lambda c: c.__name__)
def test_signature(cls):
    parameters = inspect.signature(cls).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
    assert ", ".join(map(str, bare)) == SIGNATURES[cls]


TABLES = [
    (
        nn.GatedLinearAttention,
        {},
        {
            "q_proj.weight": (512, 1024),
            "k_proj.weight": (512, 1024),
            "v_proj.weight": (1024, 1024),
            "g_proj.weight": (1024, 1024),
            "gk_proj.0.weight": (16, 1024),
            "gk_proj.1.weight": (512, 16),
            "gk_proj.1.bias": (512,),
            "o_proj.weight": (1024, 1024),
            "g_norm_swish_gate.weight": (256,),
        },
    ),
    (
        nn.GatedLinearAttention,
        {"num_kv_heads": 2, "use_short_conv": True, "conv_bias": True, "gate_fn": "relu"},
        {
            "q_proj.weight": (512, 1024),
            "k_proj.weight": (256, 1024),
            "v_proj.weight": (512, 1024),
            "g_proj.weight": (1024, 1024),
            "q_conv1d.weight": (512, 1, 4),
            "q_conv1d.bias": (512,),
            "k_conv1d.weight": (256, 1, 4),
            "k_conv1d.bias": (256,),
            "v_conv1d.weight": (512, 1, 4),
            "v_conv1d.bias": (512,),
            "gk_proj.0.weight": (16, 1024),
            "gk_proj.1.weight": (256, 16),
            "gk_proj.1.bias": (256,),
            "o_proj.weight": (1024, 1024),
            "g_norm.weight": (256,),
        },
    ),
    (
        nn.DeltaNet,
        {},
        {
            "q_proj.weight": (1024, 1024),
            "k_proj.weight": (1024, 1024),
            "v_proj.weight": (1024, 1024),
            "b_proj.weight": (4, 1024),
            "q_conv1d.weight": (1024, 1, 4),
            "k_conv1d.weight": (1024, 1, 4),
            "v_conv1d.weight": (1024, 1, 4),
            "o_norm.weight": (256,),
            "o_proj.weight": (1024, 1024),
        },
    ),
    (
        nn.DeltaNet,
        {"d_model": 512, "use_beta": False, "use_gate": True, "expand_v": 2.0, "conv_size": 3},
        {
            "q_proj.weight": (512, 512),
            "k_proj.weight": (512, 512),
            "v_proj.weight": (1024, 512),
            "q_conv1d.weight": (512, 1, 3),
            "k_conv1d.weight": (512, 1, 3),
            "v_conv1d.weight": (1024, 1, 3),
            "g_proj.weight": (1024, 512),
            "o_norm.weight": (256,),
            "o_proj.weight": (512, 1024),
        },
    ),
    (
        nn.GatedDeltaNet,
        {},
        {
            "A_log": (6,),
            "dt_bias": (6,),
            "q_proj.weight": (1536, 2048),
            "k_proj.weight": (1536, 2048),
            "v_proj.weight": (3072, 2048),
            "a_proj.weight": (6, 2048),
            "b_proj.weight": (6, 2048),
            "q_conv1d.weight": (1536, 1, 4),
            "k_conv1d.weight": (1536, 1, 4),
            "v_conv1d.weight": (3072, 1, 4),
            "g_proj.weight": (3072, 2048),
            "o_norm.weight": (512,),
            "o_proj.weight": (2048, 3072),
        },
    ),
    (
        nn.GatedDeltaNet,
        {"num_v_heads": 12, "head_dim": 64, "use_gate": False, "use_short_conv": False},
        {
            "A_log": (12,),
            "dt_bias": (12,),
            "q_proj.weight": (384, 2048),
            "k_proj.weight": (384, 2048),
            "v_proj.weight": (1536, 2048),
            "a_proj.weight": (12, 2048),
            "b_proj.weight": (12, 2048),
            "o_norm.weight": (128,),
            "o_proj.weight": (2048, 1536),
        },
    ),
    (
        nn.GatedDeltaProduct,
        {},
        {
            "A_log": (6,),
            "dt_bias": (6,),
            "q_proj.weight": (1536, 2048),
            "k_proj.weight": (3072, 2048),
            "v_proj.weight": (6144, 2048),
            "b_proj.weight": (12, 2048),
            "a_proj.weight": (6, 2048),
            "q_conv1d.weight": (1536, 1, 4),
            "k_conv1d.weight": (3072, 1, 4),
            "v_conv1d.weight": (6144, 1, 4),
            "g_proj.weight": (3072, 2048),
            "o_norm.weight": (512,),
            "o_proj.weight": (2048, 3072),
        },
    ),
    (
        nn.GatedDeltaProduct,
        {
            "num_householder": 3,
            "use_forget_gate": False,
            "use_output_gate": False,
            "conv_bias": True,
        },
        {
            "q_proj.weight": (1536, 2048),
            "k_proj.weight": (4608, 2048),
            "v_proj.weight": (9216, 2048),
            "b_proj.weight": (18, 2048),
            "q_conv1d.weight": (1536, 1, 4),
            "q_conv1d.bias": (1536,),
            "k_conv1d.weight": (4608, 1, 4),
            "k_conv1d.bias": (4608,),
            "v_conv1d.weight": (9216, 1, 4),
            "v_conv1d.bias": (9216,),
            "o_norm.weight": (512,),
            "o_proj.weight": (2048, 3072),
        },
    ),
]


@pytest.mark.filterwarnings("ignore:.*without short convolutions")
@pytest.mark.parametrize(("cls", "options", "table"), TABLES)
def test_parameter_names_and_shapes(cls, options, table):
    with torch.device("meta"):
        layer = cls(**options)
    assert {name: tuple(p.shape) for name, p in layer.state_dict().items()} == table
    assert all(isinstance(p, torch.nn.Parameter) for p in layer.parameters())


@pytest.mark.parametrize("cls", [nn.GatedDeltaNet, nn.GatedDeltaProduct])
def test_initial_decay(cls):
    torch.manual_seed(0)
    layer = cls(hidden_size=8, head_dim=1, num_heads=4000, expand_v=1)
    A = layer.A_log.exp()
    assert A.min() >= 0
    assert A.max() <= 16
    assert abs(A.mean() - 8) < 0.3
    log_dt = torch.nn.functional.softplus(layer.dt_bias).log10()
    assert log_dt.min() >= -3.0001
    assert -1.005 <= log_dt.max() <= -0.9999
    assert abs(log_dt.mean() + 2) < 0.05
    assert layer.A_log._no_weight_decay
    assert layer.dt_bias._no_weight_decay
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = cls(hidden_size=8, head_dim=1, num_heads=4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert layer.q_proj.weight.dtype is torch.bfloat16
    assert layer.A_log.dtype == layer.dt_bias.dtype == torch.float32


def test_widths_are_rounded_where_a_factor_is_not_exact():
    layer = nn.GatedDeltaNet(hidden_size=8, head_dim=100, expand_v=0.29, num_heads=1)
    assert 100 * 0.29 < layer.head_v_dim == layer.v_proj.out_features == 29


def test_projections_start_as_linear_layers_do():
    torch.manual_seed(0)
    layer = nn.GatedDeltaNet(hidden_size=64, head_dim=32, num_heads=2)
    for name in ("q_proj", "k_proj", "v_proj", "g_proj", "o_proj"):
        weight = getattr(layer, name).weight
        bound = weight.shape[1] ** -0.5
        assert 0.95 * bound < weight.abs().max() <= bound
    assert layer.q_conv1d.weight.abs().max() <= 0.5
    assert torch.equal(layer.o_norm.weight, torch.ones(64))


LAYERS = (nn.GatedLinearAttention, nn.DeltaNet, nn.GatedDeltaNet, nn.GatedDeltaProduct)


@pytest.mark.parametrize("cls", LAYERS)
def test_convolutions_have_the_size_and_bias_asked_for(cls):
    layer = cls(hidden_size=48, use_short_conv=True, conv_size=3, conv_bias=True)
    for conv in (layer.q_conv1d, layer.k_conv1d, layer.v_conv1d):
        assert conv.kernel_size == (3,)
        assert conv.bias.shape == (conv.hidden_size,)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("cls", LAYERS)
def test_the_output_norm_has_the_eps_asked_for(cls, gated):
    """And is float32 where no gate is fused into it, whatever the default is."""
    gate = "use_gate" if cls in (nn.DeltaNet, nn.GatedDeltaNet) else "use_output_gate"
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = cls(hidden_size=48, norm_eps=0.25, **{gate: gated})
    finally:
        torch.set_default_dtype(torch.float32)
    (norm,) = (m for m in layer.modules() if isinstance(m, (nn.RMSNorm, nn.RMSNormGated)))
    assert norm.eps == 0.25
    assert norm.weight.dtype is (torch.bfloat16 if gated else torch.float32)


@pytest.mark.parametrize("gated", [True, False])
def test_the_output_norm_of_gla_without_weight(gated):
    layer = nn.GatedLinearAttention(hidden_size=48, use_output_gate=gated, elementwise_affine=False)
    assert not [name for name in layer.state_dict() if "norm" in name]


def test_fuse_norm_decides_the_name_of_the_norm_alone():
    fused, apart = (
        nn.GatedLinearAttention(hidden_size=48, fuse_norm=fuse) for fuse in (True, False)
    )
    renamed = {
        name.replace("g_norm_swish_gate", "g_norm"): t for name, t in fused.state_dict().items()
    }
    apart.load_state_dict(renamed)
    x = torch.randn(2, 5, 48)
    torch.testing.assert_close(apart(x)[0], fused(x)[0], rtol=1e-4, atol=1e-5)


def test_a_short_convolution_is_made_as_asked():
    conv = nn.ShortConvolution(8, 4, bias=True, device="meta", dtype=torch.bfloat16)
    assert conv.padding == (3,)
    for parameter in conv.parameters():
        assert parameter.is_meta
        assert parameter.dtype is torch.bfloat16
    x = torch.randn(2, 5, 8)
    conv = nn.ShortConvolution(8, 4, activation="swish")
    swish = conv(x)[0]
    conv.activation = "silu"
    assert torch.equal(conv(x)[0], swish)


@pytest.mark.parametrize("cls", [nn.RMSNorm, nn.RMSNormGated])
def test_norms_are_made_as_asked(cls):
    options = {"bias": True} if cls is nn.RMSNorm else {}
    for parameter in cls(8, device="meta", dtype=torch.bfloat16, **options).parameters():
        assert parameter.is_meta
        assert parameter.dtype is torch.bfloat16
    values = {name: p.tolist() for name, p in cls(2, **options).named_parameters()}
    assert values == {"weight": [1, 1], **({"bias": [0, 0]} if options else {})}


@pytest.mark.parametrize("cls", [nn.RMSNorm, nn.RMSNormGated])
def test_norms_pass_every_option_on(cls):
    x, g, residual = torch.randn(3, 2, 5, 8).bfloat16()
    gates = (g,) if cls is nn.RMSNormGated else ()
    op = ops.rms_norm_gated if gates else ops.rms_norm
    norm, stream = cls(8, eps=0.5), {"prenorm": True, "residual_in_fp32": True}
    for stream["residual"] in (None, residual):
        y, total = norm(x, *gates, **stream)
        expected = op(x, *gates, norm.weight, norm.bias, eps=0.5, **stream)
        assert total.dtype is (torch.float32 if stream["residual"] is None else torch.bfloat16)
        assert torch.equal(y, expected[0])
        assert torch.equal(total, expected[1])


def test_norm_without_weight():
    x, g = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    bare = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    norm, gated = nn.RMSNorm(8, False), nn.RMSNormGated(8, False, activation="sigmoid")
    assert not list(norm.parameters()) + list(gated.parameters())
    torch.testing.assert_close(norm(x), bare)
    torch.testing.assert_close(gated(x, g), bare * g.sigmoid())
    assert "sigmoid" in repr(gated)


def test_norm_with_bias_and_residual():
    x, residual = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    norm = nn.RMSNorm(8, bias=True)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    y, total = norm(x, residual, prenorm=True)
    s = x + residual
    torch.testing.assert_close(total, s)
    expected = s / (s.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(y, expected)
