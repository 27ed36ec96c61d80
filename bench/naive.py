"""Training as one would first write it: the reference that `bench/train.py` measures against. Not part of the package.

Batches in random order, every part padded to its longest and put side by side, the encoder in the loop, logits at all
positions, fp32. What is learned is the same: padding is masked, and positions are counted from the mask.
"""

import random
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import get_scheduler

from langbridge.checkpoint import LangBridge
from langbridge.model import Batch
from langbridge.train.records import Records

IGNORE = -100
"""Label of a position without loss."""


def naive_loss(model: LangBridge, batch: Batch) -> Tensor:
    """Return the mean negative log-likelihood per target token."""
    lm, embed = model.language_model.model, model.language_model.model.get_input_embeddings()
    states = model.encoder(batch.encoder_ids, batch.encoder_mask)
    soft = model.bridge(states, batch.encoder_mask)
    order = batch.target_mask.argsort(dim=1, descending=True, stable=True)  # padding to the right
    target_ids, target_mask = batch.target_ids.gather(1, order), batch.target_mask.gather(1, order)
    parts = [embed(batch.before_ids), soft.vectors, embed(batch.after_ids), embed(target_ids)]
    mask = torch.cat([batch.before_mask, soft.mask, batch.after_mask, target_mask], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = lm(
        inputs_embeds=torch.cat(parts, dim=1), attention_mask=mask, position_ids=positions, use_cache=False
    ).logits  # (batch, length, vocabulary)
    labels = torch.full(mask.shape, IGNORE)
    labels[:, -target_ids.shape[1] :] = target_ids.masked_fill(target_mask == 0, IGNORE)
    shifted = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()  # position i predicts token i + 1
    return torch.nn.functional.cross_entropy(*shifted, ignore_index=IGNORE)


def train_naively(model: LangBridge, data: Records, step: Callable[[], None]) -> None:
    """Train with the recipe's settings; `step` is called before the first step and behind each."""
    settings = model.recipe.training
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    warmup = int(settings.warmup * settings.steps)
    schedule = get_scheduler(settings.schedule, optimizer, warmup, settings.steps)
    count, numbers = len(data.dataset), []
    for epoch in range(-(-settings.steps * settings.batch_size // count)):
        order = list(range(count))
        random.Random(f"{settings.seed}-{epoch}").shuffle(order)
        numbers += [number + epoch * count for number in order]
    model.train()
    step()
    for first in range(0, settings.steps * settings.batch_size, settings.batch_size):
        examples = [data.dataset[number] for number in numbers[first : first + settings.batch_size]]
        loss = naive_loss(model, model.collate(examples))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(learning, settings.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        step()
    model.eval()
