"""The reference engine on the embedded real models."""

import asyncio

import pytest
from asking import parts, pieces, text_of

from langbridge.data import Example
from langbridge.data.parallel import sanity_set
from langbridge.engine import Request, Scoring
from langbridge.engine.transformers import TransformersEngine
from langbridge.generate import BridgedGenerator, Sampling
from langbridge.routing import load

pytestmark = [pytest.mark.embedded, pytest.mark.usefixtures("embedded")]


def test_greedy_answers_and_scores_are_the_generators() -> None:
    """In company, and joining one after another, as `langbridge generate` answers and scores them alone."""
    generator: BridgedGenerator = load("embedded", routing="off")
    model, sampling = generator.model, Sampling(max_new_tokens=10)
    sources = sanity_set().sources
    prompts = [sources[language][number] for number, language in enumerate(("tel", "swh", "kat", "fra", "tha"))]
    wanted = [generator.answers([Example(source=prompt)], sampling)[0].text for prompt in prompts]
    total = generator.scores([Example(source=prompts[0], target="It is raining.")])[0].log_likelihood
    target = tuple(model.lm_tokenizer("It is raining.", add_special_tokens=False).input_ids)
    asked = [Request(parts=parts(model, prompt), sampling=sampling) for prompt in prompts]

    async def ask() -> None:
        engine = TransformersEngine(model, most_rows=3)
        found = await asyncio.gather(*(pieces(engine, one) for one in asked))
        assert [text_of(one) for one in found] == wanted
        scored = await engine.score(Scoring(parts=asked[0].parts, target=target))
        assert sum(token.logprob for token in scored) == pytest.approx(total, abs=1e-3)
        await engine.close()

    asyncio.run(ask())
