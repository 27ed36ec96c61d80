"""The recipe of a run and its sections."""

from langbridge.config.objective import ObjectiveConfig
from langbridge.config.policy import LoraConfig, PolicyConfig
from langbridge.config.recipe import Recipe
from langbridge.config.routing import RoutingConfig
from langbridge.config.sections import (
    BridgeConfig,
    DataConfig,
    EncoderConfig,
    LanguageModelConfig,
    PretrainedConfig,
    PromptConfig,
    TrainingConfig,
    WarmStartConfig,
)

__all__ = [
    "BridgeConfig",
    "DataConfig",
    "EncoderConfig",
    "LanguageModelConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "PolicyConfig",
    "PretrainedConfig",
    "PromptConfig",
    "Recipe",
    "RoutingConfig",
    "TrainingConfig",
    "WarmStartConfig",
]
