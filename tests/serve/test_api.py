"""What the server answers, against the generators; asked by an unmodified OpenAI client and by plain HTTP."""

import base64
import itertools
import struct
from collections.abc import Iterator

import openai
import pytest
import torch
from serving import Running, chatting, events, running

from conftest import build
from langbridge.config import RoutingConfig
from langbridge.data import Example
from langbridge.generate import BridgedGenerator, PlainGenerator, Sampling
from langbridge.prompt import PromptTemplate

EIGHT = Sampling(max_new_tokens=8)
KEY = "a key that is long enough"


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    with running(build()) as found:
        yield found


@pytest.fixture(scope="module")
def chat() -> Iterator[Running]:
    with running(chatting(build())) as found:
        yield found


@pytest.fixture
def client(chat: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{chat.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def answer(generator: BridgedGenerator, prompt: str, sampling: Sampling = EIGHT) -> str:
    return generator.answers([Example(source=prompt)], sampling)[0].text


def test_completions_are_the_generators_answers(tiny: Running) -> None:
    model = tiny.service.model
    assert tiny.complete("who?")["choices"][0]["text"] == answer(BridgedGenerator(model), "who?")
    assert tiny.complete("who?", model="tiny:bridge")["choices"][0]["text"] == answer(BridgedGenerator(model), "who?")
    plain = tiny.complete("who?", model="tiny:plain")["choices"][0]
    assert plain["text"] == answer(PlainGenerator(model), "who?")
    raw = tiny.complete("who?", model="tiny:raw")["choices"][0]["text"]
    ids = torch.tensor([model.lm_tokenizer("who?", add_special_tokens=False).input_ids])
    new = model.language_model.model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)
    assert raw == model.lm_tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)


def test_token_ids_are_prompts_too(tiny: Running) -> None:
    ids = tiny.service.model.lm_tokenizer("who?", add_special_tokens=False).input_ids
    raw = tiny.complete(ids, model="tiny:raw")["choices"][0]["text"]
    assert raw == tiny.complete("who?", model="tiny:raw")["choices"][0]["text"]
    several = tiny.complete([ids, ids[:2]], model="tiny:raw")["choices"]
    assert several[0]["text"] == raw
    assert [choice["index"] for choice in several] == [0, 1]


def test_usage_counts_both_kinds_of_tokens(tiny: Running) -> None:
    model = tiny.service.model
    found = tiny.complete("who?")
    assert found["usage"]["encoder_tokens"] == len(model.collate.source_ids("who?"))
    template = model.template.text.replace("{prompt}", "")
    assert found["usage"]["prompt_tokens"] == len(template) + found["usage"]["encoder_tokens"] + 1  # and the boundary
    assert found["usage"]["completion_tokens"] <= 8
    assert found["langbridge"]["prompts"] == [{"reader": "bridge"}]
    assert tiny.complete("who?", model="tiny:plain")["usage"]["encoder_tokens"] == 0


def test_n_prompts_and_seeds(tiny: Running) -> None:
    hot = {"temperature": 1.5, "n": 2, "seed": 7, "max_tokens": 12}
    found = tiny.complete(["who?", "what?"], **hot)["choices"]
    assert [choice["index"] for choice in found] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in found]
    assert len(set(texts)) == 4
    assert [choice["text"] for choice in tiny.complete(["who?", "what?"], **hot)["choices"]] == texts
    other = tiny.complete(["who?", "what?"], **{**hot, "seed": 8})["choices"]
    assert [choice["text"] for choice in other] != texts


def test_stop_strings(tiny: Running) -> None:
    whole = tiny.complete("who?")["choices"][0]["text"]
    found = tiny.complete("who?", stop=["never", whole[4:6]])["choices"][0]
    assert found["text"] == whole[: whole.index(whole[4:6])]
    assert found["finish_reason"] == "stop"


