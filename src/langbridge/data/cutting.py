"""Words cut into pieces: English that reaches the encoder in as many and as rare tokens as other languages do.

Tokenizers keep frequent English words whole and cut words of most other languages into several pieces. A bridge that
has only seen whole words is at a loss with pieces, so training marks places inside words with `CUT`, and what lies on
both sides of a mark is tokenised apart. Text and meaning stay as they are.
"""

import random

from transformers import PreTrainedTokenizerBase

CUT = "\ue000"
"""A private-use character; no language writes it."""
SHORTEST = 3
"""Letters of a word that may be cut."""


def with_cuts(text: str, share: float, rng: random.Random) -> str:
    """Mark one random place inside a share of the words."""
    words = text.split(" ")
    for i, word in enumerate(words):
        if len(word) >= SHORTEST and rng.random() < share:
            place = rng.randint(1, len(word) - 1)
            words[i] = word[:place] + CUT + word[place:]
    return " ".join(words)


def cut_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return what `tokenizer(text).input_ids` would be if tokens could not reach across `CUT`."""
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    words = [text] if backend.pre_tokenizer is None else [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    pieces = [piece for word in words for piece in word.split(CUT) if piece]
    ids = [token.id for piece in pieces for token in backend.model.tokenize(piece)]
    first, last = _enclosing(tokenizer)
    return [*first, *ids, *last]


def _enclosing(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and behind a text."""
    inner = list(tokenizer("a", add_special_tokens=False).input_ids)
    whole = list(tokenizer("a").input_ids)
    start = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:start], whole[start + len(inner) :]
