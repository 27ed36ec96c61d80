"""The matrix: every family of encoders and LMs, loaded from folders, against hand-written oracles.

The oracles are the models as built, never what our loading made of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from conftest import TEMPLATE, letters_tokenizer
from families import ENCODERS, LANGUAGE_MODELS, PAIRS, encoder_half, make, table
from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data import Example
from langbridge.errors import PretrainedError
from langbridge.model import Batch, Embeddings
from langbridge.pretrained import load_encoder, load_language_model

DOCS = Path(__file__).parent.parent / "docs" / "families.md"
EXAMPLES = [
    Example(source="hi", target="yes"),
    Example(source="what is the name of it?", target="no way"),
    Example(source="a much longer one, with more words", target="it depends"),
]
GREEDY = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)


@dataclass(frozen=True)
class Folder:
    """A model as its publisher would save it, and the model itself."""

    path: Path
    model: PreTrainedModel


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Folder]:
    """Save a family's tiny model with its tokenizer, once."""
    made: dict[str, Folder] = {}

    def publish(family: str) -> Folder:
        if family not in made:
            model = make((ENCODERS | LANGUAGE_MODELS)[family])
            path = tmp_path_factory.mktemp("published") / family
            model.save_pretrained(path)
            letters_tokenizer(encloses=family in ENCODERS).save_pretrained(path)
            made[family] = Folder(path, model)
        return made[family]

    return publish


