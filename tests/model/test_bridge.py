"""Every kind of bridge between tiny models: shapes, statistics, padding, warm start."""

import itertools

import pytest
import torch

from conftest import build
from langbridge.config import BridgeConfig
from langbridge.data import Example
from langbridge.errors import ConfigError
from langbridge.model.bridge import Bridge, LayerMix, ResamplerBridge, make_bridge, thinned
from langbridge.model.warm_start import LinearMap, imitate

KINDS = {
    "linear": BridgeConfig(),
    "mlp-1": BridgeConfig(kind="mlp"),
    "mlp-2": BridgeConfig(kind="mlp", hidden_layers=2, width=2.0),
    "resampler": BridgeConfig(kind="resampler", latents=5, depth=1, heads=2),
    "resampler-norm": BridgeConfig(kind="resampler", latents=5, depth=2, heads=2, output_norm=True),
}
PROMPTS = ["hi", "what is the name of it?", "a much longer one, with more words"]


def made(kind: str, encoder_dim: int = 24, lm_dim: int = 16, mixed: int = 1) -> Bridge:
    torch.manual_seed(0)
    return make_bridge(KINDS[kind], encoder_dim, lm_dim, mixed=mixed, scale=0.3).eval()


def padded(rows: int = 3, length: int = 9, dim: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.tensor([[1] * (length - 3 * i) + [0] * 3 * i for i in range(rows)])
    return torch.randn(rows, length, dim), mask


@pytest.mark.parametrize("kind", KINDS)
def test_soft_prompt_ends_with_the_boundary(kind: str) -> None:
    bridge = made(kind)
    states, mask = padded()
    soft = bridge(states, mask)
    wanted = [5 + 1] * 3 if kind.startswith("resampler") else (mask.sum(dim=1) + 1).tolist()
    assert soft.mask.sum(dim=1).tolist() == wanted
    assert soft.vectors.shape[2] == 16
    assert torch.equal(soft.vectors[:, -1], bridge.boundary.expand(3, -1))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_vector(kind: str) -> None:
    bridge = made(kind)
    states, mask = padded()
    together = bridge(states, mask)
    for i, length in enumerate(mask.sum(dim=1).tolist()):
        alone = bridge(states[i : i + 1, :length], mask[i : i + 1, :length])
        assert torch.allclose(together.vectors[i][together.mask[i].bool()], alone.vectors[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_start_has_the_statistics_of_the_word_embeddings(kind: str) -> None:
    bridge = made(kind)
    states, mask = padded(rows=3, length=9)
    words = 0.05 * torch.randn(500, 16) + 0.7
    bridge.match(5 * states + 3, mask, words)
    with torch.no_grad():
        soft = bridge.map(5 * states + 3, mask)
    found = soft.vectors[soft.mask.bool()]
    assert float(found.std()) == pytest.approx(float(words.std()), rel=0.2)
    assert float(found.mean()) == pytest.approx(float(words.mean()), abs=0.01)
    if kind != "resampler-norm":  # a LayerNorm sets the spread over dimensions, not over vectors
        assert torch.allclose(found.mean(dim=0), words.mean(dim=0), atol=1e-4)


def test_an_mlp_is_what_its_formula_says() -> None:
    bridge = made("mlp-2")
    states, mask = padded()
    first, _, second, _, third = bridge.layers  # type: ignore[misc]
    gelu = torch.nn.functional.gelu
    by_hand = gelu(gelu(states @ first.weight.T + first.bias) @ second.weight.T + second.bias) @ third.weight.T
    assert torch.allclose(bridge.map(states, mask).vectors, by_hand + third.bias, atol=1e-5)
    assert first.weight.shape == (48, 24)


def test_a_resampler_reads_order() -> None:
    """Without positions a resampler sees a bag of states."""
    bridge = made("resampler")
    states, mask = padded(rows=1)
    flipped = bridge(states.flip(1), mask).vectors
    assert not torch.allclose(bridge(states, mask).vectors, flipped, atol=1e-3)


def test_dropout_of_a_resampler_acts_while_training_only() -> None:
    bridge = make_bridge(BridgeConfig(kind="resampler", latents=5, heads=2, dropout=0.5), 24, 16)
    states, mask = padded()
    assert not torch.equal(bridge(states, mask).vectors, bridge(states, mask).vectors)
    bridge.eval()
    assert torch.equal(bridge(states, mask).vectors, bridge(states, mask).vectors)


def test_token_dropout_hides_states_while_training_only() -> None:
    bridge = make_bridge(BridgeConfig(token_dropout=0.5), 24, 16)
    states, mask = torch.randn(50, 20, 24), torch.ones(50, 20, dtype=torch.int64)
    lengths = bridge(states, mask).mask.sum(dim=1) - 1
    assert 8 < float(lengths.float().mean()) < 12
    assert (bridge.eval()(states, mask).mask.sum(dim=1) == 21).all()
    soft = bridge.train()(states, mask)
    whole = bridge.map(states, mask).vectors
    kept = soft.vectors[0][soft.mask[0].bool()][:-1]
    found = [next(i for i in range(20) if torch.equal(whole[0, i], row)) for row in kept]
    assert found == sorted(found)  # what is left keeps its order


def test_thinned_leaves_no_row_empty_and_no_padding_alive() -> None:
    mask = torch.tensor([[1, 0, 0], [1, 1, 0]] * 200)
    kept = thinned(mask, 0.9)
    assert (kept <= mask).all()
    assert (kept.sum(dim=1) > 0).all()


def test_mix_is_a_softmax_over_layers() -> None:
    mix = LayerMix(3)
    with torch.no_grad():
        mix.logits.copy_(torch.tensor([0.0, 1.0, 2.0]))
    states = torch.randn(2, 4, 3 * 6)
    weights = torch.tensor([0.0, 1.0, 2.0]).exp() / torch.tensor([0.0, 1.0, 2.0]).exp().sum()
    by_hand = sum(w * states[..., 6 * i : 6 * i + 6] for i, w in enumerate(weights))
    assert torch.allclose(mix(states), by_hand, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", ["bert", "mt5"])
@pytest.mark.parametrize("layers", ["last", "mix", (0, 2), (1,)])
def test_the_bridge_reads_the_layers_it_was_told(encoder: str, layers: str | tuple[int, ...]) -> None:
    model = build(encoder, bridge=BridgeConfig(layers=layers))
    batch = model.collate([Example(source=prompt) for prompt in PROMPTS])
    found = model.encoder(batch.encoder_ids, batch.encoder_mask)
    every = model.encoder.model(
        input_ids=batch.encoder_ids, attention_mask=batch.encoder_mask, output_hidden_states=True
    ).hidden_states
    numbers = {"last": (2,), "mix": (0, 1, 2)}.get(layers, layers) if isinstance(layers, str) else layers
    assert torch.equal(found, torch.cat([every[i] for i in numbers], dim=-1))
    model.train()(model.collate([Example(source="hi", target="yes")])).backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learning == {n for n, _ in model.named_parameters() if n.startswith("bridge.")}
    assert ("bridge.mix.logits" in learning) == (layers == "mix")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_alone_as_in_a_batch(kind: str) -> None:
    model = build(bridge=KINDS[kind])
    examples = [Example(source=prompt, target="yes") for prompt in PROMPTS]
    with torch.no_grad():
        together = model.log_likelihood(model.collate(examples))
        for row, example in zip(together, examples, strict=True):
            assert torch.allclose(row, model.log_likelihood(model.collate([example]))[0], atol=1e-5)


@pytest.mark.parametrize("kind", ["mlp-1", "mlp-2", "resampler"])
def test_other_kinds_learn_to_imitate_the_closed_form(kind: str) -> None:
    bridge = made(kind, encoder_dim=16, lm_dim=8)
    generator = torch.Generator().manual_seed(3)
    texts = [torch.randn(n, 16, generator=generator) for n in itertools.islice(itertools.cycle((3, 5, 7)), 120)]
    closed = LinearMap(weight=torch.randn(8, 16, generator=generator) / 4, bias=torch.ones(8))
    filler = torch.full((8,), -2.0)
    found = imitate(bridge, texts, closed, filler, steps=400, batch_size=32)
    assert found > (0.5 if kind == "resampler" else 0.9)


def test_a_short_text_fills_a_resampler_with_the_filler() -> None:
    """Where a text has fewer tokens than there are latents, the rest must carry no content."""
    bridge = made("resampler", encoder_dim=16, lm_dim=8)
    texts = [torch.randn(2, 16) for _ in range(60)]
    filler = torch.full((8,), 3.0)
    imitate(bridge, texts, LinearMap(weight=torch.zeros(8, 16), bias=torch.zeros(8)), filler, steps=300)
    soft = bridge.eval()(texts[0][None], torch.ones(1, 2, dtype=torch.int64)).vectors[0].detach()
    assert float(soft[:2].mean()) == pytest.approx(0, abs=0.6)
    assert float(soft[2:5].mean()) == pytest.approx(3, abs=0.6)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"heads is 5.*width 24; choose one of 1, 2, 3, 4, 6"):
        make_bridge(BridgeConfig(kind="resampler", heads=5), 24, 16)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 7, but this encoder has layers 0 \(word embeddings\) to 2"):
        build(bridge=BridgeConfig(layers=(1, 7)))


def test_resampler_size_does_not_depend_on_the_prompt() -> None:
    bridge = made("resampler")
    assert isinstance(bridge, ResamplerBridge)
    for length in (1, 40):
        assert bridge(torch.randn(1, length, 24), torch.ones(1, length, dtype=torch.int64)).vectors.shape == (1, 6, 16)