def test_echo_scores_a_plain_prompt(tiny: Running) -> None:
    """What lm-eval reads: log-likelihoods of the prompt's own tokens, the first of which has none."""
    found = tiny.complete("which? this", model="tiny:raw", echo=True, logprobs=2, max_tokens=1)["choices"][0]
    tokens = found["logprobs"]
    model = tiny.service.model
    ids = torch.tensor([model.lm_tokenizer("which? this", add_special_tokens=False).input_ids])
    with torch.no_grad():
        logs = model.language_model.model(ids).logits[0].log_softmax(-1)
    wanted = [float(logs[i, token]) for i, token in enumerate(ids[0, 1:])]
    assert tokens["token_logprobs"][0] is None
    assert tokens["token_logprobs"][1:-1] == pytest.approx(wanted, abs=1e-4)
    assert "".join(tokens["tokens"][:-1]) == "which? this"
    assert tokens["text_offset"][:3] == [0, 1, 2]
    assert max(tokens["top_logprobs"][4].values()) == pytest.approx(float(logs[3].max()), abs=1e-4)
    assert found["text"].startswith("which? this")
    scored = tiny.complete("which? this", model="tiny:raw", echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert len(scored["logprobs"]["tokens"]) == len("which? this")
    assert scored["text"] == "which? this"


def test_echo_scores_an_answer_behind_the_bridge(tiny: Running) -> None:
    """Behind the border stands what the LM says; its scores are the bridged and the plain generator's."""
    model = tiny.service.model
    for name, generator in (("tiny", BridgedGenerator(model)), ("tiny:plain", PlainGenerator(model))):
        fields = {"model": name, "echo": True, "logprobs": 1, "max_tokens": 1}
        logprobs = tiny.complete("which?<|answer|>this", **fields)["choices"][0]["logprobs"]
        assert logprobs["tokens"][:-1] == [*"which?", *"this"]
        total = sum(logprobs["token_logprobs"][6:-1])
        assert total == pytest.approx(generator.score("which?", ["this"])[0], abs=1e-3)
    assert logprobs["token_logprobs"][0] is not None  # the template stands in front of a plain prompt
    status, found = tiny.post(
        "/v1/completions", {"model": "tiny", "prompt": "who?", "echo": True, "logprobs": 1, "max_tokens": 1}
    )
    assert status == 400
    assert "<|answer|>" in found["error"]["message"]


def test_streams_say_the_same(chat: Running) -> None:
    whole = chat.complete("who?<|answer|>I", n=2, logprobs=1, echo=True, temperature=1.0, seed=5)
    fields = {"model": "tiny", "prompt": "who?<|answer|>I", "max_tokens": 8, "temperature": 1.0, "seed": 5, "n": 2}
    status, stream = chat.post(
        "/v1/completions",
        {**fields, "echo": True, "logprobs": 1, "stream": True, "stream_options": {"include_usage": True}},
    )
    assert status == 200
    found = events(stream)
    for index in range(2):
        choices = [c for event in found for c in event["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in choices) == whole["choices"][index]["text"]
        for name in ("tokens", "token_logprobs", "text_offset"):
            joined = list(itertools.chain.from_iterable(c["logprobs"][name] for c in choices))
            wanted = whole["choices"][index]["logprobs"][name]
            assert joined == (pytest.approx(wanted, abs=1e-4) if name == "token_logprobs" else wanted)
        assert choices[-1]["finish_reason"] == whole["choices"][index]["finish_reason"]
    assert found[-1]["usage"] == whole["usage"]


def test_openai_client(client: openai.OpenAI, chat: Running) -> None:
    model = chat.service.model
    assert [one.id for one in client.models.list()] == ["tiny", "tiny:bridge", "tiny:plain", "tiny:raw"]
    assert client.models.retrieve("tiny:plain").id == "tiny:plain"
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "who?"}], "temperature": 0, "max_tokens": 8}
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    said = answer(BridgedGenerator(model), "who?")
    assert found.choices[0].message.content == said
    assert len(found.choices[0].logprobs.content[0].top_logprobs) == 2
    assert found.usage.prompt_tokens + found.usage.completion_tokens == found.usage.total_tokens
    stream = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.delta.content or "" for one in stream for c in one.choices) == said
    assert stream[0].choices[0].delta.role == "assistant"
    assert stream[-1].usage == found.usage
    completion = client.completions.create(model="tiny:plain", prompt="who?", temperature=0, max_tokens=8)
    assert completion.choices[0].text == answer(PlainGenerator(model), "who?")
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.completions.create(model="other", prompt="who?")
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        client.completions.create(model="tiny", prompt="who?", presence_penalty=1.0)


