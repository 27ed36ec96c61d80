"""Names of pretrained models -> local model folders -> loaded encoders, LMs and tokenizers."""

from langbridge.pretrained.fast import fast_type
from langbridge.pretrained.load import (
    ENCODER_KEYS,
    load_encoder,
    load_language_model,
    load_tokenizer,
    load_tokenizer_folder,
    load_word_embeddings,
    quiet,
)
from langbridge.pretrained.names import EMBEDDED, PREFIX, folder_of, home, local_path, pull
from langbridge.pretrained.source_language import with_source_language
from langbridge.pretrained.whitespace import whitespace_ids, with_whitespace

__all__ = [
    "EMBEDDED",
    "ENCODER_KEYS",
    "PREFIX",
    "fast_type",
    "folder_of",
    "home",
    "load_encoder",
    "load_language_model",
    "load_tokenizer",
    "load_tokenizer_folder",
    "load_word_embeddings",
    "local_path",
    "pull",
    "quiet",
    "whitespace_ids",
    "with_source_language",
    "with_whitespace",
]
