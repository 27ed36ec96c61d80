"""`train --dry-run`: what a recipe would take, from its fields and its models' shapes alone; nothing is downloaded.

Arithmetic, not measurement. FLOPs: 2 for each weight of a layer and token forward; the same backward where a gradient
passes, and once more where the weight learns; attention besides. The LM's head sees targets only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from langbridge.config import Recipe
from langbridge.errors import ConfigError
from langbridge.model import Encoder, LanguageModel
from langbridge.model.bridge import make_bridge
from langbridge.model.head import MOST_LOGITS
from langbridge.pretrained.shapes import encoder_shape, language_model_shape

BYTES = {"auto": 2.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "8bit": 1.0, "4bit": 0.5}
SAVED_FROZEN, SAVED_LEARNING = 32, 40
"""Bytes kept for the way back, for each layer, token and unit of width: norms, attention, gates in half precision."""
INPUT = 2
"""Bytes of a layer's input, for each token and unit of width: half precision."""
SAVED_LOGIT = 10
"""Bytes of each logit that is there at once: half precision, fp32, and its gradient."""
DEVICES = (1, 4, 8)
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two models, in numbers."""

    parameters: int
    layers: int
    width: int
    per_token: int
    """Weights that every token meets: all but the tables that are looked up, and the LM's head."""
    head: int = 0
    known_from: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would take."""

    encoder: Side
    language_model: Side
    bridge: int
    trained: int
    source: float
    """Mean encoder tokens of a record."""
    prompt: float
    """Mean LM tokens in front of a target: the soft prompt and its boundary."""
    target: float
    records: int
    flops: float
    measured: str
    """Where the mean lengths come from."""

    def hours(self, devices: int, rate: float) -> float:
        """Return the hours that `devices` take, each at `rate` TFLOP/s."""
        return self.flops / (devices * rate * 1e12) / 3600


def plan(recipe: Recipe, tokens: tuple[float, float] | None = None) -> Plan:
    """Work out a plan; `tokens`: mean encoder tokens of a source and LM tokens of a target, where they are known.

    Raises PretrainedError where a model's shape is unknown, ConfigError where its bridge does not fit.
    """
    encoder, language_model = _encoder(recipe), _language_model(recipe)
    read = recipe.bridge.layers
    mixed = encoder.layers + 1 if read == "mix" else 1
    beside = len(read) if isinstance(read, tuple) else 1
    with torch.device("meta"):
        bridge = make_bridge(recipe.bridge, encoder.width * beside, language_model.width, mixed=mixed)
    weights = sum(parameter.numel() for parameter in bridge.parameters())
    source, target, measured = _lengths(recipe, tokens)
    prompt = (recipe.bridge.latents if recipe.bridge.kind == "resampler" else source) + 1
    records = recipe.training.steps * recipe.training.batch_size
    parts = {"trained": encoder.parameters, "whitespace": 8 * encoder.width}
    return Plan(
        encoder=encoder,
        language_model=language_model,
        bridge=weights,
        trained=weights + parts.get(recipe.encoder_policy, 0),
        source=source,
        prompt=prompt,
        target=target,
        records=records,
        flops=records * _flops(recipe, encoder, language_model, weights, source, prompt, target),
        measured=measured,
    )


def memory(found: Plan, recipe: Recipe, devices: int, *, shared: bool) -> float:
    """Return the bytes that one of `devices` holds; `shared`: the layers of frozen models are spread over all."""
    encoder, lm = found.encoder, found.language_model
    said, read = _bytes(recipe)
    learns = recipe.encoder_policy == "trained"
    half = 2.0 if learns and recipe.training.precision != "fp32" else 0.0  # autocast keeps a copy
    held = lm.parameters * said + encoder.parameters * (read + half) + 4.0 * found.bridge + 12.0 * found.trained
    micro = micro_batch(recipe, devices)
    saved = micro * (found.prompt + found.target) * _kept(lm, SAVED_FROZEN, recipe)
    saved += min(micro * found.target, MOST_LOGITS / (lm.head / lm.width)) * (lm.head / lm.width) * SAVED_LOGIT
    if recipe.encoder_policy != "frozen":
        saved += micro * found.source * _kept(encoder, SAVED_LEARNING, recipe)
    if shared and devices > 1:
        spread = lm.per_token * said + encoder.per_token * read
        gathered = lm.per_token / lm.layers * said + encoder.per_token / encoder.layers * read
        held += spread / devices - spread + 2 * gathered  # the layer at work and the next
    return held + saved


def network(found: Plan, recipe: Recipe, devices: int, *, shared: bool) -> float:
    """Return the bytes that one of `devices` sends, and gets, in a step, by ring algorithms.

    Gradients of what learns are averaged once (fp32, there and back); with `shared`, the layers of each frozen model
    are gathered in each micro-batch, the LM's forward and backward, the encoder's forward.
    """
    share = (devices - 1) / devices
    sent = 2 * share * 4.0 * found.trained
    if shared:
        said, read = _bytes(recipe)
        turns = math.ceil(recipe.training.batch_size / devices / micro_batch(recipe, devices))
        sent += turns * share * (2 * found.language_model.per_token * said + found.encoder.per_token * read)
    return sent


def cache_size(found: Plan, records: int) -> float:
    """Return the bytes that the encoder states of so many different sources take on disk: half precision."""
    return 2.0 * records * found.source * found.encoder.width


def can_be_shared(recipe: Recipe) -> bool:
    """Tell whether `training.shard` is possible: nothing but the bridge learns, and nothing is packed."""
    packed = recipe.encoder.quantization or recipe.language_model.quantization
    return recipe.encoder_policy == "frozen" and not recipe.lora.parts and packed is None


def _bytes(recipe: Recipe) -> tuple[float, float]:
    """Return the bytes of one weight of the LM and of the encoder."""
    models = recipe.language_model, recipe.encoder
    said, read = (BYTES[model.quantization or model.dtype] for model in models)
    return said, read


def _kept(side: Side, saved: int, recipe: Recipe) -> float:
    """Return the bytes that a model keeps of one token: of all layers, or their inputs and one layer at work."""
    if recipe.training.gradient_checkpointing:
        return side.width * (side.layers * INPUT + saved)
    return side.width * side.layers * saved


def print_plan(recipe: Recipe, found: Plan, rate: float, console: Console) -> None:
    """Print a plan."""
    total = found.encoder.parameters + found.bridge + found.language_model.parameters
    for name, side, label in (
        (recipe.encoder.name, found.encoder, "encoder"),
        (recipe.language_model.name, found.language_model, "language model"),
    ):
        console.print(f"{label}: {name}, {side.parameters:,} parameters, from {side.known_from}")
    console.print(
        f"bridge: {recipe.bridge.kind}, {found.bridge:,} parameters; encoder: {recipe.encoder_policy}; "
        f"trainable: {found.trained:,} of {total:,} ({found.trained / total:.2%})"
    )
    console.print(
        f"records: {found.records:,} ({recipe.training.steps:,} steps of {recipe.training.batch_size}); tokens of one: "
        f"{found.source:.0f} encoder, {found.prompt + found.target:.0f} LM, {found.target:.0f} of them targets "
        f"({found.measured})"
    )
    encoder_tokens, lm_tokens = found.records * found.source, found.records * (found.prompt + found.target)
    console.print(
        f"in all: {encoder_tokens / 1e6:,.0f} M encoder tokens, {lm_tokens / 1e6:,.0f} M LM tokens, {found.flops:.2e} "
        "FLOPs"
    )
    table = Table(
        *("devices", "batch_size", "accumulate", "GiB, all on each", "GiB, layers shared"),
        *("MB sent a step", "MB, layers shared", f"h at {rate:g} TFLOP/s"),
    )
    for devices in DEVICES:
        each = recipe.training.batch_size / devices
        sizes = [
            f"{count(found, recipe, devices, shared=spread) / unit:.1f}" if can_be_shared(recipe) or not spread else "-"
            for count, unit in ((memory, GIB), (network, 1e6))
            for spread in (False, True)
        ]
        turns = f"{each / micro_batch(recipe, devices):g}"
        table.add_row(str(devices), f"{each:g}", turns, *sizes, f"{found.hours(devices, rate):.1f}")
    console.print(table)
    size = cache_size(found, found.records) / 1e9
    console.print(f"training.cache_states would keep {size:,.1f} GB, if every record is another and read once")
    console.print("arithmetic, not measurement: see docs/paper.md for what is counted")


def micro_batch(recipe: Recipe, devices: int) -> float:
    """Return the records of one micro-batch: those of the recipe, or fewer where a device has fewer."""
    training = recipe.training
    return min(training.batch_size / training.accumulate, training.batch_size / devices)


def _encoder(recipe: Recipe) -> Side:
    shape = encoder_shape(recipe.encoder.name, revision=recipe.encoder.revision)
    encoder: Any = Encoder(shape.model)
    return Side(
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        layers=encoder.depth,
        width=encoder.width,
        per_token=sum(parameter.numel() for parameter in _matrices(encoder)),
        known_from=shape.known_from,
    )


def _language_model(recipe: Recipe) -> Side:
    if recipe.language_model.gguf_file is not None:
        raise ConfigError("--dry-run reads configs, and a GGUF file has none beside it: name the LM's own folder.")
    shape = language_model_shape(recipe.language_model.name, revision=recipe.language_model.revision)
    lm: Any = LanguageModel(shape.model)
    head = lm.model.get_output_embeddings().weight
    return Side(
        parameters=sum(parameter.numel() for parameter in lm.parameters()),
        layers=int(lm.model.config.get_text_config().num_hidden_layers),
        width=lm.dim,
        per_token=sum(parameter.numel() for parameter in _matrices(lm) if parameter is not head),
        head=head.numel(),
        known_from=shape.known_from,
    )


def _matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that are multiplied with, not looked up."""
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = {id(parameter) for table in tables for parameter in table.parameters()}
    return [p for p in model.parameters() if p.dim() > 1 and id(p) not in looked_up]


