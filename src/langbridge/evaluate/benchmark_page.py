"""A benchmark as a section of the report page: averages, bars by language, gap plot, tables, answers, references."""

import html
from collections.abc import Sequence
from itertools import groupby

from langbridge.evaluate.published import published
from langbridge.evaluate.resources import pretraining, resource_class, resource_source
from langbridge.evaluate.result import Result
from langbridge.evaluate.tables import NAMES, Column, Figure, averages, chance, columns, ordered, percent, size
from langbridge.languages import name_of

COLOURS = 6
"""Colours of systems, `--c0` to `--c5`; more systems begin anew."""
STYLE = """
:root { --c0: #2166ac; --c1: #c9a36b; --c2: #1b7837; --c3: #9970ab; --c4: #d6604d; --c5: #5aa6a6 }
@media (prefers-color-scheme: dark) { :root { --c0: #6aaee8; --c1: #d0a96c; --c2: #6cc788; --c3: #b99bd0;
  --c4: #ee8a79; --c5: #7fc8c8 } }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .4rem 0 .8rem; font-size: .9rem }
.legend span::before { content: ""; display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  margin-right: .35rem; background: var(--c); vertical-align: -.05rem }
.chart { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr; gap: .35rem .6rem; align-items: center;
  font-size: .9rem }
.chart h4 { grid-column: 1 / -1; margin: .7rem 0 0; font-size: .85rem; font-weight: 600; color: var(--soft) }
.system { display: grid; grid-template-columns: 1fr 8.6rem; gap: .5rem; align-items: center }
.system small { font-variant-numeric: tabular-nums; color: var(--soft); white-space: nowrap }
.lane { position: relative; height: .7rem; border-left: 1px solid var(--soft) }
.lane i { position: absolute; left: 0; top: .08rem; bottom: .08rem; background: var(--c);
  border-radius: 0 .2rem .2rem 0 }
.lane b { position: absolute; top: calc(50% - 1px); height: 2px; background: var(--ink); opacity: .7 }
.lane u { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--line) }
.lane.dot { border-left: 0; background: linear-gradient(var(--line), var(--line)) center / 100% 1px no-repeat }
.lane.dot em { position: absolute; top: .05rem; width: .6rem; height: .6rem; margin-left: -.3rem; border-radius: 50%;
  background: var(--c) }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
details { margin: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; margin: .5rem 0; font-size: .9rem;
  overflow-wrap: anywhere; white-space: pre-line }
.card p { margin: .15rem 0; color: inherit } .card small { color: var(--soft) }
tr.mean td { font-weight: 600 } tr td:first-child { min-width: 7rem }
.note { font-size: .85rem }
.headline b small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft) }
"""


def section(label: str, results: Sequence[Result]) -> str:
    """Return the section of one task, its runs side by side."""
    first = results[0]
    rule = first["rules"][0]
    shown = columns(results, rule)
    limits = {result.get("limit") for result in results}
    note = "" if limits == {None} else " This is not the whole test set: items were limited."
    parts = [
        f"<h2>{_text(label)}</h2>",
        f"<p>{_text(first['measure']).capitalize()} in per cent, rule <code>{_text(rule)}</code>; {size(results)} "
        f"items of each language; bars from 0 to 100, lines are 95% bootstrap intervals.{note}</p>",
        _headline(results, shown, rule),
        _legend(shown),
        _bars(results, shown),
        _gaps(results, rule),
        *(_table(results, columns(results, name), name) for name in first["rules"]),
        _published(results),
        _answers(results),
    ]
    return "".join(parts)


def _headline(results: Sequence[Result], shown: Sequence[Column], rule: str) -> str:
    """Averages, never without their interval."""
    cards = []
    for column in shown:
        group = "all but English" if "all but English" in column.figures else "all"
        cells = next(result["averages"][group] for result in results if result["run"]["name"] == column.run)
        where = f"{column.title}, mean of {len(cells['languages'])} languages"
        cards.append(_card(column.figures[group], where, digits=1))
    for result in results:
        gaps = result.get("transfer_gap", {}).get(rule, {})
        if "share_of_english" in gaps:
            where = f"of the bridge's English accuracy in the other languages ({result['run']['name']})"
            cards.append(_card(gaps["share_of_english"], where, digits=0, unit="%"))
    return f"<div class=headline>{''.join(cards)}</div>"


