"""Study `expressivity`: how much of a bridge is needed, by type of task (the paper's choice is one linear layer)."""

from typing import ClassVar

from langbridge.analyse.grid import Grid

# At a linear bridge's learning rate the English training loss of a deeper one rises from its warm start.
KINDS = {
    "linear": ("bridge.kind=linear",),
    "mlp-1": ("bridge.kind=mlp", "bridge.hidden_layers=1", "training.learning_rate=3.0e-4"),
    "mlp-2": ("bridge.kind=mlp", "bridge.hidden_layers=2", "training.learning_rate=2.0e-4"),
    "resampler": ("bridge.kind=resampler", "training.learning_rate=5.0e-4"),
}


class Expressivity(Grid):
    """Every kind of bridge, on the last layer and on a learned mix of all."""

    name: ClassVar[str] = "expressivity"
    question: ClassVar[str] = "Does a more expressive bridge carry more, and for which tasks?"
    recipe: ClassVar[str] = "recipes/embedded.yaml"
    settings: ClassVar[dict[str, tuple[str, ...]]] = {
        f"{kind} {layers}": (*fields, f"bridge.layers={layers}")
        for layers in ("last", "mix")
        for kind, fields in KINDS.items()
    }
    base: ClassVar[str] = "linear last"
    facts: ClassVar[bool] = True
    tasks: ClassVar[bool] = True
    about: ClassVar[str] = (
        "Linear, MLP with one and two hidden layers, and resampler, on the last layer or a mix of all."
    )
    limits: ClassVar[str] = (
        "Deeper kinds have lower learning rates, by rule of thumb and not by a search; all kinds share one number of "
        "steps, which need not suit them equally; accuracies of benchmarks are on their first items in a part of the "
        "languages."
    )