def _lengths(recipe: Recipe, tokens: tuple[float, float] | None) -> tuple[float, float, str]:
    """Return the mean tokens of a source and of a target, and where they come from."""
    if tokens is not None:
        return *tokens, "as given"
    objective = recipe.objective
    if objective.kind == "prefix_lm":
        source = (objective.shortest + objective.longest) / 2
        target = (objective.continuation + objective.longest + objective.continuation - source) / 2
        return source, target, "means of what is drawn"
    return float(recipe.encoder.longest), float(recipe.data.longest_target), "at most: give the means with --tokens"


def _flops(recipe: Recipe, encoder: Side, lm: Side, bridge: int, source: float, prompt: float, target: float) -> float:
    """Return the FLOPs of training on one record."""
    length = prompt + target
    back = {"frozen": 1, "whitespace": 2, "trained": 3}[recipe.encoder_policy]
    if "encoder" in recipe.lora.parts:
        back = max(back, 2)
    read = 2 * back * encoder.per_token * source
    read += 4 * (1 if back == 1 else 3) * encoder.layers * encoder.width * source**2
    said = 4 * lm.per_token * length + 4 * lm.head * target  # forward, and backward to the soft prompt
    said += 3 * 2 * lm.layers * lm.width * length**2  # causal attention: half of the pairs
    if recipe.training.gradient_checkpointing:  # forward once more
        said += 2 * lm.per_token * length + 2 * lm.layers * lm.width * length**2
        if back > 1:
            read += 2 * encoder.per_token * source + 4 * encoder.layers * encoder.width * source**2
    total = read + 6 * bridge * (prompt - 1) + said
    if recipe.objective.kind == "distill" and not recipe.objective.store:
        total += 2 * lm.per_token * length + 2 * lm.head * target
    return total


def token_means(text: str | None) -> tuple[float, float] | None:
    """Read `SOURCE,TARGET` from the command line; raises ConfigError."""
    if text is None:
        return None
    parts: Sequence[str] = text.split(",")
    try:
        source, target = (float(part) for part in parts)
    except ValueError as error:
        raise ConfigError(f"--tokens {text}: wanted two numbers with a comma, such as 120,180") from error
    if source <= 0 or target <= 0:
        raise ConfigError(f"--tokens {text}: both means must be positive")
    return source, target
