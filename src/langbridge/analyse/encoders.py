"""Encoders that are less than the one they come from: fewer layers, coarser weights, none of its knowledge."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from langbridge.errors import ConfigError
from langbridge.files import new_folder
from langbridge.pretrained import load_encoder, load_tokenizer

BLOCK = 32
"""Weights that share one scale, as in common 4-bit formats."""


def variant(name: str, change: Callable[[PreTrainedModel], None], folder: Path) -> Path:
    """Write encoder `name`, changed, with its tokenizer as a model folder; what is there already stays."""
    if not folder.is_dir():
        model = load_encoder(name).model
        change(model)
        with new_folder(folder) as unfinished:
            model.save_pretrained(unfinished)
            load_tokenizer(name).save_pretrained(unfinished)
    return folder


def cut(layers: int) -> Callable[[PreTrainedModel], None]:
    """Return a change that keeps the first so many layers; ConfigError where the encoder has fewer."""

    def change(model: PreTrainedModel) -> None:
        depth = int(model.config.num_hidden_layers)
        stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
        if layers > depth or not stacks:
            raise ConfigError(f"an encoder of {depth} layers cannot be cut to {layers}.")
        del stacks[0][layers:]
        model.config.num_hidden_layers = layers

    return change


def coarse(bits: int) -> Callable[[PreTrainedModel], None]:
    """Return a change that rounds every weight matrix to `bits` bits, with scale and offset for each 32 weights."""

    @torch.no_grad()
    def change(model: PreTrainedModel) -> None:
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(rounded(parameter, bits))

    return change


def rounded(weights: Tensor, bits: int) -> Tensor:
    """Return weights (rows, columns) on 2**bits evenly spaced levels between the extremes of each block of a row."""
    columns = weights.shape[1]
    blocks = nn.functional.pad(weights, (0, -columns % BLOCK), mode="replicate").view(len(weights), -1, BLOCK)
    low, high = blocks.amin(dim=-1, keepdim=True), blocks.amax(dim=-1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    found: Tensor = ((blocks - low) / step).round() * step + low
    return found.flatten(1)[:, :columns]


def random(model: PreTrainedModel) -> None:
    """Replace all weights by random ones: the encoder's shape without its knowledge."""
    torch.manual_seed(0)
    fresh = type(model)(model.config)
    model.load_state_dict(fresh.state_dict(), strict=False)
