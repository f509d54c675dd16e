# SPDX-License-Identifier: Apache-2.0
"""Which backend serves a call, and the one warning when ``auto`` takes the slow one."""

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch.autograd import forward_ad

from seqkern._runtime import library, settings
from seqkern.errors import BackendUnavailableError, OptionError

BACKENDS = ("auto", "cpu", "triton", "cuda", "reference")

# What backend="auto" stands for. Read on every call, changed by `override`.
preferred = settings.BACKEND.get()

_logger = logging.getLogger("seqkern")
_warned: set[str] = set()


@contextlib.contextmanager
def override(backend: str) -> Iterator[None]:
    """Let ``backend="auto"`` mean ``backend`` inside the block, in every thread."""
    global preferred
    if backend not in BACKENDS:
        raise _unknown(backend)
    before, preferred = preferred, backend
    try:
        yield
    finally:
        preferred = before


def forward_mode() -> bool:
    """Tell whether forward-mode derivatives are taken: torch.func.jvp, jacfwd, dual tensors.

    A compiled op knows nothing of them and would drop them without a word.
    """
    return getattr(forward_ad, "_current_level", -1) >= 0


def transform(in_place: bool = False) -> str | None:
    """Return why no compiled op may run, whatever its tensors, or None.

    Inside torch.vmap a tensor does not say whether anything outside takes derivatives, and torch
    cannot batch a compiled op that writes ``in_place``.
    """
    if forward_mode():
        return "forward-mode derivatives have no compiled kernel"
    if torch._C._are_functorch_transforms_active():
        if in_place:
            return "torch.func's transforms have no compiled kernel that writes in place"
        if torch.is_grad_enabled():
            return "torch.func's transforms have no compiled kernel outside torch.no_grad()"
    return None


def use_kernel(op: str, backend: str, obstacle: str | None, in_place: bool = False) -> bool:
    """Decide between the compiled CPU kernel (True) and the reference (False).

    Args:
        op: name of the public function, for messages.
        backend: what the caller asked for.
        obstacle: why the compiled kernel cannot serve this call, or None when it can.
        in_place: whether it writes to a tensor of the caller.

    Raises:
        OptionError: ``backend`` is not the name of a backend.
        BackendUnavailableError: ``backend`` was named but cannot run this call.
    """
    if obstacle is None:
        obstacle = transform(in_place)
    asked, backend = backend, preferred if backend == "auto" else backend
    if backend == "reference":
        return False
    if backend == "auto":
        if obstacle is not None:
            warn_once(op, obstacle)
        return obstacle is None
    if backend == "cpu":
        if obstacle is None:
            return True
        raise BackendUnavailableError(f'backend="cpu" for `{op}`: {obstacle}. {_way_out(obstacle)}')
    if backend in BACKENDS:
        raise BackendUnavailableError(
            f'backend="{backend}" for `{op}`: this version has no {backend} kernel for it. '
            'Use backend="auto", which takes the CPU kernel or, on other devices, the '
            "reference. `seqkern info` shows what is available."
        )
    raise _unknown(backend, "SEQKERN_BACKEND" if asked == "auto" else "`backend`")


def warn_once(op: str, obstacle: str) -> None:
    """Log, once per obstacle, that ``auto`` took the reference. Also works while compiling."""
    if obstacle not in _warned:
        _warned.add(obstacle)
        _logger.warning(
            "%s runs the slow sequential reference: %s. Other ops may do so, too, without a word. "
            'Pass backend="reference" to say that you mean it.',
            op,
            obstacle,
        )


# While compiling, run it instead of tracing it. `torch.compiler.assume_constant_result` sets this
# attribute, too, but takes a second to import what it does not need.
warn_once._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _way_out(obstacle: str) -> str:
    if "compiled library" in obstacle:
        return library.rebuild_hint()
    return 'Use backend="reference" or backend="auto". `seqkern info` shows what is available.'


def _unknown(backend: str, what: str = "`backend`") -> OptionError:
    names = ", ".join(f'"{name}"' for name in BACKENDS)
    return OptionError(f"{what} must be one of {names}, got {backend!r}.")
