# SPDX-License-Identifier: Apache-2.0
"""The linear state-space layer."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional

from seqkern._runtime import backends
from seqkern.errors import DTypeError, OptionError
from seqkern.nn._linear import Linear
from seqkern.ops import Quasiseparable, hippo, lssl_conv, lssl_scan
from seqkern.ops import _lssl_checks as checks
from seqkern.ops._checks import at_least, misfit_of_weights, real
from seqkern.ops._lssl_convolution import convolve
from seqkern.ops._lssl_cost import recurrence_is_cheaper
from seqkern.ops._lssl_function import FORWARD
from seqkern.ops._lssl_system import System, tridiagonal_system
from seqkern.ops.lssl import run_system

MEASURES = ("legs", "legt", "lagt", "random", "identity")
MODES = ("auto", "parallel", "recurrent")
_FIELDS = Quasiseparable._fields
# Sequences by which an exported graph chooses its view: many, for which one kernel costs little.
_MANY = 1024


class LSSL(nn.Module):
    """H independent linear systems of order N, then GELU, dropout and a mixing projection.

        x_t = A_bar x_{t-1} + B_bar u_t,  y_t = C x_t + D u_t        per feature, M channels
        out = output_linear(dropout(gelu(y)))                        M H to H features

    A and B are shared by the features, each of which has its own time step. With ``learn_A`` a
    HiPPO matrix is trained inside its class P (D + T^-1) Q, in O(N) numbers; with neither
    ``learn_A`` nor ``learn_dt`` the layer is LSSL-fixed and discretised once.

    Args:
        hidden_size: H.
        state_size: N.
        channels: M.
        measure: of the initial A and B: "legs", "legt", "lagt" (see `seqkern.ops.hippo`),
            "random" (a dense matrix, elements N(0, 1 / N^2), B normal; a graph that torch.export
            makes of it is for one length) or "identity" (A = -I).
        learn_A: train A and B.
        learn_dt: train the time steps.
        triangular: keep a lower triangular A so while it is trained: less expressive and about
            twice as fast. "legt" cannot.
        dt_min, dt_max: the time steps are drawn log-uniformly between them; their inverses should
            bracket the lengths that matter.
        alpha: of the generalised bilinear transform, see `seqkern.ops.lssl_kernel`.
        dropout: in [0, 1].
        mode: "parallel" (kernel and FFT), "recurrent" (scan), or "auto": the cheaper one.

    Parameters (or buffers, where they are not trained): ``log_dt`` [H], ``B`` [N], ``C`` [H, M, N],
    ``D`` [H, M], ``A_P`` ... ``A_upper`` [N] (a dense ``A`` [N, N] for "random"), and those of
    ``output_linear``, whose inputs are ordered by channel, then feature. Never apply weight decay
    to A, B and the time steps: `optimizer_groups` takes care of it.

    Source:
        Gu et al. 2021, "Combining Recurrent, Convolutional, and Continuous-time Models with Linear
        State-Space Layers".

    Example:
        >>> layer = LSSL(64, state_size=64)
        >>> y, _ = layer(torch.randn(8, 1024, 64))        # [8, 1024, 64]
    """

    log_dt: Tensor
    B: Tensor

    def __init__(
        self,
        hidden_size: int,
        state_size: int = 128,
        channels: int = 1,
        measure: str = "legs",
        learn_A: bool = True,
        learn_dt: bool = True,
        triangular: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        alpha: float = 0.5,
        dropout: float = 0.0,
        mode: str = "auto",
    ):
        super().__init__()
        hidden_size = at_least("LSSL", "hidden_size", 1, hidden_size)
        state_size = at_least("LSSL", "state_size", 1, state_size)
        channels = at_least("LSSL", "channels", 1, channels)
        if not 0 <= real("LSSL", "dropout", "a number in [0, 1]", dropout) <= 1:
            raise OptionError(f"LSSL: `dropout` must be a number in [0, 1], got {dropout!r}.")
        if measure not in MEASURES:
            raise OptionError(
                f"LSSL: `measure` must be one of {', '.join(MEASURES)}, got {measure!r}."
            )
        if triangular and measure in ("legt", "random"):
            raise OptionError(
                f'LSSL: `triangular` needs a lower triangular matrix, and "{measure}" is not. Use '
                '"legs" or "lagt", or leave `triangular` out.'
            )
        expected = "a number, > 0 and finite"
        dt_min = real("LSSL", "dt_min", expected, dt_min)
        dt_max = real("LSSL", "dt_max", expected, dt_max)
        if not 0 < dt_min <= dt_max < math.inf:
            raise OptionError(
                f"LSSL: `dt_min` and `dt_max` must satisfy 0 < dt_min <= dt_max < inf, got "
                f"{dt_min} and {dt_max}."
            )
        alpha = checks.of_transform("LSSL", alpha)
        if mode not in MODES:
            raise OptionError(f"LSSL: `mode` must be one of {', '.join(MODES)}, got {mode!r}.")
        self.hidden_size, self.state_size, self.channels = hidden_size, state_size, channels
        self.measure, self.alpha, self.mode = measure, alpha, mode
        self.learn_A, self.learn_dt = learn_A, learn_dt
        A, B = self._initial(triangular)
        if isinstance(A, Quasiseparable):
            for name, x in zip(_FIELDS, A, strict=True):
                self._own(f"A_{name}", x, learn_A)
        else:
            self._own("A", A, learn_A)
        self._own("B", B, learn_A)
        low, high = math.log(dt_min), math.log(dt_max)
        self._own("log_dt", low + (high - low) * torch.rand(hidden_size), learn_dt)
        self.C = nn.Parameter(torch.randn(hidden_size, channels, state_size))
        self.D = nn.Parameter(torch.randn(hidden_size, channels))
        self.dropout = nn.Dropout(dropout)
        self.output_linear = Linear(channels * hidden_size, hidden_size)
        self._cached: tuple[Any, System] | None = None

    def _initial(self, triangular: bool) -> tuple[Tensor | Quasiseparable, Tensor]:
        N = self.state_size
        if self.measure == "random":
            return torch.randn(N, N) / N, torch.randn(N)
        A, B = hippo(self.measure, N)
        if A.upper is None and self.learn_A and not triangular:
            A = A._replace(upper=torch.zeros(N))
        return A, B

    def _own(self, name: str, x: Tensor | None, learn: bool) -> None:
        if learn and x is not None:
            parameter = nn.Parameter(x)
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
            self.register_parameter(name, parameter)
        else:
            self.register_buffer(name, x)

    def state_matrix(self) -> Tensor | Quasiseparable:
        """Return A as it is now."""
        if self.measure == "random":
            return cast(Tensor, self.A)
        return Quasiseparable(*(getattr(self, f"A_{name}") for name in _FIELDS))

    def optimizer_groups(
        self, lr: float, weight_decay: float = 0.0, lr_A: float = 1e-4, lr_dt: float = 1e-3
    ) -> list[dict[str, Any]]:
        """Return parameter groups for an optimiser: A and B, and the time steps, learn slower.

        Args:
            lr: rate of everything else.
            weight_decay: of everything else.
            lr_A: rate of A and B; at most ``lr`` is used.
            lr_dt: rate of the time steps; at most ``lr`` is used.

        Raises:
            OptionError: one of them is no number, or negative.
        """
        return optimizer_groups(self, lr, weight_decay, lr_A, lr_dt)

    def forward(
        self,
        u: Tensor,
        initial_state: Tensor | None = None,
        output_final_state: bool = False,
        rate: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Run over whole sequences.

        Args:
            u: [B, L, H], float32, bfloat16, float16 or float64: the dtype of the layer, but under
                autocast.
            initial_state: [B, H, N] or None for zeros; needs the recurrent view.
            output_final_state: also return the state after the last step; needs it too.
            rate: how many training steps one step stands for: 2.0 for data sampled half as often.
                Scales the time steps, and with them A and B alike.

        Returns:
            [B, L, H], and the final state [B, H, N] or None.

        Raises:
            ShapeError, DTypeError, OptionError: the message names the argument.
        """
        self._check(u, initial_state, rate, step=False)
        if self.mode == "parallel" and (initial_state is not None or output_final_state):
            raise OptionError(
                'LSSL: mode="parallel" starts from zeros and has no state. Use mode="auto" or '
                '"recurrent" to pass or to get one.'
            )
        recurrent = output_final_state or initial_state is not None or self._recurrent(u)
        y, state = self._run(u, initial_state, rate, recurrent)
        return self._mix(y), state if output_final_state else None

    def step(
        self, u: Tensor, state: Tensor | None = None, rate: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Take one step: ``u`` [B, H] and the state [B, H, N] (None for zeros) to the next."""
        self._check(u, state, rate, step=True)
        y, state = self._run(u.unsqueeze(1), state, rate, recurrent=True)
        return self._mix(y).squeeze(1), cast(Tensor, state)

    def _check(self, u: Tensor, state: Tensor | None, rate: float, step: bool) -> None:
        checks.sequence("LSSL", u, self.C, state, step)
        expected = "a number, > 0 and finite"
        if not 0 < real("LSSL", "rate", expected, rate) < math.inf:
            raise OptionError(f"LSSL: `rate` must be {expected}, got {rate!r}.")
        misfit = misfit_of_weights("LSSL", "u", u, self.output_linear.weight.dtype)
        if misfit is not None:
            raise DTypeError(misfit)

    def _recurrent(self, u: Tensor) -> bool:
        if self.mode != "auto":
            return self.mode == "recurrent"
        if self.measure == "random":  # products of matrices, fewer for a kernel
            return False
        triangular = cast(Quasiseparable, self.state_matrix()).upper is None
        training = torch.is_grad_enabled()
        # An exported graph has one view for any number of sequences: that of many.
        count = _MANY if torch.compiler.is_exporting() else u.shape[0]
        return recurrence_is_cheaper(count, self.state_size, self.channels, triangular, training)

    def _run(
        self, u: Tensor, state: Tensor | None, rate: float, recurrent: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return y [B, L, M, H] before the activation, and the state of the recurrent view."""
        work = torch.float64 if u.dtype is torch.float64 else torch.float32
        v, C, D = u.to(work), self.C.to(work), self.D.to(work)
        if not self._compiled(u):
            A, dt = self.state_matrix(), self.log_dt.exp() * rate
            if recurrent:
                y, state = lssl_scan(v, A, self.B, C, dt, D, self.alpha, state, True)
            else:
                y = lssl_conv(v, A, self.B, C, dt, D, self.alpha)
            return y.transpose(2, 3).to(u.dtype), state
        system = self._system(rate)
        if recurrent:
            x0 = state if state is None else state.to(work)
            y, state = run_system(system, C, D, v, x0)
            return y.to(u.dtype), state
        K, _ = run_system(system, C, None, None, None, u.shape[1])
        return convolve(v, K.squeeze(0).permute(2, 1, 0), D).transpose(2, 3).to(u.dtype), None

    def _compiled(self, u: Tensor) -> bool:
        return (
            self.measure != "random"
            and u.is_cpu
            and backends.preferred in ("auto", "cpu")
            and FORWARD is not None
            and backends.transform() is None
        )

    def _system(self, rate: float) -> System:
        """Discretise, or return what was discretised last if nothing has changed since."""
        A = cast(Quasiseparable, self.state_matrix())
        tensors = [self.B, self.log_dt, *(x for x in A if x is not None)]
        learning = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        traced = torch.compiler.is_compiling() or get_proxy_mode() is not None
        if learning or traced:
            return tridiagonal_system(A, self.B, self.log_dt.exp() * rate, self.alpha)
        # Not in inference mode, whose tensors no later call could train with.
        with torch.inference_mode(False), torch.no_grad():
            # By value: neither address nor version tells of a write through `.data`.
            options, values = (rate, self.alpha), torch.cat([x.flatten() for x in tensors])
            known = self._cached
            if known is None or not _is_readable(values) or not _same(known[0], (options, values)):
                system = tridiagonal_system(A, self.B, self.log_dt.exp() * rate, self.alpha)
                if not _is_readable(values):  # in a mode that makes everything fake
                    return system
                self._cached = known = ((options, values), system)
        return known[1]

    def _mix(self, y: Tensor) -> Tensor:
        return self.output_linear(self.dropout(functional.gelu(y)).flatten(-2))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return (
            f"{self.hidden_size}, state_size={self.state_size}, channels={self.channels}, "
            f"measure={self.measure!r}, learn_A={self.learn_A}, learn_dt={self.learn_dt}"
        )


def _is_readable(x: Tensor) -> bool:
    """Tell whether the numbers can be read now: no meta or fake tensor, no torch.func transform."""
    plain = type(x) in (Tensor, nn.Parameter) and not x.is_meta
    return plain and not torch._C._are_functorch_transforms_active()


def _same(a: tuple[Any, Tensor], b: tuple[Any, Tensor]) -> bool:
    return a[0] == b[0] and a[1].dtype is b[1].dtype and torch.equal(a[1], b[1])


def optimizer_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    lr_A: float = 1e-4,
    lr_dt: float = 1e-3,
) -> list[dict[str, Any]]:
    """Return the parameter groups of a module with `LSSL` layers; see `LSSL.optimizer_groups`."""
    numbers = {"lr": lr, "weight_decay": weight_decay, "lr_A": lr_A, "lr_dt": lr_dt}
    for name, x in numbers.items():
        if not real("optimizer_groups", name, "a number >= 0", x) >= 0:
            raise OptionError(f"optimizer_groups: `{name}` must be a number >= 0, got {x!r}.")
    state, steps = set(), set()
    for layer in module.modules():
        if isinstance(layer, LSSL):
            own = dict(layer.named_parameters(recurse=False))
            state |= {p for name, p in own.items() if name == "B" or name.startswith("A")}
            steps |= {p for name, p in own.items() if name == "log_dt"}
    rest = [p for p in module.parameters() if p not in state | steps]
    groups = [
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
        {"params": [p for p in module.parameters() if p in state], "lr": min(lr, lr_A)},
        {"params": [p for p in module.parameters() if p in steps], "lr": min(lr, lr_dt)},
    ]
    for group in groups[1:]:
        group["weight_decay"] = 0.0
    return [group for group in groups if group["params"]]
