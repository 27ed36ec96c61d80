"""The multilingual encoder: token ids -> encoder states (its last layer, or several layers side by side)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, is_grad_enabled, nn, set_grad_enabled
from transformers import PreTrainedModel

from langbridge.errors import ConfigError
from langbridge.model.whitespace import WhitespaceRows


class Encoder(nn.Module):
    """Any encoder of `transformers` whose output has `last_hidden_state`; it reads its last layer unless told.

    `placed` says that loading chose its devices (`device_map`, quantisation) and that it must stay there.
    """

    def __init__(self, model: PreTrainedModel, *, placed: bool = False) -> None:
        super().__init__()
        self.model = model
        self.placed = placed
        self.layers: tuple[int, ...] = ()
        """Hidden states to put side by side, 0 = word embeddings; empty = the last layer, as in the paper."""

    def add_whitespace(self, ids: Sequence[int]) -> None:
        """Give added whitespace tokens embeddings of their own."""
        self.model.set_input_embeddings(WhitespaceRows(self.model.get_input_embeddings(), ids))

    @property
    def whitespace(self) -> nn.Parameter | None:
        """Embeddings of the added whitespace tokens: (rows, width); None where there are none."""
        table = self.model.get_input_embeddings()
        return table.rows if isinstance(table, WhitespaceRows) else None

    def read(self, layers: Sequence[int] | str) -> None:
        """Choose layers by number, `last` or `mix` (all); raises ConfigError for one that the encoder has not got."""
        named = {"last": (), "mix": tuple(range(self.depth + 1))}
        self.layers = named[layers] if isinstance(layers, str) else tuple(layers)
        if wrong := [layer for layer in self.layers if not 0 <= layer <= self.depth]:
            raise ConfigError(
                f"bridge.layers has {wrong[0]}, but this encoder has layers 0 (word embeddings) to {self.depth}."
            )

    @property
    def depth(self) -> int:
        """Number of the last layer."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "num_hidden_layers", None) or config.encoder_layers)

    @property
    def width(self) -> int:
        """Width of one layer's states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def dim(self) -> int:
        """Width of the encoder states: that of one layer times the number of layers."""
        return self.width * max(1, len(self.layers))

    @property
    def learns(self) -> bool:
        """Whether any of the encoder's weights is trained."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def freeze(self) -> None:
        """Never learn and never drop out."""
        self.requires_grad_(False).eval()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Encoder":
        """Move or cast the weights, unless the encoder was placed by its loading."""
        return self if self.placed else super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> "Encoder":
        """Stay in evaluation mode when frozen but for whitespace embeddings: a frozen encoder has no dropout."""
        body = any(p.requires_grad for p in self.parameters() if p is not self.whitespace)
        return super().train(mode and body)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return encoder states (batch, source, dim) for ids and mask (batch, source)."""
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        extra = {"output_hidden_states": True} if self.layers else {}
        with set_grad_enabled(self.learns and is_grad_enabled()):
            found = self.model(input_ids=ids, attention_mask=mask, **extra)
        last: Tensor = found.last_hidden_state
        if not self.layers:
            return last
        every = [*found.hidden_states[: self.depth], last]  # some families norm only what they call last
        return torch.cat([every[layer] for layer in self.layers], dim=-1)
