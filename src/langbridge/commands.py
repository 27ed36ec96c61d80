"""Commands beside the everyday ones: bodies that `cli` registers; they import late, as it does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from langbridge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from langbridge.config import Recipe
    from langbridge.generate import BridgedGenerator

RunArgument = Annotated[str, typer.Argument(help="Run folder, hub id, or `embedded`.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16 or auto (what is fast here); default: the run's.")
]
Routing = Annotated[
    str | None, typer.Option(help="off, by_language or by_likelihood: what the plain LM knows, it reads itself.")
]


def load_generator(
    run: str,
    *,
    plain: bool = False,
    routing: str | None = None,
    batch_size: int = 16,
    dtype: str | None = None,
) -> "BridgedGenerator":
    """Load a run, with the LM alone, another routing or another type where that is asked for."""
    from langbridge.pretrained import quiet
    from langbridge.routing import load

    quiet()
    return load(run, plain=plain, routing=routing, batch_size=batch_size, dtype=dtype)


def answer_records(
    generator: "BridgedGenerator", prompts: "Sequence[str]", answers: "Sequence[str]"
) -> list[dict[str, Any]]:
    """Return output records: prompt, completion, and the route where there was a choice."""
    from langbridge.routing import RoutedGenerator

    records: list[dict[str, Any]] = [{"prompt": p, "completion": a} for p, a in zip(prompts, answers, strict=True)]
    if isinstance(generator, RoutedGenerator):
        for record, route in zip(records, generator.routes(prompts), strict=True):
            record["route"] = route.record()
    return records


def routing_of(generator: "BridgedGenerator", texts: "Mapping[str, Sequence[str]] | None" = None) -> dict[str, Any]:
    """Return what a result says of routing; with texts by language, the share of each that the plain LM read."""
    from langbridge.routing import RoutedGenerator

    if not isinstance(generator, RoutedGenerator):
        return {}
    found: dict[str, Any] = {"kind": generator.config.kind, "threshold": generator.threshold}
    if texts is not None:
        found["read_by_the_plain_lm"] = {language: generator.share(part) for language, part in texts.items()}
    return {"routing": found}


def calibrate(
    run: Annotated[str, typer.Argument(help="Run folder.")],
    limit: Annotated[int, typer.Option(help="First so many sentences of each language.")] = 40,
) -> None:
    """Find the threshold of `--routing by_likelihood` on English and the development languages, and keep it."""
    import dataclasses

    from rich.console import Console

    from langbridge.calibrate import measure, threshold
    from langbridge.checkpoint import CONFIG
    from langbridge.pretrained import quiet
    from langbridge.routing import load

    quiet()
    generator = load(run, routing="off")
    with Console(stderr=True).status("calibrating") as status:

        def moved(language: str, done: int, total: int) -> None:
            status.update(f"calibrating {language} ({done} of {total})")

        found = threshold(measure(generator, limit=limit, progress=moved))
    for language, share in found.plain.items():
        typer.echo(f"{language}: {share:.0%} of the sentences are read by the plain LM")
    typer.echo(f"routing.likelihood: {found.value}")
    config = Path(run).expanduser() / CONFIG
    if not config.is_file():
        typer.echo("not written: only a run folder of your own is changed")
        return
    recipe = generator.model.recipe
    dataclasses.replace(recipe, routing=dataclasses.replace(recipe.routing, likelihood=found.value)).write(config)
    typer.echo(f"written to {config}")


def print_plan(recipe: "Recipe", tokens: str | None, device_rate: float) -> None:
    """Print what a recipe would take; `tokens`: mean lengths as SOURCE,TARGET."""
    from rich.console import Console

    from langbridge.train import plan

    found = plan.plan(recipe, plan.token_means(tokens))
    plan.print_plan(recipe, found, device_rate, Console(highlight=False))


def import_released(
    checkpoint: Annotated[str, typer.Argument(help="Folder or hub id of a published checkpoint.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    encoder: Annotated[str | None, typer.Option(help="The encoder it was trained from; default: as it says.")] = None,
    language_model: Annotated[str | None, typer.Option(help="Its frozen LM; default: as it says.")] = None,
    encoder_tokenizer: Annotated[str | None, typer.Option(help="Default: the published one.")] = None,
    encoder_template: Annotated[
        str | None, typer.Option(help="Text around every prompt: metamath, orca, or own with one {prompt}.")
    ] = None,
) -> None:
    """Turn a published LangBridge checkpoint into a run folder."""
    from langbridge.pretrained import quiet
    from langbridge.released import Names
    from langbridge.released import import_released as run

    quiet()
    names = Names(
        encoder=encoder,
        language_model=language_model,
        encoder_tokenizer=encoder_tokenizer,
        encoder_template=encoder_template,
    )
    found = run(checkpoint, out, names)
    typer.echo(f"bridge: {found.bridge}")
    typer.echo(f"encoder: {found.encoder}")
    typer.echo(f"language model: {found.language_model}")
    typer.echo(f"run folder: {out}")


class ProgressBar:
    """A progress bar on stderr."""

    def __init__(self, text: str, *, show: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.text = text
        self.bar = Progress(*columns, console=console, disable=not (show and console.is_terminal))
        self.task = self.bar.add_task(text, total=None)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def move(self, done: int, total: int) -> None:
        """Show progress."""
        self.bar.update(self.task, completed=done, total=total)

    def move_to(self, language: str, done: int, total: int) -> None:
        """Show progress and the language at work."""
        self.bar.update(self.task, description=f"{self.text} {language:4}", completed=done, total=total)


def lm_eval(context: typer.Context) -> None:
    """Run lm-eval on a run: --model langbridge --model_args run=RUN --tasks ... (docs/lm-eval.md)."""
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-eval is not installed: pip install 'langbridge-lm[lm-eval]'.")
    from langbridge.evaluate.harness import main

    main(context.args)
