"""`langbridge cache`: encoder states on disk. Imports late, as `cli` does."""

from pathlib import Path
from typing import Annotated

import typer

cache_app = typer.Typer(help="Encoder states on disk, for recipes with training.cache_states.", no_args_is_help=True)


@cache_app.command("build")
def cache_build(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field; may be repeated.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that the run will have.")] = 1,
) -> None:
    """Compute the encoder states that a recipe's training will read."""
    from rich.console import Console

    from langbridge.config import Recipe
    from langbridge.pretrained import quiet
    from langbridge.train.caching import build

    quiet()
    cache = build(Recipe.read(recipe, overrides or []), Console(stderr=True, highlight=False), processes=processes)
    typer.echo(f"{cache.folder}: {len(cache):,} texts")


@cache_app.command("info")
def cache_info() -> None:
    """List the caches: encoder, layers, texts, size; every byte is checked."""
    from langbridge.data.caches import surveyed
    from langbridge.data.states import readable, states_home

    found = 0
    for cache in surveyed():
        found += 1
        typer.echo(f"{cache.folder.name}  {cache.about}  {cache.texts:,} texts  {readable(cache.size)}")
        for trouble in cache.troubles:
            typer.echo(f"  {trouble}", err=True)
    if not found:
        typer.echo(f"no encoder states in {states_home()}")


@cache_app.command("clear")
def cache_clear(
    key: Annotated[str | None, typer.Argument(help="Key of one cache, as `info` shows it; default: all.")] = None,
) -> None:
    """Delete caches; what is needed again is computed again."""
    from langbridge.data.caches import cleared
    from langbridge.data.states import readable

    for folder, size in cleared(key):
        typer.echo(f"deleted {folder}: {readable(size)}")
