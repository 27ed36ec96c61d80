"""Whitespace that an encoder's tokenizer drops, given back as tokens of its own, so that code survives tokenisation.

What is lost is found by a round trip through the tokenizer, never by its name.
"""

import json
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

RUNS = ("\t", "\n", "\r", "\x0b", "\x0c", "  ", "   ", "    ")
"""The paper's whitespace tokens, in its order (LangBridge, appendix D.1)."""


def lost(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the members of RUNS that do not survive between two letters."""
    kept = {run: tokenizer.decode(tokenizer(f"a{run}b", add_special_tokens=False).input_ids) for run in RUNS}
    return [run for run, text in kept.items() if run not in text]


def with_whitespace(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Add a token for each whitespace that is lost; change nothing where nothing is.

    Sentence-piece tokenizers would put their word mark behind each added token, so that `\\nx` and `\\n x` became the
    same: the mark is then set at the start of a text only.
    """
    missing = lost(tokenizer)
    if not missing:
        return tokenizer
    tokenizer.add_tokens([AddedToken(run, normalized=False, special=False) for run in missing])
    if tokenizer("a\nb").input_ids == tokenizer("a\n b").input_ids:
        backend = tokenizer.backend_tokenizer
        fields = json.loads(backend.to_str())
        for part in ("pre_tokenizer", "decoder"):
            fields[part] = _mark_first(fields[part])
        changed = Tokenizer.from_str(json.dumps(fields))
        backend.pre_tokenizer, backend.decoder = changed.pre_tokenizer, changed.decoder
    return tokenizer


def whitespace_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of whitespace tokens that were added to a tokenizer's own pieces, ascending."""
    return sorted(number for text, number in tokenizer.get_added_vocab().items() if text in RUNS)


def _mark_first(part: Any) -> Any:
    """Return a pre-tokenizer or decoder, as JSON, whose word mark keeps every single space and is not repeated."""
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Metaspace":
        return {**part, "prepend_scheme": "first"}
    for name in ("pretokenizers", "decoders"):
        inner = part.get(name, [])
        if any(step["type"] == "Metaspace" for step in inner):  # one that splits at spaces first would drop them
            kept = [_mark_first(step) for step in inner if step["type"] != "WhitespaceSplit"]
            return {**part, name: kept}
    return part
