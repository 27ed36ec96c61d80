"""Load encoders, LMs and their tokenizers by name; what a model is comes from its config, never from its name."""

import importlib.util
import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING

from langbridge.errors import PretrainedError
from langbridge.model.encoder import Encoder
from langbridge.model.language_model import LanguageModel
from langbridge.pretrained.names import folder_of, quiet_transformers
from langbridge.pretrained.probe import check_encoder, check_language_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ENCODER_KEYS = {r"^(?:model\.)?encoder\.": "", r"^(?:model\.)?shared\.": "embed_tokens."}
"""Names of weights: those of an encoder inside an encoder-decoder -> those of the encoder alone."""


def load_encoder(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    quantization: str | None = None,
    device_map: str | None = None,
) -> Encoder:
    """Load an encoder, or only the encoder half of an encoder-decoder, in evaluation mode.

    Raises PretrainedError when the model cannot be read or placed, lacks weights, or does not work as an encoder.
    """
    folder = folder_of(name)
    config = _read(AutoConfig, name, folder, revision=revision)
    auto, found = encoder_class(name, config)
    placed = _placement(name, dtype=dtype, quantization=quantization, device_map=device_map)
    model = _read_model(auto, name, folder, revision=revision, **found, **placed)
    if not hasattr(model.config.get_text_config(), "hidden_size"):
        raise PretrainedError(f"{name} ({type(model).__name__}) is not an encoder; choose mT5, XLM-R, E5, NLLB ...")
    encoder = Encoder(model, placed=bool(quantization or device_map)).eval()
    check_encoder(name, encoder)
    return encoder


def load_language_model(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    gguf_file: str | None = None,
    quantization: str | None = None,
    device_map: str | None = None,
) -> LanguageModel:
    """Load a causal LM, frozen.

    Raises PretrainedError when it cannot be read or placed, lacks weights, or does not work behind soft prompts.
    """
    placed = _placement(name, dtype=dtype, quantization=quantization, device_map=device_map)
    folder = folder_of(name, gguf_file=gguf_file)
    model = _read_model(AutoModelForCausalLM, name, folder, revision=revision, gguf_file=gguf_file, **placed)
    language_model = LanguageModel(model, placed=bool(quantization or device_map))
    language_model.freeze()
    check_language_model(name, language_model)
    return language_model


def load_word_embeddings(
    name: str, *, revision: str | None = None, dtype: str = "float32", gguf_file: str | None = None
) -> LanguageModel:
    """Load what stands in front of a causal LM's layers, and its head: it embeds tokens and cannot continue them.

    Raises PretrainedError when it cannot be read or lacks weights.
    """
    folder = folder_of(name, gguf_file=gguf_file)
    config = _read(AutoConfig, name, folder, revision=revision, gguf_file=gguf_file)
    text = config.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None):
        text.layer_types = []
    model = _read_model(
        AutoModelForCausalLM, name, folder, revision=revision, gguf_file=gguf_file, config=config, dtype=DTYPES[dtype]
    )
    language_model = LanguageModel(model)
    language_model.freeze()
    return language_model


def load_tokenizer(name: str, *, revision: str | None = None, gguf_file: str | None = None) -> PreTrainedTokenizerBase:
    """Load a fast tokenizer; a missing padding token is replaced by the end token."""
    folder = folder_of(name, gguf_file=gguf_file)
    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, name, folder, revision=revision, gguf_file=gguf_file)
    if not tokenizer.is_fast:
        raise PretrainedError(f"{name} has no fast tokenizer (tokenizer.json), which LangBridge needs for offsets.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_tokenizer_folder(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer that was saved alone, without a model beside it."""
    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, str(folder), str(folder))
    return tokenizer


def bits(quantization: str, dtype: str) -> BitsAndBytesConfig:
    """Return how bitsandbytes is to load weights: `8bit` is LLM.int8(), `4bit` is NF4; products are in `dtype`."""
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[dtype])


def _placement(name: str, *, dtype: str, quantization: str | None, device_map: str | None) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that say in which type, how packed and where weights are held."""
    arguments: dict[str, Any] = {"dtype": DTYPES[dtype], "device_map": device_map}
    if quantization is not None:
        missing = [] if torch.accelerator.is_available() else ["a GPU"]
        missing += [] if importlib.util.find_spec("bitsandbytes") else ["the package bitsandbytes"]
        if missing:
            raise PretrainedError(
                f"{name}: quantization {quantization} needs a GPU and `pip install bitsandbytes`; missing here: "
                f"{' and '.join(missing)}. Set quantization: null to load it unquantised."
            )
        arguments["quantization_config"] = bits(quantization, dtype)
    return arguments


def encoder_class(name: str, config: Any) -> tuple[Any, dict[str, Any]]:
    """Return the class to load as the encoder, and the arguments that make it the encoder and nothing more."""
    if config.is_encoder_decoder:
        with torch.device("meta"):  # shapes only: the decoder never gets memory
            encoder = AutoModel.from_config(config).get_encoder()
        if not isinstance(encoder, PreTrainedModel):
            raise PretrainedError(f"{name} ({type(config).__name__}) has no encoder that can be loaded alone.")
        return type(encoder), {"config": encoder.config, "key_mapping": ENCODER_KEYS}
    auto = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    mapping = MODEL_FOR_TEXT_ENCODING_MAPPING if auto is AutoModelForTextEncoding else MODEL_MAPPING
    if type(config) in mapping and "add_pooling_layer" in inspect.signature(mapping[type(config)].__init__).parameters:
        return auto, {"add_pooling_layer": False}  # its weights are often absent and never used
    return auto, {}


def _read_model(auto: Any, name: str, folder: str, **arguments: Any) -> Any:
    """Read a model and check what transformers only reports: every weight was found and lies in memory."""
    model, report = _read(auto, name, folder, output_loading_info=True, **arguments)
    if missing := sorted(report["missing_keys"]):
        raise PretrainedError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, for example {missing[0]}: they would be "
            "random. Is it a model of another kind, or a damaged download?"
        )
    if any(parameter.device.type == "meta" for parameter in model.parameters()):
        raise PretrainedError(
            f"{name} does not fit into the memory that device_map {arguments['device_map']!r} names; moving weights in "
            "and out is not supported. Use quantization, a smaller model, or more devices."
        )
    return model


def _read(auto: Any, name: str, folder: str, **arguments: Any) -> Any:
    try:
        with quiet_transformers():  # it lists the decoder and heads that are left out on purpose
            return auto.from_pretrained(folder, **{k: v for k, v in arguments.items() if v is not None})
    except Exception as error:  # readers of many formats raise many kinds; each means: not to be loaded
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        placed = f" (device_map: {arguments['device_map']})" if arguments.get("device_map") else ""
        raise PretrainedError(f"{name} could not be loaded as {auto.__name__}{placed}: {first}") from error


def quiet() -> None:
    """Silence transformers' load reports and weight-loading bars; ours say what matters."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
