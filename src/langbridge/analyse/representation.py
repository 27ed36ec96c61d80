"""Pooled vectors of sentences: one for each sentence at each place between text and LM."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langbridge.data.collate import pad
from langbridge.data.examples import Example
from langbridge.generate import BridgedGenerator
from langbridge.model import Embeddings

BATCH = 32
ENCODER, BRIDGE, LM, PLAIN = "encoder", "bridge", "lm", "plain_lm"


@dataclass(frozen=True)
class Tokenisation:
    """How a tokenizer cuts the sentences of one language."""

    unknown: float
    """Share of pieces that stand for text it does not know."""
    per_word: float
    """Pieces per blank-separated word."""
    per_character: float
    """Pieces per character that is not blank."""
    per_sentence: float


def tokenisation(generator: BridgedGenerator, texts: Sequence[str]) -> Tokenisation:
    """Count the encoder's pieces of texts, its special tokens left out."""
    tokenizer = generator.model.encoder_tokenizer
    rows = [list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for text in texts]
    pieces = max(1, sum(map(len, rows)))
    unknown = sum(row.count(tokenizer.unk_token_id) for row in rows) if tokenizer.unk_token_id is not None else 0
    words = max(1, sum(len(text.split()) for text in texts))
    characters = max(1, sum(len("".join(text.split())) for text in texts))
    return Tokenisation(unknown / pieces, pieces / words, pieces / characters, pieces / max(1, len(texts)))


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the content of states (batch, length, dim), fp32: (batch, dim)."""
    weights = mask[..., None].float().to(states.device)
    return (states.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


@torch.inference_mode()
def layer_read(generator: BridgedGenerator) -> int:
    """Return the encoder layer that the bridge reads, the last of several."""
    encoder = generator.model.encoder
    return max(encoder.layers) if encoder.layers else encoder.depth


def encoder_layers(generator: BridgedGenerator, texts: Sequence[str]) -> Tensor:
    """Return pooled states of every encoder layer, 0 = word embeddings: (layers + 1, sentences, width)."""
    encoder = generator.model.encoder
    chosen = encoder.layers
    encoder.read("mix")  # every layer, side by side
    try:
        found = [
            pooled(encoder(ids, mask), mask).cpu().view(len(ids), encoder.depth + 1, -1)
            for ids, mask in _batches(generator, texts)
        ]
    finally:
        encoder.layers = chosen
    return torch.cat(found).transpose(0, 1)


@torch.inference_mode()
def soft_prompts(generator: BridgedGenerator, texts: Sequence[str]) -> Tensor:
    """Return pooled soft prompts without their boundary: (sentences, lm_dim)."""
    found = [pooled(*_without_boundary(generator.model.soft_prompt(*batch))) for batch in _batches(generator, texts)]
    return torch.cat(found).cpu()


@torch.inference_mode()
def soft_vectors(generator: BridgedGenerator, texts: Sequence[str]) -> Tensor:
    """Return every soft-prompt vector of texts, boundaries left out: (vectors, lm_dim), fp32."""
    found = []
    for batch in _batches(generator, texts):
        vectors, mask = _without_boundary(generator.model.soft_prompt(*batch))
        found.append(vectors[mask.bool()].float().cpu())
    return torch.cat(found)


@torch.inference_mode()
def lm_states(generator: BridgedGenerator, texts: Sequence[str], *, plain: bool) -> Tensor:
    """Return pooled last states of the LM over a text alone, no template around it: (sentences, hidden).

    `plain`: the LM reads the text itself; otherwise the soft prompt of it, its boundary read but not pooled.
    """
    model, found = generator.model, []
    lm = model.language_model
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        if plain:
            ids, mask = pad([generator.collate.text_ids(text) for text in part], model.lm_tokenizer.pad_token_id)
            prompt, counted = lm.embed(ids, mask), mask
        else:
            batch = generator.collate([Example(source=text) for text in part])
            prompt = model.soft_prompt(batch.encoder_ids, batch.encoder_mask)
            counted = prompt.mask.clone()
            counted[:, -1] = 0
        found.append(pooled(_last(generator, prompt), counted).cpu())
    return torch.cat(found)


def _last(generator: BridgedGenerator, prompt: Embeddings) -> Tensor:
    """Return the LM's last states over vectors padded on the left: (batch, length, hidden)."""
    model = generator.model.language_model.model
    extra = {}
    if generator.model.language_model.takes_positions:
        extra["position_ids"] = (prompt.mask.cumsum(dim=1) - 1).clamp(min=0)
    found = model.get_decoder()(inputs_embeds=prompt.vectors, attention_mask=prompt.mask, **extra)
    states: Tensor = found.last_hidden_state
    return states


def _without_boundary(soft: Embeddings) -> tuple[Tensor, Tensor]:
    mask = soft.mask.clone()
    mask[:, -1] = 0  # padding is on the left, so the boundary is the last vector of every row
    return soft.vectors, mask


def _batches(generator: BridgedGenerator, texts: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(texts), BATCH):
        batch = generator.collate([Example(source=text) for text in texts[start : start + BATCH]])
        yield batch.encoder_ids, batch.encoder_mask
