"""Answer a folder of JSON lines on all machines of a Ray cluster: Ray Data reads, spreads and writes, we answer.

    ray start --head                        # once, and `ray start --address ...` on every other machine
    python examples/ray_generate.py RUN INPUT OUTPUT [--engine vllm] [--workers 8] [--rows 256] [--gpus 1]

INPUT is a folder of .jsonl files with a "prompt" in each line; OUTPUT gets files with the same records, a "completion"
in each. A worker is a process with a model and an engine of its own. A line that is no prompt gets an "error" in place
of a "completion". Ray asks for a batch again when a machine is lost, but an interrupted job begins anew: where answers
must survive that, run `langbridge generate --shard i/n` on every machine instead.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.data.block import BlockAccessor
from ray.data.datasource import BlockBasedFileDatasink

from langbridge.errors import DataError, LangBridgeError
from langbridge.generate import Sampling
from langbridge.offline.answerer import Answered, BlockingAnswerer, sampling_of
from langbridge.offline.lines import Line, Prompt, Source, prompt_of
from langbridge.offline_command import Answering, make_answerer


class Worker:
    """A model and its engine, in a process of Ray's."""

    def __init__(self, asked: Answering) -> None:
        self._sampling = asked.sampling
        self._answerer = BlockingAnswerer(make_answerer(asked))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Return the records that a batch of lines becomes."""
        prompts = [asked(line) for line in batch["text"]]
        good = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        samplings = [sampling_of(self._sampling, prompt.opening) for prompt in good]
        found = iter(self._answerer.answers([prompt.text for prompt in good], samplings))
        return {"record": [record for prompt in prompts if (record := recorded(prompt, found))]}


def asked(line: str) -> Prompt | DataError | None:
    """Return what a line asks, or what is wrong with it; None for a blank one."""
    try:
        return prompt_of(Source(Path("input"), "input.jsonl"), Line(1, str(line).encode(), True, 0))
    except DataError as error:
        return error


def recorded(prompt: Prompt | DataError | None, found: Iterator[Answered | Exception]) -> str:
    """Return the record of a line; the next answer belongs to it where it is a prompt."""
    if not isinstance(prompt, Prompt):
        return "" if prompt is None else json.dumps({"error": str(prompt).partition(": ")[2]})
    answer = next(found)
    if isinstance(answer, Answered):
        return prompt.record(**answer.fields())
    if isinstance(answer, LangBridgeError):
        return prompt.record(error=str(answer))
    raise answer


class Lines(BlockBasedFileDatasink):
    """Writes records as they are, a line each."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, file_format="jsonl")

    def write_block_to_file(self, block: BlockAccessor, file: Any) -> None:
        """Write a block's records."""
        for row in block.iter_rows(public_row_format=True):
            file.write((row["record"] + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the pipeline."""
    parser = argparse.ArgumentParser(description="Answer JSON lines on a Ray cluster.")
    for name in ("run", "input", "output"):
        parser.add_argument(name)
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--engine-set", action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    given = parser.parse_args(arguments)
    asked = Answering(
        run=given.run,
        sampling=Sampling(max_new_tokens=given.max_new_tokens),
        rows=given.rows,
        engine=given.engine,
        engine_set=given.engine_set,
    )
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    lines = ray.data.read_text(str(Path(given.input).resolve()), file_extensions=["jsonl"], drop_empty_lines=True)
    answers = lines.map_batches(
        Worker,
        fn_constructor_args=(asked,),
        batch_size=4 * given.rows,
        compute=ray.data.ActorPoolStrategy(size=given.workers),
        num_gpus=given.gpus or None,
    )
    answers.write_datasink(Lines(str(Path(given.output).resolve())))


if __name__ == "__main__":
    main()
