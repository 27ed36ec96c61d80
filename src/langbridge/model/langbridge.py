"""LangBridge itself: encoder -> bridge -> soft prompt -> frozen LM (LangBridge, section 3, figure 2)."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from langbridge.model.bridge import Bridge
from langbridge.model.embeddings import Embeddings, join
from langbridge.model.encoder import Encoder
from langbridge.model.language_model import LanguageModel
from langbridge.model.opening import first_tokens, shared_length, without_first


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Token ids and masks of one batch, int64; mask 1 = content.

    The LM's own tokens around the slot may differ from row to row; targets are padded on the left.
    """

    encoder_ids: Tensor
    """(batch, source)"""
    encoder_mask: Tensor
    before_ids: Tensor
    """(batch, before): LM tokens in front of the soft prompt."""
    before_mask: Tensor
    after_ids: Tensor
    """(batch, after): LM tokens behind the soft prompt."""
    after_mask: Tensor
    target_ids: Tensor
    """(batch, target): tokens the loss is on; width 0 when generating."""
    target_mask: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def rows(self, chosen: Tensor) -> "Batch":
        """Return some rows, without the columns that are padding in all of them."""
        parts: dict[str, Tensor] = {}
        for part in ("encoder", "before", "after", "target"):
            ids, mask = getattr(self, f"{part}_ids")[chosen], getattr(self, f"{part}_mask")[chosen]
            content = mask.any(dim=0)
            parts |= {f"{part}_ids": ids[:, content], f"{part}_mask": mask[:, content]}
        return Batch(**parts)


class LangBridge(nn.Module):
    """A frozen LM that reads what the encoder understood."""

    def __init__(self, encoder: Encoder, bridge: Bridge, language_model: LanguageModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.bridge = bridge
        self.language_model = language_model
        language_model.freeze()

    def soft_prompt(self, encoder_ids: Tensor, encoder_mask: Tensor) -> Embeddings:
        """Return what the LM gets in place of word embeddings: (batch, source + 1, lm_dim)."""
        states = self.encoder(encoder_ids, encoder_mask)  # (batch, source, encoder_dim)
        # the bridge computes in its own type (fp32 while it learns), whatever the frozen models were loaded in
        own, lm = self.bridge.boundary, self.language_model
        soft = self.bridge(states.to(own), encoder_mask.to(own.device))  # (batch, source + 1, lm_dim)
        return Embeddings(soft.vectors.to(lm.device, lm.dtype), soft.mask.to(lm.device))

    def lengths(self, batch: Batch) -> Tensor:
        """Return how many LM positions each row takes: (batch,), int64."""
        own = batch.before_mask.sum(dim=1) + batch.after_mask.sum(dim=1) + batch.target_mask.sum(dim=1)
        return own + self.bridge.lengths(batch.encoder_mask)

    def prompt(self, batch: Batch) -> Embeddings:
        """Return the soft prompt among the LM's own tokens, padded on the left."""
        return join(
            self.language_model.embed(batch.before_ids, batch.before_mask),
            self.soft_prompt(batch.encoder_ids, batch.encoder_mask),
            self.language_model.embed(batch.after_ids, batch.after_mask),
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood per target token: a scalar, nats.

        What begins every row is read once for all; `log_likelihood` reads every row in full and gives the same.
        """
        shared = shared_length(batch.before_ids, batch.before_mask)
        opening = self.language_model.begin(first_tokens(batch.before_ids, batch.before_mask, shared))
        if opening is not None:
            batch = replace(batch, before_mask=without_first(batch.before_mask, shared))
        loss = self.language_model.loss(self.prompt(batch), batch.target_ids, batch.target_mask, opening)
        return loss.to(batch.target_ids.device)  # an LM that was placed elsewhere answers elsewhere

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return the log-likelihood of each target token: (batch, target), nats, 0 at padding."""
        return self.language_model.log_likelihood(self.prompt(batch), batch.target_ids, batch.target_mask)

    def generate(self, batch: Batch, config: GenerationConfig) -> Tensor:
        """Return new LM tokens behind the prompt: (batch, new)."""
        return self.language_model.extend(self.prompt(batch), config)
