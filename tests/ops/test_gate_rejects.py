# SPDX-License-Identifier: Apache-2.0
"""Mistakes in constant gates, raw gates and logits are refused before a kernel runs."""

import pytest
import torch
from harness import assert_refuses
from linear_attention_calls import BETA, EXACT, GK, HV, H, gated, recurrent, simple

from seqkern.errors import DTypeError, OptionError, ShapeError

ROWS = {
    "two constant gates": (
        simple(g_gamma=torch.zeros(HV)),
        OptionError,
        "pass `g` or `g_gamma`, not both.",
    ),
    "shape of g_gamma": (
        simple(g=None, g_gamma=torch.zeros(H)),
        ShapeError,
        "`g_gamma` must be [HV] like the heads of `v`, [2, 6, 4, 5], got [2].",
    ),
    "rank of g_gamma": (
        simple(g=None, g_gamma=torch.zeros(HV, 1)),
        ShapeError,
        "`g_gamma` must be [HV] like the heads of `v`, [2, 6, 4, 5], got [4, 1].",
    ),
    "rank of v beside g_gamma": (
        simple(v=EXACT["v"][0, 0], g=None, g_gamma=torch.zeros(HV)),
        ShapeError,
        "`g_gamma` must be [HV] like the heads of `v`, [4, 5], got [4].",
    ),
    "no values beside g_gamma": (
        simple(v=None, g=None, g_gamma=torch.zeros(HV)),
        DTypeError,
        "`v` must be a torch.Tensor, got NoneType",
    ),
    "g_gamma as a list": (
        simple(g=None, g_gamma=[0.0] * HV),
        DTypeError,
        "`g_gamma` must be a torch.Tensor, got list.",
    ),
    "integer g_gamma": (
        simple(g=None, g_gamma=torch.zeros(HV, dtype=torch.int64)),
        DTypeError,
        "`g_gamma` must be a floating tensor, got torch.int64.",
    ),
    "negative eigenvalues of a strength": (
        gated(allow_neg_eigval=True),
        OptionError,
        "`allow_neg_eigval=True` needs `use_beta_sigmoid_in_kernel=True`.",
    ),
    "negative eigenvalues of a step's strength": (
        recurrent(beta=BETA, allow_neg_eigval=True),
        OptionError,
        "`allow_neg_eigval=True` needs `use_beta_sigmoid_in_kernel=True`.",
    ),
    "raw gate without A_log": (
        gated(use_gate_in_kernel=True),
        OptionError,
        "`use_gate_in_kernel=True` needs `A_log`, got None.",
    ),
    "raw gate without a gate": (
        recurrent(use_gate_in_kernel=True, A_log=torch.zeros(HV)),
        OptionError,
        "`use_gate_in_kernel=True` needs `g`, got None.",
    ),
    "A_log without a raw gate": (
        gated(A_log=torch.zeros(HV)),
        OptionError,
        "`A_log` and `dt_bias` need `use_gate_in_kernel=True`. Or pass the log decay as `g`",
    ),
    "A_log of a step without a raw gate": (
        recurrent(A_log=torch.zeros(HV)),
        OptionError,
        "`A_log` and `dt_bias` need `use_gate_in_kernel=True`.",
    ),
    "dt_bias without a raw gate": (
        gated(dt_bias=torch.zeros(HV)),
        OptionError,
        "`A_log` and `dt_bias` need `use_gate_in_kernel=True`.",
    ),
    "dt_bias of a step without a raw gate": (
        recurrent(dt_bias=torch.zeros(HV)),
        OptionError,
        "`A_log` and `dt_bias` need `use_gate_in_kernel=True`.",
    ),
    "shape of A_log": (
        gated(use_gate_in_kernel=True, A_log=torch.zeros(H)),
        ShapeError,
        "`A_log` must be [HV] = [4] like the last axis of `g`, got [2].",
    ),
    "raw gate per key channel": (
        gated(use_gate_in_kernel=True, g=GK, A_log=torch.zeros(HV)),
        ShapeError,
        "`g` must be [B, T, HV] = [2, 6, 4] to fit `q` and `v`, got [2, 6, 2, 3].",
    ),
    "shape of dt_bias": (
        gated(use_gate_in_kernel=True, A_log=torch.zeros(HV), dt_bias=torch.zeros(H)),
        ShapeError,
        "`dt_bias` must be [HV] = [4] like the last axis of `g`, got [2].",
    ),
    "rank of v beside a raw gate": (
        gated(v=EXACT["v"][0], use_gate_in_kernel=True, A_log=torch.zeros(HV)),
        ShapeError,
        "`v` must be [B, T, HV, V]",
    ),
    "no values beside a raw gate": (
        gated(v=None, use_gate_in_kernel=True, A_log=torch.zeros(HV)),
        DTypeError,
        "`v` must be a torch.Tensor, got NoneType",
    ),
    "a raw gate that is no tensor": (
        gated(v=EXACT["v"][0], g=-1.0, use_gate_in_kernel=True, A_log=torch.zeros(HV)),
        DTypeError,
        "`g` must be a torch.Tensor, got float",
    ),
    "A_log that is no tensor": (
        gated(use_gate_in_kernel=True, A_log=1.0),
        DTypeError,
        "`A_log` must be a torch.Tensor, got float.",
    ),
    "logits that are no tensor": (
        recurrent(beta=1.0, use_beta_sigmoid_in_kernel=True),
        DTypeError,
        "`beta` must be a torch.Tensor, got float.",
    ),
    "gk that is no tensor": (recurrent(gk=[1]), DTypeError, "`gk` must be a torch.Tensor, got li"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_rejects(row):
    assert_refuses(row)
