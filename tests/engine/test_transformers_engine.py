"""The reference engine against the bridged generator, on tiny models of every LM family."""

import asyncio
import math
from contextlib import aclosing

import pytest
import torch
from asking import parts, pieces, request, text_of, text_parts, whole_answers

import families
from conftest import TEMPLATE, build, letters_tokenizer
from langbridge.checkpoint import LangBridge
from langbridge.config import EncoderConfig, LanguageModelConfig, PromptConfig, Recipe
from langbridge.data import Example
from langbridge.engine import Request, Scoring
from langbridge.engine.transformers import TransformersEngine
from langbridge.errors import EngineError, PromptError
from langbridge.generate import BridgedGenerator, PlainGenerator, Sampling, cut
from langbridge.model import Encoder, LanguageModel

PROMPTS = ["short", "a much longer one, really", "mid size", "x", "and one more, please"]


def of_family(lm: str) -> LangBridge:
    recipe = Recipe(
        encoder=EncoderConfig(name="tiny"),
        language_model=LanguageModelConfig(name="tiny"),
        prompt=PromptConfig(template=TEMPLATE),
    )
    encoder = families.encoder_half(families.make(families.ENCODERS["BERT"]))
    language_model = families.make(families.LANGUAGE_MODELS[lm])
    tokenizers = letters_tokenizer(encloses=True), letters_tokenizer(encloses=False)
    torch.manual_seed(1)
    return LangBridge(Encoder(encoder), LanguageModel(language_model), *tokenizers, recipe).eval()


@pytest.mark.parametrize("lm", families.LANGUAGE_MODELS)
def test_greedy_alone_and_in_company_is_the_bridged_generator(lm: str) -> None:
    """Rows that join and leave at different steps, with and without a shared opening, change nothing."""
    model = of_family(lm)
    lengths = [3 + 7 * number for number in range(len(PROMPTS))]
    wanted = [whole_answers(model, [prompt], n)[0] for prompt, n in zip(PROMPTS, lengths, strict=True)]

    async def ask() -> None:
        engine = TransformersEngine(model, most_rows=3)
        asked = [request(model, prompt, Sampling(max_new_tokens=n)) for prompt, n in zip(PROMPTS, lengths, strict=True)]
        for one, answer in zip(asked, wanted, strict=True):
            assert text_of(await pieces(engine, one)) == answer
        for order in (asked, asked[::-1]):
            found = await asyncio.gather(*(pieces(engine, one) for one in order))
            assert [text_of(one) for one in found] == (wanted if order is asked else wanted[::-1])
        assert engine.load().running == engine.load().waiting == 0
        await engine.close()

    asyncio.run(ask())


def test_every_completion_ends_once_and_says_why(one: LangBridge) -> None:
    async def ask() -> None:
        engine = TransformersEngine(one)
        found = await pieces(engine, request(one, "who?", Sampling(max_new_tokens=20, temperature=1.0, seed=3), n=3))
        assert {piece.index for piece in found} == {0, 1, 2}
        for index in range(3):
            row = [piece for piece in found if piece.index == index]
            assert [piece.finish is None for piece in row] == [True] * (len(row) - 1) + [False]
            assert row[-1].finish == ("length" if len(row) == 20 else "stop")
        assert len({text_of(found, index) for index in range(3)}) == 3
        await engine.close()

    asyncio.run(ask())


def test_the_end_token_can_be_passed(one: LangBridge) -> None:
    """Measurements need answers of one length, whatever the LM wants to say."""
    prompt = parts(one, "who?")

    async def ask() -> None:
        engine = TransformersEngine(one)
        seeds = [Sampling(max_new_tokens=40, temperature=2.0, seed=seed) for seed in range(12)]
        short = await asyncio.gather(*(pieces(engine, Request(parts=prompt, sampling=s)) for s in seeds))
        assert any(len(found) < 40 and found[-1].token.id == 2 for found in short)
        long = await asyncio.gather(*(pieces(engine, Request(parts=prompt, sampling=s, past_end=True)) for s in seeds))
        assert {len(found) for found in long} == {40}
        await engine.close()

    asyncio.run(ask())


