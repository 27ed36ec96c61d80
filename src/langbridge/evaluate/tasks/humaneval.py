"""HumanEval with translated prompts: 164 Python functions to finish, graded by running their tests (pass@1, greedy).

The prompt's four spaces are tabs and its ends are bare, as in the LangBridge evaluation: tabs are what an encoder with
whitespace tokens keeps. The program is the prompt as published and the answer, blanks included, the answer's leading
tabs turned back into four spaces. `humaneval_anon`: functions are called `func`, so that names tell nothing.
Folder: `HumanEval.jsonl.gz`, `mt/humaneval_<language>.json` and `mt/humaneval_<language>_anon.json`.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from langbridge.errors import DataError, SandboxError
from langbridge.evaluate.sources import Record, files, hub, json_lines
from langbridge.evaluate.task import Grade, Output, Setup, Task, TaskExample
from langbridge.generate import Sampling
from langbridge.languages import LANGUAGES, PIVOT

HUB = "openai/openai_humaneval"
FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
STOPS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "```")
INDENT = "    "
NAMES = {language.name.lower(): code for code, language in LANGUAGES.items()}
LEADING_TABS = re.compile(r"^\t+", re.MULTILINE)
ADDRESS = re.compile(r"\b0x[0-9a-f]+")
ALSO_NAMED = """

_check = check


def check(candidate):
    globals()[{name!r}] = candidate
    _check(candidate)
"""
"""Behind tests that call the function by its own name, too."""


@dataclass(frozen=True, kw_only=True)
class HumanEval(Task):
    """Functions under their own names."""

    setup: Setup
    name: ClassVar[str] = "humaneval"
    grades: ClassVar[tuple[str, ...]] = ("exact", "indented")
    measure: ClassVar[str] = "pass@1"
    aligned: ClassVar[bool] = True
    suffix: ClassVar[str] = ""
    """Of the names of files."""

    def __post_init__(self) -> None:
        if self.setup.sandbox is None:
            raise SandboxError(f"{self.name} runs programs that a model wrote: say --allow-code-execution.")

    def languages(self) -> list[str]:
        """Return the languages found."""
        if self.setup.data is None:
            return [PIVOT]
        paths = files(self.setup.data / "mt", f"humaneval_*{self.suffix}.json", "humaneval_<language>.json files")
        names = [path.stem.removeprefix("humaneval_").removesuffix(self.suffix) for path in paths]
        return sorted(NAMES[name] for name in names if name in NAMES)

    def examples(self, language: str) -> list[TaskExample]:
        """Return the functions to finish."""
        return [self._example(row) for row in self._rows(language)]

    def sampling(self, language: str) -> Sampling:
        """Return the paper's decoding."""
        return Sampling(max_new_tokens=512, stop=STOPS)

    def settings(self) -> dict[str, Any]:
        """Tell what programs may use, which decides verdicts too."""
        assert self.setup.sandbox is not None
        limits, isolated = self.setup.sandbox.limits, self.setup.sandbox.isolated
        return {"cpu_seconds": limits.cpu_seconds, "memory": limits.memory, "isolated": isolated}

    def grade(self, example: TaskExample, output: Output) -> dict[str, Grade]:
        """Run the program with its tests: with the answer as it is, and with its first line indented."""
        written = LEADING_TABS.sub(lambda tabs: INDENT * len(tabs.group()), output.text)
        exact = self._run(example, written)
        mended = indented(written)
        return {"exact": exact, "indented": exact if mended == written else self._run(example, mended)}

    def _run(self, example: TaskExample, answer: str) -> Grade:
        assert self.setup.sandbox is not None
        between = "" if answer.startswith("\n") else "\n"
        found = self.setup.sandbox.judge(
            example.detail("prompt").rstrip() + between + answer,
            example.detail("tests"),
            example.detail("entry_point"),
            setup=example.detail("setup"),
        )
        detail = ADDRESS.sub("0x", found.detail)  # the same program is to leave the same record
        return Grade(f"{found.verdict}: {detail}" if detail else found.verdict, found.passed)

    def _example(self, row: Record) -> TaskExample:
        original = self._originals.get(row["task_id"])
        if original is None:
            raise DataError(f"{self.name}: {row['task_id']} is not in HumanEval.jsonl.gz, where its tests are.")
        details = {
            "prompt": row["prompt"],
            "entry_point": row["entry_point"],
            "setup": original["prompt"],
            "tests": original["test"] + ALSO_NAMED.format(name=original["entry_point"]),
        }
        return TaskExample(
            id=row["task_id"],
            prompt=row["prompt"].replace(INDENT, "\t").strip(),
            reference=row["canonical_solution"],
            details=tuple(details.items()),
        )

    def _rows(self, language: str) -> list[Record]:
        if self.setup.data is None:
            return list(self._originals.values())
        name = LANGUAGES[language].name.lower()
        return json_lines(self.setup.data / "mt" / f"humaneval_{name}{self.suffix}.json", FIELDS)

    @cached_property
    def _originals(self) -> dict[str, Record]:
        """The English problems, whose prompts hold the functions that tests use."""
        folder = self.setup.data
        rows = hub(HUB, None, "test") if folder is None else json_lines(folder / "HumanEval.jsonl.gz", FIELDS)
        return {row["task_id"]: row for row in rows}


@dataclass(frozen=True, kw_only=True)
class HumanEvalAnonymous(HumanEval):
    """Functions called `func`."""

    name: ClassVar[str] = "humaneval_anon"
    suffix: ClassVar[str] = "_anon"

    def languages(self) -> list[str]:
        """Return the languages found."""
        if self.setup.data is None:
            raise DataError("humaneval_anon is not on the hub: name a folder with --data.")
        return super().languages()


def indented(answer: str) -> str:
    """Return an answer whose first line stands as deep as a function's body, where it is flat but for the blanks.

    Tokenizers that write a blank in front of words lose one, or all, at the start of a text.
    """
    first, newline, rest = answer.partition("\n")
    bare = first.lstrip(" ")
    flat = len(first) - len(bare) < len(INDENT)
    if not bare or not flat or bare.startswith(("def ", "class ", "import ", "from ", "@")):
        return answer
    return INDENT + bare + newline + rest
