"""The frozen causal LM: embed, log-likelihood, loss, extend. Any `transformers` causal LM; nothing per family."""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from langbridge.errors import PretrainedError
from langbridge.model.embeddings import Embeddings, join

IGNORE = -100
"""Label of a position without loss."""


class LanguageModel(nn.Module):
    """A causal LM that is only ever given `inputs_embeds`, an attention mask and positions counted from the mask.

    `placed` says that loading chose its devices (`device_map`, quantisation) and that it must stay there.
    Raises PretrainedError when `model` is not a causal LM that takes `inputs_embeds`.
    """

    def __init__(self, model: PreTrainedModel, *, placed: bool = False) -> None:
        super().__init__()
        accepted = inspect.signature(model.forward).parameters
        if "inputs_embeds" not in accepted or model.get_output_embeddings() is None:
            raise PretrainedError(
                f"{type(model).__name__} is not a causal LM that takes inputs_embeds; choose a model that "
                "AutoModelForCausalLM loads, such as Llama, Qwen, Mistral, Gemma, Phi, OPT, GPT-2 or GPT-NeoX."
            )
        self.model = model
        self.placed = placed
        self.takes_positions = "position_ids" in accepted
        self.cuts_logits = "logits_to_keep" in accepted

    @property
    def dim(self) -> int:
        """Width of the LM's input embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def vectors(self) -> Tensor:
        """The LM's word embeddings as it reads them, scaled where the family scales them: (vocabulary, lm_dim)."""
        weight = self.model.get_input_embeddings().weight
        return self._look_up(torch.arange(len(weight), device=weight.device))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the vectors that the LM reads."""
        dtype: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Where the LM takes its input and gives its output."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def longest(self) -> int | None:
        """Most positions the LM was made for, where its config says so."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def freeze(self) -> None:
        """Never learn and never drop out."""
        self.requires_grad_(False).eval()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Switch low-rank adapters and dropout off for a while: the LM as it was pretrained."""
        mode = self.model.training
        self.model.eval()
        layers: list[Any] = [
            module
            for module in self.model.modules()
            if hasattr(module, "enable_adapters") and not isinstance(module, PreTrainedModel)
        ]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            self.model.train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LanguageModel":
        """Move or cast the weights, unless the LM was placed by its loading."""
        return self if self.placed else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "LanguageModel":
        """Stay in evaluation mode when nothing of the LM learns: a frozen LM has no dropout."""
        learns = any(parameter.requires_grad for parameter in self.parameters())
        return super().train(mode and learns)

    def embed(self, ids: Tensor, mask: Tensor) -> Embeddings:
        """Look up word embeddings: ids (batch, length) -> Embeddings (batch, length, lm_dim)."""
        return Embeddings(self._look_up(ids.to(self.device)), mask.to(self.device))

    def _look_up(self, ids: Tensor) -> Tensor:
        """Call the LM's embedding layer and not its weight: Gemma's layer scales what it looks up."""
        vectors: Tensor = self.model.get_input_embeddings()(ids)
        return vectors

    def log_likelihood(self, prompt: Embeddings, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Return the log-likelihood of each target token: (batch, target), fp32, nats, 0 at padding.

        `target_ids` is padded on the left, so that after `join` the targets are the last columns.
        """
        target_ids, target_mask = target_ids.to(self.device), target_mask.to(self.device)
        logits = self.target_logits(prompt, target_ids, target_mask)  # (targets, vocabulary)
        rows, columns = target_mask.nonzero(as_tuple=True)
        found = -nn.functional.cross_entropy(logits.float(), target_ids[rows, columns], reduction="none")
        return found.new_zeros(target_ids.shape).index_put((rows, columns), found)

    def target_logits(self, prompt: Embeddings, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Return the logits that predict each target token, row after row: (targets, vocabulary)."""
        target_ids, target_mask = target_ids.to(self.device), target_mask.to(self.device)
        whole = join(prompt, self.embed(target_ids, target_mask))
        rows, columns = target_mask.nonzero(as_tuple=True)
        before = whole.mask.shape[1] - target_ids.shape[1] - 1  # position i predicts token i + 1
        return self._logits_at(whole, rows, columns + before)

    def log_likelihoods(self, prompt: Embeddings, targets: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Return what `log_likelihood` gives for each (ids, mask) of `targets`, reading the prompt only once.

        Here targets are padded on the right, as they follow the prompt's cache; (batch, target) each.
        """
        extra: dict[str, Any] = {"logits_to_keep": 1} if self.cuts_logits else {}
        positions = (prompt.mask.cumsum(dim=1) - 1).clamp(min=0)
        read = self._run(prompt.vectors, prompt.mask, positions, use_cache=True, **extra)
        cache = "cache" if "cache" in read else "past_key_values"  # the name before transformers 5.24
        found = []
        for ids, mask in targets:
            start = prompt.mask.sum(dim=1, keepdim=True)
            said = self._run(
                self.embed(ids, mask).vectors,
                torch.cat([prompt.mask, mask], dim=1),
                start + torch.arange(ids.shape[1], device=ids.device),
                use_cache=True,
                # the LM writes into the cache it is given
                **{cache: copy.deepcopy(getattr(read, cache))},
            )
            logits = torch.cat([read.logits[:, -1:], said.logits[:, :-1]], dim=1)  # position i predicts token i + 1
            found.append(_picked(logits, ids, mask))
        return found

    def loss(self, prompt: Embeddings, target_ids: Tensor, target_mask: Tensor) -> Tensor:
        """Return the mean negative log-likelihood per target token: a scalar, nats."""
        return -self.log_likelihood(prompt, target_ids, target_mask).sum() / target_mask.sum().clamp(min=1)

    def _logits_at(self, whole: Embeddings, rows: Tensor, columns: Tensor) -> Tensor:
        """Return logits at some positions only: (positions, vocabulary); nothing of the others is computed.

        The LM's head is handed those positions alone, so that whatever a family does behind its head still happens.
        """
        positions = (whole.mask.cumsum(dim=1) - 1).clamp(min=0)  # left padding must not shift positions

        def cut(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            states = inputs[0]  # (batch, length, hidden), on the head's own device where the LM is spread out
            return states[rows.to(states.device), columns.to(states.device)], *inputs[1:]

        hook = self.model.get_output_embeddings().register_forward_pre_hook(cut)
        try:
            logits: Tensor = self._run(whole.vectors, whole.mask, positions, use_cache=False).logits
        finally:
            hook.remove()
        return logits

    def _run(self, vectors: Tensor, mask: Tensor, positions: Tensor, **arguments: Any) -> Any:
        if self.takes_positions:
            arguments["position_ids"] = positions
        return self.model(inputs_embeds=vectors, attention_mask=mask, **arguments)

    @torch.inference_mode()
    def extend(self, prompt: Embeddings, config: GenerationConfig, **arguments: Any) -> Tensor:
        """Generate behind `prompt` with the LM's own `generate`; returns new tokens only: (batch, new)."""
        new: Tensor = self.model.generate(
            inputs_embeds=prompt.vectors, attention_mask=prompt.mask, generation_config=config, **arguments
        )
        return new


def _picked(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the log-probability of each id under its row of logits: (batch, target), fp32, 0 at padding."""
    labels = ids.masked_fill(mask == 0, IGNORE)
    flat = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return -flat.view_as(ids)
