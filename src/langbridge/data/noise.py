"""English sentences made to look like word-by-word glosses of other languages, to be said again in good English.

A translation comes with another word order and without English articles, auxiliaries and endings. A bridge that has
only seen good English sources teaches the LM to say again what it hears, in that order and with those words alone.
"""

import random

SMALL_WORDS = frozenset(
    (
        *("the", "a", "an", "some", "any", "it", "that", "this", "there", "to", "of"),
        *("is", "are", "was", "were", "am", "be", "been", "do", "does", "did", "have", "has", "had", "will", "would"),
    )
)
"""Words that many languages do without, or express by an ending."""
ENDINGS = ("ing", "ed", "es", "s")
SHORTEST = 5
"""Letters of a word that can lose its ending."""


def shuffled(text: str, reach: float, rng: random.Random) -> str:
    """Return the text with its words moved: none is overtaken by one more than `reach` places behind it."""
    words = text.split()
    keys = [position + rng.uniform(0, reach) for position in range(len(words))]
    return " ".join(word for _, word in sorted(zip(keys, words, strict=True), key=lambda pair: pair[0]))


def glossed(text: str, share: float, rng: random.Random) -> str:
    """Return the text without a random share of its small words and endings; at least two words are left."""
    kept = []
    for word in text.split():
        if word.lower().strip(".,!?") in SMALL_WORDS:
            if rng.random() >= share:
                kept.append(word)
        else:
            kept.append(_without_ending(word) if len(word) >= SHORTEST and rng.random() < share else word)
    return " ".join(kept) if len(kept) > 1 else text


def _without_ending(word: str) -> str:
    return next((word.removesuffix(ending) for ending in ENDINGS if word.endswith(ending)), word)
