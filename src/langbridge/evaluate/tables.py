"""Results of benchmarks as tables: on a terminal, in Markdown, in LaTeX. Every mean has its interval beside it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from langbridge.evaluate.published import Published, published
from langbridge.evaluate.resources import resource_class, resource_source
from langbridge.evaluate.result import Result
from langbridge.languages import name_of

NAMES = {
    "bridge": "bridge",
    "plain": "plain LM",
    "original": "LM on the English original",
    "random": "random bridge",
}
Figure = dict[str, Any]
"""`value` and `ci95`."""


@dataclass(frozen=True)
class Column:
    """One system of one run: figures by row (language, or group of languages)."""

    run: str
    system: str
    figures: dict[str, Figure]
    p_values: dict[str, float]
    """Of the bridge against this baseline."""

    @property
    def title(self) -> str:
        """What stands above it."""
        return f"{NAMES.get(self.system, self.system)} ({self.run})"


def benchmarks(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Return results of benchmarks by task, several runs of one task side by side."""
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.get("kind") == "benchmark":
            split = result.get("split", "test")
            label = result["task"] if split == "test" else f"{result['task']} ({split})"
            found.setdefault(label, []).append(result)
    return found


def columns(results: Sequence[Result], rule: str) -> list[Column]:
    """Return what is set side by side: each run's bridge and baselines, the same baseline of two runs once."""
    found: list[Column] = []
    seen = set()
    for result in results:
        rows = {**result["languages"], **result["averages"]}
        for system in result["systems"]:
            figures = {row: cells["accuracy"][system][rule] for row, cells in rows.items()}
            key = (system, result["run"]["language_model"], str(figures))
            if system in ("plain", "original") and key in seen:
                continue
            seen.add(key)
            p_values = {
                row: cells["p_value"][system][rule] for row, cells in rows.items() if system in cells["p_value"]
            }
            found.append(Column(result["run"]["name"], system, figures, p_values))
    return found


def ordered(results: Sequence[Result]) -> list[str]:
    """Return the languages of all results, those with most resources first, then by name."""
    codes = {code for result in results for code in result["languages"]}
    return sorted(codes, key=lambda code: (-(resource_class(code) or 0), name_of(code)))


def averages(results: Sequence[Result]) -> list[str]:
    """Return the names of the groups of languages, in order."""
    return list(dict.fromkeys(name for result in results for name in result["averages"]))


