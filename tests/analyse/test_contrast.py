"""The contrast pulls paraphrases together, and reads the pairs out of P3 as it is laid out."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from langbridge.analyse.contrast import TEMPERATURE, Contrast, contrast, soft_prompts
from langbridge.analyse.p3 import PLACE, paraphrases, read_p3
from langbridge.checkpoint import LangBridge
from langbridge.model import Embeddings

PAIRS = [("one cat", "a cat alone"), ("two dogs run", "dogs are running"), ("tea is hot", "hot tea")]


def test_the_contrast_is_that_of_a_loop() -> None:
    torch.manual_seed(0)
    lengths = [(2, 4), (3, 1), (4, 2)]
    rows = [[torch.randn(length, 5) for length in pair] for pair in lengths]
    mean = torch.cat([vectors for pair in rows for vectors in pair]).mean(dim=0)
    near = torch.zeros(3, 3)
    for i in range(3):
        for j in range(3):
            ours, theirs = normalize(rows[i][0] - mean, dim=-1), normalize(rows[j][1] - mean, dim=-1)
            near[i, j] = torch.stack([max(vector @ other for other in theirs) for vector in ours]).mean()
    wanted = -torch.log_softmax(near / TEMPERATURE, dim=-1).diagonal().mean()
    sides = []
    for side in range(2):
        padded, mask = torch.randn(3, 4, 5), torch.zeros(3, 4, dtype=torch.int64)
        for row, pair in enumerate(rows):
            padded[row, 4 - len(pair[side]) :], mask[row, 4 - len(pair[side]) :] = pair[side], 1
        sides.append(Embeddings(padded, mask))
    assert contrast(*sides).item() == pytest.approx(wanted.item(), abs=1e-5)


def test_steps_bring_paraphrases_together_and_move_nothing_but_the_bridge(tiny_run: Path) -> None:
    model = LangBridge.from_pretrained(tiny_run)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    callback = Contrast(PAIRS, weight=1.0, size=3)

    def loss() -> float:
        with torch.no_grad():
            return contrast(*[soft_prompts(model, side) for side in zip(*PAIRS, strict=True)]).item()

    before = loss()
    for step in range(20):
        optimizer.zero_grad()
        callback.on_pre_optimizer_step(SimpleNamespace(seed=1), SimpleNamespace(global_step=step), None, model=model)
        optimizer.step()
    assert loss() < 0.7 * before
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert all(parameter.grad is None for parameter in frozen)


def test_pairs_are_read_from_p3(tmp_path: Path) -> None:
    asked = "Question: Does Sentence 1 paraphrase Sentence 2? Yes or No?"
    records = [
        ("paws_labeled_final_Concatenation", f"Sentence 1: A b .\nSentence 2: B a .\n{asked}", "Yes"),
        ("paws_labeled_final_Concatenation_no_label", f"Sentence 1: A b .\nSentence 2: B a .\n{asked}", "Yes"),
        ("paws_labeled_final_Meaning", f"Sentence 1: C d .\nSentence 2: D c .\n{asked}", "No"),
        ("glue_mrpc_generate_paraphrase", "Paraphrase the following sentence: E : f .", "F e ."),
        ("glue_mrpc_generate_sentence", "Generate a sentence that means the same thing as this one: G .", " H ."),
        ("ag_news_classify", "Paraphrase the sentence: not this", "News"),
    ]
    (tmp_path / PLACE).parent.mkdir()
    with gzip.open(tmp_path / PLACE, "wt", encoding="utf-8") as file:
        for task, source, target in records:
            file.write(json.dumps({"task": task, "source": source, "target": target}) + "\n")
    assert paraphrases(read_p3(tmp_path)) == [("A b .", "B a ."), ("E : f .", "F e ."), ("G .", "H .")]
