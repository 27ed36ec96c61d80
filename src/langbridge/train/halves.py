"""Frozen fp32 weights held in two halves while bf16 is computed in: the rounded weight, and the rest.

Autocast casts a frozen weight again in every forward pass, as it keeps casts of learning weights only. Holding the
rounded weight saves that; the rest takes the other two bytes, so that the weight can be had back to the last bit.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from langbridge.model import LangBridge

HALF_OF_LAST = 0x8000
"""Half of the last place that bf16 keeps, in the bits of an fp32 number."""


class Halves:
    """The weights that autocast would cast in a model's frozen parts: fp32, of matrix products."""

    def __init__(self, model: LangBridge) -> None:
        self.language_model = model.language_model
        looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        found = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and _casts(m)]
        self._apart = [module for module in found if id(module.weight) not in looked_up]
        self._tied = {module: module.weight for module in found if id(module.weight) in looked_up}
        self._rests: dict[nn.Module, Tensor] = {}
        self.held = False

    def hold(self) -> None:
        """Round the weights to bf16; a head that shares its weight with word embeddings gets a rounded copy."""
        if self.held:
            return
        for module in self._apart:
            module.weight.data, self._rests[module] = split(module.weight.data)
        for module, weight in self._tied.items():
            module.weight = nn.Parameter(weight.data.to(torch.bfloat16), requires_grad=False)
        self.held = True
        self.language_model.forget()

    def release(self) -> None:
        """Give the weights back as they were, to the last bit."""
        if not self.held:
            return
        for module in self._apart:
            module.weight.data = whole(module.weight.data, self._rests.pop(module))
        for module, weight in self._tied.items():
            module.weight = weight
        self.held = False
        self.language_model.forget()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Give the weights back for a while."""
        held = self.held
        self.release()
        try:
            yield
        finally:
            if held:
                self.hold()


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return an fp32 weight rounded to bf16, and the rest of its bits as int16; ties round away from zero."""
    bits = weight.view(torch.int32)
    high = (bits + HALF_OF_LAST) >> 16  # wraps for the largest numbers, and unwraps in `whole`
    rest = (bits - (high << 16)).to(torch.int16)
    return high.to(torch.int16).view(torch.bfloat16), rest


def whole(high: Tensor, rest: Tensor) -> Tensor:
    """Return what `split` was given."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + rest).view(torch.float32)


def _casts(module: nn.Module) -> bool:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.dtype == torch.float32 and not weight.requires_grad and weight.device.type != "meta"
