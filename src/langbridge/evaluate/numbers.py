"""The number that an answer to a word problem ends in: the published rule and a corrected one."""

import re

from langbridge.evaluate.task import Grade

COMMA = re.compile(r"(?<=\d),(?=\d)")
UNSIGNED = re.compile(r"\d+(?:\.\d+)?")
SIGNED = re.compile(r"(?<![\d.])[-\u2212]?\d+(?:\.\d+)?|\d+(?:\.\d+)?")
"""A minus sign behind a digit is a subtraction, not a sign."""
MARKER = re.compile(r"the answer is|final answer|answer\s*:|####|\\boxed", re.IGNORECASE)
"""What an answer announces its result with."""
RULES = ("paper", "corrected")


def number(text: str) -> float | None:
    """Return a reference answer as a number."""
    try:
        return float(COMMA.sub("", text.strip()))
    except ValueError:
        return None


def paper(output: str) -> str:
    """Return what the published evaluation takes: the last number, its sign ignored; 0 where there is none."""
    found = UNSIGNED.findall(COMMA.sub("", output))
    return found[-1] if found else "0.0"


def corrected(output: str) -> str | None:
    """Return the first number behind the last announcement of a result, else the last one; with its sign."""
    text = COMMA.sub("", output)
    for announced in reversed(list(MARKER.finditer(text))):
        line = text[announced.end() :].split("\n")[0]
        if behind := SIGNED.search(line):
            return behind.group().replace("\u2212", "-")
    found = SIGNED.findall(text)
    return found[-1].replace("\u2212", "-") if found else None


def grade(output: str, reference: str) -> dict[str, Grade]:
    """Return both verdicts on an output."""
    wanted = number(reference)
    return {
        rule: _verdict(answer, wanted) for rule, answer in zip(RULES, (paper(output), corrected(output)), strict=True)
    }


def _verdict(answer: str | None, wanted: float | None) -> Grade:
    return Grade(answer, answer is not None and wanted is not None and float(answer) == wanted)
