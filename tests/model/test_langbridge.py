"""The figure, on every tiny encoder with every tiny LM, against hand-written oracles."""

import pytest
import torch

from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.model import Embeddings, join

PROMPTS = ["hi", "what is the name of it?", "a much longer one, with more words"]
TARGETS = ["yes", "no way", "it depends"]


def examples() -> list[Example]:
    return [Example(source=s, target=t) for s, t in zip(PROMPTS, TARGETS, strict=True)]


def by_hand(model: LangBridge, example: Example) -> tuple[torch.Tensor, list[int]]:
    """One prompt as LM vectors (length, lm_dim), and its target ids, with nothing of ours but the weights."""
    words = model.language_model.model.get_input_embeddings()
    tokenizer = model.lm_tokenizer
    ids = torch.tensor([model.encoder_tokenizer(example.source).input_ids])
    states = model.encoder.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
    soft = states @ model.bridge.linear.weight.T + model.bridge.linear.bias
    before, after = (
        words(torch.tensor(tokenizer(part, add_special_tokens=False).input_ids))
        for part in (model.template.before, model.template.after)
    )
    target = [*tokenizer(example.target, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return torch.cat([before, soft, model.bridge.boundary[None], after]), target


def test_loss_is_the_hand_written_log_softmax(tiny: LangBridge) -> None:
    total, tokens = 0.0, 0
    with torch.no_grad():
        for example in examples():
            prompt, target = by_hand(tiny, example)
            words = tiny.language_model.model.get_input_embeddings()(torch.tensor(target))
            logits = tiny.language_model.model(inputs_embeds=torch.cat([prompt, words])[None]).logits[0]
            log_probabilities = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            total -= sum(float(row[i]) for row, i in zip(log_probabilities, target, strict=True))
            tokens += len(target)
        loss = tiny(tiny.collate(examples()))
    assert float(loss) == pytest.approx(total / tokens, abs=2e-6)


def test_generate_is_the_naive_greedy_loop(tiny: LangBridge) -> None:
    """Hazard: newer `generate` injected positions that collapsed the soft prompt; a naive loop is the oracle."""
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)
    batch = tiny.collate([Example(source=prompt) for prompt in PROMPTS])
    new = tiny.generate(batch, config)
    for row, prompt in zip(new, PROMPTS, strict=True):
        with torch.no_grad():
            whole, _ = by_hand(tiny, Example(source=prompt, target="x"))
            wanted: list[int] = []
            while len(wanted) < 8 and 2 not in wanted:
                logits = tiny.language_model.model(inputs_embeds=whole[None]).logits[0, -1]
                wanted.append(int(logits.argmax()))
                word = tiny.language_model.model.get_input_embeddings()(torch.tensor([wanted[-1]]))
                whole = torch.cat([whole, word])
        assert row[: len(wanted)].tolist() == wanted


def test_padding_changes_no_loss(tiny: LangBridge) -> None:
    """Hazard: the encoder's right padding lay between soft prompt and target, and positions counted it."""
    with torch.no_grad():
        together = tiny.log_likelihood(tiny.collate(examples()))
        for row, example in zip(together, examples(), strict=True):
            alone = tiny.log_likelihood(tiny.collate([example]))
            assert float(row.sum()) / alone.shape[1] == pytest.approx(float(alone.mean()), abs=2e-6, rel=2e-6)
            assert row[-alone.shape[1] :].tolist() == pytest.approx(alone[0].tolist(), abs=2e-5)


def test_targets_that_share_a_prompt_score_the_same(tiny: LangBridge) -> None:
    """Reading the prompt once and going on from its cache equals reading it again for each target."""
    from langbridge.data.collate import pad

    prompt = tiny.prompt(tiny.collate([Example(source=prompt) for prompt in PROMPTS]))
    rows = [[tiny.collate.target_ids(text) for text in order] for order in (TARGETS, TARGETS[::-1])]
    with torch.no_grad():
        shared = tiny.language_model.log_likelihoods(prompt, [pad(row, 0, left=False) for row in rows])
        for found, row in zip(shared, rows, strict=True):
            alone = tiny.language_model.log_likelihood(prompt, *pad(row, 0))
            assert found.sum(dim=1).tolist() == pytest.approx(alone.sum(dim=1).tolist(), abs=5e-5)


def test_instructions_of_different_length_share_a_batch(tiny: LangBridge) -> None:
    mixed = [Example(source="hi", target="yes", instruction=text) for text in ("", "repeat: ", "say it again: ")]
    with torch.no_grad():
        together = tiny.log_likelihood(tiny.collate(mixed)).sum(dim=1)
        alone = [float(tiny.log_likelihood(tiny.collate([example])).sum()) for example in mixed]
    assert together.tolist() == pytest.approx(alone, abs=2e-5)
    assert len(set(alone)) == 3


def test_only_the_bridge_learns(tiny: LangBridge) -> None:
    """Frozen weights are bit-identical after a step, have no gradient, and the bridge moved."""
    before = {name: value.clone() for name, value in tiny.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in tiny.parameters() if p.requires_grad], lr=1e-2)
    tiny.train()
    tiny(tiny.collate(examples())).backward()
    optimizer.step()
    for name, parameter in tiny.named_parameters():
        assert (parameter.grad is not None) == name.startswith("bridge."), name
    for name, value in tiny.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("bridge."), name


