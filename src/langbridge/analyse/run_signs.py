"""Signs of a run as a whole, all in English: whatever is wrong here is wrong in every language."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from langbridge.analyse.representation import soft_vectors
from langbridge.analyse.verdict import Finding, judged
from langbridge.checkpoint import read_metadata, run_folder
from langbridge.evaluate.facts import SAMPLING, is_right, read_facts
from langbridge.generate import BridgedGenerator, PlainGenerator
from langbridge.languages import PIVOT
from langbridge.transfer import compare

RUN = "run"
SIZE = (0.2, 8.0)
"""Mean norm of soft-prompt vectors over that of the LM's word embeddings: a trained bridge was 2.6."""
LEARNED = 1.4
"""How much more a bridge's last layer writes where the LM's words vary than random weights (1.0) do: trained ones 2.6
and 3.4."""
VARIETY = 0.5
"""Entropy of the nearest tokens over that of the LM's own tokens of the same text."""
COMES_THROUGH = 0.5
"""Nats per token that the right English source must be worth."""
SHARE = 0.4
"""The same over what the plain LM gains from reading the text itself."""
KEPT = 0.5
"""Accuracy on English facts through the bridge over that of the plain LM."""
FEWEST_FACTS = 0.2
"""Accuracy of the plain LM below which facts say nothing about the bridge."""


@dataclass(frozen=True)
class Likeness:
    """How soft-prompt vectors lie among the LM's word embeddings."""

    size: float
    """Mean norm over that of the word embeddings."""
    learned: float
    """How much the last layer writes along the directions in which word embeddings vary; 1 = as random weights do."""
    entropy: float
    """Bits: of which words are nearest, over all vectors."""


@torch.inference_mode()
def likeness(generator: BridgedGenerator, texts: Sequence[str]) -> Likeness:
    """Compare the soft prompts of texts with the LM's own word embeddings."""
    vectors, words = soft_vectors(generator, texts), generator.model.language_model.vectors.float().cpu()
    return Likeness(
        size=float(vectors.norm(dim=1).mean() / words.norm(dim=1).mean()),
        learned=affinity(generator.model.bridge.last.weight.float().cpu(), words),
        entropy=entropy(_nearest(vectors, words)),
    )


def entropy(ids: Tensor) -> float:
    """Return the entropy of a sample of ids, bits."""
    shares = ids.flatten().bincount().float()
    shares = shares[shares > 0] / shares.sum()
    return max(0.0, float(-(shares * shares.log2()).sum()))


def affinity(weight: Tensor, words: Tensor) -> float:
    """Return the variance of words (vocabulary, lm_dim) along what weight (lm_dim, width) writes, over the mean."""
    spread = torch.cov(words.T)  # (lm_dim, lm_dim)
    along = (weight * (spread @ weight)).sum() / weight.pow(2).sum()
    return float(along / spread.diagonal().mean())


def run_signs(generator: BridgedGenerator, run: str, english: Sequence[str]) -> list[Finding]:
    """Look at the models' names, the soft prompts, and what the LM makes of them, on English sentences."""
    through, alone = compare(generator, english, english), compare(PlainGenerator(generator.model), english, english)
    seen = likeness(generator, english)
    own = torch.tensor([token for text in english for token in generator.collate.text_ids(text)])
    heard = through.gain > COMES_THROUGH
    return [
        *_names(generator, run),
        _size(seen),
        _variety(seen, entropy(own)),
        _learned(seen, heard=heard),
        _comes_through(through.gain, seen),
        _share(through.gain, alone.gain),
    ]


def facts_signs(generator: BridgedGenerator) -> list[Finding]:
    """Look at the LM's own English task, short questions, alone and through the bridge."""
    questions, accepted = read_facts([PIVOT])
    right = []
    for system in (generator, PlainGenerator(generator.model)):
        outputs = system.generate(questions[PIVOT], SAMPLING)
        right.append(sum(is_right(o, a) for o, a in zip(outputs, accepted, strict=True)) / len(outputs))
    bridged, plain = right
    if plain < FEWEST_FACTS:
        return []
    return [
        judged(
            sign=f"English facts through the bridge (plain LM: {plain:.2f})",
            about=RUN,
            figure=bridged,
            wanted=f"at least {KEPT * plain:.2f}",
            bad=bridged < KEPT * plain,
            trouble="the LM loses its own task through the bridge",
            advice=(
                "Train on prompts that are answered, not only on sentences that are repeated (data.answers), or by "
                "objective.kind: distill; let English go to the plain LM (--routing by_language)."
            ),
        )
    ]


