"""Measures of alignment against what they must give."""

import numpy as np
import pytest
import torch

from conftest import build
from langbridge.analyse.alignment import alignment, cka, principal, unrelated_distance
from langbridge.analyse.neutrality import order
from langbridge.analyse.probe import language_probe
from langbridge.analyse.representation import encoder_layers, lm_states, soft_prompts, soft_vectors, tokenisation
from langbridge.data.examples import Example
from langbridge.generate import BridgedGenerator


def test_a_shift_is_seen_and_centring_takes_it_away() -> None:
    torch.manual_seed(0)
    english = torch.randn(30, 16)
    assert alignment(english, english).retrieval == 1.0
    shifted = alignment(english + 20 * torch.ones(16), english)
    assert shifted.retrieval < 0.5
    assert shifted.centred == 1.0
    assert shifted.cka == pytest.approx(1.0)
    assert shifted.apart == pytest.approx(20.0, rel=0.2)  # 16 dimensions: shift 80, spread about 4


def test_the_distance_of_strangers_does_not_grow_when_sentences_are_few() -> None:
    """Four sentences against forty: their plain means lie half a spread apart even when both are of one kind."""
    torch.manual_seed(0)
    english = torch.randn(40, 200)
    near = [unrelated_distance(torch.randn(4, 200), english) for _ in range(20)]
    assert np.mean(near) < 0.15
    far = [unrelated_distance(torch.randn(size, 200) + 1, english) for size in (4, 400)]
    assert far == pytest.approx([1.0, 1.0], abs=0.1)
    assert unrelated_distance(english[:1], english) >= 0.0


def test_cka_is_blind_to_rotation_and_zero_for_strangers() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(40, 200)
    rotation = torch.linalg.qr(torch.randn(200, 200)).Q
    assert cka(vectors, 3 * vectors @ rotation + 5) == pytest.approx(1.0, abs=1e-5)
    strangers = [cka(torch.randn(40, 200), torch.randn(40, 200)) for _ in range(20)]
    assert abs(np.mean(strangers)) < 0.02  # the plain estimate stands at 0.8 here


def test_axes_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 8) * torch.arange(8, 0, -1)
    places, shares = principal(rows, rows)
    values = np.linalg.eigvalsh(np.cov(rows.numpy().T))[::-1]
    assert shares == pytest.approx(list(values[:2] / values.sum()), abs=1e-5)
    assert places.var(dim=0).tolist() == pytest.approx(list(values[:2]), rel=1e-4)


def test_a_probe_tells_languages_only_where_they_differ() -> None:
    rng = np.random.default_rng(0)
    sentences, languages = np.tile(np.arange(20), 3), np.repeat(np.arange(3), 20)
    meaning = np.tile(rng.normal(size=(20, 10)), (3, 1))
    apart = meaning + np.eye(3, 10)[languages] * 5
    assert language_probe(apart, languages, sentences)[0] == 1.0
    accuracy, (low, high) = language_probe(meaning, languages, sentences)
    assert low - 1e-3 <= accuracy <= high + 1e-3
    assert accuracy <= 0.5


@pytest.mark.parametrize(("encoder", "lm"), [("bert", "llama"), ("mt5", "gpt2")])
def test_pooled_vectors_do_not_depend_on_the_batch(encoder: str, lm: str) -> None:
    generator = BridgedGenerator(build(encoder, lm))
    texts = ["a cat", "the dog sat on the mat", "no"]
    layers = encoder_layers(generator, texts)
    assert layers.shape == (3, 3, 24)
    assert generator.model.encoder.layers == ()
    views = {
        "layers": lambda part: encoder_layers(generator, part)[-1],
        "soft": lambda part: soft_prompts(generator, part),
        "lm": lambda part: lm_states(generator, part, plain=False),
        "plain": lambda part: lm_states(generator, part, plain=True),
    }
    for name, view in views.items():
        alone = torch.cat([view([text]) for text in texts])
        assert torch.allclose(view(texts), alone, atol=2e-5), name
    batch = generator.collate([Example(source=texts[0])])
    with torch.inference_mode():
        states = generator.model.encoder(batch.encoder_ids, batch.encoder_mask)
        expected = generator.model.bridge.linear(states[0])
    assert torch.allclose(soft_vectors(generator, texts[:1]), expected, atol=1e-6)
    assert torch.allclose(soft_prompts(generator, texts[:1])[0], expected.mean(dim=0), atol=1e-6)


def test_tokenisation_counts() -> None:
    generator = BridgedGenerator(build())
    found = tokenisation(generator, ["ab c", "dßf"])  # a token a character, blanks too; ß is unknown
    assert found.unknown == pytest.approx(1 / 7)
    assert found.per_word == pytest.approx(7 / 3)
    assert found.per_sentence == 3.5


def test_views_come_in_the_order_of_the_path() -> None:
    views = ["bridge", "layer 0", "layer 1", "layer 10", "layer 2", "lm", "plain_lm"]
    assert sorted(views, key=order) == ["layer 0", "layer 1", "layer 2", "layer 10", "bridge", "lm", "plain_lm"]
