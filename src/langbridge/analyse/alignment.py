"""Do translations lie together? Measures between the pooled vectors of sentences and of their translations."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """How the sentences of one language lie beside their English translations."""

    retrieval: float
    """Share of sentences whose nearest English sentence (cosine) is their translation."""
    centred: float
    """The same once each language's mean is taken away: what a constant shift hides."""
    cka: float
    """Linear CKA without its small-sample bias: 1 = the same geometry up to rotation, 0 = unrelated."""
    apart: float
    """Distance between the means of the two languages, in spreads of English sentences around theirs."""


def alignment(vectors: Tensor, english: Tensor) -> Alignment:
    """Compare vectors (sentences, dim) with those of their English translations, row by row."""
    shift = vectors.mean(dim=0) - english.mean(dim=0)
    spread = (english - english.mean(dim=0)).pow(2).sum(dim=1).mean().sqrt()
    return Alignment(
        retrieval=float(hits(vectors, english).float().mean()),
        centred=float(hits(vectors - vectors.mean(dim=0), english - english.mean(dim=0)).float().mean()),
        cka=cka(vectors, english),
        apart=float(shift.norm() / spread.clamp(min=1e-12)),
    )


def unrelated_distance(vectors: Tensor, english: Tensor) -> float:
    """Return the distance between the means of vectors (sentences, dim) and of English ones (others, dim).

    In spreads of the English sentences, as `Alignment.apart`, for sentences that are not each other's translations, of
    any number: what the means differ by because few sentences were drawn is taken off.
    """
    shift = (vectors.mean(dim=0) - english.mean(dim=0)).pow(2).sum()
    chance = _variance(vectors) / len(vectors) + _variance(english) / len(english)
    return float(((shift - chance).clamp(min=0) / _variance(english).clamp(min=1e-12)).sqrt())


def _variance(vectors: Tensor) -> Tensor:
    """Return the mean squared distance of sentences from their mean, without bias."""
    return (vectors - vectors.mean(dim=0)).pow(2).sum() / max(1, len(vectors) - 1)


def hits(vectors: Tensor, english: Tensor) -> Tensor:
    """Tell for each row whether its nearest English row (cosine) is its own: (sentences,), bool."""
    near = torch.nn.functional.normalize(vectors, dim=1) @ torch.nn.functional.normalize(english, dim=1).T
    return near.argmax(dim=1) == torch.arange(len(vectors))


def cka(left: Tensor, right: Tensor) -> float:
    """Return linear CKA with the unbiased estimate of HSIC (Song et al., 2012), which 40 sentences need; else nan."""
    if len(left) < 4:
        return float("nan")
    one, two = (_without_diagonal(part.double()) for part in (left, right))
    scale = (_hsic(one, one) * _hsic(two, two)).clamp(min=0).sqrt()
    return float(_hsic(one, two) / scale) if scale > 0 else float("nan")


def _without_diagonal(vectors: Tensor) -> Tensor:
    centred = vectors - vectors.mean(dim=0)
    gram = centred @ centred.T
    return gram - gram.diag().diag()


def _hsic(one: Tensor, two: Tensor) -> Tensor:
    n = len(one)
    total = one.sum() * two.sum() / ((n - 1) * (n - 2))
    crossed = 2 * (one.sum(dim=0) @ two.sum(dim=0)) / (n - 2)
    return ((one * two).sum() + total - crossed) / (n * (n - 3))


def principal(vectors: Tensor, fit: Tensor, axes: int = 2) -> tuple[Tensor, list[float]]:
    """Return vectors on the first axes of variance of `fit` (rows, dim), and the share of its variance on each."""
    mean = fit.mean(dim=0)
    _, sizes, basis = torch.linalg.svd(fit - mean, full_matrices=False)
    shares = sizes.pow(2) / sizes.pow(2).sum()
    basis = basis[:axes] * basis[:axes].sum(dim=1, keepdim=True).sign()  # the same way up each time
    return (vectors - mean) @ basis.T, shares[:axes].tolist()
