"""Tiny tokenizers of the kinds that encoders come with."""

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PIECES = [
    "<pad>",
    "</s>",
    "<unk>",
    "▁",
    *string.ascii_letters,
    *string.digits,
    *string.punctuation,
    "▁re",
    "turn",
    "▁x",
]


def sentence_piece(*, splits: bool = False) -> PreTrainedTokenizerFast:
    """As mT5 and XLM-R are: whitespace of any kind and length becomes one mark in front of the next word."""
    tokenizer = Tokenizer(models.Unigram([(piece, -len(piece) / 9) for piece in PIECES], unk_id=2))
    blank = normalizers.Replace(Regex(r"[\t\n\r\x0b\x0c]"), " ")
    tokenizer.normalizer = normalizers.Sequence([blank, normalizers.Replace(Regex(" {2,}"), " ")])
    mark = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), mark]) if splits else mark
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byte_level() -> PreTrainedTokenizerFast:
    """As ModernBERT and GPT-2 are: every byte is a token, nothing is lost."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="!")
