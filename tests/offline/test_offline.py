"""Files in, files out: every line once and in its place, whatever happens in between."""

import asyncio
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from conftest import TEMPLATE, build
from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe, RoutingConfig
from langbridge.engine.transformers import TransformersEngine
from langbridge.errors import ConfigError, DataError, EngineError
from langbridge.generate import BridgedGenerator, PlainGenerator, Sampling
from langbridge.offline.answerer import Answerer, BlockingAnswerer, sampling_of
from langbridge.offline.parts import ANSWER, BAD, OpenPart, bad_path, entries, journal_path
from langbridge.offline.run import Progress, Work, answer_files
from langbridge.offline_command import described, shard_of, to_file
from langbridge.routing import RoutedGenerator

PROMPTS = ["short", "a much longer one, really", "mid size", "x", "and one more, please", "seven!", "last one"]
SAMPLING = Sampling(max_new_tokens=5)


@pytest.fixture(scope="module")
def model() -> LangBridge:
    return build()


def answerer(model: LangBridge) -> Answerer:
    return Answerer(model, TransformersEngine(model, most_rows=3), RoutingConfig(), reader="bridge")


def answer(model: LangBridge, given: Path, output: Path, told: list[str] | None = None, **work: Any) -> Progress:
    settings = {"merge": False, "sampling": SAMPLING, "made_by": {"weights": "a"}, "part_lines": 2, **work}
    asked = Work(input=given, output=output, **settings)
    return answer_files(
        asked, lambda: answerer(model), lambda progress: None, (told if told is not None else []).append
    )


