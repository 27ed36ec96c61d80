"""The command line. Imports late, so that `langbridge --help` answers at once."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langbridge.cache_commands import cache_app
from langbridge.commands import (
    Dtype,
    ProgressBar,
    Routing,
    RunArgument,
    answer_records,
    calibrate,
    import_released,
    lm_eval,
    load_generator,
    print_plan,
)
from langbridge.errors import ConfigError, DataError, LangBridgeError
from langbridge.evaluate_commands import data_app, evaluate, report
from langbridge.offline_command import BadLines, Offline, PartLines, Shard, generate_files
from langbridge.serve_command import EngineName, EngineSet, serve
from langbridge.study_commands import diagnose, study

if TYPE_CHECKING:
    from langbridge.generate import BridgedGenerator, Sampling

app = typer.Typer(
    name="langbridge",
    help="Let a frozen English language model understand a hundred languages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Pretrained models by name.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(cache_app, name="cache")
app.add_typer(data_app, name="data")

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For a command whose arguments another program reads."""
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling.")]
TopK = Annotated[int, typer.Option(help="0: no limit.")]
Stop = Annotated[list[str] | None, typer.Option(help="Cut the answer in front of this text; may be repeated.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling.")]


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    out: Annotated[Path | None, typer.Option(help="Run folder to write.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field: training.steps=50; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check, and print what it would take.")] = False,
    device_rate: Annotated[float, typer.Option(help="--dry-run: TFLOP/s that one device reaches.")] = 150.0,
    tokens: Annotated[str | None, typer.Option(help="--dry-run: mean encoder and target tokens, as 120,180.")] = None,
) -> None:
    """Train a bridge on English alone."""
    from langbridge.config import Recipe
    from langbridge.pretrained import quiet

    quiet()
    read = Recipe.read(recipe, overrides or [])
    if dry_run:
        print_plan(read, tokens, device_rate)
        return
    if out is None:
        raise ConfigError("--out is missing: name the run folder to write, or ask for --dry-run.")
    from langbridge.train.run import train as run

    model = run(read, out, resume=resume)
    for name, value in model.results.items():
        typer.echo(f"{name}: {value}")
    typer.echo(f"run folder: {out}")


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; may be repeated.")] = None,
    input: Annotated[
        Path | None,
        typer.Option(help="File: a prompt on each line, or .jsonl with `prompt`; or a folder of these. `-` is stdin."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write JSON lines here: a file, or a folder of parts.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="The LM alone on the text: the baseline.")] = False,
    routing: Routing = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the LM tokens nearest to the soft prompt.")] = False,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    stop: Stop = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 16,
    dtype: Dtype = None,
    engine: EngineName = "transformers",
    engine_set: EngineSet = None,
    shard: Shard = "0/1",
    part_lines: PartLines = 1000,
    bad_lines: BadLines = "refuse",
) -> None:
    """Answer prompts in any language.

    From --input to --output, any number of lines: the same command goes on where an interrupted one stopped.
    """
    sampling = _sampling(max_new_tokens, temperature, top_p, top_k, stop, seed)
    if output is not None and input is not None and str(input) != "-" and not (prompt or explain):
        offline = Offline(
            run=run,
            input=input,
            output=output,
            sampling=sampling,
            plain=plain,
            routing=routing,
            rows=batch_size,
            dtype=dtype,
            engine=engine,
            engine_set=engine_set or (),
            shard=shard,
            part_lines=part_lines,
            bad_lines=bad_lines,
        )
        generate_files(offline)
        return
    prompts = _prompts(prompt, input)
    generator = load_generator(run, plain=plain, routing=routing, batch_size=batch_size, dtype=dtype)
    if explain:
        _print_explanation(generator, prompts)
    _answer(generator, prompts, sampling, output)


def _answer(generator: "BridgedGenerator", prompts: list[str], sampling: "Sampling", output: Path | None) -> None:
    if output is None and len(prompts) == 1 and sys.stdout.isatty() and not sampling.stop:
        for piece in generator.stream(prompts[0], sampling):
            typer.echo(piece, nl=False)
        typer.echo()
        return
    with ProgressBar("generating", show=output is not None) as bar:
        answers = generator.generate(prompts, sampling, progress=bar.move)
    if output is None:
        for answer in answers:
            typer.echo(answer)
    else:
        _write_jsonl(output, answer_records(generator, prompts, answers))