def test_a_seed_draws_the_same_in_company(one: LangBridge) -> None:
    sampling = Sampling(max_new_tokens=16, temperature=1.5, top_p=0.9, top_k=20, seed=11)

    async def ask() -> None:
        engine = TransformersEngine(one)
        alone = text_of(await pieces(engine, request(one, "who?", sampling)))
        others = [request(one, prompt, Sampling(max_new_tokens=9, temperature=1.0, seed=5)) for prompt in PROMPTS]
        found = await asyncio.gather(
            *(pieces(engine, one) for one in others), pieces(engine, request(one, "who?", sampling))
        )
        assert text_of(found[-1]) == alone
        other = Sampling(max_new_tokens=16, temperature=1.5, top_p=0.9, top_k=20, seed=12)
        assert text_of(await pieces(engine, request(one, "who?", other))) != alone
        await engine.close()

    asyncio.run(ask())


def test_stop_strings_end_and_do_not_leak(one: LangBridge) -> None:
    whole = whole_answers(one, ["who?"], 12)[0]
    stop = whole[5:9]

    async def ask() -> None:
        engine = TransformersEngine(one)
        found = await pieces(engine, request(one, "who?", Sampling(max_new_tokens=12, stop=(stop, "never"))))
        assert text_of(found) == whole[: whole.index(stop)]
        assert text_of(found).strip() == cut(whole, (stop,))
        assert found[-1].finish == "stop"
        assert len(found) < 12
        await engine.close()

    asyncio.run(ask())


def test_log_probabilities_are_the_lms_own(one: LangBridge) -> None:
    """Scoring the answer's tokens gives what generating them told, whatever the temperature."""
    prompt = parts(one, "who?")

    async def ask() -> None:
        engine = TransformersEngine(one)
        sampling = Sampling(max_new_tokens=6, temperature=0.7, seed=2)
        found = await pieces(engine, Request(parts=prompt, sampling=sampling, logprobs=3, past_end=True))
        ids = tuple(piece.token.id for piece in found)
        scored = await engine.score(Scoring(parts=prompt, target=ids, logprobs=3))
        for piece, token in zip(found, scored, strict=True):
            assert piece.token.id == token.id
            assert piece.token.logprob == pytest.approx(token.logprob, abs=1e-4)
            assert [i for i, _ in piece.token.likeliest] == [i for i, _ in token.likeliest]
            assert len(token.likeliest) == 3
        silent = await pieces(engine, Request(parts=prompt, sampling=sampling))
        assert all(math.isnan(piece.token.logprob) for piece in silent)
        await engine.close()

    asyncio.run(ask())


def test_scores_are_those_of_the_generators(tiny: LangBridge) -> None:
    wanted = BridgedGenerator(tiny).scores([Example(source="which?", target="that one")])[0].log_likelihood
    plain = PlainGenerator(tiny).scores([Example(source="which?", target="that one")])[0].log_likelihood
    target = tuple(tiny.lm_tokenizer("that one", add_special_tokens=False).input_ids)

    async def ask() -> None:
        engine = TransformersEngine(tiny)
        for prompt, total in ((parts(tiny, "which?"), wanted), (text_parts(tiny, "which?"), plain)):
            found = await engine.score(Scoring(parts=prompt, target=target))
            assert sum(token.logprob for token in found) == pytest.approx(total, abs=1e-3)
        await engine.close()

    asyncio.run(ask())


def test_a_closed_stream_frees_its_row(one: LangBridge) -> None:
    async def ask() -> None:
        engine = TransformersEngine(one, most_rows=1)
        endless = request(one, "who?", Sampling(max_new_tokens=200), past_end=True)
        async with aclosing(engine.generate(endless)) as stream:
            await anext(stream)
            waits = asyncio.create_task(pieces(engine, request(one, "x", Sampling(max_new_tokens=2))))
            await anext(stream)
            assert engine.load().running == 1
        assert len(await waits) == 2
        running = asyncio.create_task(pieces(engine, endless))
        while not engine.load().running:
            await asyncio.sleep(0)
        running.cancel()
        assert len(await pieces(engine, request(one, "x", Sampling(max_new_tokens=2)))) == 2
        await engine.close()

    asyncio.run(ask())