def _names(generator: BridgedGenerator, run: str) -> list[Finding]:
    metadata, recipe = read_metadata(run_folder(run)), generator.model.recipe
    found = {"encoder": recipe.encoder.name, "language_model": recipe.language_model.name}
    other = [part for part, name in found.items() if metadata[part] != name]
    advice = "".join(f"It was trained with {metadata[part]} and now reads {found[part]}. " for part in other)
    return [
        judged(
            sign="models other than those it was trained with",
            about=RUN,
            figure=len(other),
            wanted="0",
            bad=bool(other),
            trouble=f"the bridge is for another {' and '.join(other).replace('_', ' ')}",
            advice=f"{advice}Name the old one in config.yaml, or train again.",
        )
    ]


def _size(seen: Likeness) -> Finding:
    low, high = SIZE
    return judged(
        sign="size of soft-prompt vectors over that of LM word embeddings",
        about=RUN,
        figure=seen.size,
        wanted=f"{low} to {high}",
        bad=not low <= seen.size <= high,
        trouble="the soft prompt is out of the LM's range",
        advice="Train with a lower learning rate, or with the warm start; see training.clip.",
    )


def _variety(seen: Likeness, own: float) -> Finding:
    return judged(
        sign=f"variety of nearest LM tokens, bits (the text's own tokens: {own:.1f})",
        about=RUN,
        figure=seen.entropy,
        wanted=f"at least {VARIETY * own:.1f}",
        bad=seen.entropy < VARIETY * own,
        trouble="the bridge says the same whatever it reads",
        advice="It has collapsed, or is untrained: train again, from the warm start.",
    )


def _learned(seen: Likeness, *, heard: bool) -> Finding:
    """Weights that know nothing of the LM's words are only a trouble where nothing comes through."""
    return judged(
        sign="the bridge's last layer writes where LM words lie (random weights: 1.0)",
        about=RUN,
        figure=seen.learned,
        wanted=f"at least {LEARNED}, unless English comes through",
        bad=not heard and seen.learned < LEARNED,
        trouble="the bridge is untrained: its weights know nothing of the LM's words",
        advice="Was training stopped at its start, or is this another LM's bridge?",
    )


def _comes_through(gain: float, seen: Likeness) -> Finding:
    spoken = seen.learned >= LEARNED
    why = (
        "Its weights know the LM's words, so it was trained, but not on what this encoder gives: check encoder.name, "
        "bridge.layers, encoder.prefix and the tokenizer."
        if spoken
        else "Train it: the loss leaves its plateau late without a warm start (warm_start.enabled)."
    )
    return judged(
        sign="English: worth of the right sentence against a wrong one, nats per token",
        about=RUN,
        figure=gain,
        wanted=f"more than {COMES_THROUGH}",
        bad=gain <= COMES_THROUGH,
        trouble="the bridge does not fit this encoder" if spoken else "English does not come through",
        advice=why,
    )


def _share(gain: float, alone: float) -> Finding:
    share = gain / max(alone, 1e-6)
    bad = min(gain, alone) > COMES_THROUGH and share < SHARE  # where nothing comes through, that is the trouble
    return judged(
        sign="the same, over the gain of the plain LM that reads the text itself",
        about=RUN,
        figure=share,
        wanted=f"at least {SHARE}",
        bad=bad,
        trouble="English is heard badly",
        advice="Train longer, on more and more varied English; other languages cannot do better than it.",
    )


def _nearest(vectors: Tensor, words: Tensor) -> Tensor:
    """Return the id of the word embedding nearest (cosine) to each vector: (vectors,)."""
    words = torch.nn.functional.normalize(words, dim=1)
    return torch.cat([(vectors[i : i + 256] @ words.T).argmax(dim=1) for i in range(0, len(vectors), 256)])
