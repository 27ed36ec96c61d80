"""Commands beside the everyday ones: bodies that `cli` registers; they import late, as it does."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from langbridge.config import Recipe


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
