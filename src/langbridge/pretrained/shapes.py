"""Models without weights, for planning: their configs where reachable, else the shapes of the paper's models."""

from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from langbridge.errors import PretrainedError
from langbridge.pretrained.load import encoder_class
from langbridge.pretrained.names import folder_of, quiet_transformers


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model on no device, and where its shape is known from."""

    model: Any
    known_from: str


def encoder_shape(name: str, *, revision: str | None = None) -> Shape:
    """Return the encoder, or the encoder half, that loading `name` would give; raises PretrainedError when unknown."""
    config, source = _config(name, revision)
    auto, found = encoder_class(name, config)
    with torch.device("meta"), quiet_transformers():
        half = found.get("config", config)
        extra = {key: value for key, value in found.items() if key == "add_pooling_layer"}
        model = auto(half) if "config" in found else auto.from_config(half, **extra)
    return Shape(model=model, known_from=source)


def language_model_shape(name: str, *, revision: str | None = None) -> Shape:
    """Return the causal LM that loading `name` would give; raises PretrainedError when its shape is unknown."""
    config, source = _config(name, revision)
    try:
        with torch.device("meta"), quiet_transformers():
            return Shape(model=AutoModelForCausalLM.from_config(config), known_from=source)
    except ValueError as error:
        raise PretrainedError(f"{name} is no causal LM: {str(error).splitlines()[0]}") from error


def _config(name: str, revision: str | None) -> tuple[Any, str]:
    try:
        folder = folder_of(name)
        arguments = {} if revision is None else {"revision": revision}
        with quiet_transformers():
            return AutoConfig.from_pretrained(folder, **arguments), "its config"
    except PretrainedError:
        raise
    except Exception as error:  # no connection, no such model, no permission: the hub client has a kind for each
        path = resources.files("langbridge") / "assets" / "shapes.yaml"
        shapes: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
        if name not in shapes:
            raise PretrainedError(
                f"the config of {name} is not to be had from the hub, nor in the local cache, and its shape is not "
                f"among those that are known: {', '.join(shapes)}."
            ) from error
        return AutoConfig.for_model(**shapes[name]), "known shapes"
