# SPDX-License-Identifier: Apache-2.0
"""What negative eigenvalues are for: parity, by construction, and that nothing else can do it."""

import pytest
import torch

from seqkern import ops

T = 2000


@pytest.fixture
def bits():
    return torch.randint(2, (4, T))


def parity(bits):
    return bits.cumsum(1) % 2


def read_out(y):
    """The parity that a state of 1 or -1 stands for."""
    return (y < 0).long()


def test_linear_scan_tracks_parity(bits, isa):
    """One real state that every 1 flips: x_t = (1 - 2 bit) x_{t-1}."""
    a = 1.0 - 2.0 * bits.unsqueeze(-1)
    x = ops.linear_scan(a, torch.zeros_like(a), torch.ones(4, 1))
    assert torch.equal(x.abs(), torch.ones_like(x))
    assert torch.equal(read_out(x.squeeze(-1)), parity(bits))


def _selective(bits, allow_neg_eigval, step):
    """One channel, one state, no input: h_t = a(dt_t) h_{t-1} from h_0 = 1, dt large on a 1."""
    delta = (step * bits).unsqueeze(1).float()
    zeros, ones = torch.zeros(4, 1, T), torch.ones(4, 1, T)
    return ops.selective_scan(
        zeros,
        delta,
        torch.full((1, 1), -1.0),
        zeros,
        ones,
        initial_state=torch.ones(4, 1, 1),
        allow_neg_eigval=allow_neg_eigval,
    ).squeeze(1)


def test_selective_scan_tracks_parity(bits, isa):
    """dt = 0 keeps the state (2 e^0 - 1 = 1), a large dt flips it (2 e^-200 - 1 = -1)."""
    y = _selective(bits, True, 200)
    assert torch.equal(y.abs(), torch.ones_like(y))
    assert torch.equal(read_out(y), parity(bits))


@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0, 200.0])
def test_positive_eigenvalues_cannot(bits, step):
    """They may forget a state, but never turn it: whatever dt is, no sign ever changes."""
    y = _selective(bits, False, step)
    assert (y >= 0).all()
    assert (y.diff(dim=1) <= 0).all()


def test_gated_linear_attention_tracks_parity(bits, isa):
    """A signed gate of -1 on every 1, written once at the start and read at every token."""
    g = (1.0 - 2.0 * bits).view(4, T, 1, 1).expand(4, T, 1, 16)
    q = torch.zeros(4, T, 1, 16)
    q[..., 0] = 1
    zeros, h0 = torch.zeros(4, T, 1, 16), torch.zeros(4, 1, 16, 16)
    h0[..., 0, 0] = 1
    o, _ = ops.chunk_gla(q, zeros, zeros, g, scale=1.0, initial_state=h0, signed_gate=True)
    y = o[:, :, 0, 0]
    assert torch.equal(y.abs(), torch.ones_like(y))
    assert torch.equal(read_out(y), parity(bits))


def test_logarithms_have_no_sign(bits):
    """The same gate through its logarithm: the states never change sign."""
    g = (1.0 - 2.0 * bits).abs().log().view(4, T, 1, 1).expand(4, T, 1, 16)
    q = torch.ones(4, T, 1, 16)
    zeros, h0 = torch.zeros(4, T, 1, 16), torch.ones(4, 1, 16, 16)
    o, _ = ops.chunk_gla(q, zeros, zeros, g, initial_state=h0)
    assert (o > 0).all()


def test_counting_modulo_three_needs_more(bits, isa):
    """A rotation by a third of a turn counts modulo 3; it is a complex eigenvalue of size 1."""
    third = torch.polar(torch.ones(()), torch.tensor(2 * torch.pi / 3))
    a = torch.where(bits.bool(), third, torch.ones_like(third)).unsqueeze(-1)[:, :300]
    x = ops.linear_scan(a, torch.zeros_like(a), torch.ones(4, 1)).squeeze(-1)
    turns = (x.angle() / (2 * torch.pi / 3)).round().long() % 3
    assert torch.equal(turns, bits[:, :300].cumsum(1) % 3)