def test_what_breaks_down_loses_only_its_own(one: LangBridge) -> None:
    """A prompt whose vectors do not fit fails; whoever is running meanwhile is not disturbed."""
    wanted = whole_answers(one, ["who?"], 30)[0]

    async def ask() -> None:
        engine = TransformersEngine(one)
        good = asyncio.create_task(pieces(engine, request(one, "who?", Sampling(max_new_tokens=30))))
        template = tuple(one.template.before_ids(one.lm_tokenizer))
        broken = Request(parts=(template, torch.zeros(3, 7)))
        for _ in range(3):
            with pytest.raises(EngineError, match="broke down"):
                await pieces(engine, broken)
        with pytest.raises(EngineError, match="broke down"):
            await engine.score(Scoring(parts=broken.parts, target=(1,)))
        assert text_of(await good) == wanted
        assert text_of(await pieces(engine, request(one, "who?", Sampling(max_new_tokens=30)))) == wanted
        await engine.close()

    asyncio.run(ask())


def test_closing_tells_everybody(one: LangBridge) -> None:
    async def ask() -> None:
        engine = TransformersEngine(one, most_rows=2)
        endless = request(one, "who?", Sampling(max_new_tokens=200), past_end=True)
        tasks = [asyncio.create_task(pieces(engine, endless)) for _ in range(5)]
        while engine.load().running < 2:
            await asyncio.sleep(0)
        await engine.close()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, EngineError) for one in found)
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            await pieces(engine, endless)

    asyncio.run(ask())


def test_over_long_and_empty_prompts_are_refused(one: LangBridge) -> None:
    async def ask() -> None:
        engine = TransformersEngine(one)
        with pytest.raises(PromptError, match="more than the LM's 256"):
            await pieces(engine, request(one, "who?", Sampling(max_new_tokens=250)))
        await engine.close()

    asyncio.run(ask())
    for nonsense in ({"parts": ((), ())}, {"parts": ((1,),), "n": 0}, {"parts": ((1,),), "logprobs": 21}):
        with pytest.raises(PromptError):
            Request(**nonsense)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="no token to score"):
        Scoring(parts=((1,),), target=())


def test_a_full_cache_lets_rows_wait(one: LangBridge) -> None:
    """Rows x columns are bounded, and everybody is still answered."""
    wanted = whole_answers(one, PROMPTS, 12)

    async def ask() -> None:
        engine = TransformersEngine(one, positions=120)
        found = await asyncio.gather(
            *(pieces(engine, request(one, prompt, Sampling(max_new_tokens=12))) for prompt in PROMPTS)
        )
        assert [text_of(one) for one in found] == wanted
        await engine.close()

    asyncio.run(ask())


def test_rows_with_and_without_adapters_run_side_by_side() -> None:
    from langbridge.config import LoraConfig

    base = build()
    recipe = Recipe(
        encoder=base.recipe.encoder,
        language_model=base.recipe.language_model,
        prompt=PromptConfig(template=TEMPLATE),
        lora=LoraConfig(parts=("language_model",)),
    )
    model = LangBridge(base.encoder, base.language_model, base.encoder_tokenizer, base.lm_tokenizer, recipe).eval()
    torch.manual_seed(0)
    for name, weight in model.language_model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.5)
    bridged = whole_answers(model, ["who?"], 10)[0]
    plain = PlainGenerator(model).answers([Example(source="who?")], Sampling(max_new_tokens=10))[0].text
    assert bridged != plain

    async def ask() -> None:
        engine = TransformersEngine(model)
        sampling = Sampling(max_new_tokens=10)
        alone = Request(parts=text_parts(model, "who?"), sampling=sampling, alone=True)
        found = await asyncio.gather(*(pieces(engine, one) for one in (request(model, "who?", sampling), alone) * 2))
        assert [text_of(one) for one in found] == [bridged, plain] * 2
        await engine.close()

    asyncio.run(ask())
