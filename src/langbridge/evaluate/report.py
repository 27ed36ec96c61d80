"""Results as a terminal table and as one self-contained HTML page with a bar chart per task."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from langbridge.evaluate import benchmark_page
from langbridge.evaluate.result import Result
from langbridge.evaluate.tables import benchmarks
from langbridge.files import write_text
from langbridge.languages import PIVOT, name_of

SHOWN = ("swh", "tel", "kat", "deu", "jpn", "ara")
"""Languages whose answers are printed, where they were evaluated."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #667085; --line: #d9dee7; --ours: #2166ac; --other: #c9a36b;
  --back: #fff; --good: #1a7f37; --bad: #b42318 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b2; --line: #363d49; --ours: #6aaee8;
  --other: #b08d57; --back: #14181f; --good: #57c17b; --bad: #f38b82 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem; max-width: 60rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--back) }
h1 { font-size: 1.6rem; margin: .2rem 0 } h2 { font-size: 1.2rem; margin: 2rem 0 .3rem }
p, .note { color: var(--soft); margin: .2rem 0 .8rem }
.headline { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0 }
.headline div { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem }
.headline b { display: block; font-size: 1.4rem }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .15rem .6rem; align-items: center;
  font-size: .9rem }
.track { position: relative; height: 1rem; border-left: 1px solid var(--soft) }
.fill { position: absolute; left: 0; top: .1rem; bottom: .1rem; background: var(--ours);
  border-radius: 0 .2rem .2rem 0 }
