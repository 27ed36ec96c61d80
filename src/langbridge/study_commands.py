"""`langbridge study` and `langbridge diagnose`: why it works, and why it does not. Imports late, as `cli` does."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langbridge.commands import Dtype, ProgressBar, RunArgument
from langbridge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langbridge.analyse.study import Setting, Study


def study(
    name: Annotated[str, typer.Argument(help="A study; `list` names them.")],
    quick: Annotated[bool, typer.Option("--quick", help="A small part of everything: does it run?")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; default: studies/NAME.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="What is only needed meanwhile; default: runs/studies/NAME.")
    ] = None,
    run: Annotated[str, typer.Option(help="Run that is looked at, where nothing is trained.")] = "embedded",
    data: Annotated[
        Path | None, typer.Option(help="Folder of data sets, or of parallel text; default: the sanity set.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Recipe that trainings begin with.")] = None,
    languages: Annotated[
        str, typer.Option(help="Test languages of trainings, with commas; default: all of the data.")
    ] = "",
    sentences: Annotated[int | None, typer.Option(min=2, help="First so many sentences of each language.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of a cell.")] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of trainings, with commas.")] = "1,2,3",
    only: Annotated[str, typer.Option(help="Only settings of these names, or whose names begin so, with commas.")] = "",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field of the recipe.")] = None,
    dtype: Dtype = None,
    measure: Annotated[
        str, typer.Option(help="Of each trained bridge: transfer (always), facts, tasks, with commas.")
    ] = "transfer,facts,tasks",
) -> None:
    """Run one of the studies of why it works; what is done already is not done again."""
    studies = _studies()
    from langbridge.analyse.study import Setting, conduct

    if name == "list":
        for known, kind in studies.items():
            typer.echo(f"{known:14} {kind.question}")
        return
    if name not in studies:
        raise DataError(f"no study named {name!r}; known: {', '.join(studies)}.")
    from langbridge.pretrained import quiet

    quiet()
    work = work or Path("runs/studies") / (f"quick/{name}" if quick else name)
    setting = Setting(
        out=out or (work / "result" if quick else Path("studies") / name),
        work=work,
        run=run,
        data=data,
        recipe=recipe,
        languages=_parts(languages),
        sentences=sentences,
        steps=steps,
        seeds=_seeds(seeds),
        only=_parts(only),
        overrides=tuple(overrides or ()),
        dtype=dtype,
        quick=quick,
        measure=_measures(measure),
    )
    _refuse_unused(name, setting, studies)
    setting = dataclasses.replace(setting, command=_command(name, setting, out))
    with ProgressBar(name) as bar:
        page = conduct(studies[name](setting), bar.move_to)
    typer.echo(f"page: {page}")


def _studies() -> "Mapping[str, type[Study]]":
    """Return all studies; raises ConfigError where what they draw and count with is missing."""
    try:
        from langbridge.analyse.studies import STUDIES
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("matplotlib", "scipy", "sklearn"):
            raise ConfigError(f"{error.name} is not installed: pip install 'langbridge-lm[analyse]'.") from error
        raise
    return STUDIES


def _parts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))  # each once


def _refuse_unused(name: str, setting: "Setting", studies: "Mapping[str, type[Study]]") -> None:
    """Raise ConfigError for an option that would change nothing in this study."""
    usual = {field.name: field.default for field in dataclasses.fields(setting)}
    for field in sorted(frozenset[str]().union(*(kind.uses for kind in studies.values()))):
        if field not in studies[name].uses and getattr(setting, field) != usual[field]:
            takers = ", ".join(other for other, kind in studies.items() if field in kind.uses)
            option = {"overrides": "set"}.get(field, field)
            raise ConfigError(f"--{option} changes nothing in study {name}: leave it out. It is for {takers}.")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(map(int, _parts(text))))
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: wanted whole numbers with commas, such as 1,2,3.") from error
    if not found or min(found) < 0:
        raise ConfigError(f"--seeds {text}: wanted at least one, and none negative.")
    return found


def _measures(text: str) -> tuple[str, ...]:
    from langbridge.analyse.study import MEASURES

    asked = set(_parts(text))
    if unknown := asked - set(MEASURES):
        raise ConfigError(f"--measure {text}: no {sorted(unknown)[0]!r}; known: {', '.join(MEASURES)}.")
    return tuple(name for name in MEASURES if name in asked or name == "transfer")


def _command(name: str, setting: "Setting", out: Path | None) -> str:
    """Return the call as the page shows it: it runs as written in the same folder, and has no path of this machine."""
    from langbridge.analyse.study import MEASURES, Setting, shown_field, shown_path

    seeds = setting.seeds if setting.seeds != Setting.seeds else ()
    paths = {
        "out": out,
        "run": Path(setting.run) if setting.run != Setting.run else None,
        "data": setting.data,
        "recipe": setting.recipe,
    }
    values = {
        **{option: shown_path(path) for option, path in paths.items() if path is not None},
        "languages": ",".join(setting.languages),
        "sentences": setting.sentences,
        "steps": setting.steps,
        "dtype": setting.dtype,
        "seeds": ",".join(map(str, seeds)),
        "only": ",".join(setting.only),
        "measure": ",".join(setting.measure) if setting.measure != MEASURES else None,
    }
    words = ["langbridge", "study", name, *(["--quick"] if setting.quick else [])]
    words += [word for option, value in values.items() if value for word in (f"--{option}", str(value))]
    words += [word for field in setting.overrides for word in ("--set", shown_field(field))]
    return shlex.join(words)


def diagnose(
    run: RunArgument,
    language: Annotated[
        str | None, typer.Option(help="Code of the language that does badly, such as sw or swh.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Its sentences, one a line; default: the sanity set's.")] = None,
    english: Annotated[
        Path | None, typer.Option(help="Their English translations, line by line: more can be told.")
    ] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="What `evaluate --out` wrote of this run; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=4, help="First so many sentences.")] = 24,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
    dtype: Dtype = None,
) -> None:
    """Tell what is wrong with a run, or with one language of it: figure, threshold, advice."""
    from rich.console import Console

    from langbridge.analyse.diagnose import Lines, examine
    from langbridge.analyse.verdict import print_findings, write_findings
    from langbridge.pretrained import quiet
    from langbridge.routing import load

    quiet()
    lines = Lines.read(language, text, english, limit)  # complains before models are loaded
    generator = load(run, routing="off", dtype=dtype)
    with Console(stderr=True).status("looking") as status:
        findings = examine(generator, run, lines, results or (), progress=lambda what: status.update(what))
    print_findings(findings, Console(highlight=False))
    if out is not None:
        write_findings(findings, out, run)
