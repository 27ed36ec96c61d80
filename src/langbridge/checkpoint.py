"""A run folder: recipe, trained weights only, both tokenizers, template, versions, model card; load and save.

run/config.yaml         the whole recipe
run/bridge.safetensors  the trained weights (the frozen models stay where they came from)
run/langbridge.json     what they fit: model names, revisions, sizes, prompt template, package versions, results
run/README.md           model card
run/tokenizers/         copies of both tokenizers, where the models are not `embedded:` (pinned by checksum)
"""

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import yaml
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from langbridge.config import EncoderConfig, LanguageModelConfig, Recipe
from langbridge.data.collate import Collator
from langbridge.errors import CheckpointError, ConfigError
from langbridge.files import replacing, write_text
from langbridge.model import langbridge as core
from langbridge.model.bridge import make_bridge
from langbridge.model.distillation import Distillation
from langbridge.model.encoder import Encoder
from langbridge.model.language_model import LanguageModel
from langbridge.policy import apply_policy
from langbridge.pretrained import (
    PREFIX,
    fast_type,
    load_encoder,
    load_language_model,
    load_tokenizer,
    load_tokenizer_folder,
    load_word_embeddings,
    whitespace_ids,
    with_source_language,
    with_whitespace,
)
from langbridge.prompt import PromptTemplate, default_template

CONFIG, WEIGHTS, METADATA, CARD, TOKENIZERS = (
    "config.yaml",
    "bridge.safetensors",
    "langbridge.json",
    "README.md",
    "tokenizers",
)
SHIPPED = "embedded"
"""Name of the bridge inside the package, for the embedded pair of models."""
FORMAT = 1
END = "\n...\n"
"""How a run's recipe ends: YAML's own mark. Fields that it lacks are younger than it, and their defaults hold."""