def test_embeddings_are_the_encoders_pooled_states(client: openai.OpenAI, chat: Running) -> None:
    model = chat.service.model
    found = client.embeddings.create(model="tiny", input=["who?", "what is it?"])
    assert found.usage.prompt_tokens == len("who?") + len("what is it?") + 4
    for text, one in zip(["who?", "what is it?"], found.data, strict=True):
        ids = torch.tensor([model.collate.source_ids(text)])
        with torch.no_grad():
            mean = model.encoder(ids, torch.ones_like(ids))[0].mean(dim=0)
        assert one.embedding == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    packed = client.embeddings.create(model="tiny", input="who?", encoding_format="base64").data[0].embedding
    values = struct.unpack(f"<{model.encoder.dim}f", base64.b64decode(packed))
    assert list(values) == pytest.approx(found.data[0].embedding, abs=1e-6)


def test_conversations_are_soft_prompts_among_the_lms_own_tokens(chat: Running) -> None:
    """System and earlier user turns through the encoder, template and assistant turns as LM tokens."""
    model = chat.service.model
    generator, lm = BridgedGenerator(model), model.language_model

    def words(text: str) -> torch.Tensor:
        ids = torch.tensor([model.lm_tokenizer(text, add_special_tokens=False).input_ids])
        return lm.embed(ids, torch.ones_like(ids)).vectors[0]

    wanted = torch.cat(
        [
            words("system: "),
            generator.soft_prompt("be short"),
            words("\nuser: "),
            generator.soft_prompt("who?"),
            words("\nassistant: me\nuser: "),
            generator.soft_prompt("why?"),
            words("\nassistant: so"),
        ]
    )[None]
    new = lm.model.generate(
        inputs_embeds=wanted,
        attention_mask=torch.ones(wanted.shape[:2], dtype=torch.int64),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=2,
    )
    turns = ("system", "be short"), ("user", "who?"), ("assistant", "me"), ("user", "why?"), ("assistant", "so")
    found = chat.chat(*turns)
    assert found["choices"][0]["message"]["content"] == model.lm_tokenizer.decode(new[0], skip_special_tokens=True)
    assert found["usage"]["prompt_tokens"] == wanted.shape[1]
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "short"}]
    split = {"messages": [{"role": "developer", "content": parts}, *({"role": r, "content": t} for r, t in turns[1:])]}
    assert chat.chat(**split)["choices"] == found["choices"]


def test_runs_with_a_template_of_their_own_repeat_it(tiny: Running) -> None:
    model = tiny.service.model
    one = tiny.chat(("user", "who?"))["choices"][0]["message"]["content"]
    assert one == answer(BridgedGenerator(model), "who?")
    longer = tiny.chat(("system", "x"), ("user", "who?"), ("assistant", "me"), ("user", "why?"))
    soft = sum(len(model.collate.source_ids(text)) + 1 for text in ("x", "who?", "why?"))
    assert longer["usage"]["prompt_tokens"] == 2 * len("ask: \nsay: ") + len("me") + soft


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([("assistant", "me")], "must end with a user's turn"),
        ([("user", "who?"), ("system", "x")], "must end with a user's turn"),
        ([("user", " ")], "message 0 (user) is empty"),
        ([("assistant", "me"), ("user", "who?")], "refuses this conversation: no"),
        ([("user", "x" * 300)], "302 encoder tokens, more than the 200"),
    ],
)
def test_conversations_that_cannot_be(chat: Running, turns: list[tuple[str, str]], complaint: str) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    status, found = chat.post("/v1/chat/completions", {"model": "tiny", "messages": messages})
    assert status == 400
    assert complaint in found["error"]["message"]


