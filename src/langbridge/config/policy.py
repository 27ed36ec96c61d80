"""What trains besides the bridge, and how fast: sections `policy` and `lora` of a recipe."""

from dataclasses import dataclass

from langbridge.config.sections import _need


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What of the encoder trains; the bridge always does, at training.learning_rate."""

    encoder: str = "auto"
    """frozen, whitespace (only the embeddings of its added whitespace tokens), trained, or auto (the paper's rule)."""
    encoder_rate: float = 2e-5
    """Learning rate of a trained encoder."""
    encoder_decay: float = 0.1
    """Weight decay of a trained encoder."""
    whitespace_rate: float = 6e-4
    """Learning rate of added whitespace embeddings; they have no weight decay."""

    def __post_init__(self) -> None:
        known = ("auto", "frozen", "whitespace", "trained")
        _need(self.encoder in known, f"policy.encoder {self.encoder!r} is not one of {', '.join(known)}")
        for name in ("encoder_rate", "whitespace_rate"):
            _need(getattr(self, name) > 0, f"policy.{name} must be positive, got {getattr(self, name)}")
        _need(self.encoder_decay >= 0, f"policy.encoder_decay must not be negative, got {self.encoder_decay}")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters beside the frozen weights, through PEFT; beyond the paper, off by default."""

    parts: tuple[str, ...] = ()
    """Which models get them: encoder, language_model; empty: none."""
    rank: int = 16
    alpha: int = 32
    """Adapters count alpha / rank times."""
    dropout: float = 0.0
    modules: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get one, or all-linear: every linear layer but the head."""
    learning_rate: float = 2e-4
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        known = ("encoder", "language_model")
        for part in self.parts:
            _need(part in known, f"lora.parts has {part!r}, wanted some of {', '.join(known)}")
        _need(self.rank > 0 and self.alpha > 0, f"lora.rank and lora.alpha must be positive: {self.rank}, {self.alpha}")
        _need(0 <= self.dropout < 1, f"lora.dropout must lie in [0, 1), got {self.dropout}")
        _need(self.learning_rate > 0, f"lora.learning_rate must be positive, got {self.learning_rate}")
        _need(self.weight_decay >= 0, f"lora.weight_decay must not be negative, got {self.weight_decay}")
        _need(bool(self.modules), "lora.modules is empty; wanted all-linear or names of layers")