class LangBridge(core.LangBridge):
    """The model together with what a run folder holds: recipe, both tokenizers and the prompt template."""

    def __init__(
        self,
        encoder: Encoder,
        language_model: LanguageModel,
        encoder_tokenizer: PreTrainedTokenizerBase,
        lm_tokenizer: PreTrainedTokenizerBase,
        recipe: Recipe,
    ) -> None:
        scale = float(language_model.vectors.detach().float().std())
        encoder.read(recipe.bridge.layers)
        mixed = len(encoder.layers) if recipe.bridge.layers == "mix" else 1
        bridge = make_bridge(recipe.bridge, encoder.dim // mixed, language_model.dim, mixed=mixed, scale=scale)
        super().__init__(encoder, bridge, language_model)
        added = whitespace_ids(encoder_tokenizer) if recipe.encoder.whitespace else []
        apply_policy(recipe, encoder, language_model, added)
        self.recipe = recipe
        if recipe.objective.kind == "distill":
            names = [field.name for field in dataclasses.fields(Distillation)]
            self.distillation = Distillation(**{name: getattr(recipe.objective, name) for name in names})
        self.encoder_tokenizer = encoder_tokenizer
        self.lm_tokenizer = lm_tokenizer
        self.template = PromptTemplate.of(recipe.prompt.template or default_template(lm_tokenizer), lm_tokenizer)
        self.results: dict[str, Any] = {}

    @classmethod
    def from_recipe(cls, recipe: Recipe, tokenizers: Path | None = None) -> Self:
        """Load the pretrained models of a recipe and put an untrained bridge between them.

        `recipe` of the result names the types that `dtype: auto` was settled to.
        """
        recipe = settled(recipe)
        lm = recipe.language_model
        language_model = load_language_model(
            lm.name,
            revision=lm.revision,
            dtype=lm.dtype,
            gguf_file=lm.gguf_file,
            quantization=lm.quantization,
            device_map=lm.device_map,
        )
        return cls._before(language_model, recipe, tokenizers)

    @classmethod
    def front(cls, name: str | os.PathLike[str], *, revision: str | None = None, dtype: str | None = None) -> Self:
        """Load a run without its LM's layers, for engines that have them: encoder, bridge and word embeddings.

        Raises as `from_pretrained` does, and ConfigError for a run that changed the LM, which such engines do not.
        """
        folder, recipe, metadata = _described(name, revision, dtype)
        if "language_model" in recipe.lora.parts:
            raise ConfigError(
                f"{name} trained low-rank adapters of its LM, but this engine runs the LM as it was pretrained: use "
                "the engine transformers."
            )
        recipe = settled(recipe)
        lm = recipe.language_model
        words = load_word_embeddings(lm.name, revision=lm.revision, dtype=lm.dtype, gguf_file=lm.gguf_file)
        return cls._before(words, recipe, folder / TOKENIZERS)._with_trained(folder, metadata)

    @classmethod
    def _before(cls, language_model: LanguageModel, recipe: Recipe, tokenizers: Path | None) -> Self:
        """Put the recipe's encoder and an untrained bridge before an LM."""
        encoder = recipe.encoder
        return cls(
            load_encoder(
                encoder.name,
                revision=encoder.revision,
                dtype=encoder.dtype,
                quantization=encoder.quantization,
                device_map=encoder.device_map,
            ),
            language_model,
            _encoder_tokenizer(encoder, tokenizers),
            _lm_tokenizer(recipe.language_model, tokenizers),
            recipe,
        )

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, revision: str | None = None, dtype: str | None = None
    ) -> Self:
        """Load a run folder, a hub id, or `embedded` (the bridge inside the package).

        `dtype` (float32, bfloat16, float16, auto) replaces that of both frozen models; the bridge stays fp32. Raises
        CheckpointError when the folder is incomplete, truncated, foreign, or does not fit its models; ConfigError for
        an unknown type.
        """
        folder, recipe, metadata = _described(name, revision, dtype)
        return cls.from_recipe(recipe, folder / TOKENIZERS)._with_trained(folder, metadata)

    def _with_trained(self, folder: Path, metadata: dict[str, Any]) -> Self:
        """Put a run's trained weights and template in place."""
        found = {"encoder_dim": self.encoder.dim, "lm_dim": self.language_model.dim}
        wanted = {name: metadata.get(name) for name in found}
        if found != wanted:
            raise CheckpointError(f"{folder} was trained between models of sizes {wanted}, but these have {found}.")
        self.load_trained(read_weights(folder))
        self.template = PromptTemplate.of(metadata["template"], self.lm_tokenizer)
        self.results = metadata.get("results", {})
        return self

    @property
    def collate(self) -> Collator:
        """The one way from examples to batches for this model."""
        around = PromptTemplate.of(self.recipe.prompt.encoder_template or "none", self.encoder_tokenizer)
        return Collator(
            encoder_tokenizer=self.encoder_tokenizer,
            lm_tokenizer=self.lm_tokenizer,
            template=self.template,
            longest_source=min(self.recipe.encoder.longest, self.encoder_tokenizer.model_max_length),
            prefix=self.recipe.encoder.prefix + around.before,
            suffix=around.after,
        )

    def trained(self) -> dict[str, Tensor]:
        """Return the weights that training changes, by name: the bridge's and whatever else the policy trains."""
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {
            name: value for name, value in self.state_dict().items() if name.startswith("bridge.") or name in learning
        }

    def load_trained(self, weights: Mapping[str, Tensor]) -> None:
        """Put trained weights in place; raises CheckpointError when names or shapes differ."""
        own = self.trained()
        for name in own.keys() | weights.keys():
            shapes = [tuple(part[name].shape) if name in part else "nothing" for part in (weights, own)]
            if shapes[0] != shapes[1]:
                raise CheckpointError(f"{WEIGHTS}: {name} is {shapes[0]}, wanted {shapes[1]}: not a bridge for this.")
        self.load_state_dict(dict(weights), strict=False)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the run folder; each file is replaced whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.recipe.write(folder / CONFIG)
        parts = {"encoder": self.encoder_tokenizer, "language_model": self.lm_tokenizer}
        for part, tokenizer in parts.items():
            if not getattr(self.recipe, part).name.startswith(PREFIX):
                tokenizer.save_pretrained(folder / TOKENIZERS / part)
        save_weights(self.trained(), folder / WEIGHTS)
        metadata = {
            "format": FORMAT,
            "encoder": self.recipe.encoder.name,
            "language_model": self.recipe.language_model.name,
            "encoder_dim": self.encoder.dim,
            "lm_dim": self.language_model.dim,
            "template": self.template.text,
            "versions": versions(),
            "results": self.results,
        }
        write_text(folder / METADATA, json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")
        write_text(folder / CARD, model_card(self))

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the run folder to a hub repository, made where absent; returns the commit's address."""
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload bridge"))


def _described(
    name: str | os.PathLike[str], revision: str | None, dtype: str | None
) -> tuple[Path, Recipe, dict[str, Any]]:
    """Return a run's folder, its recipe and what its weights fit."""
    folder = run_folder(name, revision=revision)
    recipe, metadata = read_config(folder), read_metadata(folder)
    return folder, recipe if dtype is None else recipe.with_dtype(dtype), metadata


def settled(recipe: Recipe) -> Recipe:
    """Return the recipe with `dtype: auto` replaced by what is fast on this machine."""
    parts = {name: getattr(recipe, name) for name in ("encoder", "language_model")}
    open_parts = {name: part for name, part in parts.items() if part.dtype == "auto"}
    chosen = {name: dataclasses.replace(part, dtype=fast_type()) for name, part in open_parts.items()}
    return dataclasses.replace(recipe, **chosen)


def _encoder_tokenizer(config: EncoderConfig, saved: Path | None) -> PreTrainedTokenizerBase:
    """Prefer the copy in the run folder over the model's own, which may have changed; add tag and whitespace."""
    if saved is not None and (saved / "encoder").is_dir():
        tokenizer = load_tokenizer_folder(saved / "encoder")
    else:
        tokenizer = load_tokenizer(config.name, revision=config.revision)
    tagged = with_source_language(tokenizer, config.language, config.name)
    return with_whitespace(tagged) if config.whitespace else tagged


def _lm_tokenizer(config: LanguageModelConfig, saved: Path | None) -> PreTrainedTokenizerBase:
    """Prefer the copy in the run folder over the model's own, which may have changed."""
    if saved is not None and (saved / "language_model").is_dir():
        return load_tokenizer_folder(saved / "language_model")
    return load_tokenizer(config.name, revision=config.revision, gguf_file=config.gguf_file)


def run_folder(name: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """Return the folder of a run: itself, the shipped one for `embedded`, or a snapshot of a hub id."""
    if str(name) == SHIPPED:
        return Path(__file__).parent / "assets" / "embedded"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    text = str(name)
    if text.count("/") != 1 or text.startswith((".", "/", "~")) or text.split("/")[0] == "runs":
        raise CheckpointError(f"{name}: no such run folder. A run is a folder, a hub id or {SHIPPED!r}.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, revision=revision))
    except Exception as error:  # the hub client raises many kinds; each means: not to be had
        raise CheckpointError(
            f"{name}: neither a folder nor to be had from the hub ({type(error).__name__})."
        ) from error


def read_config(folder: Path) -> Recipe:
    """Read a run's recipe; raises CheckpointError."""
    path = folder / CONFIG
    if not path.is_file():
        names = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise CheckpointError(f"{folder} has no {CONFIG}; found {names}. Is it a run folder?")
    try:
        text = path.read_text(encoding="utf-8")
        if not text.endswith(END):
            raise ConfigError(f"its last line is not {END.strip()!r}, with which a run's recipe ends: it was cut")
        return Recipe.of(yaml.safe_load(text), str(path))
    except (yaml.YAMLError, ConfigError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read what the weights fit; raises CheckpointError."""
    path = folder / METADATA
    try:
        metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Was training stopped before the first save?"
        ) from error
    if metadata.get("format") != FORMAT or not isinstance(metadata.get("template"), str):
        raise CheckpointError(f"{path} has format {metadata.get('format')}, this version reads {FORMAT}.")
    return metadata


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read trained weights; raises CheckpointError when the file is missing or truncated."""
    path = folder / WEIGHTS
    try:
        weights: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        names = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no folder"
        raise CheckpointError(
            f"{path} is missing or damaged ({error}); found {names}. Was training stopped before the first save?"
        ) from error
    return weights


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, all or nothing."""
    with replacing(path) as temporary:
        safetensors.torch.save_file({name: value.contiguous().cpu() for name, value in weights.items()}, temporary)


def versions() -> dict[str, str]:
    """Return the versions that made a run."""
    return {name: importlib.metadata.version(name) for name in ("langbridge-lm", "torch", "transformers", "accelerate")}


def model_card(model: LangBridge) -> str:
    """Return the run's README: what it is, how to use it, what was measured."""
    recipe = model.recipe
    count = sum(value.numel() for value in model.trained().values())
    trained = {"trained": "was trained too: its", "whitespace": "gained whitespace tokens: their"}.get(
        recipe.encoder_policy
    )
    encoder = f"The encoder {trained} weights are in this folder.\n" if trained else ""
    adapters = f"Low-rank adapters: {', '.join(recipe.lora.parts)}.\n" if recipe.lora.parts else ""
    results = "\n".join(f"| {name} | {value} |" for name, value in model.results.items()) or "| none yet | |"
    return (
        "---\nlibrary_name: langbridge\ntags: [langbridge, multilingual, soft-prompt]\n---\n"
        f"# Bridge from {recipe.encoder.name} to {recipe.language_model.name}\n\n"
        f"A {recipe.bridge.kind} bridge of {count:,} weights, trained on English alone (`{recipe.data.train}`),\n"
        "lets the frozen language model read every language of the encoder. The two models are not in this folder.\n"
        f"{encoder}{adapters}\n"
        '```python\nimport langbridge\n\nmodel = langbridge.load("this folder or its hub id")\n'
        'print(model.generate(["რომელია საფრანგეთის დედაქალაქი?"]))\n```\n\n'
        f"Prompt template: `{json.dumps(model.template.text)}`\n\n"
        f"| measured while training | |\n|---|---|\n{results}\n\n"
        "Limits: it answers in the language model's language, knows what that model knows, and languages that the\n"
        "encoder has not seen will not work.\n"
    )
