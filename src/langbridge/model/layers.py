"""The layers of a pretrained model, by the library's own account, and layers that compute twice to keep less."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the blocks that must stay whole, but for those around the word embeddings."""
    kinds, table = set(model._no_split_modules or ()), model.get_input_embeddings()
    found = [module for module in model.modules() if type(module).__name__ in kinds]
    return [module for module in found if not any(inner is table for inner in module.modules())]


def recompute(model: PreTrainedModel) -> int:
    """Let each layer keep its input alone, and compute the rest again on the way back; return how many layers.

    The library's own switch works in training mode only, where a frozen model would drop out. Each layer must be given
    no cache, as it would write into it twice.
    """
    layers = layers_of(model)
    for layer in layers:
        layer.forward = _Twice(layer.forward)
    return len(layers)


class _Twice:
    """A forward pass that is run again for its gradient."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs, **named)
        return checkpoint(self.forward, *inputs, use_reentrant=False, **named)
