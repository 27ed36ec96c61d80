"""One optimizer group for each part that trains, with its own learning rate and weight decay."""

from typing import Any

from langbridge.checkpoint import LangBridge


def groups(model: LangBridge) -> list[dict[str, Any]]:
    """Return the optimizer's groups, the bridge first; weight decay spares vectors (biases, norms, the boundary)."""
    training, policy, lora = model.recipe.training, model.recipe.policy, model.recipe.lora
    settings = {
        "bridge": (training.learning_rate, training.weight_decay),
        "encoder": (policy.encoder_rate, policy.encoder_decay),
        "whitespace": (policy.whitespace_rate, 0.0),
        "lora": (lora.learning_rate, lora.weight_decay),
    }
    whitespace = model.encoder.whitespace
    found: dict[tuple[str, bool], list[Any]] = {(part, decays): [] for part in settings for decays in (True, False)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "whitespace" if parameter is whitespace else part_of(name)
            found[part, parameter.dim() > 1].append(parameter)
    return [
        {"params": parameters, "lr": settings[part][0], "weight_decay": settings[part][1] if decays else 0.0}
        for (part, decays), parameters in found.items()
        if parameters
    ]


def part_of(name: str) -> str:
    """Return the part that a learning parameter belongs to."""
    return "lora" if ".lora_" in name else name.split(".")[0]
