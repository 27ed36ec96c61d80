"""The recipe of a run: sections, read from YAML, overridden by `--set a.b=c`, checked, written."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from langbridge.config.objective import ObjectiveConfig
from langbridge.config.policy import LoraConfig, PolicyConfig
from langbridge.config.routing import RoutingConfig
from langbridge.config.sections import (
    BridgeConfig,
    DataConfig,
    EncoderConfig,
    LanguageModelConfig,
    PromptConfig,
    TrainingConfig,
    WarmStartConfig,
    _need,
)
from langbridge.errors import ConfigError
from langbridge.files import write_text


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that makes a run what it is."""

    encoder: EncoderConfig
    language_model: LanguageModelConfig
    bridge: BridgeConfig = field(default_factory=BridgeConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    data: DataConfig = field(default_factory=DataConfig)
    warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)

    def __post_init__(self) -> None:
        encoder, kind = self.encoder, self.encoder_policy
        _need(
            kind != "whitespace" or encoder.whitespace,
            "policy.encoder is whitespace, but encoder.whitespace is false: there are no added tokens to train",
        )
        _need(
            kind != "trained" or (encoder.dtype == "float32" and encoder.quantization is None),
            f"a trained encoder needs encoder.dtype float32 and no quantization, got {encoder.dtype} and "
            f"{encoder.quantization}: small steps vanish in half precision (training.precision: bf16 computes in half)",
        )
        _need(
            kind != "trained" or "encoder" not in self.lora.parts,
            "lora.parts has encoder, but policy.encoder trains all of it: set policy.encoder: frozen, or drop it",
        )
        _need(
            not (encoder.whitespace and self.data.cut_words),
            "encoder.whitespace and data.cut_words exclude each other: cut words lose added whitespace tokens",
        )
        if self.data.streaming:
            _need(
                self.objective.kind != "distill",
                "data.streaming and objective.kind distill exclude each other: the LM answers a finite set beforehand",
            )
            _need(
                self.data.answers is None,
                f"data.answers {self.data.answers} needs all records at once: leave it out, or do not stream",
            )
            _need(
                not self.training.cache_states,
                "training.cache_states keeps the states of a finite set: set it to false, or data.streaming to false",
            )
        if self.objective.kind == "prefix_lm":
            _need(
                self.objective.longest <= encoder.longest,
                f"objective.longest {self.objective.longest} is more than encoder.longest {encoder.longest}",
            )
            pairs = ("answers", "shuffle_words", "plain_case", "cut_words")
            set_here = [name for name in pairs if getattr(self.data, name)]
            _need(not set_here, f"data.{' and data.'.join(set_here)} mean nothing for unlabelled text: leave them out")

    @property
    def encoder_policy(self) -> str:
        """What trains of the encoder: frozen, whitespace or trained; `auto` is the paper's rule (appendix D.1)."""
        if self.policy.encoder != "auto":
            return self.policy.encoder
        if self.objective.kind == "prefix_lm":
            return "trained"
        return "whitespace" if self.encoder.whitespace else "frozen"

    @classmethod
    def read(cls, path: Path, overrides: typing.Sequence[str] = ()) -> "Recipe":
        """Read a YAML recipe and apply `a.b=c` overrides; raises ConfigError."""
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe.")
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
            for override in overrides:
                _override(fields, override)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} or an override is not YAML: {error}") from error
        return cls.of(fields, str(path))

    @classmethod
    def of(cls, fields: Any, where: str) -> "Recipe":
        """Build a recipe from nested dicts; raises ConfigError with the place."""
        recipe: Recipe = _build(cls, fields, where, "")
        return recipe

    def with_training(self, **changes: Any) -> "Recipe":
        """Return the recipe with some training settings replaced."""
        return dataclasses.replace(self, training=dataclasses.replace(self.training, **changes))

    def with_dtype(self, dtype: str) -> "Recipe":
        """Return the recipe with both pretrained models loaded in another type; raises ConfigError."""
        encoder = dataclasses.replace(self.encoder, dtype=dtype)
        language_model = dataclasses.replace(self.language_model, dtype=dtype)
        return dataclasses.replace(self, encoder=encoder, language_model=language_model)

    def write(self, path: Path) -> None:
        """Write the whole recipe, defaults included, as YAML with an end mark, by which a cut file is known."""
        fields = dataclasses.asdict(self)
        write_text(path, yaml.safe_dump(_plain(fields), sort_keys=False, allow_unicode=True, explicit_end=True))


def _plain(value: Any) -> Any:
    """Return nested fields with lists for tuples, which YAML has no word for."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _override(fields: Any, override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals or not isinstance(fields, dict):
        raise ConfigError(f"--set {override}: wanted section.field=value")
    *sections, last = name.strip().split(".")
    for section in sections:
        fields = fields.setdefault(section, {})
        if not isinstance(fields, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    parsed = yaml.safe_load(value)
    fields[last] = float(value) if isinstance(parsed, str) and _is_number(value) else parsed  # YAML reads 1e-3 as text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _build(kind: Any, fields: Any, where: str, place: str) -> Any:
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: {place or 'a recipe'} must be a mapping, found {fields!r}")
    hints = typing.get_type_hints(kind)
    for name in fields:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
            raise ConfigError(f"{where}: unknown field {place}{name}; {advice}")
    missing = [
        f.name
        for f in dataclasses.fields(kind)
        if f.name not in fields and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: {place}{missing[0]} is missing")
    try:
        return kind(**{name: _value(hints[name], value, where, f"{place}{name}") for name, value in fields.items()})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if not str(error).startswith(where) else str(error)) from error


def _value(hint: Any, value: Any, where: str, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, place + ".")
    wanted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is False and str in wanted:
        value = "off"  # YAML reads off as false
    for kind in wanted:
        if typing.get_origin(kind) is tuple and isinstance(value, (list, tuple)):
            inner = typing.get_args(kind)[0]
            if not all(isinstance(v, inner) and not isinstance(v, bool) for v in value):
                raise ConfigError(f"{where}: {place} must be a list of {inner.__name__}, found {value!r}")
            return tuple(value)
    if float in wanted and isinstance(value, str) and _is_number(value):
        return float(value)  # YAML reads 1e-3 as text
    if float in wanted and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = tuple(typing.get_origin(kind) or kind for kind in wanted)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in wanted):
        names = " or ".join("null" if w is type(None) else "list" if w is tuple else w.__name__ for w in plain)
        raise ConfigError(f"{where}: {place} must be {names}, found {value!r}")
    return value
