"""Sentences that look like glosses: what may change and what may not."""

import random

from hypothesis import given
from hypothesis import strategies as st

from langbridge.data.noise import SMALL_WORDS, glossed, shuffled


def test_shuffled_words_stay_within_reach() -> None:
    text = " ".join(str(i) for i in range(30))
    words = [int(word) for word in shuffled(text, 3.0, random.Random(0)).split()]
    assert sorted(words) == list(range(30))
    assert words != sorted(words)
    assert all(abs(place - word) <= 3 for place, word in enumerate(words))
    assert shuffled(text, 0.0, random.Random(0)) == text


def test_a_gloss_loses_small_words_and_endings() -> None:
    assert glossed("The old man is walking to the houses.", 1.0, random.Random(0)) == "old man walk houses."
    assert glossed("She waited for the trains", 1.0, random.Random(0)) == "She wait for train"


def test_a_gloss_keeps_at_least_two_words() -> None:
    assert glossed("It is.", 1.0, random.Random(0)) == "It is."
    assert glossed("Are you there?", 1.0, random.Random(0)) == "Are you there?"


@given(st.lists(st.sampled_from(["the", "Tom", "is", "walking", "homes", "Kenya", "a"]), min_size=1), st.integers())
def test_a_gloss_adds_nothing(words: list[str], seed: int) -> None:
    """What is left are beginnings of the sentence's words, in order; content words are never dropped."""
    text = " ".join(words)
    left = glossed(text, 0.5, random.Random(seed)).split()
    rest = iter(words)
    assert all(any(word.startswith(kept) for word in rest) for kept in left)
    assert sum(word not in SMALL_WORDS for word in left) == sum(word not in SMALL_WORDS for word in words)
    assert glossed(text, 0.0, random.Random(seed)) == text
