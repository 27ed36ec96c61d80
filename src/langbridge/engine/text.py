"""Tokens -> text that is certain, piece by piece: never half a character, never a part of a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

HALF = "\ufffd"
"""What tokenizers show for bytes that are not yet a character."""


class TextPieces:
    """The text of one completion, as its tokens come."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._from = 0
        """First token of the window that is decoded: some tokenizers look one word back."""
        self._certain = 0
        """Tokens whose characters are complete."""
        self._held = ""
        """Complete characters that may yet become a stop string."""
        self.stopped = False
        """Whether a stop string came."""

    def add(self, token: int) -> str:
        """Take a token; return the text that became certain."""
        self._ids.append(token)
        return self._release(self._complete())

    def end(self) -> str:
        """Return what was still held back, but no half character."""
        rest, self._held = self._held + self._last().rstrip(HALF), ""
        return "" if self.stopped else _before(rest, self._stops)[0]

    def _complete(self) -> str:
        """Return the characters that the newest tokens completed."""
        known = self._decode(self._ids[self._from : self._certain])
        text = self._decode(self._ids[self._from :])
        if len(text) <= len(known) or text.endswith(HALF):
            return ""
        self._from, self._certain = self._certain, len(self._ids)
        return text[len(known) :]

    def _last(self) -> str:
        known = self._decode(self._ids[self._from : self._certain])
        return self._decode(self._ids[self._from :])[len(known) :]

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        certain, self.stopped = _before(self._held + text, self._stops)
        keep = 0 if self.stopped else _beginning(certain, self._stops)
        self._held = certain[len(certain) - keep :]
        return certain[: len(certain) - keep]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _before(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the text in front of the first stop string, and whether there is one."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))], bool(ends)


def _beginning(text: str, stops: Sequence[str]) -> int:
    """Return how many last characters of a text may be the beginning of a stop string."""
    lengths = [
        size for stop in stops for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])
    ]
    return max(lengths, default=0)
