"""Policies: what of a LangBridge learns beside the bridge, and the low-rank adapters that a recipe may add."""

import importlib.util
from collections.abc import Sequence

from transformers import PreTrainedModel

from langbridge.config import LoraConfig, Recipe
from langbridge.errors import ConfigError
from langbridge.model.encoder import Encoder
from langbridge.model.language_model import LanguageModel


def apply_policy(recipe: Recipe, encoder: Encoder, language_model: LanguageModel, whitespace: Sequence[int]) -> None:
    """Freeze both models but for what the recipe trains; `whitespace`: ids of added tokens, which get embeddings.

    Raises ConfigError where a recipe trains what is not there, or wants adapters without PEFT.
    """
    kind = recipe.encoder_policy
    if whitespace:
        encoder.add_whitespace(whitespace)
    encoder.freeze()
    language_model.freeze()
    if kind == "trained":
        encoder.requires_grad_(True)
    if recipe.policy.encoder == "whitespace" and encoder.whitespace is None:
        raise ConfigError(
            f"policy.encoder is whitespace, but the tokenizer of {recipe.encoder.name} loses none, so no token was "
            "added: set policy.encoder: frozen."
        )
    for part in recipe.lora.parts:
        add_lora(recipe.lora, encoder.model if part == "encoder" else language_model.model)
    if kind == "whitespace" and encoder.whitespace is not None:
        encoder.whitespace.requires_grad_(True)


def add_lora(config: LoraConfig, model: PreTrainedModel) -> None:
    """Put low-rank adapters into a frozen model; they start as nothing, so that it answers as before."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("lora.parts is not empty, but PEFT is missing: pip install 'langbridge-lm[lora]'.")
    import peft

    modules = config.modules if isinstance(config.modules, str) else list(config.modules)
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=modules
    )
    try:
        peft.inject_adapter_in_model(settings, model)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"lora.modules {config.modules!r} fits no layer of {type(model).__name__}: {first}"
        ) from error
