"""Initial bridge: ridge regression from encoder states onto LM word embeddings, in closed form.

For the same English text cut by both tokenizers, each encoder token is paired with the LM tokens that share characters
with it; its state is mapped onto the mean of their word embeddings. The encoder's own start and end tokens share no
characters with anything: they are mapped onto `filler`, an LM embedding that carries no content. A linear bridge takes
the solution as it is; other kinds learn to imitate it before training begins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from langbridge.model.bridge import Bridge, LinearBridge

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
    """R2 on the held-out tenth of the texts; 1 is perfect, 0 is the mean."""
    imitation: float | None = None
    """R2 of another kind of bridge with respect to the closed form; null for a linear one, which is the closed form."""


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


def fit(bridge: Bridge, texts: Iterable[AlignedText], lm_vectors: Tensor, filler: Tensor, *, ridge: float) -> WarmStart:
    """Set the bridge's weights in place; every tenth text is held out to measure R2.

    `lm_vectors` (vocabulary, lm_dim), `filler` (lm_dim,). `ridge` is relative to the mean variance of the states.
    """
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])  # of states and of targets, known tokens only
    read: list[Tensor] = []
    for text in texts:
        with torch.no_grad():
            states = bridge.mix(text.states)
        targets, known = _targets(text, lm_vectors, filler)
        read.append(states)
        rows[0].append(states[known])
        rows[1].append(targets[known])
    held = [number % 10 == 9 for number in range(len(read))]
    kept = [torch.cat([row for row, out in zip(part, held, strict=True) if not out]) for part in rows]
    test = (
        [torch.cat([row for row, out in zip(part, held, strict=True) if out]) for part in rows] if any(held) else kept
    )
    closed = solve(kept[0], kept[1], ridge)
    imitation = None
    with torch.no_grad():
        bridge.boundary.copy_(filler)
    if isinstance(bridge, LinearBridge):
        with torch.no_grad():
            bridge.linear.weight.copy_(closed.weight)
            bridge.linear.bias.copy_(closed.bias)
    else:
        imitation = imitate(bridge, read, closed, filler)
    found = explained(test[1], closed(test[0]))
    return WarmStart(tokens=len(kept[0]), explained_variance=found, imitation=imitation)


def solve(states: Tensor, targets: Tensor, ridge: float) -> LinearMap:
    """Return the ridge regression from states (rows, encoder_dim) to targets (rows, lm_dim); computed in fp64."""
    x, y = states.double(), targets.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    centred = x - x_mean
    gram = centred.T @ centred
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (y - y_mean)).T  # (lm_dim, encoder_dim)
    return LinearMap(weight=weight.float(), bias=(y_mean - weight @ x_mean).float())


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


def _targets(text: AlignedText, lm_vectors: Tensor, filler: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each encoder token should become (source, lm_dim), and for which that is known (source,)."""
    weights = overlap(text.encoder_spans, text.lm_spans).to(lm_vectors)
    targets = weights @ lm_vectors[text.lm_ids]
    empty = torch.tensor([first == last for first, last in text.encoder_spans])
    targets[empty] = filler
    return targets, empty | (weights.sum(dim=1) > 0)
