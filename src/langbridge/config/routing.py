"""Which prompts the plain LM reads itself: section `routing` of a recipe."""

from dataclasses import dataclass

from langbridge.config.sections import _need

KINDS = ("off", "by_language", "by_likelihood")


@dataclass(frozen=True, kw_only=True)
class RoutingConfig:
    """Languages that the LM already knows lose nothing when it reads them itself."""

    kind: str = "off"
    """off: everything through the bridge; by_language: told by py3langid; by_likelihood: how well the LM reads it."""
    languages: tuple[str, ...] = ("eng",)
    """by_language: those that the LM reads itself."""
    probability: float = 0.1
    """by_language: least probability that a prompt is in one of them; chosen on English and development data."""
    likelihood: float | None = None
    """by_likelihood: most nats per encoder token that the LM may need for a prompt it reads itself; null: not known
    yet, `langbridge calibrate` finds it."""

    def __post_init__(self) -> None:
        _need(self.kind in KINDS, f"routing.kind {self.kind!r} is not one of {', '.join(KINDS)}")
        _need(bool(self.languages), "routing.languages is empty; wanted at least one, such as eng")
        _need(0 < self.probability <= 1, f"routing.probability must lie in (0, 1], got {self.probability}")
        _need(
            self.likelihood is None or self.likelihood > 0,
            f"routing.likelihood must be positive or null, got {self.likelihood}",
        )
