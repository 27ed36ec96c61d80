"""Records that share a row of the LM: arranged without loss, read as if apart, refused where that cannot be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import build
from langbridge.config import Recipe
from langbridge.data import Example
from langbridge.errors import ConfigError, PretrainedError
from langbridge.model import Embeddings
from langbridge.model.packing import arrange, pack
from langbridge.train.micro import micro_batches

EXAMPLES = [
    Example(source="word " * (1 + i % 7), target="so " * (1 + i % 3), instruction="say: " if i % 3 else "")
    for i in range(12)
]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_every_sequence_has_a_place_of_its_own(lengths: list[int], most: int) -> None:
    rows, starts = arrange(lengths, most)
    taken = [(row, start + i) for row, start, n in zip(rows, starts, lengths, strict=True) for i in range(n)]
    assert len(set(taken)) == sum(lengths)
    for row in set(rows):
        inside = [(start, n) for own, start, n in zip(rows, starts, lengths, strict=True) if own == row]
        assert sum(n for _, n in inside) == max(start + n for start, n in inside)  # no gap
        assert sum(n for _, n in inside) <= max(most, *lengths)
    assert set(rows) == set(range(max(rows) + 1))


def test_a_position_sees_the_opening_and_its_own_past() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    packed = pack(Embeddings(torch.randn(3, 3, 4), mask), most=5, opening=2)
    assert packed.vectors.shape == (2, 3, 4)  # the longest by itself; the two others
    seen = packed.mask[1, 0] == 0
    assert seen.int().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert packed.positions.tolist() == [[2, 3, 4], [2, 3, 2]]
    assert seen.any(dim=1).all()


@pytest.mark.parametrize("budget", [60, 200, None])
@pytest.mark.parametrize("lm", ["llama", "gpt2", "qwen2"])
def test_a_step_is_the_same(lm: str, budget: int | None) -> None:
    """Micro-batches, the shared opening and packing together give the gradient of the plain batch."""
    model = build(lm=lm)
    batch = model.collate(EXAMPLES)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        for part in micro_batches(model, batch, parts=1, budget=budget):
            (model(part) * part.target_mask.sum() / batch.target_mask.sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.bridge.parameters() if p.grad is not None])

    wanted, apart = gradient(), len(micro_batches(model, batch, parts=1, budget=budget))
    model.language_model.pack(120)
    assert torch.allclose(gradient(), wanted, atol=1e-6, rtol=1e-4)
    parts = micro_batches(model, batch, parts=1, budget=budget)
    assert len(parts) <= apart  # padding takes no part of the budget
    assert all(len(part.target_ids) == 1 or budget is None or model.lengths(part).sum() <= budget for part in parts)


def test_layers_that_mix_rows_are_noticed() -> None:
    """An LM whose positions see what no mask allows, as recurrent layers do."""
    model = build()
    layer = model.language_model.model.get_decoder().layers[0]
    layer.register_forward_hook(lambda module, args, output: output + output.cumsum(dim=1))
    with pytest.raises(PretrainedError, match=r"sequences that share a row .* set training\.packing: null"):
        model.language_model.pack(64)
    assert model.language_model.packing is None


def test_attention_without_block_masks_is_refused() -> None:
    model = build()
    model.language_model.attention = "flash_attention_2"
    with pytest.raises(PretrainedError, match="'flash_attention_2' does not take"):
        model.language_model.pack(64)


def test_no_positions_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.packing must be a number of LM positions or null, got 0"):
        Recipe.of({"encoder": {"name": "a"}, "language_model": {"name": "b"}, "training": {"packing": 0}}, "test")
