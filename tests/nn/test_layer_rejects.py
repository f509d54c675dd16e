# SPDX-License-Identifier: Apache-2.0
"""Every error a layer, a cache or a norm raises, by its words."""

import pytest
import torch
from layer_cases import HIDDEN, MAIN, build, inputs

from seqkern import nn
from seqkern.errors import DTypeError, OptionError, SeqkernError, ShapeError

GLA, DELTA, GDN, GDP = nn.GatedLinearAttention, nn.DeltaNet, nn.GatedDeltaNet, nn.GatedDeltaProduct

CONSTRUCTORS = [
    (
        GLA,
        {"mode": "parallel"},
        OptionError,
        "`mode` must be 'chunk' or 'fused_recurrent', got",
    ),
    (GLA, {"mode": "fused_chunk"}, OptionError, "got 'fused_chunk'. Both run the same kernel"),
    (GLA, {"num_kv_heads": 3}, ShapeError, "`num_kv_heads` must divide `num_heads`, got 4 and 3"),
    (GLA, {"num_heads": 0}, OptionError, "`num_heads` must be an integer >= 1, got 0"),
    (GLA, {"num_kv_heads": 0}, OptionError, "`num_kv_heads` must be an integer >= 1, got 0"),
    (GLA, {"expand_k": 0}, OptionError, "`expand_k` must be a number > 0, got 0"),
    (GLA, {"expand_k": 1e-3}, ShapeError, "must be a whole number >= 1, got 0.048 = 48 * 0.001"),
    (GLA, {"gate_low_rank_dim": 0}, OptionError, "`gate_low_rank_dim` must be an integer >= 1"),
    (GLA, {"gate_logit_normalizer": 0}, OptionError, "`gate_logit_normalizer` must be a number >"),
    (GLA, {"clamp_min": 1}, OptionError, "`clamp_min` must be a number <= 0, for it bounds a log"),
    (GLA, {"clamp_min": float("nan")}, OptionError, "decay, or None, got nan"),
    (GLA, {"gate_fn": ["swish"]}, OptionError, "`gate_fn` must be one of gelu"),
    (GLA, {"num_heads": 5}, ShapeError, "`num_heads` must divide `hidden_size * expand_k`, got"),
    (GLA, {"expand_v": 0.3}, ShapeError, "`hidden_size * expand_v` must be a whole number"),
    (GLA, {"feature_map": "cubic"}, OptionError, "`feature_map` must be one of gelu, logsigmoid"),
    (GLA, {"gate_fn": "cubic"}, OptionError, "`gate_fn` must be one of gelu"),
    (GLA, {"use_neg_eigval": True}, TypeError, "use_neg_eigval"),
    (
        DELTA,
        {"qk_activation": "gelu"},
        OptionError,
        "`qk_activation` must be one of silu, relu",
    ),
    (DELTA, {"qk_norm": "l1"}, OptionError, "`qk_norm` must be one of l2, sum, got 'l1'"),
    (DELTA, {"expand_k": 0.51}, ShapeError, "`hidden_size * expand_k` must be a whole number"),
    (DELTA, {"num_head": 3}, TypeError, "num_head"),
    (DELTA, {"num_heads": 0}, OptionError, "`num_heads` must be an integer >= 1, got 0"),
    (DELTA, {"expand_v": float("nan")}, OptionError, "`expand_v` must be a number > 0, got nan"),
    (DELTA, {"expand_v": "1"}, OptionError, "`expand_v` must be a number > 0, got '1'"),
    (DELTA, {"expand_v": -1}, OptionError, "`expand_v` must be a number > 0, got -1"),
    (GDN, {"num_heads": 4, "num_v_heads": 6}, ShapeError, "`num_heads` must divide `num_v_heads`"),
    (GDN, {"num_heads": 4, "num_v_heads": 2}, ShapeError, "got 2 and 4"),
    (GDN, {"head_dim": 5, "expand_v": 1.5}, ShapeError, "`head_dim * expand_v` must be a whole"),
    (GDN, {"output_gate_activation": "relu"}, OptionError, "must be one of swish, silu, sigmoid"),
    (GDN, {"use_gates": False}, TypeError, "use_gates"),
    (GDN, {"num_heads": -1}, OptionError, "`num_heads` must be an integer >= 1, got -1"),
    (GDN, {"num_v_heads": 0}, OptionError, "`num_v_heads` must be an integer >= 1, got 0"),
    (GDN, {"head_dim": 0}, OptionError, "`head_dim` must be an integer >= 1, got 0"),
    (GDN, {"expand_v": float("inf")}, OptionError, "`expand_v` must be a number > 0, got inf"),
    (GDP, {"num_householder": 0}, OptionError, "`num_householder` must be an integer >= 1, got 0"),
    (GDP, {"num_householder": 1.5}, OptionError, "`num_householder` must be an integer >= 1"),
    (GDP, {"mode": "fast"}, OptionError, "`mode` must be"),
]
# What every layer refuses.
SHARED = [
    ({"hidden_size": 0}, "`hidden_size` must be an integer >= 1, got 0"),
    ({"hidden_size": -8}, "`hidden_size` must be an integer >= 1, got -8"),
    ({"hidden_size": 48.0}, "`hidden_size` must be an integer >= 1, got 48.0"),
    ({"num_heads": "4"}, "`num_heads` must be an integer >= 1, got '4'"),
    ({"layer_idx": -1}, "`layer_idx` must be an integer >= 0, got -1"),
    ({"norm_eps": 0}, "`norm_eps` must be a number > 0, got 0"),
    ({"conv_size": 0, "use_short_conv": True}, "`conv_size` must be an integer >= 1, got 0"),
]