def test_training_mode_has_no_dropout_in_frozen_parts(tiny: LangBridge) -> None:
    batch = tiny.collate(examples())
    with torch.no_grad():
        assert float(tiny.train()(batch)) == float(tiny.train()(batch)) == float(tiny.eval()(batch))


def test_one_example_can_be_overfitted(tiny: LangBridge) -> None:
    batch = tiny.collate(examples()[:1])
    optimizer = torch.optim.AdamW([p for p in tiny.parameters() if p.requires_grad], lr=3e-2)
    first = tiny(batch).item()
    for _ in range(150):
        optimizer.zero_grad()
        tiny(batch).backward()
        optimizer.step()
    assert tiny(batch).item() < 0.5 * first


def test_join_moves_padding_left_and_keeps_the_order() -> None:
    left = Embeddings(torch.tensor([[[1.0], [0.0]], [[2.0], [3.0]]]), torch.tensor([[1, 0], [1, 1]]))
    right = Embeddings(torch.tensor([[[0.0], [4.0]], [[5.0], [0.0]]]), torch.tensor([[0, 1], [1, 0]]))
    joined = join(left, right)
    assert joined.mask.tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    assert joined.vectors[0, 2:, 0].tolist() == [1, 4]
    assert joined.vectors[1, 1:, 0].tolist() == [2, 3, 5]


def test_soft_prompt_ends_with_the_boundary(tiny: LangBridge) -> None:
    batch = tiny.collate([Example(source=prompt) for prompt in PROMPTS])
    with torch.no_grad():
        soft = tiny.soft_prompt(batch.encoder_ids, batch.encoder_mask)
    assert torch.equal(soft.vectors[:, -1], tiny.bridge.boundary.detach().expand(3, -1))
    assert soft.mask.sum(dim=1).tolist() == [len(prompt) + 3 for prompt in PROMPTS]  # <s>, </s>, boundary


def test_half_precision_models_meet_an_fp32_bridge(tiny: LangBridge) -> None:
    """A bfloat16 LM refused the fp32 soft prompt: the bridge stays fp32 and speaks each neighbour's type."""
    from transformers import GenerationConfig

    exact = tiny(tiny.collate(examples())).item()
    tiny.encoder.bfloat16()
    tiny.language_model.bfloat16()
    loss = tiny(tiny.collate(examples()))
    loss.backward()
    assert loss.item() == pytest.approx(exact, rel=0.1)
    assert tiny.bridge.linear.weight.grad is not None
    assert tiny.bridge.linear.weight.grad.dtype == torch.float32
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=2)
    assert tiny.generate(tiny.collate([Example(source="hi")]), config).shape[0] == 1
