"""Initial bridge: a linear map from encoder states onto LM word embeddings, found without running the LM.

For the same English text cut by both tokenizers, each encoder token is paired with the LM tokens that share characters
with it; its state is mapped onto the mean of their word embeddings by ridge regression, in closed form. The encoder's
own start and end tokens share no characters with anything: they are mapped onto `filler`, an LM embedding that carries
no content. Then the map is sharpened: regression is content with the mean of all words that a state might be, while
telling the right word from others is what carries over to other languages. A linear bridge takes the solution as it
is; other kinds learn to imitate it before training begins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from langbridge.model.bridge import Bridge, LinearBridge

LOUDNESS = 1.3
"""Mean length of sharpened vectors relative to their word embeddings; the LM reads faint ones less well."""
CLOSENESS = 3.0
"""Weight of the distance from the right embedding in sharpening."""
NEGATIVES = 1024
"""Word embeddings that a step of sharpening tells the right ones from, beside those of its own batch."""
ROWS = 4096
"""Pairs that the regression takes at a time."""

Spans = list[tuple[int, int]]
"""(first, last + 1) character of each token; an empty span belongs to a token without text."""


@dataclass(frozen=True, kw_only=True)
class AlignedText:
    """One text as both models see it."""

    states: Tensor
    """(source, encoder_dim)"""
    encoder_spans: Spans
    lm_ids: Tensor
    """(length,)"""
    lm_spans: Spans


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """What the regression found."""

    tokens: int
    """Pairs it was fitted on."""
    explained_variance: float
    """R2 of the regression on the held-out tenth of the texts; 1 is perfect, 0 is the mean."""
    recognised: float | None = None
    """Share of held-out tokens whose own word is nearest among the words of all texts; null: not sharpened."""
    imitation: float | None = None
    """R2 of another kind of bridge with respect to the linear map it imitates; null for a linear one, which is it."""


@dataclass(frozen=True, kw_only=True)
class LinearMap:
    """The regression's solution."""

    weight: Tensor
    """(lm_dim, encoder_dim)"""
    bias: Tensor
    """(lm_dim,)"""

    def __call__(self, states: Tensor) -> Tensor:
        """Map states (..., encoder_dim) to (..., lm_dim)."""
        return states @ self.weight.T + self.bias


def overlap(encoder_spans: Spans, lm_spans: Spans) -> Tensor:
    """Return which LM tokens share a character with which encoder tokens: (source, length), rows sum to 1 or 0."""
    left = torch.tensor(encoder_spans).reshape(-1, 1, 2)
    right = torch.tensor(lm_spans).reshape(1, -1, 2)
    shared = (torch.minimum(left, right)[..., 1] - torch.maximum(left, right)[..., 0]).clamp(min=0)
    touching = (shared > 0).float()  # (source, length)
    return touching / touching.sum(dim=1, keepdim=True).clamp(min=1)


def fit(
    bridge: Bridge, texts: Iterable[AlignedText], lm_vectors: Tensor, filler: Tensor, *, ridge: float, sharpen: int
) -> WarmStart:
    """Set the bridge's weights in place; every tenth text is held out to measure.

    `lm_vectors` (vocabulary, lm_dim), `filler` (lm_dim,). `ridge` is relative to the mean variance of the states;
    `sharpen` is the number of steps. The order of steps is fixed by torch's seed.
    """
    read: list[Tensor] = []
    parts: list[_Pairs] = []
    for text in texts:
        with torch.no_grad():
            states = bridge.mix(text.states)
        parts.append(_pairs(text, states, lm_vectors, filler))
        if not isinstance(bridge, LinearBridge):  # which has nothing to imitate
            read.append(states)
    held = [number % 10 == 9 for number in range(len(parts))]
    kept = _joined([part for part, out in zip(parts, held, strict=True) if not out])
    test = _joined([part for part, out in zip(parts, held, strict=True) if out]) if any(held) else kept
    parts.clear()  # a copy
    found = solve(kept.states, kept.targets, ridge)
    variance, recognised = explained(test.targets, found(test.states)), None
    if sharpen and bool((kept.words != NO_WORD).any()):
        words = torch.unique(torch.cat([kept.words, test.words]))
        words = words[words != NO_WORD]
        candidates = torch.where((words == FILLER)[:, None], filler, lm_vectors[words.clamp(min=0)])
        kept, test = (_numbered(part, words) for part in (kept, test))
        found = sharpened(kept, candidates, steps=sharpen)
        recognised = _recognised(found, test, candidates)
    imitation = None
    with torch.no_grad():
        bridge.boundary.copy_(filler)
    if isinstance(bridge, LinearBridge):
        with torch.no_grad():
            bridge.linear.weight.copy_(found.weight)
            bridge.linear.bias.copy_(found.bias)
    else:
        imitation = imitate(bridge, read, found, filler)
    return WarmStart(tokens=len(kept.states), explained_variance=variance, recognised=recognised, imitation=imitation)


