"""The figure: encoder -> bridge -> soft prompt -> frozen LM. Tensors only; no text, no files."""

from langbridge.model.bridge import Bridge, LinearBridge, MLPBridge, ResamplerBridge
from langbridge.model.embeddings import Embeddings, join
from langbridge.model.encoder import Encoder
from langbridge.model.langbridge import Batch, LangBridge
from langbridge.model.language_model import LanguageModel

__all__ = [
    "Batch",
    "Bridge",
    "Embeddings",
    "Encoder",
    "LangBridge",
    "LanguageModel",
    "LinearBridge",
    "MLPBridge",
    "ResamplerBridge",
    "join",
]