.fill.second { background: var(--other); top: .65rem; bottom: 0 } .fill.first { bottom: .4rem; top: 0 }
.whisker { position: absolute; top: .45rem; height: 2px; background: var(--ink); opacity: .65 }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin: 0 .3rem 0 .8rem }
.value { font-variant-numeric: tabular-nums; color: var(--soft) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; width: 100% }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top }
.right { color: var(--good) } .wrong { color: var(--bad) }
"""


def print_table(result: Result) -> None:
    """Print one result to the terminal."""
    console = Console()
    if result["task"] == "transfer":
        plain = ["plain LM"] if with_plain(result) else []
        table = Table("language", "nll", "mismatch", "transfer ratio", "95% interval", *plain, "chrF")
        for language, row in _ordered(result):
            low, high = row["ci95"]
            chrf = f"{row['chrf']:.1f}" if "chrf" in row else "-"
            ratio = f"{row['transfer_ratio']:.3f}"
            cells = (f"{row['nll']:.2f}", f"{row['mismatch']:.2f}", ratio, f"{low:.3f} to {high:.3f}")
            beside = [f"{row['plain']['transfer_ratio']:.3f}"] if plain else []
            table.add_row(name_of(language), *cells, *beside, chrf)
        console.print(table)
        pivot = result["pivot"]
        console.print(f"English itself: nll {pivot['nll']:.2f}, mismatch {pivot['mismatch']:.2f}")
        console.print(
            f"median transfer ratio {result['median_transfer_ratio']:.3f} ({len(result['languages'])} languages)"
        )
        return
    table = Table("language", "bridge", "95% interval", "plain LM", "p value")
    for language, row in _ordered(result):
        low, high = row["ci95"]
        four = (f"{row['bridged']:.0%}", f"{low:.0%} to {high:.0%}", f"{row['plain']:.0%}", f"{row['p_value']:.3f}")
        table.add_row(name_of(language), *four)
    console.print(table)
    for name, label in (("macro_average", "the languages but English"), ("other_scripts", "those in another script")):
        if result[name]["bridged"] is not None:
            console.print(f"mean of {label}: bridge {result[name]['bridged']:.1%}, plain {result[name]['plain']:.1%}")
    console.print(f"plain LM in English: {result['plain_english']:.1%}")


def print_answers(results: Sequence[Result]) -> None:
    """Print one question in each of six languages with both answers."""
    for result in results:
        if result["task"] != "facts":
            continue
        found = [language for language in SHOWN if language in result["languages"]]
        for number, language in enumerate(found):
            items = result["languages"][language]["items"]
            item = items[number % len(items)]
            print(f"{name_of(language)}: {item['question']}")
            print(f"  bridge: {_one_line(item['bridged'])}")
            print(f"  plain:  {_one_line(item['plain'])}")


def write_report(results: Sequence[Result], path: Path, *, title: str) -> None:
    """Write the HTML page."""
    parts = {"transfer": _transfer, "facts": _facts}
    body = "".join(parts[result["task"]](result) for result in results if result["task"] in parts)
    body += "".join(benchmark_page.section(task, found) for task, found in benchmarks(results).items())
    runs = {result["run"]["name"]: result["run"] for result in results}
    chains = [(name, f"{run['encoder']} → bridge → {run['language_model']} (frozen)") for name, run in runs.items()]
    models = "; ".join(_text(chain if len(chains) == 1 else f"{name}: {chain}") for name, chain in chains)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{benchmark_page.STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1><p>{models}. Trained on English only.</p>{body}</body></html>\n"
    )
    write_text(path, page)


def _transfer(result: Result) -> str:
    rows, both = _ordered(result), with_plain(result)
    bars = "".join(
        _bar(
            name_of(language),
            [(row["transfer_ratio"], "first"), (row["plain"]["transfer_ratio"], "second")]
            if both
            else [(row["transfer_ratio"], "")],
            row["ci95"],
            f"{row['transfer_ratio']:.2f}" + (f" / {row['plain']['transfer_ratio']:.2f}" if both else ""),
        )
        for language, row in rows
    )
    key = (
        " <span class=key style='background:var(--ours)'></span>bridge "
        "<span class=key style='background:var(--other)'></span>plain LM reading the text"
        if both
        else ""
    )
    pivot = result["pivot"]
    examples = "".join(
        f"<tr><td>{name_of(language)}</td><td dir=auto>{_text(item['source'])}</td><td>{_text(item['output'])}</td>"
        f"<td>{_text(item['reference'])}</td></tr>"
        for language, row in rows
        for item in row.get("examples", [])[:1]
    )
    table = (
        "<h2>What the LM says it was told</h2><div class=scroll><table><tr><th>language<th>sentence<th>rendering"
        f"<th>English reference</tr>{examples}</table></div>"
        if examples
        else ""
    )
    return (
        f"<h2>Transfer ({_text(result['data'])})</h2><p>0: nothing of the sentence reaches the LM. 1: as much as "
        f"from the English sentence itself, through the bridge. Lines: 95% bootstrap intervals.{key}</p>"
        "<div class=headline>"
        f"<div><b>{result['median_transfer_ratio']:.2f}</b>median ratio</div>"
        f"<div><b>{len(rows)}</b>languages</div><div><b>{pivot['nll']:.2f} / {pivot['mismatch']:.2f}</b>"
        f"English loss, right / wrong source</div></div><div class=bars>{bars}</div>{table}"
    )


def with_plain(result: Result) -> bool:
    """Tell whether a result of `transfer` has the LM alone beside the bridge in every language."""
    return all("plain" in row for row in result["languages"].values())


def _facts(result: Result) -> str:
    rows = _ordered(result)
    bars = "".join(
        _bar(
            name_of(language),
            [(row["bridged"], "first"), (row["plain"], "second")],
            row["ci95"],
            f"{row['bridged']:.0%} / {row['plain']:.0%}",
        )
        for language, row in rows
    )
    answers = "".join(
        f"<tr><td>{name_of(language)}</td><td dir=auto>{_text(item['question'])}</td>"
        f"<td class={_verdict(item['bridged_right'])}>{_text(item['bridged'])}</td>"
        f"<td class={_verdict(item['plain_right'])}>{_text(item['plain'])}</td></tr>"
        for number, (language, row) in enumerate(rows)
        for item in [row["items"][number % len(row["items"])]]
    )
    average = result["macro_average"]
    mean = "".join(
        f"<div><b>{average[name]:.0%}</b>{label}, mean of other languages</div>"
        for name, label in (("bridged", "bridge"), ("plain", "plain LM"))
        if average[name] is not None
    )
    return (
        "<h2>Facts: short questions answered right</h2><p><span class=key style='background:var(--ours)'></span>"
        "bridge <span class=key style='background:var(--other)'></span>plain LM reading the text. A sanity set "
        "of the project, not a benchmark.</p><div class=headline>"
        f"{mean}<div><b>{result['plain_english']:.0%}</b>plain LM in "
        f"English</div></div><div class=bars>{bars}</div>"
        "<h2>Questions and both answers</h2><div class=scroll><table><tr>"
        f"<th>language<th>question<th>bridge<th>plain LM</tr>{answers}</table></div>"
    )


def _bar(label: str, values: Sequence[tuple[float, str]], ci95: Sequence[float], text: str) -> str:
    fills = "".join(
        f'<div class="fill {kind}" style="width:{min(100, max(0, 100 * value)):.1f}%"></div>' for value, kind in values
    )
    low, high = (min(1.0, max(0.0, end)) for end in ci95)
    whisker = f'<div class=whisker style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></div>'
    return f"<div>{_text(label)}</div><div class=track>{fills}{whisker}</div><div class=value>{text}</div>"


def _ordered(result: Result) -> list[tuple[str, dict[str, Any]]]:
    """Return rows best first, English in front."""
    key = "transfer_ratio" if result["task"] == "transfer" else "bridged"
    return sorted(result["languages"].items(), key=lambda item: (item[0] != PIVOT, -item[1][key]))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _text(text: str) -> str:
    return html.escape(_one_line(text))


def _verdict(right: bool) -> str:
    return "right" if right else "wrong"
