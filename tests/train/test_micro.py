"""Micro-batches, halves of frozen weights and chunks of the head: less work and memory, the same result."""

import pytest
import torch
from torch import Tensor, nn

from conftest import build
from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.model import Batch
from langbridge.model.head import MOST_LOGITS, likelihoods
from langbridge.train.halves import Halves, split, whole
from langbridge.train.micro import micro_batches

INSTRUCTION = "a long instruction that many rows begin with, in words and words and words: "
EXAMPLES = [
    Example(source="word " * (1 + i % 5), target="so " * (1 + i % 3), instruction=INSTRUCTION if i % 3 else "")
    for i in range(12)
]


def sources(batch: Batch) -> list[list[int]]:
    """What the encoder reads, row by row."""
    return [row[mask.bool()].tolist() for row, mask in zip(batch.encoder_ids, batch.encoder_mask, strict=True)]


def gradient(model: LangBridge, **limits: int | None) -> Tensor:
    """The bridge's gradient of one step, as the trainer makes it."""
    batch = model.collate(EXAMPLES)
    model.zero_grad()
    for part in micro_batches(model, batch, **{"parts": 1, "budget": None} | limits):  # type: ignore[arg-type]
        (model(part) * part.target_mask.sum() / batch.target_mask.sum()).backward()
    return torch.cat([p.grad.flatten() for p in model.bridge.parameters() if p.grad is not None])


@pytest.mark.parametrize("limits", [{"parts": 3}, {"budget": 200}, {"budget": 1}, {"parts": 2, "budget": 400}])
def test_micro_batches_add_up_to_the_batch(one: LangBridge, limits: dict[str, int]) -> None:
    batch = one.collate(EXAMPLES)
    one.zero_grad()
    one(batch).backward()
    wanted = torch.cat([p.grad.flatten() for p in one.bridge.parameters() if p.grad is not None])
    assert torch.allclose(gradient(one, **limits), wanted, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("budget", [1, 120, 500, None])
def test_micro_batches_keep_every_row_and_the_budget(one: LangBridge, budget: int | None) -> None:
    batch = one.collate(EXAMPLES)
    parts = micro_batches(one, batch, parts=2, budget=budget)
    rows = [row for part in parts for row in sources(part)]
    assert sorted(rows) == sorted(sources(batch))
    for part in parts:
        lengths = one.lengths(part)
        assert len(lengths) <= 6
        assert len(lengths) == 1 or budget is None or len(lengths) * int(lengths.max()) <= budget
        assert one.prompt(part).mask.sum(dim=1).tolist() == (lengths - part.target_mask.sum(dim=1)).tolist()


def test_rows_of_one_opening_go_together(one: LangBridge) -> None:
    """Sharing a long opening is worth a micro-batch of its own; sharing a short one is not."""
    batch = one.collate(EXAMPLES)
    assert len(micro_batches(one, batch, parts=1, budget=None)) == 2
    plain = build(template="{prompt}")  # nothing stands in front of the soft prompt
    assert (
        len(micro_batches(plain, plain.collate([Example(source="word", target="so")] * 4), parts=2, budget=None)) == 2
    )
    short = [Example(source="word", target="so", instruction="x " if i % 2 else "") for i in range(6)]
    assert len(micro_batches(one, one.collate(short), parts=1, budget=None)) == 1


def test_an_opening_is_forgotten_when_weights_change(one: LangBridge) -> None:
    batch = one.collate([Example(source="tea", target="so", instruction=INSTRUCTION)] * 2)
    with torch.no_grad():
        before = float(one(batch))
        one.language_model.double().float()  # moved and cast: what was read is read again
        for parameter in one.language_model.parameters():
            parameter.mul_(1.1)
        one.language_model.forget()
        assert float(one(batch)) != before
        assert float(one(batch)) == pytest.approx(
            float(-one.log_likelihood(batch).sum() / batch.target_mask.sum()), abs=1e-5
        )


def test_a_learning_lm_reads_every_row_in_full(one: LangBridge) -> None:
    """Gradients must reach what reads the opening."""
    one.language_model.requires_grad_(True)
    assert one.language_model.begin(torch.tensor([[5, 6]])) is None


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_head_in_chunks_is_the_head(rows: int) -> None:
    """However few rows of logits there are at once; also behind something that is no plain product."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 20)
    states = torch.randn(10, 8, requires_grad=True)
    ids, weight = torch.randint(0, 20, (10,)), torch.rand(10)

    def head(part: Tensor) -> Tensor:
        assert len(part) <= rows
        return 3 * torch.tanh(layer(part))

    found = likelihoods(states, ids, head, MOST_LOGITS // rows)
    wanted = (3 * torch.tanh(layer(states))).log_softmax(dim=-1)[torch.arange(10), ids]
    assert torch.allclose(found, wanted, atol=1e-6)
    slopes = [torch.autograd.grad((weight * values).sum(), states)[0] for values in (found, wanted)]
    assert torch.allclose(*slopes, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(likelihoods(states, ids, head, MOST_LOGITS // rows), found)


def test_halves_make_a_whole() -> None:
    torch.manual_seed(0)
    tie = torch.tensor([1 + 2**-8, -1 - 2**-8, 1 + 3 * 2**-8])
    extreme = torch.tensor([0.0, -0.0, 3.4e38, -3.4e38, 1e-45, -1e-40, float("inf"), -float("inf"), float("nan")])
    weight = torch.cat([torch.randn(10_000), torch.randn(1000) * 1e-30, tie, extreme])
    high, rest = split(weight)
    assert high.dtype == torch.bfloat16
    assert torch.equal(whole(high, rest).view(torch.int32), weight.view(torch.int32))
    ordinary = weight[:11_000]
    assert torch.equal(high[:11_000], ordinary.bfloat16())


@pytest.mark.parametrize("lm", ["llama", "gpt2", "qwen2"])
def test_halves_are_given_back_exactly(lm: str) -> None:
    """Also where the head shares its weight with the word embeddings."""
    model = build("bert", lm)
    tied = model.language_model.model.get_output_embeddings()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shared = tied.weight is model.language_model.model.get_input_embeddings().weight
    assert shared == (lm == "gpt2")
    halves = Halves(model)
    halves.hold()
    frozen = [p for name, p in model.named_parameters() if not name.startswith("bridge.")]
    assert sum(p.dtype == torch.bfloat16 for p in frozen) > 10
    assert all(p.dtype == torch.float32 for p in model.bridge.parameters())
    assert model.language_model.dtype == torch.float32
    assert tied.weight.dtype == torch.bfloat16
    with halves.released():
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert tied.weight.dtype == torch.bfloat16
    halves.release()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (tied.weight is model.language_model.model.get_input_embeddings().weight) == shared


@pytest.mark.parametrize("lm", ["llama", "gpt2", "qwen2"])
def test_halves_compute_what_autocast_does(lm: str) -> None:
    """The gradient of a step in bf16 stays that of fp32."""
    model = build("bert", lm)
    exact = gradient(model)
    halves = Halves(model)
    halves.hold()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradient(model)
    assert not torch.equal(exact, rounded)
    assert float(nn.functional.cosine_similarity(exact, rounded, dim=0)) > 0.97
