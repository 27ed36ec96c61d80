"""LangBridge itself: encoder -> bridge -> soft prompt -> frozen LM (LangBridge, section 3, figure 2)."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from langbridge.model.bridge import Bridge
from langbridge.model.distillation import Distillation, Teacher, divergence, teacher
from langbridge.model.embeddings import Embeddings, join
from langbridge.model.encoder import Encoder
from langbridge.model.language_model import LanguageModel
from langbridge.model.opening import Opening, shared_tokens, without_first


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
    encoder_states: Tensor | None = None
    """(batch, source, encoder_dim): what the encoder made of its ids; computed where it is None."""
    text_ids: Tensor | None = None
    """(batch, text): the source as the LM itself reads it, where the LM teaches the bridge."""
    text_mask: Tensor | None = None
    teacher_ids: Tensor | None = None
    """(batch, target, k): tokens that the LM alone finds most likely at each target; computed where it is None."""
    teacher_logs: Tensor | None = None
    """(batch, target, k): their log-probabilities."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(**{name: part.to(device) for name, part in self.parts().items()})

    def parts(self) -> dict[str, Tensor]:
        """Return the tensors that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in found.items() if part is not None}

    def rows(self, chosen: Tensor) -> "Batch":
        """Return some rows, without the columns that are padding in all of them."""
        parts = {name: part[chosen] for name, part in self.parts().items()}
        content = {name.removesuffix("_mask"): mask.any(dim=0) for name, mask in parts.items() if "_mask" in name}
        content["teacher"] = content["target"]
        return Batch(**{name: part[:, content[name.split("_")[0]]] for name, part in parts.items()})


class LangBridge(nn.Module):
    """A frozen LM that reads what the encoder understood."""

    def __init__(self, encoder: Encoder, bridge: Bridge, language_model: LanguageModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.bridge = bridge
        self.language_model = language_model
        self.distillation: Distillation | None = None
        """How the LM teaches the bridge, where it does."""
        language_model.freeze()

    def soft_prompt(
        self, encoder_ids: Tensor, encoder_mask: Tensor, encoder_states: Tensor | None = None
    ) -> Embeddings:
        """Return what the LM gets in place of word embeddings: (batch, source + 1, lm_dim)."""
        states = self.encoder(encoder_ids, encoder_mask) if encoder_states is None else encoder_states
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
            self.soft_prompt(batch.encoder_ids, batch.encoder_mask, batch.encoder_states),
            self.language_model.embed(batch.after_ids, batch.after_mask),
        )

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood per target token: a scalar, nats.

        What begins every row is read once for all; `log_likelihood` reads every row in full and gives the same. Where
        the LM teaches the bridge, and has read the sources of the batch, its divergence is added.
        """
        whole, opening = batch, self.language_model.begin(shared_tokens(batch.before_ids, batch.before_mask))
        if opening is not None:
            batch = replace(batch, before_mask=without_first(batch.before_mask, opening.length))
        if self.distillation is not None and batch.text_ids is not None:
            wanted = self._stored(whole) or self.teach(whole, self.distillation)
            return self._distilled(batch, opening, wanted, self.distillation)
        loss = self.language_model.loss(self.prompt(batch), batch.target_ids, batch.target_mask, opening)
        return loss.to(batch.target_ids.device)  # an LM that was placed elsewhere answers elsewhere

    def _distilled(self, batch: Batch, opening: Opening | None, wanted: Teacher, settings: Distillation) -> Tensor:
        prompt = self.prompt(batch)
        logits = self.language_model.target_logits(prompt, batch.target_ids, batch.target_mask, opening)
        ids = batch.target_ids[batch.target_mask.bool()].to(logits.device)
        loss = nn.functional.cross_entropy(logits.float(), ids)
        return (loss + settings.divergence * divergence(logits, wanted, settings)).to(batch.target_ids.device)

    @torch.no_grad()
    def teach(self, batch: Batch, settings: Distillation) -> Teacher:
        """Return what the LM alone, given the sources as text, finds likely at each target token."""
        assert batch.text_ids is not None
        assert batch.text_mask is not None
        lm = self.language_model
        with lm.alone():
            prompt = join(
                lm.embed(batch.before_ids, batch.before_mask),
                lm.embed(batch.text_ids, batch.text_mask),
                lm.embed(batch.after_ids, batch.after_mask),
            )
            return teacher(lm.target_logits(prompt, batch.target_ids, batch.target_mask), settings)

    def _stored(self, batch: Batch) -> Teacher | None:
        if batch.teacher_ids is None or batch.teacher_logs is None:
            return None
        tokens, device = batch.target_mask.bool(), self.language_model.device
        return Teacher(ids=batch.teacher_ids[tokens].to(device), logs=batch.teacher_logs[tokens].to(device).float())

    def log_likelihood(self, batch: Batch) -> Tensor:
        """Return the log-likelihood of each target token: (batch, target), nats, 0 at padding."""
        return self.language_model.log_likelihood(self.prompt(batch), batch.target_ids, batch.target_mask)

    def generate(self, batch: Batch, config: GenerationConfig) -> Tensor:
        """Return new LM tokens behind the prompt: (batch, new)."""
        return self.language_model.extend(self.prompt(batch), config)
