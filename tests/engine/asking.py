"""Ask an engine as a server does."""

from collections.abc import Sequence
from contextlib import aclosing

from langbridge.checkpoint import LangBridge
from langbridge.data import Example
from langbridge.engine import Engine, Part, Piece, Request
from langbridge.engine.protocol import GREEDY
from langbridge.generate import BridgedGenerator, Sampling


def parts(model: LangBridge, prompt: str) -> tuple[Part, ...]:
    """The prompt as a bridged generator gives it to the LM."""
    soft = BridgedGenerator(model).soft_prompt(prompt)
    before, after = (ids(model.lm_tokenizer) for ids in (model.template.before_ids, model.template.after_ids))
    return (tuple(before), soft, tuple(after))


def text_parts(model: LangBridge, prompt: str) -> tuple[Part, ...]:
    """The prompt as the LM itself reads it."""
    before, after = (ids(model.lm_tokenizer) for ids in (model.template.before_ids, model.template.after_ids))
    return (tuple(before), tuple(model.collate.text_ids(prompt)), tuple(after))


def request(model: LangBridge, prompt: str, sampling: Sampling = GREEDY, **given: object) -> Request:
    return Request(parts=parts(model, prompt), sampling=sampling, **given)  # type: ignore[arg-type]


async def pieces(engine: Engine, asked: Request) -> list[Piece]:
    async with aclosing(engine.generate(asked)) as stream:
        return [piece async for piece in stream]


def text_of(found: Sequence[Piece], index: int = 0) -> str:
    return "".join(piece.text for piece in found if piece.index == index)


def whole_answers(model: LangBridge, prompts: Sequence[str], tokens: int) -> list[str]:
    """What a bridged generator says to each prompt alone, blanks at the ends included."""
    generator, sampling = BridgedGenerator(model), Sampling(max_new_tokens=tokens)
    return [generator.answers([Example(source=prompt)], sampling)[0].text for prompt in prompts]
