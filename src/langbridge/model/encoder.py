"""The multilingual encoder: token ids -> encoder states (its last layer)."""

from collections.abc import Callable

from torch import Tensor, nn, set_grad_enabled
from transformers import PreTrainedModel


class Encoder(nn.Module):
    """Any encoder of `transformers` whose output has `last_hidden_state`.

    `placed` says that loading chose its devices (`device_map`, quantisation) and that it must stay there.
    """

    def __init__(self, model: PreTrainedModel, *, placed: bool = False) -> None:
        super().__init__()
        self.model = model
        self.placed = placed

    @property
    def dim(self) -> int:
        """Width of the encoder states."""
        return int(self.model.config.get_text_config().hidden_size)

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
        """Stay in evaluation mode when frozen: a frozen encoder has no dropout."""
        return super().train(mode and self.learns)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return encoder states (batch, source, encoder_dim) for ids and mask (batch, source)."""
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        with set_grad_enabled(self.learns and self.training):
            states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states
