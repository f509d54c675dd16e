# SPDX-License-Identifier: Apache-2.0
"""Let a model run its torch.nn.LSTM, GRU and RNN layers on the kernels here."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from seqkern.errors import DTypeError
from seqkern.nn._rnn_base import RecurrentBase
from seqkern.nn.gru import GRU
from seqkern.nn.lstm import LSTM
from seqkern.nn.rnn import RNN
from seqkern.ops._checks import KERNEL_DTYPES

_TWINS: dict[type[nn.Module], type[RecurrentBase]] = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}
_KINDS = (*_TWINS, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class Conversion(NamedTuple):
    """What `convert` did; printing it lists every layer.

    Attributes:
        model: the converted model, or the converted copy.
        swapped: the new class of every swapped layer by its name in the model ("" is the model).
        left: why each other recurrent layer of torch stayed, by name.
    """

    model: nn.Module
    swapped: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name or 'the model'}: now {new}" for name, new in self.swapped.items()]
        lines += [f"{name or 'the model'}: left, {why}" for name, why in self.left.items()]
        return "\n".join(lines) or "no recurrent layer of torch was found"


def convert(model: nn.Module, inplace: bool = True) -> Conversion:
    """Swap every torch.nn.LSTM, GRU and RNN of a model for the layer of the same name here.

    A swapped layer keeps its parameters (the same objects, so optimizers stay valid), its hooks,
    its mode and its place, also where it is shared; the results stay the same but for rounding.
    ``isinstance`` then knows it as torch.nn.RNNBase, no longer as torch.nn.LSTM, GRU or RNN.

    Args:
        model: any module; it may itself be a layer to swap.
        inplace: change ``model``; False changes a copy, which shares all parameters and buffers.

    Returns:
        The model, and what was swapped and what was left, see `Conversion`.

    Example:
        >>> print(convert(model))
        encoder.lstm: now seqkern.nn.LSTM
        decoder.cell: left, a cell takes one step a call, which leaves nothing to gain
    """
    if not isinstance(model, nn.Module):
        raise DTypeError(f"convert: `model` must be a torch.nn.Module, got {type(model).__name__}.")
    if not inplace:
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        model = copy.deepcopy(model, shared)
    swapped, left = {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, _KINDS) and not _is_scripted(module):
            continue
        why = _obstacle(module)
        if why is None:
            twin = _TWINS[type(module)]
            # The classes hold the same attributes, so that nothing has to move.
            module.__class__ = twin
            swapped[name] = f"seqkern.nn.{twin.__name__}"
        else:
            left[name] = why
    return Conversion(model, swapped, left)


def _is_scripted(module: nn.Module) -> bool:
    names = [kind.__name__ for kind in _KINDS]
    return isinstance(module, torch.jit.ScriptModule) and module.original_name in names


def _obstacle(module: nn.Module) -> str | None:
    """Return why a recurrent layer of torch stays as it is, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript has compiled it: convert the model first"
    if isinstance(module, nn.RNNCellBase):
        return "a cell takes one step a call, which leaves nothing to gain"
    if parametrize.is_parametrized(module):
        return "it has a parametrization: convert the model before one is registered"
    if type(module) not in _TWINS:
        return f"{type(module).__name__} is a subclass that may compute something else"
    if "forward" in vars(module):
        return "its `forward` was replaced, and may compute something else"
    if module.proj_size:
        return f"proj_size={module.proj_size} is not supported"
    weights = list(module.parameters())
    dtypes = {p.dtype for p in weights}
    if len(dtypes) > 1 or not dtypes <= KERNEL_DTYPES:
        names = ", ".join(sorted(map(str, dtypes)))
        return f"no kernel serves parameters of {names}"
    if not all(p.is_cpu for p in weights):
        return f"no kernel serves parameters on {weights[0].device.type}"
    return None
