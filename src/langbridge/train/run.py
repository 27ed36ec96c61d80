"""`train`: a recipe in, a run folder out."""

import contextlib
import dataclasses
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments, set_seed

from langbridge.checkpoint import CONFIG, METADATA, WEIGHTS, LangBridge, read_config, settled
from langbridge.config import Recipe
from langbridge.data import Example
from langbridge.data.parallel import sanity_set
from langbridge.errors import CheckpointError
from langbridge.generate import BridgedGenerator
from langbridge.languages import DEVELOPMENT
from langbridge.model.layers import recompute
from langbridge.train.caching import cached
from langbridge.train.halves import Halves
from langbridge.train.precision import measure
from langbridge.train.processes import agreed, here, same_weights, watched
from langbridge.train.progress import METRICS, Bar, Metrics, cut_after
from langbridge.train.records import Records, Skipped, records, write_bad
from langbridge.train.sharding import asked_by_launcher, shard
from langbridge.train.start import start
from langbridge.train.stream import Stream, out_of_workers
from langbridge.train.trainer import BridgeTrainer, newest_checkpoint
from langbridge.transfer import compare

VALIDATION_SENTENCES = 16
"""Sentences of the sanity set that a validation uses in each development language: a trend, not a result."""

console = Console(stderr=True, highlight=False)


def train(recipe: Recipe, out: Path, *, resume: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> LangBridge:
    """Train the bridge of `recipe` and write the run folder `out`; with `resume`, go on from its newest checkpoint.

    `callbacks`: transformers' own kind, called in front of ours.
    Raises CheckpointError when `out` holds another run, ConfigError, DataError and PretrainedError for bad input.
    """
    sharded = asked_by_launcher()
    me = here()
    sharded = me.num_processes > 1 and (sharded or recipe.training.shard)
    console.quiet = not me.is_main_process
    with me.main_process_first():
        recipe, checkpoint = _open_folder(recipe, out, resume=resume)
    started = time.monotonic()
    set_seed(recipe.training.seed)
    model = LangBridge.from_recipe(agreed(settled(recipe)))
    recipe = model.recipe
    keep_less(model)
    if recipe.training.packing is not None:
        model.language_model.pack(recipe.training.packing)
    console.print(parameters(model))
    if slow_in_bf16(model):
        console.print("this CPU has no instructions for bfloat16: `dtype: auto` of both models would be faster")
    with me.main_process_first():  # it writes what the others read
        data = records(model, out, console, checkpoint)
    if me.is_main_process:
        write_bad(data.bad, out)
    console.print(told(data), soft_wrap=True)  # whole paths
    if checkpoint is None:
        console.print(start(model, data.examples))
        same_weights(model)
    if recipe.training.cache_states:
        data.to_batch.cache = cached(model, data.dataset, console)
    recipe = model.recipe = with_precision(recipe, model, data.examples)  # a random bridge's gradient would mislead it
    if me.is_main_process:
        recipe.write(out / CONFIG)
    halves = Halves(model)
    if sharded:
        console.print(f"{shard(model)} layers of the frozen models are spread over {me.num_processes} processes")
    elif recipe.training.precision == "bf16":
        halves.hold()
    validator = _Validation(model, data.validation, recipe.training.evaluate_every, halves)
    trainer = _trainer(model, data, out, [*callbacks, *_watchers(data, out, lambda: trainer), validator])
    validator.trainer, trainer.sharded = trainer, sharded
    if checkpoint is not None:
        console.print(f"resuming from {checkpoint.name}")
        trainer.steps_done = int(checkpoint.name.split("-")[-1])
        if me.is_main_process:
            cut_after(out / METRICS, trainer.steps_done)
    with _quiet(), watched(out), out_of_workers():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    halves.release()
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # no autocast behind training
    step, latest = validator.latest
    model.results |= latest if step == recipe.training.steps else validate(model, data.validation)
    model.results["minutes"] = round((time.monotonic() - started) / 60, 1)
    if me.is_main_process:
        model.save_pretrained(out)
    me.wait_for_everyone()  # what is returned is written
    return model


def _open_folder(recipe: Recipe, out: Path, *, resume: bool) -> tuple[Recipe, Path | None]:
    """Return the recipe and the checkpoint to resume from, if any; refuse to overwrite a run."""
    if resume:
        begun = read_config(out)
        recipe = as_begun(recipe, begun)
        if begun != recipe:
            raise CheckpointError(
                f"{out} was begun with another recipe (see {out / CONFIG}); resume with the same one."
            )
        return recipe, newest_checkpoint(out, here().num_processes)
    if (out / WEIGHTS).exists() or (out / METADATA).exists() or list(out.glob("checkpoint-*")):
        raise CheckpointError(f"{out} already holds a run: choose another --out, delete it, or use --resume.")
    if here().is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        (out / METRICS).unlink(missing_ok=True)
    return recipe, None


def as_begun(recipe: Recipe, begun: Recipe) -> Recipe:
    """Return the recipe with `auto` replaced by what was chosen when the run began: it stays chosen."""
    if recipe.training.precision == "auto":
        recipe = recipe.with_training(precision=begun.training.precision)
    types = {
        name: dataclasses.replace(getattr(recipe, name), dtype=getattr(begun, name).dtype)
        for name in ("encoder", "language_model")
        if getattr(recipe, name).dtype == "auto"
    }
    return dataclasses.replace(recipe, **types)


def with_precision(recipe: Recipe, model: LangBridge, examples: Sequence[Example]) -> Recipe:
    """Return the recipe with `auto` precision replaced by what this machine does best."""
    if recipe.training.precision != "auto":
        return recipe
    if torch.cuda.is_available():
        return recipe.with_training(precision="bf16" if torch.cuda.is_bf16_supported() else "fp32")
    if model.language_model.dtype != torch.float32:  # nothing is left to cast
        console.print(f"precision: fp32 for what learns; the LM computes in {recipe.language_model.dtype}")
        return recipe.with_training(precision="fp32")
    found = agreed(measure(model, examples))
    console.print(
        f"precision: {found.choice} (bf16 is {found.speedup:.2f} x as fast, its gradient's cosine {found.cosine:.4f})"
    )
    return recipe.with_training(precision=found.choice)


def _watchers(data: Records, out: Path, trainer: Callable[[], BridgeTrainer]) -> list[TrainerCallback]:
    """Return what shows and records a run."""
    count = None if isinstance(data.dataset, Stream) else len(data.dataset)
    metrics, bar = Metrics(out / METRICS, count), Bar(lambda: trainer().tokens_seen)
    return [metrics, bar, Skipped(lambda: trainer().place, data.bad, out, console)] if count is None else [metrics, bar]


def told(data: Records) -> str:
    """Return lines that tell what a run trains on, and what was left out."""
    stream = isinstance(data.dataset, Stream)
    count = f"a stream of {len(data.dataset):,}" if stream else f"{len(data.dataset):,}"
    lines = [f"{count} training records, {len(data.validation)} for validation", *data.bad.lines()]
    if data.unanswered:
        lines.append(f"{data.unanswered:,} prompts left without an answer by the LM, skipped")
    return "\n".join(lines)


def keep_less(model: LangBridge) -> None:
    """Let layers compute twice where the recipe wants it; the LM's opening is then not shared, as caches are not."""
    if model.recipe.training.gradient_checkpointing:
        model.language_model.shares_opening = False
        recompute(model.language_model.model)
        if model.encoder.learns:
            recompute(model.encoder.model)


def slow_in_bf16(model: LangBridge) -> bool:
    """Tell whether a frozen model computes in bf16 on a CPU that cannot."""
    parts = (model.encoder, model.language_model)
    on_cpu = any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for part in parts for p in part.parameters())
    return on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def parameters(model: LangBridge) -> str:
    """Return a line that tells how much of the model is trained."""
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    return f"trainable: {learning:,} of {total:,} parameters ({learning / total:.2%})"