def write(path: Path, prompts: list[str], **extra: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"id": number, "prompt": prompt, **extra} for number, prompt in enumerate(prompts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def lines_of(folder: Path) -> list[str]:
    """The answers of a folder, in the order of their files' names."""
    files = sorted(folder.rglob("part-*.jsonl"), key=lambda path: path.relative_to(folder).as_posix())
    return [line for path in files for line in path.read_text().splitlines()]


def test_a_file_is_answered_in_order_as_the_generator_does(model: LangBridge, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", PROMPTS, more=[1, {"a": None}]), tmp_path / "out.jsonl"
    done = answer(model, given, out, merge=True)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = BridgedGenerator(model).generate(PROMPTS, SAMPLING)
    assert [record["completion"] for record in records] == wanted
    assert [record["id"] for record in records] == list(range(len(PROMPTS)))
    assert all(record["more"] == [1, {"a": None}] for record in records)
    assert done.lines == len(PROMPTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_the_plain_lm_answers_and_routes_are_told(model: LangBridge, tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", PROMPTS)
    work = {"input": given, "merge": True, "sampling": SAMPLING, "made_by": {}}
    routing = RoutingConfig(kind="by_language", languages=("en",))
    how: dict[str, tuple[RoutingConfig, str | None]] = {"plain": (RoutingConfig(), "plain"), "routed": (routing, None)}
    for name, (config, reader) in how.items():

        def make(config: RoutingConfig = config, reader: str | None = reader) -> Answerer:
            return Answerer(model, TransformersEngine(model), config, reader=reader)

        answer_files(Work(output=tmp_path / name, **work), make, lambda progress: None, lambda complaint: None)  # type: ignore[arg-type]
    plain, routed = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("plain", "routed")
    )
    assert [record["completion"] for record in plain] == PlainGenerator(model).generate(PROMPTS, SAMPLING)
    assert not any("route" in record for record in plain)
    generator = RoutedGenerator(model, routing)
    assert [record["completion"] for record in routed] == generator.generate(PROMPTS, SAMPLING)
    assert [record["route"] for record in routed] == [route.record() for route in generator.routes(PROMPTS)]


def test_shards_of_a_folder_are_the_whole(model: LangBridge, tmp_path: Path) -> None:
    """Whatever machine answers a part, and however often it is asked, sampled answers are the same."""
    given = tmp_path / "in"
    write(given / "a.jsonl", PROMPTS)
    write(given / "deep" / "b.jsonl", PROMPTS[:3])
    drawn = {"sampling": Sampling(max_new_tokens=5, temperature=1.5, seed=3)}
    whole = answer(model, given, tmp_path / "whole", **drawn)
    shares = [answer(model, given, tmp_path / "shared", shard=(number, 3), **drawn).lines for number in (2, 0, 1)]
    assert whole.lines == sum(shares) == 10
    assert all(shares)
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "shared")
    assert [json.loads(line)["prompt"] for line in lines_of(tmp_path / "whole")] == PROMPTS + PROMPTS[:3]
    assert len({json.loads(line)["completion"] for line in lines_of(tmp_path / "whole")}) > 7
    assert answer(model, given, tmp_path / "shared", shard=(1, 3), **drawn).lines == 0


def test_new_files_of_a_folder_are_answered_and_old_ones_are_not_again(model: LangBridge, tmp_path: Path) -> None:
    write(tmp_path / "in" / "b.jsonl", PROMPTS[:3])
    assert answer(model, tmp_path / "in", tmp_path / "out").lines == 3
    write(tmp_path / "in" / "a.jsonl", PROMPTS[:2])
    assert answer(model, tmp_path / "in", tmp_path / "out").lines == 2
    assert len(lines_of(tmp_path / "out")) == 5


def test_bad_lines_are_refused_or_skipped_and_reported(model: LangBridge, tmp_path: Path) -> None:
    given = tmp_path / "in.jsonl"
    long = json.dumps({"prompt": "x" * 300})
    given.write_text('{"prompt": "one"}\n{"prompt": \n\n' + long + '\n{"prompt": " "}\n{"prompt": "two"}\n')
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"in\.jsonl, line 2: not JSON"):
        answer(model, given, out, merge=True)
    assert not out.exists()
    told: list[str] = []
    done = answer(model, given, out, told, merge=True, on_bad="skip")
    assert [json.loads(line)["prompt"] for line in out.read_text().splitlines()] == ["one", "two"]
    bad = [json.loads(line) for line in (tmp_path / "out.bad").read_text().splitlines()]
    assert [(one["file"], one["line"]) for one in bad] == [("in.jsonl", number) for number in (2, 4, 5)]
    assert sorted(one["error"] for one in bad) == sorted(told)
    assert "302 encoder tokens" in bad[1]["error"]
    assert "empty" in bad[2]["error"]
    assert (done.lines, done.bad) == (2, 3) or (done.lines, done.bad) == (1, 3)  # `one` may have been kept


def test_other_settings_and_other_input_are_refused(model: LangBridge, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out"
    answer(model, given, out)
    for change in ({"made_by": {"weights": "b"}}, {"part_lines": 3}, {"sampling": Sampling(max_new_tokens=6)}):
        with pytest.raises(DataError, match="was begun with other settings: "):
            answer(model, given, out, **change)
    write(given, PROMPTS[::-1])
    with pytest.raises(DataError, match="was made from another input: beginning was"):
        answer(model, given, out)


def test_two_processes_do_not_answer_the_same_share(model: LangBridge, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".0-of-1.lock"), pytest.raises(DataError, match="another process is answering shard 0-of-1"):
        answer(model, given, out)
    assert answer(model, given, out).lines == len(PROMPTS)


def test_a_breakdown_names_the_line_and_the_same_command_goes_on(model: LangBridge, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", PROMPTS), tmp_path / "out"

    def closed() -> Answerer:
        engine = TransformersEngine(model)
        with ThreadPoolExecutor() as aside:  # this thread's event loop is busy
            aside.submit(asyncio.run, engine.close()).result()
        return Answerer(model, engine, RoutingConfig(), reader="bridge")

    work = Work(input=given, output=out, merge=False, sampling=SAMPLING, made_by={"weights": "a"}, part_lines=2)
    with pytest.raises(EngineError, match=r"in\.jsonl, line \d: the engine is closed.*the same command goes on"):
        answer_files(work, closed, lambda progress: None, lambda complaint: None)
    assert answer(model, given, out).lines == len(PROMPTS)
    assert len(lines_of(out)) == len(PROMPTS)


def test_a_journal_that_was_torn_anywhere_is_gone_on_with(tmp_path: Path) -> None:
    """Cut at every byte, it holds a beginning of what was kept; what is added then makes the same part."""
    every = [(3, ANSWER, '{"prompt": "é"}'), (1, BAD, "wrong"), (2, ANSWER, "x\u2028y"), (4, ANSWER, "last")]
    path = tmp_path / "part-00000000.jsonl"

    def fill(part: OpenPart) -> None:
        for entry in every:
            if entry[0] not in part.done:
                part.add(*entry)

    part = OpenPart(path, "w")
    fill(part)
    part.close()
    whole = journal_path(path, "w").read_bytes()
    part.finish()
    wanted = path.read_bytes(), bad_path(path).read_bytes()
    assert wanted[0].decode() == 'x\u2028y\n{"prompt": "é"}\nlast\n'
    for length in range(len(whole) + 1):
        path.unlink()
        bad_path(path).unlink()
        journal_path(path, "w").write_bytes(whole[:length])
        part = OpenPart(path, "w")
        assert len(part.done) == whole[:length].count(b"\n")
        fill(part)
        part.finish()
        assert (path.read_bytes(), bad_path(path).read_bytes()) == wanted
    assert not list(entries(journal_path(path, "w")))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_before_every_step_on_the_disk(tmp_path: Path) -> None:
    """SIGKILL before each write, rename and removal in turn: the second run makes the same files, and asks no more
    than what was not kept."""
    tests = Path(__file__).parents[1]
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(tmp_path)]
    path = os.pathsep.join([str(tests), *sys.path])
    found = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=900, check=False
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout) > 20


def test_a_killed_command_goes_on(saved: dict[str, Path], tmp_path: Path) -> None:
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": TEMPLATE},
    }
    LangBridge.from_recipe(Recipe.of(fields, "test")).save_pretrained(tmp_path / "run")
    given, out = write(tmp_path / "in.jsonl", PROMPTS * 60), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "langbridge", "generate", str(tmp_path / "run"), "--input", str(given)]
    command += ["--output", str(out), "--max-new-tokens", "30", "--part-lines", "200"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    parts = tmp_path / "out.jsonl.parts"
    while not any(len(list(entries(path))) > 3 for path in parts.glob(".*.journal")):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not out.exists()
    kept = sum(len(list(entries(path))) for path in parts.glob(".*.journal"))
    kept += len(lines_of(parts))
    found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    assert f"{len(PROMPTS) * 60 - kept:,} lines answered" in found.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS * 60
    assert len({(record["prompt"], record["completion"]) for record in records}) == len(PROMPTS)
    assert not parts.exists()


def test_memory_does_not_grow_with_the_input(model: LangBridge, tmp_path: Path) -> None:
    def peak(count: int) -> int:
        given = tmp_path / f"{count}.jsonl"
        given.write_text("".join('\n{"prompt": ""}\n' for _ in range(count // 2)))
        told = 0

        def tell(complaint: str) -> None:
            nonlocal told
            told += 1

        work = Work(
            input=given,
            output=tmp_path / str(count),
            merge=False,
            sampling=SAMPLING,
            made_by={},
            part_lines=100,
            on_bad="skip",
        )
        tracemalloc.start()
        answer_files(work, never, lambda progress: None, tell)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert told == count // 2
        return found

    def never() -> Answerer:
        return answerer(model)

    peak(400)  # what is imported and remembered once
    assert peak(8000) < 1.5 * peak(800) + 100_000


def test_many_prompts_at_once_for_callers_without_a_loop(model: LangBridge) -> None:
    with BlockingAnswerer(answerer(model)) as asked:
        found = asked.answers([*PROMPTS, ""], [SAMPLING] * (len(PROMPTS) + 1))
        assert [one.completion for one in found[:-1]] == BridgedGenerator(model).generate(PROMPTS, SAMPLING)  # type: ignore[union-attr]
        assert "empty" in str(found[-1])


def test_each_line_has_a_seed_of_its_own() -> None:
    drawn = Sampling(temperature=1.0, seed=5)
    seeds = {sampling_of(drawn, name, number).seed for name in ("a", "b") for number in range(50)}
    assert len(seeds) == 100
    assert sampling_of(drawn, "a", 1) == sampling_of(drawn, "a", 1)
    assert sampling_of(Sampling(seed=5), "a", 1).seed == 5


def test_nonsense_is_refused(tmp_path: Path) -> None:
    given = write(tmp_path / "in" / "x.jsonl", ["x"])
    nonsense: list[tuple[dict[str, Any], str]] = [
        ({"part_lines": 0}, "part_lines >= 1"),
        ({"shard": (2, 2)}, "0 <= i < n"),
        ({"on_bad": "eat"}, "refuse or skip"),
        ({"merge": True, "shard": (0, 2)}, "need a folder as output"),
        ({"output": given.parent / "out", "input": given.parent}, "lies inside"),
    ]
    for fields, complaint in nonsense:
        usual = {"input": given, "output": tmp_path / "out", "merge": False, "sampling": SAMPLING, "made_by": {}}
        with pytest.raises(ConfigError, match=complaint):
            Work(**{**usual, **fields})
    with pytest.raises(ConfigError, match="not packed"):
        to_file(given, tmp_path / "out.jsonl.gz", 1)
    for text in ("1", "2/2", "-1/2", "a/b"):
        with pytest.raises(ConfigError, match="wanted i/n"):
            shard_of(text)


def test_progress_says_speed_and_what_is_left() -> None:
    progress = Progress(total=1000, position=400, passed=200, lines=50)
    progress.began -= 100
    wanted: Callable[[int], float | None] = progress.remaining
    assert wanted(1) == pytest.approx(300, rel=0.01)
    assert wanted(2) == pytest.approx(150, rel=0.01)
    assert described(progress, 1).startswith("50 lines, 0.5/s, 0:0")
    assert Progress(total=10).remaining(1) is None