def test_control_tokens_in_a_users_text_stay_text(chat: Running) -> None:
    """A user cannot close the turn: `</s>` in a plain prompt is four characters, in a template one token."""
    length = chat.chat(("user", "a</s>b"), model="tiny:plain")["usage"]["prompt_tokens"]
    assert length == chat.chat(("user", "a<_s>b"), model="tiny:plain")["usage"]["prompt_tokens"]
    said = chat.chat(("user", "a"), ("assistant", "</s>"), ("user", "b"))["usage"]["prompt_tokens"]
    assert said == chat.chat(("user", "a"), ("assistant", "<_s>"), ("user", "b"))["usage"]["prompt_tokens"]


def test_routing_sends_each_text_its_way() -> None:
    english, swahili = "What is the capital of the country?", "Mji mkuu wa nchi hii ni upi jamani?"
    with running(chatting(build()), routing=RoutingConfig(kind="by_language")) as server:
        generators = PlainGenerator(server.service.model), BridgedGenerator(server.service.model)
        for text, generator, to in zip((english, swahili), generators, ("plain", "bridge"), strict=True):
            found = server.chat(("user", text))
            assert found["choices"][0]["message"]["content"] == answer(generator, text)
            assert found["langbridge"]["prompts"][0]["reader"] == to
            assert found["langbridge"]["prompts"][0]["route"]["to"] == to
            assert "route" not in server.chat(("user", text), model="tiny:bridge")["langbridge"]["prompts"][0]
        mixed = server.chat(("user", english), ("assistant", "a"), ("user", swahili))
        assert mixed["langbridge"]["prompts"][0]["reader"] == "mixed"
        status, heard = server.post("/v1/explain", {"model": "tiny", "input": swahili})
        assert (status, heard["route"]["to"]) == (200, "bridge")


def test_routing_by_likelihood_asks_the_engine() -> None:
    from langbridge.routing import RoutedGenerator

    model = build()
    prompts = ["who?", "what is it?", "zzzz"]
    effort = [route.measure for route in RoutedGenerator(model, _by_likelihood(1.0)).routes(prompts)]
    threshold = sorted(effort)[1]
    with running(model, routing=_by_likelihood(threshold + 1e-4)) as server:
        found = [server.complete(prompt)["langbridge"]["prompts"][0] for prompt in prompts]
    assert [one["route"]["measure"] for one in found] == pytest.approx(effort, abs=1e-3)
    assert [one["reader"] for one in found].count("plain") == 2


def _by_likelihood(threshold: float) -> RoutingConfig:
    return RoutingConfig(kind="by_likelihood", likelihood=threshold)


def test_explain_names_what_the_lm_hears(tiny: Running) -> None:
    status, found = tiny.post("/v1/explain", {"model": "tiny", "input": "who?", "nearest": 2})
    assert status == 200
    assert [one["encoder_token"] for one in found["data"]] == ["<s>", *"who?", "</s>", "(boundary)"]
    assert all(len(one["nearest"]) == 2 for one in found["data"])
    assert found["route"] is None


def test_a_base_models_template_is_no_template() -> None:
    model = build(template="none")
    assert PromptTemplate.of("none", model.lm_tokenizer) == model.template
    with running(model) as server:
        assert server.complete("who?")["choices"][0]["text"] == answer(BridgedGenerator(model), "who?")
        logprobs = server.complete("ab", model="tiny:plain", echo=True, logprobs=1)["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"][0] is None
