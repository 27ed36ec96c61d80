"""Token-level contrast between English paraphrases: their soft prompts are pulled together, those of others apart."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from langbridge.checkpoint import LangBridge
from langbridge.data.examples import Example
from langbridge.model import Embeddings

TEMPERATURE = 0.05
"""Of cosines."""


class Contrast(TrainerCallback):
    """Adds `weight` times the contrast of some drawn pairs to the loss of every optimizer step.

    Which pairs a step sees depends on seed and step alone, so that a training that is gone on with sees the same.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], *, weight: float, size: int) -> None:
        self.pairs, self.weight, self.size = pairs, weight, size

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the gradient of the contrast to what the bridge has."""
        model = kwargs["model"]
        drawn = random.Random(f"{args.seed} {state.global_step}").sample(self.pairs, min(self.size, len(self.pairs)))
        sides = [soft_prompts(model, side) for side in zip(*drawn, strict=True)]
        loss = self.weight * contrast(*sides)
        loss.backward()  # type: ignore[no-untyped-call]


def soft_prompts(model: LangBridge, texts: Sequence[str]) -> Embeddings:
    """Return soft prompts without their boundary, with gradients: (batch, source, lm_dim)."""
    batch = model.collate([Example(source=text) for text in texts])
    soft = model.soft_prompt(batch.encoder_ids, batch.encoder_mask)
    return Embeddings(soft.vectors[:, :-1], soft.mask[:, :-1])  # padding is on the left: the boundary is the last


def contrast(left: Embeddings, right: Embeddings) -> Tensor:
    """Return the InfoNCE loss of paired rows among all rows of the other side: a scalar, nats.

    Two rows are as near as each vector of the first is, on average, to the nearest vector of the second (late
    interaction), by cosine around the mean of all vectors.
    """
    ours, theirs = centred(left, right)
    cosines = torch.einsum("isd,jtd->ijst", ours, theirs)  # (batch, batch, source, source)
    nearest = cosines.masked_fill(~right.mask.bool()[None, :, None, :], -1).amax(dim=-1)
    counted = left.mask[:, None, :].to(nearest)
    near = (nearest * counted).sum(dim=-1) / counted.sum(dim=-1)  # (batch, batch)
    return nn.functional.cross_entropy(near / TEMPERATURE, torch.arange(len(near), device=near.device))


def centred(*sides: Embeddings) -> list[Tensor]:
    """Return unit vectors of each side, fp32, once the mean of all counted vectors has been taken away."""
    mean = torch.cat([side.vectors.float()[side.mask.bool()] for side in sides]).mean(dim=0)
    return [nn.functional.normalize(side.vectors.float() - mean, dim=-1) for side in sides]