def _card(figure: Figure, where: str, *, digits: int, unit: str = "") -> str:
    low, high = (f"{100 * end:.{digits}f}" for end in figure["ci95"])
    value = f"{100 * figure['value']:.{digits}f}{unit}<small>{low} to {high}</small>"
    return f"<div><b>{value}</b>{_text(where)}</div>"


def _legend(shown: Sequence[Column]) -> str:
    items = "".join(f'<span style="--c:{_colour(i)}">{_text(column.title)}</span>' for i, column in enumerate(shown))
    return f"<div class=legend>{items}</div>"


def _bars(results: Sequence[Result], shown: Sequence[Column]) -> str:
    blocks = []
    for level, codes in groupby(ordered(results), key=resource_class):
        blocks.append(f"<h4>{_level(level)}</h4>")
        for code in codes:
            lanes = "".join(
                f"<div class=system>{_lane(column.figures[code], _colour(i))}<small>{percent(column.figures[code])}"
                "</small></div>"
                for i, column in enumerate(shown)
                if code in column.figures
            )
            blocks.append(f"<div>{_text(name_of(code))}{_unseen(code, results)}</div><div>{lanes}</div>")
    return (
        f"<div class=chart>{''.join(blocks)}</div><p class=note>Languages with most resources first. Classes: "
        f"{_text(resource_source())}.{_footnote(results)}</p>"
    )


def _gaps(results: Sequence[Result], rule: str) -> str:
    """English minus each language: a dot with its interval, zero in the same place for all."""
    found = [(result["run"]["name"], result["transfer_gap"][rule]) for result in results if "transfer_gap" in result]
    if not found:
        return ""
    figures = [figure for _, gaps in found for figure in gaps["languages"].values()]
    low = min(0.0, *(figure["ci95"][0] for figure in figures))
    high = max(0.01, *(figure["ci95"][1] for figure in figures))
    rows = []
    for code in ordered(results):
        lanes = "".join(
            f"<div class=system>{_dot(gaps['languages'][code], _colour(i), low, high)}"
            f"<small>{percent(gaps['languages'][code])}</small></div>"
            for i, (_, gaps) in enumerate(found)
            if code in gaps["languages"]
        )
        if lanes:
            rows.append(f"<div>{_text(name_of(code))}</div><div>{lanes}</div>")
    legend = "".join(
        f'<span style="--c:{_colour(i)}">bridge ({_text(name)})</span>' for i, (name, _) in enumerate(found)
    )
    return (
        "<h3>Transfer gap</h3><p>English accuracy minus that of the language, in points. Upright line: no gap.</p>"
        f"<div class=legend>{legend}</div><div class=chart>{''.join(rows)}</div>"
    )


def _table(results: Sequence[Result], shown: Sequence[Column], rule: str) -> str:
    tests = [column for column in shown if column.p_values]
    head = "".join(f"<th class=number>{_text(column.title)}" for column in shown)
    head += "".join(f"<th class=number>p, {_text(column.title)}" for column in tests)
    body = []
    for row in [*ordered(results), *averages(results)]:
        level = resource_class(row)
        cells = "".join(f"<td class=number>{percent(column.figures.get(row))}" for column in shown)
        cells += "".join(
            f"<td class=number>{_text(chance(column.p_values[row]))}" if row in column.p_values else "<td>"
            for column in tests
        )
        group = next((result["averages"][row] for result in results if row in result["averages"]), None)
        name = name_of(row) if group is None else f"mean: {row} ({len(group['languages'])})"
        kind = "" if group is None else " class=mean"
        body.append(f"<tr{kind}><td>{_text(name)}<td>{'' if level is None else level}{cells}</tr>")
    return (
        f"<details><summary>Table, rule <code>{_text(rule)}</code></summary><div class=scroll><table><tr><th>language"
        f"<th>class{head}</tr>{''.join(body)}</table></div><p class=note>p: paired permutation test of the bridge "
        "against the baseline on the same items; many languages, many tests: a single small p is weak.</p></details>"
    )


