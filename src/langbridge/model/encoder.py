"""The multilingual encoder: token ids -> encoder states (its last layer)."""

from torch import Tensor, nn, set_grad_enabled
from transformers import PreTrainedModel


class Encoder(nn.Module):
    """Any encoder of `transformers` whose output has `last_hidden_state`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

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

    def train(self, mode: bool = True) -> "Encoder":
        """Stay in evaluation mode when frozen: a frozen encoder has no dropout."""
        return super().train(mode and self.learns)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return encoder states (batch, source, encoder_dim) for ids and mask (batch, source)."""
        with set_grad_enabled(self.learns and self.training):
            states: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states
