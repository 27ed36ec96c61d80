"""lm-eval on a run: what it asks is what the generators say, and what our own runner records, item by item."""

import json
import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import TEMPLATE
from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data.examples import Example
from langbridge.errors import ConfigError, PromptError
from langbridge.evaluate.run import Request, answer
from langbridge.evaluate.systems import BRIDGE, PLAIN_LM, System
from langbridge.evaluate.tasks import open_task
from langbridge.generate import BridgedGenerator, PlainGenerator, Sampling
from langbridge.languages import LANGUAGES, our_code

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'langbridge-lm[lm-eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from langbridge.evaluate.harness import TASKS, LangBridgeLM, before, sampling_of


def asked(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.fixture(params=[BridgedGenerator, PlainGenerator])
def generator(request: pytest.FixtureRequest, one: LangBridge) -> BridgedGenerator:
    found: BridgedGenerator = request.param(one, batch_size=3)
    return found


def test_likelihoods_are_the_generators_scores(generator: BridgedGenerator) -> None:
    pairs = [("who is it?", " me"), ("what", "A."), ("who is it?", "B."), ("a longer context, as it were", " you two")]
    found = LangBridgeLM(generator).loglikelihood([asked("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    wanted = generator.scores([Example(source=context, target=continuation) for context, continuation in pairs])
    assert [total for total, _ in found] == pytest.approx([score.log_likelihood for score in wanted], abs=1e-4)


def test_greedy_is_what_generation_says(generator: BridgedGenerator) -> None:
    """The continuation that greedy decoding gives is greedy; with its last letter changed, it is not."""
    prompts = [f"{letter}?" for letter in string.ascii_letters]
    answers = generator.answers([Example(source=prompt) for prompt in prompts], Sampling(max_new_tokens=3))
    # a token is a letter, shown between blanks; control tokens are not shown
    prompt, said = next((p, a.text[::2]) for p, a in zip(prompts, answers, strict=True) if len(a.text) == 5)
    other = said[:-1] + ("x" if said[-1] != "x" else "y")
    requests = [asked("loglikelihood", prompt, text) for text in (said, other)]
    found = LangBridgeLM(generator).loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_generation_is_the_generators_own_cut_at_stops_with_its_blanks(generator: BridgedGenerator) -> None:
    prompts = ["who?", "what is this, then?", "why"]
    answers = generator.answers([Example(source=prompt) for prompt in prompts], Sampling(max_new_tokens=9))
    stop = answers[1].text[4]
    settings = {"until": [stop], "max_gen_toks": 9, "do_sample": False}
    requests = [asked("generate_until", prompt, settings) for prompt in prompts]
    found = LangBridgeLM(generator).generate_until(requests, disable_tqdm=True)
    assert found == [before(answer.text, [stop]) for answer in answers]
    assert found[1] == answers[1].text.split(stop)[0]


def test_settings_of_generation() -> None:
    assert sampling_of({"until": "x", "max_gen_toks": 7, "temperature": 0.0}) == Sampling(max_new_tokens=7, stop=("x",))
    warm = sampling_of({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 5})
    assert warm == Sampling(max_new_tokens=256, temperature=0.5, top_p=0.9, top_k=5)
    assert sampling_of({"do_sample": False, "temperature": 0.5}).temperature == 0
    with pytest.raises(ConfigError, match="'num_beams' is not known"):
        sampling_of({"num_beams": 4})


def test_a_text_alone_is_the_plain_lms_and_refused_through_a_bridge(one: LangBridge) -> None:
    """In windows of the LM's length, each token is predicted once: shown on a text longer than the LM reads at once."""
    lm = LangBridgeLM(PlainGenerator(one, batch_size=2))
    short, long = "some text", "letters and more, " * 20
    found = lm.loglikelihood_rolling([asked("loglikelihood_rolling", text) for text in (short, long)])
    model, tokenizer = one.language_model.model, one.lm_tokenizer
    ids = tokenizer(short, add_special_tokens=False, return_tensors="pt").input_ids
    start = ids.new_tensor([[tokenizer.bos_token_id]])
    logits = model(input_ids=ids.new_tensor([[*start[0].tolist(), *ids[0].tolist()]])).logits[0, :-1]
    wanted = logits.log_softmax(-1).gather(1, ids[0][:, None]).sum()
    assert found[0] == pytest.approx(float(wanted.detach()), abs=1e-3)
    assert len(tokenizer(long).input_ids) > one.language_model.longest
    assert found[1] < found[0]
    assert lm.loglikelihood([asked("loglikelihood", "", short)])[0][0] == pytest.approx(found[0], abs=1e-4)
    bridged = LangBridgeLM(BridgedGenerator(one))
    with pytest.raises(PromptError, match="plain=true"):
        bridged.loglikelihood_rolling([asked("loglikelihood_rolling", short)])
    with pytest.raises(PromptError, match="plain=true"):
        bridged.loglikelihood([asked("loglikelihood", " ", short)])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("plain=true", "names no run"),
        ("run=x,pretrained=y", "has 'pretrained'; known: dtype, plain, routing, run"),
        ("run=x,plain=perhaps", "wanted true or false"),
    ],
)
def test_nonsense_model_arguments_are_refused(arguments: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        LangBridgeLM.create_from_arg_string(arguments)


def test_nonsense_batch_sizes_and_chat_templates_are_refused(one: LangBridge) -> None:
    with pytest.raises(ConfigError, match="wanted a number, or auto"):
        LangBridgeLM.create_from_arg_string("run=x", {"batch_size": "many"})
    with pytest.raises(ConfigError, match="--apply_chat_template"):
        LangBridgeLM(BridgedGenerator(one)).apply_chat_template([])


def folder_of_data(folder: Path) -> Path:
    """A few made-up items in the benchmarks' own layouts."""
    for name in ("mgsm", "msvamp", "xcopa"):
        (folder / name).mkdir()
    problems = [("Two and two?", 4), ('A "quoted" 1,000?', 1000), ("What is three less five?", -2)]
    lines = "".join(f"{question}\t{result}\n" for question, result in problems)
    (folder / "mgsm" / "mgsm_en.tsv").write_text(lines)
    records = [{"m_query": question, "response": result} for question, result in problems]
    (folder / "msvamp" / "test_English.json").write_text("\n".join(map(json.dumps, records)))
    choices = [
        {"premise": "It rained.", "choice1": "We got wet.", "choice2": "It was dry.", "question": "effect", "label": 0},
        {"premise": "I was late.", "choice1": "I ran.", "choice2": "I overslept.", "question": "cause", "label": 1},
    ]
    (folder / "xcopa" / "test.en.jsonl").write_text("\n".join(map(json.dumps, choices)))
    return folder


def samples(generator: BridgedGenerator, names: list[str], data: Path, limit: int | None, most: int) -> dict[str, Any]:
    """What lm-eval asked, got and judged, by task."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"data": str(data)})
    found = simple_evaluate(
        model=LangBridgeLM(generator),
        tasks=names,
        task_manager=manager,
        limit=limit,
        gen_kwargs={"max_gen_toks": most},
        bootstrap_iters=0,
        log_samples=True,
    )
    parts: dict[str, Any] = found["samples"]
    return parts


def compare(generator: BridgedGenerator, data: Path, out: Path, short: str, limit: int | None, most: int) -> None:
    """Hold lm-eval's samples against the records of our own runner."""
    code = our_code(short)
    system = System(PLAIN_LM if isinstance(generator, PlainGenerator) else BRIDGE, generator)
    names = [f"langbridge_{name}_{short}" for name in ("mgsm", "msvamp", "xcopa")]
    theirs = samples(generator, names, data, limit, most)
    for name in ("mgsm", "msvamp", "xcopa"):
        task = open_task(name, data)
        request = Request(languages=(code,), limit=limit, max_new_tokens=most)
        records = answer(task, system, request, out / name, {}).records[code]
        items = sorted(theirs[f"langbridge_{name}_{short}"], key=lambda item: int(item["doc_id"]))
        assert len(items) == len(records) > 1
        for item, record in zip(items, records, strict=True):
            assert item["arguments"][0][0] == record["prompt"]
            if name == "xcopa":
                totals = [float(part[0][0]) for part in item["resps"]]
                assert totals == pytest.approx([score for score, _ in record["scores"]], abs=1e-3)
                assert item["acc"] == record["grades"]["likelihood"]["right"]
            else:
                assert item["resps"] == [[record["output"]]]
                assert {rule: bool(item[rule]) for rule in task.grades} == {
                    rule: grade["right"] for rule, grade in record["grades"].items()
                }


def test_our_tasks_agree_item_by_item(generator: BridgedGenerator, tmp_path: Path) -> None:
    """Prompts, outputs, likelihoods and verdicts of lm-eval are those of our own runner."""
    (tmp_path / "data").mkdir()
    compare(generator, folder_of_data(tmp_path / "data"), tmp_path / "out", "en", None, 6)


@pytest.mark.embedded
@pytest.mark.usefixtures("embedded")
def test_the_embedded_pair_agrees_item_by_item(benchmarks: Path, tmp_path: Path) -> None:
    from langbridge.routing import load

    compare(load("embedded", batch_size=2), benchmarks, tmp_path, "sw", 2, 8)


def test_there_is_a_task_file_for_each_language_that_stops_where_our_task_does() -> None:
    """Of all languages with published data; the words that end an answer are those of our tasks."""
    for name in ("mgsm", "msvamp", "xcopa"):
        task = open_task(name)
        files = {path.stem: yaml.safe_load(path.read_text()) for path in (TASKS / name).glob("*.yaml")}
        assert sorted(files) == sorted(LANGUAGES[code].short for code in task.languages())
        for short, fields in files.items():
            code = our_code(short)
            assert fields["task"] == f"langbridge_{name}_{short}"
            assert fields["dataset_kwargs"] == {"task": name, "language": code}
            if name != "xcopa":
                assert sampling_of(fields["generation_kwargs"]) == task.sampling(code)


def test_the_command_runs_lm_eval(saved: dict[str, Path], tmp_path: Path) -> None:
    """From a run folder, offline, to a table."""
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": TEMPLATE},
    }
    LangBridge.from_recipe(Recipe.of(fields, "test")).save_pretrained(tmp_path / "run")
    (tmp_path / "data").mkdir()
    folder_of_data(tmp_path / "data")
    environment = {
        **os.environ,
        "LANGBRIDGE_DATA": str(tmp_path / "data"),
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "home"),
    }

    whole = [sys.executable, "-m", "langbridge", "lm-eval", "--model", "langbridge", "--tasks", "langbridge_xcopa_en"]
    whole += ["--model_args", f"run={tmp_path / 'run'},plain=true"]
    found = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "|langbridge_xcopa_en|" in found.stdout
