"""Import of published LangBridge checkpoints: one state dict with encoder, alignment and LM -> a run folder.

Layout, as published: `config.json` with `enc`, `lm`, `dim_enc`, `dim_lm`, `alignments`, `freeze_encoder`; weights under
`lb.enc.` (the encoder), `lb.alignment.` (the bridge; `enc_eos` is the boundary), `lb.lm.` (the LM without its head),
`lb.lm_head.` and `lb.embeddings.`, in safetensors or torch files, whole or in shards. The whole prompt goes through the
encoder, and the soft prompt stands behind the LM's begin token.
"""

import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from langbridge.checkpoint import WEIGHTS, LangBridge, save_weights
from langbridge.config import PolicyConfig, Recipe
from langbridge.errors import CheckpointError
from langbridge.pretrained import ENCODER_KEYS, load_tokenizer, load_tokenizer_folder, pull
from langbridge.pretrained.weights import Weights

ENCODER_TOKENIZER = "kaist-ai/langbridge_encoder_tokenizer"
"""The tokenizer of all published checkpoints: mT5's with whitespace tokens."""
WANTED = {"enc": str, "lm": str, "dim_enc": int, "dim_lm": int, "alignments": str}
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of the parts of a checkpoint."""

    model: LangBridge
    bridge: str
    encoder: str
    language_model: str


@dataclass(frozen=True, kw_only=True)
class Names:
    """Replacements for what the checkpoint names; None keeps its own."""

    encoder: str | None = None
    language_model: str | None = None
    encoder_tokenizer: str | None = None
    encoder_template: str | None = None


def import_released(name: str, out: Path, names: Names | None = None) -> Imported:
    """Write the run folder `out` from a published checkpoint: a folder or a hub id.

    Kept are the bridge, and the encoder where it was trained; the LM stays what its name says. Raises CheckpointError
    for another layout, a damaged file, a bridge or an LM that a run folder cannot hold; PretrainedError for its models.
    """
    names = names or Names()
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty: choose another --out.")
    folder = pull(name)
    config, weights = read_layout(folder), Weights.of(folder)
    parts = {part: weights.under(f"lb.{part}.", f"{part}.") for part in ("enc", "alignment", "lm")}
    if missing := [part for part in ("enc", "alignment") if not parts[part]]:
        raise CheckpointError(
            f"{folder} holds no weights named lb.{missing[0]}.*; found {', '.join(sorted(weights.files)[:3])} ..."
        )
    recipe = _recipe(folder, config, weights, parts, names)
    with tempfile.TemporaryDirectory(prefix="langbridge-") as temporary:
        _tokenizers(folder, names, Path(temporary))
        model = LangBridge.from_recipe(recipe, Path(temporary))
    found = (model.encoder.dim, model.language_model.dim)
    if found != (config["dim_enc"], config["dim_lm"]):
        raise CheckpointError(
            f"{folder} was made for sizes {config['dim_enc']} and {config['dim_lm']}, but {recipe.encoder.name} and "
            f"{recipe.language_model.name} have {found[0]} and {found[1]}: name the right ones."
        )
    told = _check_lm(model, weights, parts["lm"])
    model.load_trained(bridge_weights({key: weights[name] for key, name in parts["alignment"].items()}))
    kept, stored = _encoder(model, weights, parts["enc"], frozen=bool(config.get("freeze_encoder", True)))
    model.results = {"imported from": folder.name}
    model.save_pretrained(out)
    save_weights({n: v.to(stored.get(n, v.dtype)) for n, v in model.trained().items()}, out / WEIGHTS)
    count = sum(value.numel() for key, value in model.trained().items() if key.startswith("bridge."))
    return Imported(model=model, bridge=f"{recipe.bridge.kind}, {count:,} weights", encoder=kept, language_model=told)


def read_layout(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's config; raises CheckpointError for one of another layout or with a bridge we cannot hold."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}.") from error
    for field, kind in WANTED.items():
        if not isinstance(config.get(field), kind):
            raise CheckpointError(
                f"{folder / 'config.json'} is not of a published LangBridge checkpoint: {field} is "
                f"{config.get(field)!r}, wanted {kind.__name__}."
            )
    if config["alignments"] not in ("linear", "ffn"):
        raise CheckpointError(
            f"{folder} has a bridge of kind {config['alignments']!r}; linear and ffn can be imported. Its resampler "
            "attends in another way than ours, so its weights would mean nothing here."
        )
    if not config.get("freeze_language_model", True):
        raise CheckpointError(f"{folder} trained its LM too; a run folder keeps the LM by name only.")
    return config


def bridge_weights(alignment: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a published alignment under the names of our bridges."""
    names = {"enc_eos": "boundary", "linear.": "linear.", "ffn.": "layers."}
    found = {}
    for name, value in alignment.items():
        theirs = next((start for start in names if name.startswith(start)), None)
        if theirs is None:
            raise CheckpointError(f"alignment.{name} is of no known bridge; wanted linear, ffn and enc_eos.")
        found[f"bridge.{names[theirs]}{name.removeprefix(theirs)}"] = value.float()
    return found


