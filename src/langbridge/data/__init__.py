"""Text in files -> examples -> batches of token ids."""

from langbridge.data.collate import Collator
from langbridge.data.examples import Example, read_examples, read_prompts, read_texts

__all__ = ["Collator", "Example", "read_examples", "read_prompts", "read_texts"]