@app.command()
def chat(
    run: RunArgument,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = 0,
    dtype: Dtype = None,
) -> None:
    """Ask one question after another; each stands alone. An empty line or Ctrl-D ends."""
    generator = load_generator(run, dtype=dtype)
    sampling = _sampling(max_new_tokens, temperature, top_p, top_k, None, seed)
    while True:
        typer.echo("> ", nl=False)
        line = sys.stdin.readline().strip()
        if not line:
            return
        try:
            for piece in generator.stream(line, sampling):
                typer.echo(piece, nl=False)
            typer.echo()
        except LangBridgeError as error:
            typer.echo(f"error: {error}", err=True)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Option(help="JSON lines to write.")],
    lm: Annotated[str, typer.Option(help="Instruct LM: a folder, hub id or embedded model.")] = "embedded:smollm2-135m",
    n: Annotated[int, typer.Option(help="Records wanted.")] = 12_000,
    template: Annotated[str, typer.Option(help="chat, or own text with one {prompt}.")] = "chat",
    exclude: Annotated[
        list[Path] | None, typer.Option(help="Text file whose lines must not be written (test sentences).")
    ] = None,
    openers: Annotated[Path | None, typer.Option(help="YAML of openings; default: the package's own.")] = None,
    seed: Seed = 0,
    temperature: Temperature = 0.9,
    top_k: TopK = 100,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 96,
) -> None:
    """Let an instruct LM write English prompts and answer them: training data without a data set."""
    from langbridge.data.examples import assets
    from langbridge.pretrained import load_language_model, load_tokenizer, quiet
    from langbridge.prompt import PromptTemplate
    from langbridge.synthesize import Openers, Synthesis, normalised
    from langbridge.synthesize import synthesize as run

    settings = Synthesis(n=n, seed=seed, temperature=temperature, top_k=top_k, batch_size=batch_size)
    files = [*(exclude or []), *(assets() / "sanity" / part / "eng.txt" for part in ("sentences", "facts"))]
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"--exclude {missing[0]}: no such file.")
    kept_out = frozenset(normalised(line) for file in files for line in file.read_text("utf-8").splitlines())
    words = Openers.read(openers)
    quiet()
    tokenizer = load_tokenizer(lm)
    model = load_language_model(lm).model
    form = PromptTemplate.of(template, tokenizer)
    with ProgressBar("writing") as bar:
        written = run(model, tokenizer, form, settings, out, exclude=kept_out, openers=words, progress=bar.move)
    typer.echo(f"{written} records in {out}")


@models_app.command("list")
def models_list() -> None:
    """List the embedded models and where they are."""
    from langbridge.pretrained.names import EMBEDDED, PREFIX, home

    for name, model in EMBEDDED.items():
        here = (home() / "models" / name.removeprefix(PREFIX)).is_dir()
        typer.echo(f"{name:24} {'here' if here else 'not pulled':11} {model.about}")
    typer.echo("Hub ids and local model folders work everywhere a name does.")


@models_app.command("pull")
def models_pull(names: Annotated[list[str], typer.Argument(help="Model names.")]) -> None:
    """Make models available offline."""
    from rich.console import Console

    from langbridge.pretrained import pull, quiet

    quiet()
    for name in names:
        with Console(stderr=True).status(f"pulling {name}"):
            folder = pull(name)
        typer.echo(f"{name}: {folder}")


@models_app.command("path")
def models_path(name: Annotated[str, typer.Argument(help="Model name.")]) -> None:
    """Print the folder of a model that is on this machine."""
    from langbridge.pretrained import local_path

    typer.echo(local_path(name))


app.command()(evaluate)
app.command()(report)
app.command("import")(import_released)
app.command()(calibrate)
app.command()(study)
app.command()(diagnose)
app.command("lm-eval", context_settings=PASSED_ON, add_help_option=False)(lm_eval)
app.command()(serve)


def _sampling(
    max_new_tokens: int, temperature: float, top_p: float, top_k: int, stop: list[str] | None, seed: int
) -> "Sampling":
    from langbridge.generate import Sampling

    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=tuple(stop or ()),
        seed=seed,
    )


def _prompts(given: list[str] | None, file: Path | None) -> list[str]:
    import json

    if given:
        return given
    if file is None and sys.stdin.isatty():
        raise DataError("no prompt: use --prompt, --input, or pipe lines in.")
    if file is None or str(file) == "-":
        lines = sys.stdin.read().splitlines()
    elif file.is_file():
        lines = file.read_text(encoding="utf-8").splitlines()
    else:
        raise DataError(f"--input {file}: no such file.")
    if file is not None and file.suffix == ".jsonl":
        prompts = []
        for number, line in enumerate(lines, start=1):
            try:
                prompts.append(str(json.loads(line)["prompt"]))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f'{file}, line {number}: wanted an object with "prompt", found {line[:80]}') from error
        return prompts
    if not (kept := [line for line in lines if line.strip()]):
        raise DataError("the input holds no prompt.")
    return kept


def _print_explanation(generator: "BridgedGenerator", prompts: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    for prompt in prompts:
        table = Table("encoder token", "what the LM is told (cosine)", title=prompt)
        for heard in generator.explain(prompt):
            table.add_row(heard.encoder_token, "  ".join(f"{token!r} {cosine:.2f}" for token, cosine in heard.nearest))
        Console().print(table)


def _write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    import json

    from langbridge.files import write_text

    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 2."""
    # texts differ in length: oneDNN would keep code and buffers for a thousand shapes, half a GB for the embedded pair
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    try:
        app()
    except LangBridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
