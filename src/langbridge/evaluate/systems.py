"""What answers a task's prompts: the bridge, and the baselines that share its models."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from langbridge.checkpoint import LangBridge
from langbridge.data import Example, read_examples
from langbridge.errors import ConfigError
from langbridge.generate import BridgedGenerator, PlainGenerator
from langbridge.model.bridge import make_bridge
from langbridge.prompt import PromptTemplate
from langbridge.routing import PLAIN, RoutedGenerator
from langbridge.train.start import STATISTICS_SAMPLES, random_start

BRIDGE, PLAIN_LM, ORIGINAL, RANDOM = "bridge", "plain", "original", "random"
BASELINES = {
    PLAIN_LM: "the LM alone, given the same text",
    ORIGINAL: "the LM alone, given the English original: a ceiling",
    RANDOM: "a random bridge of the same shape",
}
RANDOM_SEED = 0


@dataclass(frozen=True)
class System:
    """Something that answers, by name."""

    name: str
    generator: BridgedGenerator

    def soft_prompts(self, prompts: Sequence[str]) -> list[int]:
        """Return how many LM positions the soft prompt of each prompt takes; 0 where the LM reads the text itself."""
        generator = self.generator
        if isinstance(generator, PlainGenerator):
            return [0] * len(prompts)
        lengths = generator.soft_prompt_lengths(prompts)
        if isinstance(generator, RoutedGenerator):
            routes = generator.routes(prompts)
            return [0 if route.to == PLAIN else n for route, n in zip(routes, lengths, strict=True)]
        return lengths


def baselines(text: str) -> list[str]:
    """Return the names in a list with commas, in a fixed order; raises ConfigError for an unknown one."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BASELINES]:
        known = "; ".join(f"{name} ({about})" for name, about in BASELINES.items())
        raise ConfigError(f"no baseline named {unknown[0]!r}; known: {known}.")
    return [name for name in BASELINES if name in names]


def systems(generator: BridgedGenerator, names: Sequence[str]) -> list[System]:
    """Return the bridge and the named baselines, all on the same two pretrained models."""
    found = [System(BRIDGE, generator)]
    for name in names:
        if name == RANDOM:
            twin = with_random_bridge(generator.model)
            found.append(System(name, BridgedGenerator(twin, batch_size=generator.batch_size)))
        else:
            found.append(System(name, PlainGenerator(generator.model, batch_size=generator.batch_size)))
    return found


def with_random_bridge(model: LangBridge) -> LangBridge:
    """Return the model with an untrained bridge that has the statistics of the LM's word embeddings."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)  # the copy shares both frozen models, but not the place of the bridge
    settings, dim = model.recipe.bridge, model.language_model.dim
    mixed = len(model.encoder.layers) if settings.layers == "mix" else 1
    scale = float(model.language_model.vectors.detach().float().std())
    with torch.random.fork_rng():
        torch.manual_seed(RANDOM_SEED)
        bridge = make_bridge(settings, model.encoder.dim // mixed, dim, mixed=mixed, scale=scale)
        twin.bridge = bridge.to(model.bridge.boundary.device)
        random_start(twin, [Example(source=e.source) for e in read_examples("shipped")[:STATISTICS_SAMPLES]])
    return twin.eval()


def with_template(model: LangBridge, name: str | None) -> LangBridge:
    """Put another template around prompts: around the encoder's where the run has one there, else around the LM's."""
    if name is None:
        return model
    if model.recipe.prompt.encoder_template is not None:
        prompt = dataclasses.replace(model.recipe.prompt, encoder_template=name)
        model.recipe = dataclasses.replace(model.recipe, prompt=prompt)
    else:
        model.template = PromptTemplate.of(name, model.lm_tokenizer)
    return model
