"""`langbridge evaluate`, `report` and `data`: bodies that `cli` registers; they import late, as it does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langbridge.commands import Dtype, ProgressBar, Routing, RunArgument, load_generator, routing_of
from langbridge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from langbridge.evaluate.task import Task

data_app = typer.Typer(help="Training data from published data sets.", no_args_is_help=True)

SANITY = ("transfer", "facts")
"""Tasks on the project's own sanity set, or on parallel text; every other one is a benchmark."""
CODE = ("humaneval", "humaneval_anon")
"""Tasks that run generated programs."""
AllowCode = Annotated[bool, typer.Option("--allow-code-execution", help="Run programs that the model wrote.")]
Unisolated = Annotated[
    bool, typer.Option("--allow-unisolated-code", help="... even where network and files cannot be shut off.")
]
Languages = Annotated[str, typer.Option(help="Codes with commas, such as swh,tel or sw,te; default: all.")]


def evaluate(
    run: RunArgument,
    task: Annotated[str, typer.Option(help="transfer, facts, or benchmarks with commas: mgsm,xcopa,sib200 ...")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the benchmarks' data; default: the hub. transfer: parallel text; the sanity set."),
    ] = None,
    languages: Languages = "",
    limit: Annotated[int | None, typer.Option(help="First so many items per language.")] = None,
    render: Annotated[int | None, typer.Option(help="transfer: sentences per language for chrF; default: all.")] = None,
    routing: Routing = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of results, gone on with where it is there; transfer, facts: or .json.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Items at a time.")] = 32,
    dtype: Dtype = None,
    baseline: Annotated[
        str, typer.Option(help="Beside the bridge, with commas: plain (LM alone), original (LM on English), random.")
    ] = "",
    split: Annotated[str, typer.Option(help="Part of the data: test, or the one for choices (xcopa: val).")] = "test",
    template: Annotated[
        str | None, typer.Option(help="Another prompt template: a name, or own text with one {prompt}.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer; default: the task's.")] = None,
    allow_code: AllowCode = False,
    unisolated: Unisolated = False,
) -> None:
    """Measure a bridge: per-language numbers with intervals."""
    from langbridge.sandbox.host import Sandbox

    names = [name.strip() for name in task.split(",") if name.strip()]
    run_code = any(name in CODE for name in names)  # first: a refusal should not wait for torch
    sandbox = Sandbox(allowed=allow_code, unisolated=unisolated) if run_code else None

    from langbridge.evaluate.run import Request
    from langbridge.evaluate.systems import PLAIN_LM, baselines, with_template
    from langbridge.evaluate.tasks import TASKS, open_task

    if unknown := [name for name in names if name not in (*SANITY, *TASKS)] or ([] if names else [task]):
        raise DataError(f"no task named {unknown[0]!r}; known: {', '.join([*SANITY, *TASKS])}.")
    benchmarks = [name for name in names if name not in SANITY]
    one_file = out is None or out.suffix == ".json"
    if one_file and (benchmarks or len(names) > 1):
        raise ConfigError(f"--task {task} needs --out FOLDER, where answers are kept as they come; found {out}.")
    beside = baselines(baseline)
    opened = {name: open_task(name, data, split=split, sandbox=sandbox) for name in benchmarks}
    chosen = {name: _languages(part, languages) for name, part in opened.items()}
    for name in (name for name in names if name in SANITY):
        own = out if one_file or out is None else out / f"{name}.json"
        _sanity(run, name, data, languages, limit, render, routing, own, batch_size, dtype, PLAIN_LM in beside)
    if benchmarks and out is not None:
        generator = load_generator(run, routing=routing, batch_size=batch_size, dtype=dtype)
        with_template(generator.model, template)
        for name, part in opened.items():
            request = Request(languages=tuple(chosen[name]), limit=limit, max_new_tokens=max_new_tokens)
            _benchmark(run, part, generator, beside, request, out, split, dtype)


def _languages(task: "Task", text: str) -> list[str]:
    from langbridge.languages import code_of

    known = task.languages()
    chosen = [code_of(code.strip(), known) for code in text.split(",") if code.strip()]
    return list(dict.fromkeys(chosen)) or known


