# SPDX-License-Identifier: Apache-2.0
"""Forward-mode derivatives of every op: no compiled op knows them, so none may drop them."""

import pytest
import torch
from torch.autograd import forward_ad

from seqkern import ops
from seqkern.errors import BackendUnavailableError

A, B = ops.hippo("legs", 3)
C, DT, ONES = torch.ones(3, 1, 3), torch.full((6,), 0.1), torch.ones(2, 3)
R = torch.ones(1, 2, 3, 3)
CASES = {
    "causal_conv1d": lambda x: ops.causal_conv1d(x[0], torch.ones(3, 4))[0],
    "chunk_delta_rule": lambda x: ops.chunk_delta_rule(x, x, x, x[..., 0].sigmoid())[0],
    "chunk_gla": lambda x: ops.chunk_gla(x, x, x, -x.abs())[0],
    "flashrnn": lambda x: ops.flashrnn(x.unsqueeze(2), R.to(x), function="elman")[0],
    "linear_scan": lambda x: ops.linear_scan(x, x),
    "lssl_conv": lambda x: ops.lssl_conv(x[0], A, B, C, DT[:3]),
    "lssl_kernel": lambda x: ops.lssl_kernel(A, B, x[0], DT, 5),
    "lssl_scan": lambda x: ops.lssl_scan(x[0], A, B, C, DT[:3])[0],
    "rms_norm": lambda x: ops.rms_norm(x, torch.ones(3)),
    "selective_scan": lambda x: ops.selective_scan(x[0], x[0], -ONES, ONES, ONES),
}


@pytest.mark.parametrize("op", CASES.values(), ids=CASES)
@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode(op, grad):
    """torch.func.jvp and dual tensors find the difference quotient of the definition."""
    x, direction = torch.randn(2, 1, 6, 2, 3) / 2
    step, wide = 1e-6 * direction.double(), x.double()
    truth = (op(wide + step) - op(wide - step)) / 2e-6
    with torch.set_grad_enabled(grad):
        _, tangent = torch.func.jvp(op, (x,), (direction,))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(op(forward_ad.make_dual(x, direction)))
    torch.testing.assert_close(tangent.double(), truth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dual.tangent.double(), truth, rtol=1e-4, atol=1e-4)


def test_the_kernels_refuse_what_they_would_drop():
    x = torch.ones(1, 4, 3)

    def scan(x):
        return ops.linear_scan(x, x, backend="cpu")

    with pytest.raises(BackendUnavailableError, match="forward-mode derivatives have no compiled"):
        torch.func.jvp(scan, (x,), (x,))
    with pytest.raises(BackendUnavailableError, match="no compiled kernel outside"):
        torch.vmap(scan)(x.unsqueeze(0))
    with torch.no_grad():
        assert torch.equal(torch.vmap(scan)(x.unsqueeze(0)), scan(x).unsqueeze(0))