def size(results: Sequence[Result]) -> str:
    """Return how many items each language has."""
    counts = {row["examples"] for result in results for row in result["languages"].values()}
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def percent(figure: Figure | None) -> str:
    """Return a figure in per cent with its interval."""
    if figure is None:
        return ""
    low, high = figure["ci95"]
    return f"{100 * figure['value']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def chance(p_value: float) -> str:
    """Return a p value as it is written; a permutation test of 2,000 rounds knows no smaller one than 0.0005."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def print_benchmark(result: Result) -> None:
    """Print one result to the terminal."""
    console = Console()
    for rule in result["rules"]:
        found = columns([result], rule)
        titles = [f"{NAMES.get(c.system, c.system)}, %" for c in found]
        table = Table("language", *titles, *[f"p ({NAMES[c.system]})" for c in found if c.p_values])
        table.title = f"{result['task']}: {result['measure']}, rule `{rule}`, 95% intervals"
        for row in [*ordered([result]), None, *averages([result])]:
            if row is None:
                table.add_section()
                continue
            tests = [chance(c.p_values[row]) for c in found if c.p_values]
            table.add_row(_named(row, result), *[percent(c.figures[row]) for c in found], *tests)
        console.print(table)
    for rule, gaps in result.get("transfer_gap", {}).items():
        console.print(f"transfer gap, rule {rule}: {percent(gaps['mean'])} points; ", end="")
        console.print(f"share of English: {percent(gaps['share_of_english'])}%" if "share_of_english" in gaps else "")
    for row, cells in result["languages"].items():
        for note in ("refused", "cut_off"):
            if counts := {name: count for name, count in cells.get(note, {}).items() if count}:
                console.print(f"{name_of(row)}: {note.replace('_', ' ')}: {counts} of {cells['examples']}")


def markdown_tables(results: Sequence[Result]) -> str:
    """Return all benchmarks as Markdown."""
    parts = []
    for task, found in benchmarks(results).items():
        for rule in found[0]["rules"]:
            shown = columns(found, rule)
            head = ["language", "class", *[column.title for column in shown], *_tests(shown)]
            note = (
                f"Per cent with 95% bootstrap intervals; {size(found)} items of each language. p: paired permutation "
                f"test of the bridge against the baseline. Class: {resource_source()}."
            )
            title = f"## {task}: {found[0]['measure']}, rule `{rule}`"
            parts.append(f"{title}\n\n{note}\n\n{_markdown(head, _cells(found, shown))}")
        if reference := published(found[0]["task"]):
            parts.append(_published_markdown(found, reference))
    parts += [SANITY[result["task"]](result) for result in results if result["task"] in SANITY]
    return "\n".join(parts)


def _transfer_markdown(result: Result) -> str:
    rows, plain = [], all("plain" in row for row in result["languages"].values())
    for code, row in sorted(result["languages"].items(), key=lambda item: -item[1]["transfer_ratio"]):
        low, high = row["ci95"]
        ratio = f"{row['transfer_ratio']:.2f}"
        beside = []
        if plain:
            low_plain, high_plain = row["plain"]["ci95"]
            beside = [f"{row['plain']['transfer_ratio']:.2f} ({low_plain:.2f} to {high_plain:.2f})"]
        losses = (f"{row['nll']:.2f}", f"{row['mismatch']:.2f}")
        rows.append([name_of(code), ratio, f"{low:.2f} to {high:.2f}", *losses, *beside])
    pivot, median = result["pivot"], result["median_transfer_ratio"]
    note = (
        f"{result['run']['name']}, data {result['data']}. Median ratio {median:.3f} over {len(rows)} languages. "
        f"English itself: nll {pivot['nll']:.2f}, mismatch {pivot['mismatch']:.2f} nats per token."
    )
    head = ["language", "transfer ratio", "95% interval", "nll", "mismatch", *(["plain LM"] if plain else [])]
    return f"## transfer\n\n{note}\n\n{_markdown(head, rows)}"


def _facts_markdown(result: Result) -> str:
    rows = []
    for code, row in sorted(result["languages"].items(), key=lambda item: name_of(item[0])):
        bridge = percent({"value": row["bridged"], "ci95": row["ci95"]})
        plain = percent({"value": row["plain"], "ci95": row["plain_ci95"]})
        rows.append([name_of(code), bridge, plain, chance(row["p_value"])])
    note = f"{result['run']['name']}: short questions answered right, per cent with 95% bootstrap intervals."
    return f"## facts\n\n{note}\n\n{_markdown(['language', 'bridge', 'plain LM', 'p'], rows)}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_markdown_row(head), "|" + "---|" * len(head), *map(_markdown_row, rows)]
    return "\n".join(lines) + "\n"


SANITY = {"transfer": _transfer_markdown, "facts": _facts_markdown}
"""Tasks with tables of their own."""


def latex_tables(results: Sequence[Result]) -> str:
    """Return all benchmarks as LaTeX tables (booktabs)."""
    parts = []
    for task, found in benchmarks(results).items():
        for rule in found[0]["rules"]:
            shown = columns(found, rule)
            head = ["language", "class", *[column.title for column in shown], *_tests(shown)]
            lines = [" & ".join(map(_escaped, cells)) + r" \\" for cells in _cells(found, shown)]
            middle = len(ordered(found))
            caption = f"{task}: {found[0]['measure']} in per cent, rule {rule}, with 95\\% bootstrap intervals."
            parts.append(
                "\n".join(
                    [
                        r"\begin{table}",
                        r"\centering",
                        f"\\caption{{{caption}}}",
                        f"\\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
                        r"\toprule",
                        " & ".join(map(_escaped, head)) + r" \\",
                        r"\midrule",
                        *lines[:middle],
                        r"\midrule",
                        *lines[middle:],
                        r"\bottomrule",
                        r"\end{tabular}",
                        r"\end{table}",
                    ]
                )
            )
    return "\n\n".join(parts) + "\n"


def _cells(results: Sequence[Result], shown: Sequence[Column]) -> list[list[str]]:
    """Return the body: languages, then averages."""
    rows = []
    for row in [*ordered(results), *averages(results)]:
        level = resource_class(row)
        tests = [chance(column.p_values[row]) if row in column.p_values else "" for column in shown if column.p_values]
        figures = [percent(column.figures.get(row)) for column in shown]
        rows.append([_named(row, results[0]), "" if level is None else str(level), *figures, *tests])
    return rows


def _named(row: str, result: Result) -> str:
    if row in result["averages"]:
        return f"mean: {row} ({len(result['averages'][row]['languages'])})"
    return name_of(row)


def _tests(shown: Sequence[Column]) -> list[str]:
    return [f"p, {column.title}" for column in shown if column.p_values]


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _published_markdown(results: Sequence[Result], reference: Sequence[Published]) -> str:
    codes = [code for code in ordered(results) if any(code in row.languages for row in reference)]
    groups = [name for name in averages(results) if any(name in row.averages for row in reference)]
    head = ["published", "trained on", *groups, *map(name_of, codes)]
    rows = [
        [row.system, row.trained_on]
        + [f"{row.averages[name]:.1f}" if name in row.averages else "" for name in groups]
        + [f"{row.languages[code]:.1f}" if code in row.languages else "" for code in codes]
        for row in reference
    ]
    title = f"### Published numbers, for orientation ({reference[0].setting})"
    note = f"No intervals were published, and the models are others. Source: {reference[0].source}."
    return f"{title}\n\n{note}\n\n{_markdown(head, rows)}"


def _escaped(text: str) -> str:
    for sign in "&%_#$":
        text = text.replace(sign, "\\" + sign)
    return text