def validate(model: LangBridge, validation: Sequence[Example]) -> dict[str, float]:
    """Return the English loss and, per development language, the loss and transfer ratio on the sanity set."""
    was_training = model.training
    generator = BridgedGenerator(model)
    scores = generator.scores(list(validation))
    nll = -sum(s.log_likelihood for s in scores) / sum(s.tokens for s in scores)
    result = {"validation_loss_eng": round(nll, 4)}
    data = sanity_set().choose(DEVELOPMENT, limit=VALIDATION_SENTENCES)
    english = data.references(DEVELOPMENT[0])
    pivot = compare(generator, english, english)
    for language in DEVELOPMENT:
        found = compare(generator, data.sources[language], data.references(language))
        result[f"validation_nll_{language}"] = round(found.nll, 4)
        result[f"validation_transfer_{language}"] = round(found.gain / pivot.gain, 4)
    model.train(was_training)
    return result


class _Validation(TrainerCallback):
    """Validates every so many steps."""

    def __init__(self, model: LangBridge, validation: Sequence[Example], every: int, halves: Halves) -> None:
        self.model, self.validation, self.every, self.halves = model, validation, every, halves
        self.trainer: BridgeTrainer | None = None
        self.latest: tuple[int, dict[str, float]] = (0, {})
        """(step, what was found)."""

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Log a validation; the random state of training is left as it was."""
        if state.global_step % self.every == 0 and self.trainer is not None:  # in all processes: they stay in step
            with torch.random.fork_rng(), self.halves.released():
                self.latest = state.global_step, validate(self.model, self.validation)
            self.trainer.log(dict(self.latest[1]))


def _trainer(model: LangBridge, data: Records, out: Path, callbacks: list[TrainerCallback]) -> BridgeTrainer:
    settings = model.recipe.training
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,  # split by the trainer itself
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        lr_scheduler_type=settings.schedule,
        max_grad_norm=settings.clip,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        save_steps=settings.save_every,
        save_total_limit=None,  # the trainer keeps `keep` complete ones itself
        dataloader_num_workers=settings.workers,
        ddp_find_unused_parameters=model.encoder.learns,  # an encoder may have idle weights
        ddp_broadcast_buffers=False,
        logging_steps=min(10, settings.steps),
        logging_first_step=True,
        report_to=list(settings.report_to),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        include_num_input_tokens_seen="no",
    )
    trainer = BridgeTrainer(
        model=model,
        args=arguments,
        data_collator=data.to_batch,
        train_dataset=data.dataset,
        callbacks=callbacks,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide notes of the training library that ask nothing of the user."""
    level = logging.getLogger("transformers").level
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        yield
    logging.getLogger("transformers").setLevel(level)
