"""The recipe of a run and its sections."""

from langbridge.config.recipe import Recipe
from langbridge.config.sections import (
    BridgeConfig,
    DataConfig,
    EncoderConfig,
    PretrainedConfig,
    PromptConfig,
    TrainingConfig,
    WarmStartConfig,
)

__all__ = [
    "BridgeConfig",
    "DataConfig",
    "EncoderConfig",
    "PretrainedConfig",
    "PromptConfig",
    "Recipe",
    "TrainingConfig",
    "WarmStartConfig",
]
