# SPDX-License-Identifier: Apache-2.0
"""The table that the tests of the linear-attention family are driven by."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from seqkern import ops, reference
from seqkern.testing import Inputs, Shape, make_inputs, yardstick


@dataclass(frozen=True, eq=False)
class OpSpec:
    """One op in one configuration of gate, write strength and options."""

    id: str
    op: Callable[..., Any]
    definition: Callable[..., Any]
    making: Mapping[str, Any]
    n: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, shape: Shape, dtype: torch.dtype = torch.float32, **making: Any) -> Inputs:
        shape = replace(shape, num_householder=self.n)
        return make_inputs(shape, dtype, **{**self.making, **self.options, **making})


GLA = OpSpec("gla", ops.chunk_gla, reference.gla, {"gate": "vector"})
SIMPLE_GLA = OpSpec("simple_gla", ops.chunk_simple_gla, reference.simple_gla, {"gate": "scalar"})
LINEAR = OpSpec("linear", ops.chunk_simple_gla, reference.simple_gla, {"gate": None})
DELTA = OpSpec(
    "delta_rule",
    ops.chunk_delta_rule,
    reference.delta_rule,
    {"gate": None, "beta": "scalar"},
)
DELTA_VECTOR = OpSpec(
    "delta_rule_vector_beta",
    ops.fused_recurrent_delta_rule,
    reference.delta_rule,
    {"gate": None, "beta": "vector"},
    options={"scale": 0.7},
)
GATED_DELTA = OpSpec(
    "gated_delta_rule",
    ops.chunk_gated_delta_rule,
    reference.gated_delta_rule,
    {"gate": "scalar", "beta": "scalar"},
    options={"use_qk_l2norm_in_kernel": True},
)
PRODUCT_2 = OpSpec(
    "gated_delta_product_2",
    ops.chunk_gated_delta_product,
    reference.gated_delta_product,
    {"gate": "scalar", "beta": "scalar"},
    n=2,
    options={"num_householder": 2},
)
PRODUCT_3 = OpSpec(
    "delta_product_3",
    functools.partial(ops.chunk_gated_delta_product, g=None),
    functools.partial(reference.gated_delta_product, g=None),
    {"gate": None, "beta": "scalar"},
    n=3,
    options={"num_householder": 3, "use_qk_l2norm_in_kernel": True},
)

SPECS = (GLA, SIMPLE_GLA, LINEAR, DELTA, DELTA_VECTOR, GATED_DELTA, PRODUCT_2, PRODUCT_3)
GATED = tuple(spec for spec in SPECS if spec.making["gate"])
DELTA_FAMILY = tuple(spec for spec in SPECS if spec.making.get("beta"))

SHAPES = (
    Shape(B=4, T=1, H=2, K=16, V=16, id="one token"),
    Shape(B=32, T=3, H=8, K=1, V=1, id="width one"),
    Shape(B=2, T=16, H=2, K=32, V=32, id="one chunk"),
    Shape(B=2, T=63, H=3, K=32, V=48, id="ragged chunk, K != V"),
    Shape(B=1, T=130, H=2, HV=4, K=60, V=35, id="grouped, odd widths"),
    Shape(H=2, K=24, V=40, lengths=(0, 1, 100, 17, 0, 15, 0), id="packed with empty ones"),
    Shape(B=1, T=300, H=1, K=128, V=128, id="several checkpoints"),
    Shape(B=1, T=70, H=1, K=200, V=136, id="wide"),
)
SMALL = Shape(B=2, T=37, H=2, HV=4, K=20, V=12)
PACKED = Shape(H=2, HV=4, K=20, V=12, lengths=(5, 0, 33, 16))


def with_signs(x: Inputs) -> Inputs:
    """Decays 2 exp(g) - 1 of usual log decays, as a layer makes them; some are negative."""
    g = 2 * x.tensors["g"].float().exp() - 1
    return replace(x, tensors={**x.tensors, "g": g}, options={**x.options, "signed_gate": True})


@functools.cache
def expected(
    spec: OpSpec, shape: Shape, dtype: torch.dtype = torch.float32, **making: Any
) -> tuple[Inputs, dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return inputs, the truth in float64 and its peers, computed once."""
    x = spec.inputs(shape, dtype, **making)
    return x, *yardstick(spec.definition, x)
