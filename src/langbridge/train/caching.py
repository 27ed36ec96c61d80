"""Which encoder states a run will need, and having them on disk before it starts."""

from rich.console import Console
from rich.progress import Progress

from langbridge.checkpoint import LangBridge
from langbridge.config import Recipe
from langbridge.data.states import About, StateCache
from langbridge.errors import ConfigError
from langbridge.train.dataset import Examples, ToBatch, split
from langbridge.train.limits import Limits
from langbridge.train.order import order_of, reads
from langbridge.train.processes import here


def cached(model: LangBridge, dataset: Examples, console: Console, *, processes: int | None = None) -> StateCache:
    """Compute the states of every source that a run reads, as it looks in each epoch, unless they are on disk.

    Raises ConfigError where states change while training, DataError for a damaged cache and a full disk.
    """
    training = model.recipe.training
    if model.encoder.learns or model.recipe.objective.kind == "prefix_lm":
        raise ConfigError(
            "training.cache_states is on, but the encoder learns or texts are cut anew for each batch, so no state "
            "would be read twice: set it to false."
        )
    collate = model.collate
    cache = StateCache(About.of(model.recipe.encoder.name, model.encoder))
    order = order_of(dataset, ToBatch(collate), training, processes or here().num_processes)
    sources = dict.fromkeys(dataset[number].source for number in order)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("encoder states", total=None)
        new = cache.build(
            model.encoder,
            map(collate.source_ids, sources),
            collate.encoder_tokenizer.pad_token_id,
            announce=console.print,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"encoder states of {len(sources):,} sources: {len(sources) - new:,} were on disk, {new:,} are new")
    return cache


def build(recipe: Recipe, console: Console, *, processes: int = 1) -> StateCache:
    """Fill the cache for a recipe without training it."""
    model = LangBridge.from_recipe(recipe)
    own_answers = recipe.objective.kind == "distill"
    limits = Limits.of(model)
    found = split(recipe.data, limits, recipe.training.seed, own_answers=own_answers)
    training = found.training[: reads(recipe.training, processes)] if own_answers else found.training
    dataset = Examples(training, recipe.data, recipe.training.seed, limits.fits)
    return cached(model, dataset, console, processes=processes)
