"""The frozen causal LM: embed, log-likelihood, loss, extend. Any `transformers` causal LM; nothing per family."""

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from langbridge.errors import PretrainedError
from langbridge.model.embeddings import Embeddings, flush, join
from langbridge.model.head import Head, likelihoods
from langbridge.model.opening import Opening, cache_name, shareable
from langbridge.model.packing import pack

MOST_OPENINGS = 4
"""Openings whose keys and values are kept."""
SHORT = 256
"""Positions up to which plain attention is faster than torch's fused one in bf16 on a CPU."""
PROBE, NEAR = 6, {torch.float32: 1e-4}
"""Tokens on which an LM shows whether it can read packed rows, and how near its states must be; else 0.05."""


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
        self.cache_argument = "cache" if "cache" in accepted else "past_key_values"  # the name before transformers 5.24
        self.attention = model.config._attn_implementation
        self.shares_opening = True
        """Whether tokens that begin every row are read once; found out when it is first tried."""
        self.packing: int | None = None
        """Positions of a row that several sequences share where losses are computed; None: a row for each."""
        self._openings: dict[tuple[int, ...], Opening] = {}

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

    @property
    def learns(self) -> bool:
        """Whether any of the LM's weights is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def freeze(self) -> None:
        """Never learn and never drop out."""
        self.requires_grad_(False).eval()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Switch low-rank adapters and dropout off for a while: the LM as it was pretrained."""
        mode = self.model.training
        self.model.eval()
        layers = self._adapted_layers()
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            self.model.train(mode)

    @property
    def adapted(self) -> bool:
        """Whether the LM has low-rank adapters."""
        return bool(self._adapted_layers())

    def _adapted_layers(self) -> list[Any]:
        modules = self.model.modules()
        return [m for m in modules if hasattr(m, "enable_adapters") and not isinstance(m, PreTrainedModel)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LanguageModel":
        """Move or cast the weights, unless the LM was placed by its loading."""
        self.forget()
        return self if self.placed else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "LanguageModel":
        """Stay in evaluation mode when nothing of the LM learns: a frozen LM has no dropout."""
        return super().train(mode and self.learns)

    def embed(self, ids: Tensor, mask: Tensor) -> Embeddings:
        """Look up word embeddings: ids (batch, length) -> Embeddings (batch, length, lm_dim)."""
        return Embeddings(self._look_up(ids.to(self.device)), mask.to(self.device))

    def _look_up(self, ids: Tensor) -> Tensor:
        """Call the LM's embedding layer and not its weight: Gemma's layer scales what it looks up."""
        vectors: Tensor = self.model.get_input_embeddings()(ids)
        return vectors

    def begin(self, ids: Tensor) -> Opening | None:
        """Read tokens (1, length) that begin every row, without gradient; None where that cannot be shared.

        What was read is kept: a frozen LM reads the same tokens the same again, until `forget`.
        """
        if self.learns or not self.shares_opening or not ids.numel():
            return None
        key = (*ids[0].tolist(), torch.is_autocast_enabled(self.device.type))
        if key not in self._openings:
            with torch.inference_mode(mode=False), torch.no_grad():
                vectors = self._look_up(ids.to(self.device))
                mask = torch.ones(ids.shape, dtype=torch.int64, device=self.device)
                read = self._read(vectors, mask, mask.cumsum(dim=1) - 1, use_cache=True)
            name = cache_name(read)
            if not shareable(getattr(read, name)):
                self.shares_opening = False
                return None
            while len(self._openings) >= MOST_OPENINGS:
                del self._openings[next(iter(self._openings))]
            self._openings[key] = Opening(length=ids.shape[1], cache=getattr(read, name), name=name)
        return self._openings[key]

    def forget(self) -> None:
        """Drop what was read of openings; needed when weights change."""
        self._openings.clear()

    def log_likelihood(
        self, prompt: Embeddings, target_ids: Tensor, target_mask: Tensor, opening: Opening | None = None
    ) -> Tensor:
        """Return the log-likelihood of each target token: (batch, target), fp32, nats, 0 at padding.

        `target_ids` is padded on the left; `opening` is what the LM has read in front of every prompt.
        """
        target_ids, target_mask = target_ids.to(self.device), target_mask.to(self.device)
        states, read = self._at_targets(prompt, target_ids, target_mask, opening)
        ids = target_ids[target_mask.bool()].to(states.device)
        vocabulary = len(self.model.get_input_embeddings().weight)
        found = likelihoods(states, ids, self._head(read), vocabulary).to(self.device)
        return found.new_zeros(target_ids.shape).index_put(target_mask.nonzero(as_tuple=True), found)

    def target_logits(
        self, prompt: Embeddings, target_ids: Tensor, target_mask: Tensor, opening: Opening | None = None
    ) -> Tensor:
        """Return the logits that predict each target token, row after row: (targets, vocabulary)."""
        return self._logits(*self._at_targets(prompt, target_ids.to(self.device), target_mask.to(self.device), opening))

    def _at_targets(
        self, prompt: Embeddings, target_ids: Tensor, target_mask: Tensor, opening: Opening | None
    ) -> tuple[Tensor, Any]:
        """Return the last state in front of each target token (targets, hidden), and all that the layers gave."""
        # padding to the right: rows begin right behind the opening, and content never sees padding
        whole = flush(join(prompt, self.embed(target_ids, target_mask)))
        rows, columns = target_mask.nonzero(as_tuple=True)
        first = whole.mask.sum(dim=1) - target_ids.shape[1]  # place of the target's first column, padding counted
        read = self._read_rows(whole, opening)
        states: Tensor = read.last_hidden_state  # (batch, length, hidden)
        places = (rows, first[rows] + columns - 1)  # position i predicts token i + 1
        return states[tuple(place.to(states.device) for place in places)], read

    def choices(
        self,
        prompt: Embeddings,
        target_ids: Tensor,
        target_mask: Tensor,
        most: int,
        opening: Opening | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return each target token's log-likelihood (targets,), and the `most` likeliest tokens beside it.

        Their ids and log-likelihoods are (targets, most), row after row; `target_ids` is padded on the left.
        """
        target_ids, target_mask = target_ids.to(self.device), target_mask.to(self.device)
        states, read = self._at_targets(prompt, target_ids, target_mask, opening)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for part, ids in zip(
            torch.split(states, SHORT), torch.split(target_ids[target_mask.bool()], SHORT), strict=True
        ):
            logs = self._logits(part, read).float().log_softmax(dim=-1)  # a few rows at a time: vocabularies are large
            likeliest = logs.topk(most, dim=-1)
            found.append((logs.gather(1, ids.to(logs.device)[:, None])[:, 0], likeliest.indices, likeliest.values))
        said, tokens, logs = (torch.cat(parts) for parts in zip(*found, strict=True))
        return said, tokens, logs

    def log_likelihoods(self, prompt: Embeddings, targets: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Return what `log_likelihood` gives for each (ids, mask) of `targets`, reading the prompt only once.

        Here targets are padded on the right, as they follow the prompt's cache; (batch, target) each.
        """
        return [logs for logs, _ in self.scored(prompt, targets)]

    def scored(self, prompt: Embeddings, targets: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Return what `log_likelihoods` does, and which tokens the LM finds likeliest: bool, True at padding."""
        positions = (prompt.mask.cumsum(dim=1) - 1).clamp(min=0)
        read = self._read(prompt.vectors, prompt.mask, positions, use_cache=True)
        name, start = cache_name(read), prompt.mask.sum(dim=1, keepdim=True)
        vocabulary = len(self.model.get_input_embeddings().weight)
        found = []
        for ids, mask in targets:
            said = self._read(
                self.embed(ids, mask).vectors,
                torch.cat([prompt.mask, mask], dim=1),
                start + torch.arange(ids.shape[1], device=ids.device),
                use_cache=True,
                **{name: copy.deepcopy(getattr(read, name))},  # the LM writes into the cache it is given
            )
            before = [read.last_hidden_state[:, -1:], said.last_hidden_state[:, :-1]]  # position i predicts token i + 1
            tokens = mask.bool()
            states = torch.cat(before, dim=1)[tokens.to(before[0].device)]  # (targets, hidden)
            likeliest = [ids.new_zeros(0)]
            head = _noting(self._head(said), likeliest)
            values = likelihoods(states, ids[tokens].to(states.device), head, vocabulary).to(ids.device)
            same = torch.cat([part.to(ids.device) for part in likeliest]) == ids[tokens]
            places = tokens.nonzero(as_tuple=True)
            found.append(
                (
                    values.new_zeros(ids.shape).index_put(places, values),
                    torch.ones_like(tokens).index_put(places, same),
                )
            )
        return found

    def loss(
        self, prompt: Embeddings, target_ids: Tensor, target_mask: Tensor, opening: Opening | None = None
    ) -> Tensor:
        """Return the mean negative log-likelihood per target token: a scalar, nats."""
        found = self.log_likelihood(prompt, target_ids, target_mask, opening)
        return -found.sum() / target_mask.sum().clamp(min=1).to(found.device)

    def go_on(self, whole: Embeddings, held: Tensor, cache: Any) -> Tensor:
        """Read rows behind what `cache` holds of them; return the logits behind each row's end: (batch, vocabulary).

        `whole` is padded on the right; `held` (batch, columns) says which columns of the cache are content.
        """
        batch, length = whole.mask.shape
        positions = held.sum(dim=1, keepdim=True) + torch.arange(length, device=held.device)
        arguments: dict[str, Any] = {"position_ids": positions} if self.takes_positions else {}
        self._attend(False)
        read = self.model.get_decoder()(
            inputs_embeds=whole.vectors,
            attention_mask=torch.cat([held, whole.mask], dim=1),
            use_cache=True,
            **{self.cache_argument: cache},
            **arguments,
        )
        states: Tensor = read.last_hidden_state  # (batch, length, hidden)
        last = whole.mask.sum(dim=1) - 1
        return self._logits(states[torch.arange(batch, device=states.device), last.to(states.device)], read)

    def _read_rows(self, whole: Embeddings, opening: Opening | None) -> Any:
        """Run the LM's layers over rows that are padded on the right."""
        batch, length = whole.mask.shape
        start = opening.length if opening is not None else 0
        if self.packing is not None and batch > 1 and start + length <= self._sight:
            return self._read_packed(whole, opening, self.packing)
        positions = torch.arange(start, start + length, device=whole.mask.device).expand(batch, -1)
        mask = torch.cat([whole.mask.new_ones(batch, start), whole.mask], dim=1)
        extra = {} if opening is None else opening.behind(batch)
        return self._read(whole.vectors, mask, positions, use_cache=opening is not None, **extra)

    def _read_packed(self, whole: Embeddings, opening: Opening | None, most: int) -> Any:
        """Do the same with several sequences in a row."""
        packed = pack(whole, most, opening.length if opening is not None else 0)
        extra = {} if opening is None else opening.behind(len(packed.vectors))
        read = self._read(packed.vectors, packed.mask, packed.positions, use_cache=opening is not None, **extra)
        read.last_hidden_state = packed.unpack(read.last_hidden_state, whole.mask.shape)
        return read

    @property
    def _sight(self) -> float:
        """Positions up to which every layer sees a whole sequence: a block mask knows no sliding window."""
        return getattr(self.model.config.get_text_config(), "sliding_window", None) or math.inf

    @torch.no_grad()
    def pack(self, most: int) -> None:
        """Let sequences share rows of `most` positions where losses are computed.

        Raises PretrainedError where this LM does not read them in one row as it reads them apart.
        """
        name, advice = type(self.model).__name__, "set training.packing: null."
        if not self.takes_positions:
            raise PretrainedError(f"{name} takes no position_ids, which sequences that share a row need; {advice}")
        if self.attention not in ("eager", "sdpa"):
            raise PretrainedError(
                f"sequences that share a row need a block mask, which attention {self.attention!r} does not take; "
                f"load {name} with sdpa or {advice}"
            )
        ids = torch.arange(2 * PROBE, device=self.device).view(2, -1) % len(self.model.get_input_embeddings().weight)
        whole = self.embed(ids, (ids < 2 * PROBE - 2).long())  # the second is the shorter
        apart, together = self._read_rows(whole, None), self._read_packed(whole, None, 2 * PROBE)
        error = (apart.last_hidden_state - together.last_hidden_state)[whole.mask.bool()].norm()
        found = float(error / apart.last_hidden_state[whole.mask.bool()].norm())
        if not found < NEAR.get(self.dtype, 0.05):
            raise PretrainedError(
                f"{name} does not read sequences that share a row as it reads them apart (states differ by {found:.1%})"
                f": it may have layers without attention, or count positions by itself; {advice}"
            )
        self.packing = most

    def _head(self, read: Any) -> Head:
        return lambda states: self._logits(states, read)

    def _logits(self, states: Tensor, read: Any) -> Tensor:
        """Return logits (positions, vocabulary) for last states (positions, hidden) out of `read`.

        The whole causal LM is called with its layers replaced by their answer, so that whatever a family does at its
        head (caps, scales) still happens.
        """
        layers = self.model.get_decoder()
        answer = copy.copy(read)
        answer.last_hidden_state = states[None]
        hidden = layers.__dict__.get("forward")  # placed models have a forward pass of their own here
        layers.forward = lambda *inputs, **arguments: answer
        try:
            logits: Tensor = self.model(inputs_embeds=states[None], use_cache=False).logits[0]
        finally:
            del layers.forward
            if hidden is not None:
                layers.forward = hidden
        return logits

    def _read(self, vectors: Tensor, mask: Tensor, positions: Tensor, **arguments: Any) -> Any:
        """Run the LM's layers without its head."""
        if self.takes_positions:
            arguments["position_ids"] = positions
        self._attend(short_on_cpu(vectors, mask.shape[-1]))
        return self.model.get_decoder()(inputs_embeds=vectors, attention_mask=mask, **arguments)

    def _attend(self, plainly: bool) -> None:
        """Choose plain attention, or the implementation that the LM was loaded with."""
        wanted = "eager" if plainly else self.attention
        if self.attention == "sdpa" and self.model.config._attn_implementation != wanted:
            self.model.set_attn_implementation(wanted)

    @torch.inference_mode()
    def extend(self, prompt: Embeddings, config: GenerationConfig, **arguments: Any) -> Tensor:
        """Generate behind `prompt` with the LM's own `generate`; returns new tokens only: (batch, new)."""
        self._attend(False)
        new: Tensor = self.model.generate(
            inputs_embeds=prompt.vectors, attention_mask=prompt.mask, generation_config=config, **arguments
        )
        return new


def short_on_cpu(vectors: Tensor, length: int) -> bool:
    """Tell whether plain attention is the faster one: bf16 on a CPU, few positions."""
    bf16 = vectors.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return vectors.device.type == "cpu" and bf16 and length <= SHORT


def _noting(head: Head, likeliest: list[Tensor]) -> Head:
    """Return a head that notes which token it finds likeliest at each position."""

    def noted(states: Tensor) -> Tensor:
        logits = head(states)
        likeliest.append(logits.detach().argmax(dim=-1))
        return logits

    return noted