def solve(states: Tensor, targets: Tensor, ridge: float) -> LinearMap:
    """Return the ridge regression from states (rows, encoder_dim) to targets (rows, lm_dim); computed in fp64."""
    x_mean, y_mean = states.mean(dim=0, dtype=torch.float64), targets.mean(dim=0, dtype=torch.float64)
    gram = x_mean.new_zeros(states.shape[1], states.shape[1])
    cross = x_mean.new_zeros(states.shape[1], targets.shape[1])
    for x, y in zip(
        torch.split(states, ROWS), torch.split(targets, ROWS), strict=True
    ):  # fp64 copies of a part at a time
        centred = x.double() - x_mean
        gram += centred.T @ centred
        cross += centred.T @ (y.double() - y_mean)
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, cross).T  # (lm_dim, encoder_dim)
    return LinearMap(weight=weight.float(), bias=(y_mean - weight @ x_mean).float())


def sharpened(pairs: "_Pairs", candidates: Tensor, *, steps: int, batch_size: int = 512) -> LinearMap:
    """Return a map under which each state points at its own word's embedding and away from other words'.

    `pairs.words` are rows of `candidates` (words, lm_dim), or negative where a state is not exactly one word. The loss
    is a softmax over cosines, plus the distance from the right embedding, without which vectors leave the region where
    word embeddings lie. The order of steps is fixed by torch's seed.
    """
    known = pairs.words >= 0
    states, words = pairs.states[known], pairs.words[known]
    mean, spread = states.mean(dim=0), states.std(dim=0).clamp(min=1e-6)
    scaled = (states - mean) / spread
    directions = nn.functional.normalize(candidates, dim=1)
    layer = nn.Linear(states.shape[1], candidates.shape[1])
    sharpness, bias = nn.Parameter(torch.tensor(15.0)), nn.Parameter(torch.zeros(len(candidates)))
    optimizer = torch.optim.AdamW([*layer.parameters(), sharpness, bias], lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(0, len(states), (batch_size,))
        others = torch.randint(0, len(candidates), (min(NEGATIVES, len(candidates)),))
        choices, right = torch.unique(torch.cat([words[rows], others]), return_inverse=True)
        cosines = nn.functional.normalize(layer(scaled[rows]), dim=1) @ directions[choices].T  # (batch, choices)
        right = right[:batch_size]
        apart = nn.functional.cross_entropy(sharpness * cosines + bias[choices], right)
        optimizer.zero_grad()
        torch.autograd.backward(apart + CLOSENESS * (1 - cosines.gather(1, right[:, None])).mean())
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        size = layer(scaled).norm(dim=1).mean() / (LOUDNESS * candidates[words].norm(dim=1).mean())
        weight = layer.weight / spread / size
        return LinearMap(weight=weight, bias=layer.bias / size - weight @ mean)


def imitate(
    bridge: Bridge, read: Sequence[Tensor], closed: LinearMap, filler: Tensor, *, steps: int = 300, batch_size: int = 64
) -> float:
    """Teach a bridge to give, vector by vector, what the closed form gives; returns R2 on the last tenth of the texts.

    `read`: mixed states (source, encoder_dim) of each text. A bridge with a fixed number of vectors learns those of as
    many tokens, then `filler`. The order of texts is fixed by torch's seed.
    """
    learning = [parameter for name, parameter in bridge.named_parameters() if not name.startswith(("mix.", "boundary"))]
    optimizer = torch.optim.AdamW(learning, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    last = max(1, len(read) // 10)
    training, test = read[:-last] or read, read[-last:]

    def pairs(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        states = nn.utils.rnn.pad_sequence(list(texts), batch_first=True)  # (batch, source, encoder_dim)
        mask = nn.utils.rnn.pad_sequence([row.new_ones(len(row), dtype=torch.int64) for row in texts], batch_first=True)
        wanted = closed(states).masked_fill(mask[..., None] == 0, 0) + (mask == 0)[..., None] * filler
        soft = bridge.map(states, mask)
        length = soft.vectors.shape[1]
        short = filler.expand(len(texts), max(0, length - wanted.shape[1]), -1)
        content = soft.mask.bool()
        return soft.vectors[content], torch.cat([wanted, short], dim=1)[:, :length][content]

    bridge.train()
    for _ in range(steps):
        chosen = torch.randint(0, len(training), (min(batch_size, len(training)),)).tolist()
        found, wanted = pairs([training[i] for i in chosen])
        optimizer.zero_grad()
        torch.autograd.backward((found - wanted).square().mean())
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    bridge.eval()
    with torch.no_grad():
        found, wanted = pairs(test)
    bridge.train()
    return explained(wanted, found)


def explained(wanted: Tensor, found: Tensor) -> float:
    """Return R2 of `found` (rows, lm_dim) with respect to `wanted`."""
    residual = (wanted - found).square().sum()
    return float(1 - residual / (wanted - wanted.mean(dim=0)).square().sum())


FILLER, NO_WORD = -1, -2
"""In place of an LM token: a state without text; a state that is part of a word, or several."""


@dataclass(frozen=True)
class _Pairs:
    """What states should become."""

    states: Tensor
    """(rows, encoder_dim)"""
    targets: Tensor
    """(rows, lm_dim)"""
    words: Tensor
    """(rows,): the one LM token that a state stands for, FILLER or NO_WORD."""


def _joined(parts: Sequence[_Pairs]) -> _Pairs:
    return _Pairs(*(torch.cat([getattr(part, name) for part in parts]) for name in ("states", "targets", "words")))


def _pairs(text: AlignedText, states: Tensor, lm_vectors: Tensor, filler: Tensor) -> _Pairs:
    """Return what each encoder token of a text should become, without those of which that is not known."""
    weights = overlap(text.encoder_spans, text.lm_spans).to(lm_vectors)  # (source, length)
    targets = weights @ lm_vectors[text.lm_ids]
    empty = torch.tensor([first == last for first, last in text.encoder_spans])
    targets[empty] = filler
    largest = weights.max(dim=1)
    words = torch.where(largest.values == 1, text.lm_ids[largest.indices], NO_WORD)
    words[empty] = FILLER
    known = empty | (weights.sum(dim=1) > 0)
    return _Pairs(states[known], targets[known], words[known])


def _numbered(pairs: _Pairs, words: Tensor) -> _Pairs:
    """Return pairs whose words are row numbers in sorted `words`; NO_WORD stays negative."""
    numbers = torch.searchsorted(words, pairs.words).masked_fill(pairs.words == NO_WORD, NO_WORD)
    return _Pairs(pairs.states, pairs.targets, numbers)


def _recognised(found: LinearMap, pairs: _Pairs, candidates: Tensor) -> float:
    known = pairs.words >= 0
    directions = nn.functional.normalize(candidates, dim=1)
    nearest = torch.cat([(found(part) @ directions.T).argmax(dim=1) for part in torch.split(pairs.states[known], 1024)])
    return float((nearest == pairs.words[known]).float().mean())
