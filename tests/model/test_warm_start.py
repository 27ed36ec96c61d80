"""The closed-form start against what it must recover."""

import pytest
import torch

from langbridge.model import LinearBridge
from langbridge.model.warm_start import AlignedText, fit, overlap


def test_overlap_pairs_tokens_that_share_characters() -> None:
    weights = overlap([(0, 0), (0, 3), (3, 8), (0, 0)], [(0, 2), (2, 5), (5, 8)])
    assert weights.tolist() == [[0, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 0]]


def test_fit_recovers_a_linear_map() -> None:
    """States that are a linear image of the word embeddings are mapped back onto them."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(50, 6, generator=generator)
    inverse = torch.randn(6, 12, generator=generator)
    texts = []
    for _ in range(60):
        ids = torch.randint(0, 50, (9,), generator=generator)
        spans = [(i, i + 1) for i in range(9)]
        texts.append(AlignedText(states=vectors[ids] @ inverse + 1.5, encoder_spans=spans, lm_ids=ids, lm_spans=spans))
    bridge = LinearBridge(12, 6)
    found = fit(bridge, texts, vectors, torch.zeros(6), ridge=1e-6)
    assert found.explained_variance > 0.999
    assert found.tokens == 54 * 9
    mapped = bridge.linear(vectors @ inverse + 1.5)
    assert torch.allclose(mapped, vectors, atol=1e-2)


def test_fit_maps_tokens_without_text_to_the_filler() -> None:
    states = torch.eye(4).repeat(20, 1)
    spans = [(0, 0), (0, 1), (1, 2), (0, 0)] * 20
    text = AlignedText(states=states, encoder_spans=spans, lm_ids=torch.tensor([0, 1]), lm_spans=[(0, 1), (1, 2)])
    bridge = LinearBridge(4, 3)
    filler = torch.tensor([7.0, 7.0, 7.0])
    fit(bridge, [text] * 3, torch.eye(2, 3), filler, ridge=1e-6)
    assert bridge.linear(torch.eye(4)[0]).tolist() == pytest.approx([7, 7, 7], abs=0.05)
    assert bridge.linear(torch.eye(4)[1]).tolist() == pytest.approx([1, 0, 0], abs=0.05)
    assert torch.equal(bridge.boundary.detach(), filler)