@dataclass(frozen=True)
class Pair:
    """A LangBridge between two loaded families, and the models that the folders were saved from."""

    model: LangBridge
    encoder: PreTrainedModel
    language_model: PreTrainedModel

    def by_hand(self, example: Example) -> tuple[Tensor, list[int]]:
        """One unpadded prompt as LM vectors (length, lm_dim), and its target ids."""
        model, words, tokenizer = self.model, self.language_model.get_input_embeddings(), self.model.lm_tokenizer
        ids = torch.tensor([model.encoder_tokenizer(example.source).input_ids])
        states = self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        soft = states @ model.bridge.linear.weight.T + model.bridge.linear.bias
        before, after = (
            words(torch.tensor(tokenizer(text, add_special_tokens=False).input_ids))
            for text in TEMPLATE.split("{prompt}")
        )
        target = [*tokenizer(example.target, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        return torch.cat([before, soft, model.bridge.boundary[None], after]), target


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, published: Callable[[str], Folder]) -> Pair:
    encoder, lm = (published(family) for family in request.param)
    recipe = Recipe.of(
        {
            "encoder": {"name": str(encoder.path)},
            "language_model": {"name": str(lm.path)},
            "prompt": {"template": TEMPLATE},
        },
        "test",
    )
    torch.manual_seed(1)
    return Pair(LangBridge.from_recipe(recipe).eval(), encoder_half(encoder.model), lm.model)


@torch.no_grad()
def test_loss_is_the_hand_written_log_softmax(pair: Pair) -> None:
    wanted: list[float] = []
    for example in EXAMPLES:
        prompt, target = pair.by_hand(example)
        words = pair.language_model.get_input_embeddings()(torch.tensor(target))
        logits = pair.language_model(inputs_embeds=torch.cat([prompt, words])[None]).logits[0]
        rows = logits[len(prompt) - 1 : -1]
        wanted += [float(row[i] - row.exp().sum().log()) for row, i in zip(rows, target, strict=True)]
    loss = float(pair.model(pair.model.collate(EXAMPLES)))
    assert loss == pytest.approx(-sum(wanted) / len(wanted), abs=5e-6)


@torch.no_grad()
def test_alone_is_batched(pair: Pair) -> None:
    together = pair.model.log_likelihood(pair.model.collate(EXAMPLES))
    new = pair.model.generate(pair.model.collate(EXAMPLES), GREEDY)
    for row, generated, example in zip(together, new, EXAMPLES, strict=True):
        batch = pair.model.collate([example])
        alone = pair.model.log_likelihood(batch)[0]
        assert row[-len(alone) :].tolist() == pytest.approx(alone.tolist(), abs=5e-5)
        assert not row[: -len(alone)].any()
        shorter = pair.model.generate(batch, GREEDY)[0]
        assert generated[: len(shorter)].tolist() == shorter.tolist()


@torch.no_grad()
def test_generate_is_the_naive_greedy_loop(pair: Pair) -> None:
    words = pair.language_model.get_input_embeddings()
    new = pair.model.generate(pair.model.collate(EXAMPLES), GREEDY)
    for row, example in zip(new, EXAMPLES, strict=True):
        whole, _ = pair.by_hand(example)
        wanted: list[int] = []
        while len(wanted) < 8 and 2 not in wanted:
            wanted.append(int(pair.language_model(inputs_embeds=whole[None]).logits[0, -1].argmax()))
            whole = torch.cat([whole, words(torch.tensor(wanted[-1:]))])
        assert row[: len(wanted)].tolist() == wanted


@torch.no_grad()
def test_a_prompt_read_once_scores_the_same(pair: Pair) -> None:
    """Targets behind the prompt's cache, also where a sliding window is shorter than the prompt."""
    from langbridge.data.collate import pad

    prompt = pair.model.prompt(pair.model.collate([Example(source=example.source) for example in EXAMPLES]))
    ids = [pair.model.collate.target_ids(example.target) for example in EXAMPLES]
    (cached,) = pair.model.language_model.log_likelihoods(prompt, [pad(ids, 0, left=False)])
    whole = pair.model.language_model.log_likelihood(prompt, *pad(ids, 0))
    assert cached.sum(dim=1).tolist() == pytest.approx(whole.sum(dim=1).tolist(), abs=5e-5)


OPENED = [
    Example(source="hi", target="yes", instruction="say this to me: "),
    Example(source="what is the name of it?", target="no way", instruction="say this to me: "),
    Example(source="a much longer one, with more words", target="it depends", instruction="say this to me: "),
]


@pytest.mark.parametrize("examples", [OPENED, [*OPENED, *EXAMPLES]], ids=["one opening", "two openings"])
def test_an_opening_read_once_changes_nothing(pair: Pair, examples: list[Example]) -> None:
    """Loss and gradient are those of rows read in full, also where a sliding window is shorter than the opening."""
    model, batch = pair.model, pair.model.collate(examples)
    learning = list(model.bridge.parameters())
    plain = -model.log_likelihood(batch).sum() / batch.target_mask.sum()
    opened = model(batch)
    assert model.language_model.shares_opening
    assert float(opened.detach()) == pytest.approx(float(plain.detach()), abs=1e-5)
    for found, wanted in zip(torch.autograd.grad(opened, learning), torch.autograd.grad(plain, learning), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_bridge_and_nothing_else(pair: Pair) -> None:
    pair.model.train()(pair.model.collate(EXAMPLES)).backward()
    for name, parameter in pair.model.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == name.startswith("bridge."), name
    pair.model.eval().zero_grad()


@torch.no_grad()
def test_saved_is_loaded(pair: Pair, tmp_path: Path) -> None:
    batch = pair.model.collate(EXAMPLES)
    pair.model.save_pretrained(tmp_path / "run")
    again = LangBridge.from_pretrained(tmp_path / "run").eval()
    assert torch.equal(pair.model.log_likelihood(batch), again.log_likelihood(batch))


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@torch.no_grad()
def test_word_vectors_read_as_the_words(family: str, published: Callable[[str], Folder]) -> None:
    """A prompt of word vectors is the text itself: what the warm start aims at is what the LM reads.

    Hazard: Gemma scales its word embeddings while it looks them up; the stored weights are 1 / sqrt(width) too small.
    """
    folder = published(family)
    loaded = load_language_model(str(folder.path))
    ids = torch.arange(4, 24)[None]
    logits = folder.model(input_ids=ids).logits[0].log_softmax(dim=-1)
    wanted = [float(logits[position - 1, ids[0, position]]) for position in range(12, 20)]
    prompt = Embeddings(loaded.vectors[ids[:, :12]], torch.ones_like(ids[:, :12]))
    found = loaded.log_likelihood(prompt, ids[:, 12:], torch.ones_like(ids[:, 12:]))[0]
    assert found.tolist() == pytest.approx(wanted, abs=2e-5)
    weight = folder.model.get_input_embeddings().weight
    scale = weight.shape[1] ** 0.5 if family in ("Gemma2", "Gemma3") else 1.0
    assert torch.allclose(loaded.vectors, weight * scale)


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_an_encoder_is_loaded_alone(family: str, published: Callable[[str], Folder]) -> None:
    """States are those of the whole model's encoder; nothing of a decoder or a head takes memory."""
    folder = published(family)
    half = encoder_half(folder.model)
    encoder = load_encoder(str(folder.path))
    ids = torch.tensor([[1, 9, 30, 31, 32, 2], [1, 9, 2, 0, 0, 0]])
    mask = (ids != 0).long()
    wanted = half(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(encoder(ids, mask) * mask[..., None], wanted * mask[..., None])
    kept = sum(parameter.numel() for parameter in encoder.parameters())
    pooler = sum(p.numel() for name, p in half.named_parameters() if name.startswith("pooler."))
    assert kept == sum(parameter.numel() for parameter in half.parameters()) - pooler
    assert not [name for name, _ in encoder.named_parameters() if "decoder" in name or "cross" in name]
    assert kept < sum(parameter.numel() for parameter in folder.model.parameters())


def test_docs_show_this_matrix() -> None:
    """`python -c "import families; print(families.table())"` in tests/ prints the table to paste."""
    assert table() in DOCS.read_text(encoding="utf-8")
    assert {family for encoder, lm in PAIRS for family in (encoder, lm)} == {*ENCODERS, *LANGUAGE_MODELS}


def test_packed_rows_are_read_as_apart(pair: Pair) -> None:
    """Losses, log-likelihoods and gradients of records that share a row; where that cannot be, it is said."""
    model, lm = pair.model, pair.model.language_model
    batch = model.collate(EXAMPLES)
    if not lm.takes_positions:
        with pytest.raises(PretrainedError, match=r"takes no position_ids.* set training\.packing: null"):
            lm.pack(256)
        return
    wanted, apart = _learned(model, batch)
    rows: list[int] = []
    hook = lm.model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    try:
        lm.pack(256)
        rows.clear()
        found, together = _learned(model, batch)
    finally:
        hook.remove()
        lm.packing = None
    assert torch.allclose(found, wanted, atol=5e-5)
    assert torch.allclose(together, apart, atol=1e-5, rtol=1e-4)
    assert max(rows) == (len(EXAMPLES) if lm._sight < 200 else 1)  # a window is shorter than these prompts


def _learned(model: LangBridge, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return log-likelihoods, and the bridge's gradient of the loss."""
    model.zero_grad()
    with torch.no_grad():
        logs = model.log_likelihood(batch)
    model(batch).backward()
    return logs, torch.cat([p.grad.flatten() for p in model.bridge.parameters() if p.grad is not None])
