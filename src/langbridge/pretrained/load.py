"""Load encoders, LMs and their tokenizers by name; what a model is comes from its config, never from its name."""

import inspect
import logging
from pathlib import Path
from typing import Any

import safetensors
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING

from langbridge.errors import PretrainedError
from langbridge.model.encoder import Encoder
from langbridge.model.language_model import LanguageModel
from langbridge.pretrained.names import folder_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_encoder(name: str, *, revision: str | None = None, dtype: str = "float32") -> Encoder:
    """Load an encoder, or only the encoder half of an encoder-decoder, in evaluation mode.

    Raises PretrainedError when the model cannot be read or has no encoder.
    """
    folder = folder_of(name)
    config = _read(AutoConfig, name, folder, revision=revision)
    auto = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    mapping = MODEL_FOR_TEXT_ENCODING_MAPPING if auto is AutoModelForTextEncoding else MODEL_MAPPING
    arguments: dict[str, Any] = {"dtype": DTYPES[dtype], "revision": revision}
    if type(config) in mapping and "add_pooling_layer" in inspect.signature(mapping[type(config)].__init__).parameters:
        arguments["add_pooling_layer"] = False  # its weights are often absent and never used
    model = _read(auto, name, folder, **arguments)
    if config.is_encoder_decoder and hasattr(model, "get_encoder"):
        model = model.get_encoder()
    if getattr(model.config, "is_decoder", False) or not hasattr(model.config.get_text_config(), "hidden_size"):
        raise PretrainedError(f"{name} ({type(model).__name__}) is not an encoder; choose mT5, XLM-R, E5, NLLB ...")
    return Encoder(model.eval())


def load_language_model(name: str, *, revision: str | None = None, dtype: str = "float32") -> LanguageModel:
    """Load a causal LM, frozen; raises PretrainedError when it cannot be read or is no causal LM."""
    model = _read(AutoModelForCausalLM, name, folder_of(name), revision=revision, dtype=DTYPES[dtype])
    language_model = LanguageModel(model)
    language_model.freeze()
    return language_model


def load_tokenizer(name: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer; a missing padding token is replaced by the end token."""
    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, name, folder_of(name), revision=revision)
    if not tokenizer.is_fast:
        raise PretrainedError(f"{name} has no fast tokenizer (tokenizer.json), which LangBridge needs for offsets.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_tokenizer_folder(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer that was saved alone, without a model beside it."""
    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, str(folder), str(folder))
    return tokenizer


def _read(auto: Any, name: str, folder: str, **arguments: Any) -> Any:
    try:
        return auto.from_pretrained(folder, **{k: v for k, v in arguments.items() if v is not None})
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PretrainedError(f"{name} could not be loaded as {auto.__name__}: {first}") from error


def quiet() -> None:
    """Silence transformers' load reports and weight-loading bars; ours say what matters."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