def _published(results: Sequence[Result]) -> str:
    rows = published(results[0]["task"])
    if not rows:
        return ""
    codes = [code for code in ordered(results) if any(code in row.languages for row in rows)]
    groups = [name for name in averages(results) if any(name in row.averages for row in rows)]
    head = "".join(f"<th class=number>{_text(name)}" for name in [*groups, *map(name_of, codes)])
    body = "".join(
        f"<tr><td>{_text(row.system)}<td>{_text(row.trained_on)}"
        + "".join(f"<td class=number>{row.averages[name]:.1f}" if name in row.averages else "<td>" for name in groups)
        + "".join(f"<td class=number>{row.languages[code]:.1f}" if code in row.languages else "<td>" for code in codes)
        + "</tr>"
        for row in rows
    )
    return (
        f"<details><summary>Published numbers</summary><p>{_text(rows[0].setting)}. No intervals were published, and "
        f"the models are others: for orientation.</p><div class=scroll><table><tr><th>system<th>trained on{head}"
        f"</tr>{body}</table></div><p class=note>Source: {_text(rows[0].source)}.</p></details>"
    )


def _answers(results: Sequence[Result]) -> str:
    """The first right and wrong answers of the bridge in each language, with what the baselines said."""
    blocks = []
    for result in results:
        for code in ordered([result]):
            for item in result["languages"][code]["items"]:
                said = "".join(
                    f"<p class={'right' if item[name]['right'] else 'wrong'}><small>{NAMES[name]}</small> "
                    f"<b>{_text(str(item[name]['answer']))}</b>"
                    + (f" <small dir=auto>{_text(item[name]['text'])}</small>" if item[name]["text"] else "")
                    + "</p>"
                    for name in result["systems"]
                    if name in item
                )
                blocks.append(
                    f"<div class=card><small>{_text(result['run']['name'])}, {_text(name_of(code))}, item "
                    f"{_text(item['id'])}; right answer: {_text(item['reference'])}</small>"
                    f"<p dir=auto>{_text(item['prompt'])}</p>{said}</div>"
                )
    return f"<details><summary>Right and wrong answers</summary>{''.join(blocks)}</details>"


def _lane(figure: Figure, colour: str) -> str:
    low, high = (_share(end) for end in figure["ci95"])
    return (
        f'<div class=lane style="--c:{colour}"><i style="width:{_share(figure["value"]):.1f}%"></i>'
        f'<b style="left:{low:.1f}%;width:{high - low:.1f}%"></b></div>'
    )


def _dot(figure: Figure, colour: str, low: float, high: float) -> str:
    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    left, right = (place(end) for end in figure["ci95"])
    return (
        f'<div class="lane dot" style="--c:{colour}"><u style="left:{place(0):.1f}%;background:var(--soft)"></u>'
        f'<b style="left:{left:.1f}%;width:{right - left:.1f}%"></b>'
        f'<em style="left:{place(figure["value"]):.1f}%"></em></div>'
    )


def _unseen(code: str, results: Sequence[Result]) -> str:
    known = [pretraining(result["run"]["encoder"]) for result in results]
    return "*" if any(found is not None and code not in found[0] for found in known) else ""


def _footnote(results: Sequence[Result]) -> str:
    sources = {found[1] for result in results if (found := pretraining(result["run"]["encoder"])) is not None}
    if not any(_unseen(code, results) for code in ordered(results)):
        return ""
    return " *: not among the languages the encoder was pretrained on (" + _text("; ".join(sorted(sources))) + ")."


def _level(level: int | None) -> str:
    return "class not known" if level is None else f"class {level}"


def _share(value: float) -> float:
    return min(100.0, max(0.0, 100 * value))


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS})"


def _text(text: str) -> str:
    return html.escape(text)