@pytest.mark.parametrize(("cls", "options", "error", "words"), CONSTRUCTORS)
def test_rejects_options(cls, options, error, words):
    with pytest.raises(error) as raised:
        cls(hidden_size=HIDDEN, **options)
    assert words in str(raised.value)


@pytest.mark.parametrize(("options", "words"), SHARED)
@pytest.mark.parametrize("cls", [GLA, DELTA, GDN, GDP])
def test_rejects_options_of_every_layer(cls, options, words):
    with pytest.raises(OptionError) as raised:
        cls(**{"hidden_size": HIDDEN, **options})
    assert f"{cls.__name__}: {words}" in str(raised.value)


CALLS = {
    "no tensor": (
        lambda: {"hidden_states": [[0.0]]},
        DTypeError,
        "`hidden_states` must be a torch.Tensor, got list",
    ),
    "rank": (lambda: {"hidden_states": inputs(2, 4)[0]}, ShapeError, "must be [B, T, hidden_size]"),
    "width": (lambda: {"hidden_states": torch.zeros(2, 4, 7)}, ShapeError, "got [2, 4, 7]"),
    "sparse": (
        lambda: {"hidden_states": inputs(2, 4).to_sparse()},
        DTypeError,
        "`hidden_states` must be a dense tensor, got torch.sparse_coo",
    ),
    "integers": (
        lambda: {"hidden_states": inputs(2, 4).long()},
        DTypeError,
        "of the weights, torch.float32, got torch.int64. Pass `hidden_states.to(torch.float32)`.",
    ),
    "eight bits": (
        lambda: {"hidden_states": inputs(2, 4).to(torch.float8_e4m3fn)},
        DTypeError,
        "torch.float32, got torch.float8_e4m3fn. Pass `hidden_states.to(torch.float32)`.",
    ),
    "half": (
        lambda: {"hidden_states": inputs(2, 4, torch.bfloat16)},
        DTypeError,
        "Pass `hidden_states.to(torch.float32)`, or call `.to(torch.bfloat16)` on the layer.",
    ),
    "mask rank": (
        lambda: {"attention_mask": torch.ones(2, 4, 4)},
        ShapeError,
        "must be a padding mask [B, T] = [2, 4], got [2, 4, 4]. The layer is causal by itself",
    ),
    "mask batch": (
        lambda: {"attention_mask": torch.ones(1, 4)},
        ShapeError,
        "S >= T = 4",
    ),
    "mask short": (
        lambda: {"attention_mask": torch.ones(2, 3)},
        ShapeError,
        "got [2, 3].",
    ),
    "mask list": (
        lambda: {"attention_mask": [[1] * 4] * 2},
        DTypeError,
        "`attention_mask` must be a torch.Tensor, got list",
    ),
    "packed list": (
        lambda: {"cu_seqlens": [0, 4]},
        DTypeError,
        "`cu_seqlens` must be a torch.Tensor, got list",
    ),
    "packed batch": (
        lambda: {"cu_seqlens": torch.tensor([0, 4])},
        ShapeError,
        "packs all sequences into a batch of 1, got `hidden_states` [2, 4, 48]",
    ),
    "packed rank": (
        lambda: {"cu_seqlens": torch.tensor([[0, 4]])},
        ShapeError,
        "`cu_seqlens` must be [N + 1], got [1, 2]",
    ),
    "packed nothing": (
        lambda: {"cu_seqlens": torch.tensor([], dtype=torch.int64)},
        ShapeError,
        "`cu_seqlens` must be [N + 1], got [0]",
    ),
    "cache list": (lambda: {"past_key_values": [None]}, DTypeError, "transformers 5, got list"),
    "cache type": (lambda: {"past_key_values": 3}, DTypeError, "must be a `seqkern.nn.Cache` or"),
    "cache dict": (lambda: {"past_key_values": {0: {}}}, DTypeError, "transformers 5, got dict"),
    "unknown": (lambda: {"position_ids": torch.arange(4)}, TypeError, "position_ids"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_rejects(case, call):
    layer, (arguments, error, words) = build(case), CALLS[call]
    with pytest.raises(error) as raised:
        layer(**{"hidden_states": inputs(2, 4), **arguments()})
    assert words in str(raised.value)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_autocast_decides_which_dtypes_fit(case):
    layer = build(case)
    with torch.autocast("cpu"):
        assert layer(inputs(2, 4, torch.float16))[0].dtype is torch.bfloat16
        with pytest.raises(DTypeError, match="`hidden_states` must have the dtype of the weights"):
            layer(inputs(2, 4, torch.float64))
        with pytest.raises(DTypeError, match=r"of the weights, torch\.float64, got torch\.float32"):
            layer.double()(inputs(2, 4))


def test_a_projection_that_casts_by_itself_may():
    layer, x = nn.DeltaNet(hidden_size=HIDDEN), inputs(2, 4, torch.bfloat16)

    class Casting(type(layer.q_proj)):
        def forward(self, x):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)

    for name, width in (("q_proj", HIDDEN), ("k_proj", HIDDEN), ("v_proj", HIDDEN), ("b_proj", 4)):
        setattr(layer, name, Casting(HIDDEN, width, bias=False))
    layer.o_proj.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    assert layer(x)[0].shape == x.shape
    layer = nn.DeltaNet(hidden_size=HIDDEN)
    for name in ("q_proj", "k_proj", "v_proj", "b_proj", "o_proj"):
        projection = getattr(layer, name)
        projection.forward = lambda x, own=projection.forward: own(x.float())
    assert layer(x)[0].dtype is torch.float32
    layer = nn.DeltaNet(hidden_size=HIDDEN)
    for name in ("q_proj", "k_proj", "v_proj", "b_proj", "o_proj"):
        getattr(layer, name).register_forward_pre_hook(lambda _, given: (given[0].float(),))
    assert layer(x)[0].dtype is torch.float32


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_rejects_a_cache_without_layer_idx(case):
    layer, x = build(case, layer_idx=None), inputs(1, 3)
    for arguments in ({"use_cache": True}, {"past_key_values": nn.Cache()}):
        with pytest.raises(SeqkernError, match="was built without `layer_idx`"):
            layer(x, **arguments)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_rejects_a_cache_of_another_batch(case):
    layer = build(case)
    cache = layer(inputs(2, 3), use_cache=True)[2]
    with pytest.raises(ShapeError, match="the cache holds 2 sequences, the input has 3"):
        layer(inputs(3, 1), past_key_values=cache)


def test_rejects_a_cache_without_convolution_state():
    layer, cache = build(MAIN[2]), nn.Cache()
    cache.update(recurrent_state=torch.zeros(1, 2, 16, 24))
    with pytest.raises(SeqkernError, match="a recurrent state but no convolution state"):
        layer(inputs(1, 1), past_key_values=cache)


@pytest.mark.parametrize("case", MAIN, ids=lambda c: c.id)
def test_rejects_a_cache_that_another_layer_has_filled(case):
    layer, x = build(case), inputs(2, 3)
    for other in (nn.Mamba(HIDDEN, layer_idx=0), nn.DeltaNet(hidden_size=96, layer_idx=0)):
        width = getattr(other, "d_model", None) or other.hidden_size
        cache = other(torch.zeros(2, 3, width), use_cache=True)[2]
        with pytest.raises(ShapeError, match="Another layer has filled them: give every layer of"):
            layer(x, past_key_values=cache)


def test_rejects_the_rest():
    with pytest.raises(OptionError, match="must be None, 'silu' or 'swish', got 'relu'"):
        nn.ShortConvolution(4, 4, activation="relu")
    with pytest.raises(ShapeError, match="either `mask` or `cu_seqlens`"):
        nn.ShortConvolution(4, 4)(
            torch.zeros(1, 3, 4), mask=torch.ones(1, 3), cu_seqlens=torch.tensor([0, 3])
        )
    conv = nn.ShortConvolution(4, 4)
    with pytest.raises(ShapeError, match=r"`mask` must be \[B, T\] = \[2, 3\], got \[3\]. Cut it"):
        conv(torch.zeros(2, 3, 4), mask=torch.ones(3))
    with pytest.raises(ShapeError, match=r"`mask` must be \[B, T\] = \[2, 3\], got \[2, 1\]"):
        conv(torch.zeros(2, 3, 4), mask=torch.ones(2, 1))
    with pytest.raises(
        ShapeError, match=r"ShortConvolution: `x` must be \[B, T, D\], got \[3, 4\]"
    ):
        conv(torch.zeros(3, 4))
    with pytest.raises(DTypeError, match=r"`x` must be a torch\.Tensor, got list"):
        conv([[0.0]])
    with pytest.raises(DTypeError, match=r"`mask` must be a torch\.Tensor, got list"):
        conv(torch.zeros(2, 3, 4), mask=[[1, 1, 1]] * 2)
    with pytest.raises(OptionError, match="`hidden_size` must be an integer >= 1, got 0"):
        nn.ShortConvolution(0, 4)
    with pytest.raises(OptionError, match="`kernel_size` must be an integer >= 1, got 0"):
        nn.ShortConvolution(4, 0)
    with pytest.raises(OptionError, match="`activation` must be one of swish, silu, sigmoid"):
        nn.FusedRMSNormGated(4, activation="relu")
    with pytest.raises(OptionError, match="FusedRMSNormGated: `hidden_size` must be an integer"):
        nn.FusedRMSNormGated(0)
    with pytest.raises(OptionError, match="RMSNorm: `eps` must be a number > 0, got -1"):
        nn.RMSNorm(4, eps=-1)


def test_rejects_what_a_cache_cannot_do():
    cache = nn.Cache()
    with pytest.raises(ShapeError, match="`beam_idx` must be"):
        cache.reorder(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(
        DTypeError, match=r"must be int32 or int64, got torch.bool. To keep some of"
    ):
        cache.reorder(torch.tensor([True, False]))
    with pytest.raises(DTypeError, match=r"`beam_idx` must be a torch\.Tensor, got list"):
        cache.reorder([0, 0])
    cache.update(recurrent_state=torch.zeros(1, 2, 3, 4))
    with pytest.raises(OptionError, match="`layer_idx` must be >= 0, got -1"):
        cache.update(recurrent_state=torch.ones(1, 2, 3, 4), layer_idx=-1)


@pytest.mark.filterwarnings("ignore:.*without short convolutions")
@pytest.mark.parametrize("cls", [GLA, DELTA, GDN, GDP])
def test_reads_no_size_of_convolutions_it_does_not_have(cls):
    layer = cls(hidden_size=HIDDEN, use_short_conv=False, conv_size=0)
    assert layer(inputs(1, 3))[0].shape == (1, 3, HIDDEN)


@pytest.mark.parametrize("cls", [DELTA, GDN, GDP])
def test_warns_without_short_convolution(cls):
    with pytest.warns(UserWarning, match="without short convolutions usually learns") as warned:
        cls(hidden_size=HIDDEN, use_short_conv=False)
    assert warned[0].filename == __file__
