"""The closed-form start against what it must recover."""

import pytest
import torch
from torch.nn.functional import normalize

from langbridge.model import LinearBridge
from langbridge.model.warm_start import LOUDNESS, AlignedText, fit, overlap


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
    found = fit(bridge, texts, vectors, torch.zeros(6), ridge=1e-6, sharpen=0)
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
    fit(bridge, [text] * 3, torch.eye(2, 3), filler, ridge=1e-6, sharpen=0)
    assert bridge.linear(torch.eye(4)[0]).tolist() == pytest.approx([7, 7, 7], abs=0.05)
    assert bridge.linear(torch.eye(4)[1]).tolist() == pytest.approx([1, 0, 0], abs=0.05)
    assert torch.equal(bridge.boundary.detach(), filler)


def some_texts(vectors: torch.Tensor) -> list[AlignedText]:
    """Texts whose states have 8 dimensions, too few to hold the word embeddings whole."""
    generator = torch.Generator().manual_seed(0)
    into = torch.randn(vectors.shape[1], 8, generator=generator)
    texts = []
    for _ in range(100):
        ids = torch.randint(0, len(vectors), (9,), generator=generator)
        spans = [(i, i + 1) for i in range(9)]
        states = vectors[ids] @ into + 0.1 * torch.randn(9, 8, generator=generator)
        texts.append(AlignedText(states=states, encoder_spans=spans, lm_ids=ids, lm_spans=spans))
    return texts


def test_sharpening_tells_words_apart_that_regression_confuses() -> None:
    """A state that does not hold a whole word embedding is mapped near the mean by regression."""
    torch.manual_seed(0)
    vectors = torch.randn(40, 24)
    texts = some_texts(vectors)
    states = torch.cat([text.states for text in texts])
    ids = torch.cat([text.lm_ids for text in texts])
    right = {}
    for steps in (0, 400):
        bridge = LinearBridge(8, 24)
        found = fit(bridge, texts, vectors, torch.zeros(24), ridge=0.01, sharpen=steps)
        with torch.no_grad():
            cosines = normalize(bridge.linear(states), dim=1) @ normalize(vectors, dim=1).T
        right[steps] = float((cosines.argmax(dim=1) == ids).float().mean())
        assert (found.recognised is None) if steps == 0 else abs(float(found.recognised or 0) - right[steps]) < 0.1
    assert right[400] > right[0] + 0.1


def test_sharpened_vectors_are_as_long_as_word_embeddings_times_loudness() -> None:
    torch.manual_seed(0)
    vectors = 3 * torch.randn(30, 12)
    texts = some_texts(vectors)
    bridge = LinearBridge(8, 12)
    fit(bridge, texts, vectors, torch.zeros(12), ridge=0.01, sharpen=50)
    kept = [text for number, text in enumerate(texts) if number % 10 != 9]
    with torch.no_grad():
        found = bridge.linear(torch.cat([text.states for text in kept])).norm(dim=1).mean()
    wanted = LOUDNESS * vectors[torch.cat([text.lm_ids for text in kept])].norm(dim=1).mean()
    assert float(found / wanted) == pytest.approx(1, abs=1e-3)


def test_texts_without_a_whole_word_are_not_sharpened() -> None:
    """Where every state is a part of a longer word there is nothing to tell apart, and the regression stands."""
    text = AlignedText(
        states=torch.eye(4),
        encoder_spans=[(0, 2), (1, 3), (2, 5), (3, 6)],
        lm_ids=torch.tensor([0, 1]),
        lm_spans=[(0, 1), (1, 6)],
    )
    halves = AlignedText(
        states=torch.eye(4), encoder_spans=[(0, 2)] * 4, lm_ids=torch.tensor([0, 1]), lm_spans=[(0, 1), (1, 2)]
    )
    assert (
        fit(LinearBridge(4, 3), [halves] * 3, torch.eye(2, 3), torch.ones(3), ridge=1e-6, sharpen=10).recognised is None
    )
    assert (
        fit(LinearBridge(4, 3), [text] * 3, torch.eye(2, 3), torch.ones(3), ridge=1e-6, sharpen=10).recognised
        is not None
    )
