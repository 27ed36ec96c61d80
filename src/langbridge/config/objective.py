"""What the bridge learns from: section `objective` of a recipe."""

from dataclasses import dataclass

from langbridge.config.sections import _need


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Labelled pairs (the paper's for fine-tuned LMs), unlabelled text (for pretrained ones), or what the LM says."""

    kind: str = "supervised"
    """supervised: source -> target; prefix_lm: text cut in two; distill: the LM's answer to the prompt read as text."""
    shortest: int = 32
    """prefix_lm: fewest encoder tokens of a cut, its special tokens included."""
    longest: int = 1024
    """prefix_lm: most of them; the cut of a batch is drawn between the two."""
    continuation: int = 128
    """prefix_lm: fewest LM tokens there is room for behind the longest cut; a shorter cut leaves more to draw from."""
    temperature: float = 1.0
    """distill: divides both sides' logits before they are compared."""
    divergence: float = 1.0
    """distill: weight of the divergence from the LM's logits; the cross-entropy on its answer has weight 1."""
    top_k: int = 64
    """distill: logits of the LM that are compared one by one, all others as one sum; 0: every one."""
    store: bool = True
    """distill: compute them once and keep them in the run folder; false: anew in each step, which takes no space."""

    def __post_init__(self) -> None:
        kinds = ("supervised", "prefix_lm", "distill")
        _need(self.kind in kinds, f"objective.kind {self.kind!r} is unknown; known: {', '.join(kinds)}")
        _need(
            2 < self.shortest <= self.longest,
            f"objective: need 2 < shortest <= longest, got {self.shortest} and {self.longest}",
        )
        _need(self.continuation > 0, f"objective.continuation must be positive, got {self.continuation}")
        _need(self.temperature > 0, f"objective.temperature must be positive, got {self.temperature}")
        _need(self.divergence >= 0, f"objective.divergence must not be negative, got {self.divergence}")
        _need(self.top_k >= 0, f"objective.top_k must not be negative, got {self.top_k}")
        _need(
            self.kind != "distill" or self.top_k > 0 or not self.store,
            "objective.top_k is 0 (every logit), which would fill the disk: set objective.store: false",
        )