def _recipe(
    folder: Path, config: Mapping[str, Any], weights: Weights, parts: Mapping[str, Mapping[str, str]], names: Names
) -> Recipe:
    bridge: dict[str, Any] = {"kind": "linear"}
    if config["alignments"] == "ffn":
        inner = parts["alignment"].get("ffn.0.weight")
        if inner is None:
            raise CheckpointError(f"{folder} holds no lb.alignment.ffn.0.weight, which an ffn bridge has.")
        bridge = {"kind": "mlp", "hidden_layers": 1, "width": len(weights[inner]) / config["dim_enc"]}
    first = next(iter(parts["lm"].values()), None)
    dtype = DTYPES.get(weights[first].dtype, "float32") if first else "bfloat16"
    return Recipe.of(
        {
            "encoder": {"name": names.encoder or config["enc"], "longest": 1024},
            "language_model": {"name": names.language_model or config["lm"], "dtype": dtype},
            "bridge": bridge,
            "prompt": {"template": "none", "encoder_template": names.encoder_template},
            "data": {"train": f"as published: {folder.name}"},
        },
        str(folder),
    )


def _tokenizers(folder: Path, names: Names, into: Path) -> None:
    """Write the encoder's tokenizer, which is published apart, and the LM's, where the checkpoint brings one."""
    name = names.encoder_tokenizer or ENCODER_TOKENIZER
    path = Path(name).expanduser()
    encoder = load_tokenizer_folder(path) if path.is_dir() else load_tokenizer(name)
    encoder.save_pretrained(into / "encoder")
    if (folder / "tokenizer_config.json").is_file():
        load_tokenizer(str(folder)).save_pretrained(into / "language_model")


def _check_lm(model: LangBridge, weights: Weights, stored: Mapping[str, str]) -> str:
    """Compare the checkpoint's LM with the named one, tensor by tensor; raises CheckpointError where they differ."""
    name = model.recipe.language_model.name
    if not stored:
        return f"{name}, by name (the checkpoint has no copy to compare with)"
    lm = model.language_model.model
    own = dict(lm.base_model.state_dict())
    pairs = {key: (own[key], stored[key]) for key in own if key in stored}
    head = weights.under("lb.lm_head.", "lm_head.").get("weight")
    if head is not None:
        pairs["lm_head.weight"] = (lm.get_output_embeddings().weight, head)
    wrong = [key for key in own if key not in stored] + [
        key for key, (ours, theirs) in pairs.items() if not same(ours, weights[theirs])
    ]
    if wrong:
        raise CheckpointError(
            f"the LM in the checkpoint is not {name}: {len(wrong)} tensors differ, for example {wrong[0]}. A run "
            "folder keeps the LM by name: give the folder of the right one as --language-model."
        )
    return f"{name}, by name (all {len(pairs)} tensors are equal)"


def _encoder(
    model: LangBridge, weights: Weights, stored: Mapping[str, str], *, frozen: bool
) -> tuple[str, dict[str, torch.dtype]]:
    """Keep the checkpoint's encoder where it was trained or differs from the named one; tell what was done.

    Returns that and the types in which its tensors were stored.
    """
    own, name = model.encoder.model.state_dict(), model.recipe.encoder.name
    known = stored if own.keys() <= stored.keys() else {_alone(key): theirs for key, theirs in stored.items()}
    if missing := sorted(own.keys() - known.keys()):
        raise CheckpointError(f"the checkpoint's encoder lacks {missing[0]} of {name}: is that the right encoder?")
    loaded = {key: weights[known[key]] for key in own}
    for key, value in loaded.items():
        if value.shape != own[key].shape:
            raise CheckpointError(
                f"the checkpoint's encoder has {key} of {tuple(value.shape)}, {name} has {tuple(own[key].shape)}: name "
                "the right one as --encoder."
            )
    differing = [key for key, value in loaded.items() if not same(own[key], value)]
    if frozen and not differing:
        return f"{name}, by name (frozen; all {len(own)} tensors are equal)", {}
    model.encoder.model.load_state_dict(loaded)
    model.encoder.requires_grad_(True)
    model.recipe = dataclasses.replace(model.recipe, policy=PolicyConfig(encoder="trained"))
    why = "trained" if not frozen else "said to be frozen, but it is another"
    types = {f"encoder.model.{key}": value.dtype for key, value in loaded.items()}
    return f"kept ({why}; {len(differing)} of {len(own)} tensors differ from {name})", types


def _alone(key: str) -> str:
    """Return the name that a weight of an encoder inside a whole model has in the encoder alone."""
    for pattern, replacement in ENCODER_KEYS.items():
        key = re.sub(pattern, replacement, key)
    return key


def same(ours: Tensor, theirs: Tensor) -> bool:
    """Tell whether two tensors are equal as far as the coarser of their types can tell."""
    if ours.shape != theirs.shape:
        return False
    step = max(torch.finfo(tensor.dtype).eps for tensor in (ours, theirs))
    return torch.allclose(ours.detach().cpu().float(), theirs.float(), rtol=step, atol=1e-7)