def _benchmark(
    run: str, task: "Task", generator: Any, beside: list[str], request: Any, out: Path, split: str, dtype: str | None
) -> None:
    from langbridge.evaluate.result import write_result
    from langbridge.evaluate.run import answer, weights_checksum
    from langbridge.evaluate.summary import summarise
    from langbridge.evaluate.systems import systems
    from langbridge.evaluate.tables import print_benchmark

    recipe = generator.model.recipe
    made_by = {
        "weights": weights_checksum(run),
        "encoder": [recipe.encoder.name, recipe.encoder.revision],
        "language_model": [recipe.language_model.name, recipe.language_model.revision],
        "dtype": [recipe.encoder.dtype, recipe.language_model.dtype],
        "split": split,
        **routing_of(generator),
    }
    label = task.name if split == "test" else f"{task.name}.{split}"
    answered = {}
    with ProgressBar(label) as bar:
        for system in systems(generator, beside):
            folder = out / label / system.name
            answered[system.name] = answer(task, system, request, folder, made_by, bar.move_to)
    result = summarise(task, answered, recipe.encoder.name)
    result |= {"split": split, "limit": request.limit, "made_by": made_by, "data": answered["bridge"].data}
    print_benchmark(write_result(result, run, out / f"{label}.json", dtype=dtype))


def _sanity(
    run: str,
    task: str,
    data: Path | None,
    languages: str,
    limit: int | None,
    render: int | None,
    routing: str | None,
    out: Path | None,
    batch_size: int,
    dtype: str | None,
    plain_too: bool,
) -> None:
    """Transfer or facts: one JSON file, gone on with language by language."""
    from langbridge.data.parallel import read_parallel
    from langbridge.evaluate.facts import evaluate_facts, read_facts
    from langbridge.evaluate.report import print_table
    from langbridge.evaluate.result import write_result
    from langbridge.evaluate.rows import Rows, fingerprint
    from langbridge.evaluate.transfer import evaluate_transfer
    from langbridge.generate import PlainGenerator

    codes = [code.strip() for code in languages.split(",") if code.strip()]
    if task == "transfer":
        inner = data / "tatoeba" if data is not None else None  # where the folder is that of all data sets
        parallel = read_parallel(inner if inner is not None and inner.is_dir() else data).choose(codes, limit)
        generator, texts = load_generator(run, routing=routing, batch_size=batch_size, dtype=dtype), parallel.sources
        made = {"task": task, "limit": limit, "render": render, "dtype": dtype, **routing_of(generator)}
        rows = Rows(out, fingerprint(run, [parallel.sources, parallel.english], **made))
        beside = PlainGenerator(generator.model, batch_size=batch_size) if plain_too else None
        with ProgressBar(task) as bar:
            result = evaluate_transfer(
                generator, parallel, limit=limit, render=render, rows=rows, plain=beside, progress=bar.move_to
            )
    else:
        texts = read_facts(codes, limit)[0]  # complains before models are loaded
        generator = load_generator(run, routing=routing, batch_size=batch_size, dtype=dtype)
        rows = Rows(out, fingerprint(run, read_facts(codes, limit), task=task, dtype=dtype, **routing_of(generator)))
        plain = PlainGenerator(generator.model, batch_size=batch_size)
        with ProgressBar(task) as bar:
            result = evaluate_facts(generator, plain, codes, limit=limit, rows=rows, progress=bar.move_to)
    result |= routing_of(generator, texts)
    print_table(result)
    if out is not None:
        write_result(result, run, out, dtype=dtype)
        rows.close()


def report(
    results: Annotated[list[Path], typer.Argument(help="What `evaluate --out` wrote: folders and JSON files.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
    title: Annotated[str, typer.Option(help="Heading.")] = "LangBridge",
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Write the tables as LaTeX.")] = None,
) -> None:
    """Write one self-contained HTML page, or tables, from results, and print questions with both answers."""
    from langbridge.evaluate.report import print_answers, write_report
    from langbridge.evaluate.result import read_results
    from langbridge.evaluate.tables import latex_tables, markdown_tables
    from langbridge.files import write_text

    if out is None and markdown is None and latex is None:
        raise ConfigError("nothing to write: name an HTML file with --out, or tables with --markdown or --latex.")
    read = read_results(results)
    if markdown is not None:
        write_text(markdown, markdown_tables(read))
        typer.echo(f"tables: {markdown}")
    if latex is not None:
        write_text(latex, latex_tables(read))
        typer.echo(f"tables: {latex}")
    if out is not None:
        write_report(read, out, title=title)
        print_answers(read)
        typer.echo(f"report: {out}")


@data_app.command("sib200")
def data_sib200(
    folder: Annotated[Path, typer.Argument(help="SIB-200, or its English folder eng_Latn.")],
    out: Annotated[Path, typer.Option(help="JSON lines to write.")],
    mix: Annotated[int, typer.Option(min=0, help="Add so many records of the package's own English set.")] = 0,
) -> None:
    """Make training records of SIB-200's English training sentences and their topics."""
    from langbridge.data.topics import write_training_file

    typer.echo(f"{write_training_file(folder, out, mix=mix)} records in {out}")
