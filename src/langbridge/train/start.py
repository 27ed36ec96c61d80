"""The bridge's initial weights: a random start of the right size, or the warm start."""

import time
from collections.abc import Iterator, Sequence

import torch

from langbridge.checkpoint import LangBridge, read_config, read_weights, run_folder
from langbridge.data import Example
from langbridge.errors import CheckpointError
from langbridge.model.warm_start import AlignedText, WarmStart, fit

STATISTICS_SAMPLES = 64
"""Sources that a random start is scaled on."""


def start(model: LangBridge, training: Sequence[Example]) -> str:
    """Give the bridge its initial weights and return a line that tells how."""
    began = time.monotonic()
    if model.recipe.bridge.start is not None:
        return trained_start(model, model.recipe.bridge.start)
    random_start(model, training)
    if not model.recipe.warm_start.enabled:
        return "random start, with the statistics of the LM's word embeddings"
    found = warm_start(model, training)
    sharp = "" if found.recognised is None else f", sharpened: {found.recognised:.0%} of words recognised"
    imitated = "" if found.imitation is None else f", imitated with R2 {found.imitation:.3f}"
    seconds = time.monotonic() - began
    model.results["warm start R2"] = round(found.explained_variance, 3)
    return (
        f"warm start: R2 {found.explained_variance:.3f} on {found.tokens:,} tokens{sharp}{imitated}, in {seconds:.0f} s"
    )


def trained_start(model: LangBridge, run: str) -> str:
    """Put the bridge of another run in place; raises CheckpointError when it is between other models or layers."""
    folder = run_folder(run)
    own, other = model.recipe, read_config(folder)
    for name, found, wanted in (
        ("encoder", other.encoder.name, own.encoder.name),
        ("language model", other.language_model.name, own.language_model.name),
        ("bridge.kind", other.bridge.kind, own.bridge.kind),
        ("bridge.layers", other.bridge.layers, own.bridge.layers),
    ):
        if found != wanted:
            raise CheckpointError(
                f"bridge.start: {run} was trained with {name} {found}, but this recipe has {wanted}: start from a run "
                "between the same models and layers, or leave bridge.start out."
            )
    weights = {name: value for name, value in read_weights(folder).items() if name.startswith("bridge.")}
    model.load_trained(model.trained() | weights)
    return f"start: the bridge of {run}"


def warm_start(model: LangBridge, examples: Sequence[Example]) -> WarmStart:
    """Fit the bridge in closed form on the sources of training examples."""
    settings = model.recipe.warm_start
    vectors = model.language_model.vectors.detach().float().cpu()
    spaces = model.lm_tokenizer("\n", add_special_tokens=False).input_ids  # carries no content
    filler = vectors[spaces].mean(dim=0) if spaces else vectors.mean(dim=0)
    texts = list(dict.fromkeys(example.source for example in examples))[: settings.sentences]
    return fit(model.bridge, _aligned(model, texts), vectors, filler, ridge=settings.ridge, sharpen=settings.sharpen)


@torch.no_grad()
def random_start(model: LangBridge, examples: Sequence[Example]) -> None:
    """Give a random bridge the LM's embedding statistics, measured on the sources of some training examples."""
    sources = [Example(source=example.source) for example in examples[:STATISTICS_SAMPLES]]
    batch = model.collate(sources).to(model.language_model.device)
    states = model.encoder(batch.encoder_ids, batch.encoder_mask).float()
    model.bridge.match(states, batch.encoder_mask, model.language_model.vectors)


@torch.no_grad()
def _aligned(model: LangBridge, texts: Sequence[str]) -> Iterator[AlignedText]:
    collate, batch_size = model.collate, 32
    for start in range(0, len(texts), batch_size):
        part = sorted(texts[start : start + batch_size], key=len)
        batch = collate([Example(source=text) for text in part])
        states = model.encoder(batch.encoder_ids, batch.encoder_mask).float()
        for text, row, mask in zip(part, states, batch.encoder_mask, strict=True):
            whole = collate.whole(text)
            encoded = model.encoder_tokenizer(whole, return_offsets_mapping=True)
            spoken = model.lm_tokenizer(whole, return_offsets_mapping=True, add_special_tokens=False)
            yield AlignedText(
                states=row[mask.bool()],
                encoder_spans=encoded.offset_mapping,
                lm_ids=torch.tensor(spoken.input_ids),
                lm_spans=spoken.offset_mapping,
            )
