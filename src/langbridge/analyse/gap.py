"""Study `gap`: what closes the transfer gap, on English alone? One table of everything that was tried."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from langbridge.analyse.contrast import Contrast
from langbridge.analyse.grid import Grid, by_setting, development, foreign, macro, unlearned
from langbridge.analyse.medians import by_seed, median_gain
from langbridge.analyse.p3 import PLACE, paraphrases, read_p3
from langbridge.analyse.representation import encoder_layers
from langbridge.analyse.study import Cell
from langbridge.data.parallel import Parallel, sanity_set
from langbridge.generate import BridgedGenerator
from langbridge.languages import PIVOT
from langbridge.transfer import compare

BARE = (
    "bridge.layers=last",
    "bridge.token_dropout=0",
    "data.shuffle_words=0",
    "data.gloss=0",
    "data.plain_case=0",
    "data.cut_words=0",
)
"""The plain linear bridge: the paper's, warm-started, on English as it is written."""
VARIED = ("data.shuffle_words=0.8", "data.gloss=0.5", "data.plain_case=0.3", "data.cut_words=0.3")
FAST = "training.learning_rate=3e-3"
"""Three times the rate of the shipped bridge's recipe."""
NOISE = 0.5
LAYERS = (9, 10, 11)
"""Below the last, which is the twelfth."""
RANKS = (32, 128)
CONTRAST = "paraphrase contrast"
WEIGHT, PAIRS = 0.1, 16
"""Of the contrast in the loss; pairs of a step."""
LONG, TIMES = "four times as long", 4
MEANS = 100
"""Sentences that the mean state of a language is taken of: its last, where a measure is of its first."""


def together(layer: int) -> tuple[str, ...]:
    """Return the fields of a layer with varied English and states hidden."""
    return (*BARE, *VARIED, f"bridge.layers=[{layer}]", "bridge.token_dropout=0.15")


class Noise(TrainerCallback):
    """Adds Gaussian noise to what the bridge reads while it learns, in spreads of each feature over the batch."""

    def __init__(self, size: float) -> None:
        self.size = size

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Hook the bridge."""
        self.hook = kwargs["model"].bridge.register_forward_pre_hook(self.disturb)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the bridge as it was."""
        self.hook.remove()

    def disturb(self, bridge: Any, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return disturbed states; none while validating."""
        states, mask = inputs
        if not bridge.training:
            return inputs
        spread = states[mask.bool()].std(dim=0, keepdim=True)
        return states + self.size * spread * torch.randn_like(states), mask


class LowRank(TrainerCallback):
    """Keeps the linear bridge's weight at a rank: projected after every step."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop all but the largest singular values."""
        weight = kwargs["model"].bridge.linear.weight
        weight.copy_(at_rank(weight, self.rank))


def at_rank(weight: Tensor, rank: int) -> Tensor:
    """Return the nearest matrix of that rank."""
    left, sizes, right = torch.linalg.svd(weight.float(), full_matrices=False)
    found: Tensor = ((left[:, :rank] * sizes[:rank]) @ right[:rank]).to(weight)
    return found


class Gap(Grid):
    """Everything that keeps to English, one change at a time, then together."""

    name: ClassVar[str] = "gap"
    question: ClassVar[str] = "What raises transfer without a word of another language in training?"
    base: ClassVar[str] = "plain linear"
    settings: ClassVar[dict[str, tuple[str, ...]]] = {
        "plain linear": BARE,
        "state noise": BARE,
        "token dropout": (*BARE, "bridge.token_dropout=0.15"),
        "centred": BARE,
        **{f"layer {layer}": (*BARE, f"bridge.layers=[{layer}]") for layer in LAYERS},
        "layer mix": (*BARE, "bridge.layers=mix"),
        "varied": (*BARE, *VARIED),
        **{f"layer {layer} varied dropout": together(layer) for layer in LAYERS},
        "layer 10 varied dropout noise": together(10),
        **{f"layer {layer} varied dropout centred": together(layer) for layer in (10, 11)},
        "rate 3e-3": (*BARE, FAST),
        "layer 11 varied dropout rate 3e-3": (*together(11), FAST),
        **{f"rank {rank}": BARE for rank in RANKS},
        CONTRAST: BARE,
        "distilled": (*BARE, "objective.kind=distill"),
        f"layer 11 varied dropout {LONG}": together(11),
        LONG: BARE,
    }
    facts: ClassVar[bool] = True
    wanted: ClassVar[float | None] = 0.08
    development_times: ClassVar[int] = 4
    about: ClassVar[str] = (
        "The plain linear bridge on the last layer, warm-started; then one change at a time: Gaussian noise of half a "
        "spread on its input while it learns; states hidden; the mean state of each language replaced by that of "
        f"English when it is used (means of {MEANS} unlabelled sentences that are not measured); an earlier layer or "
        "all mixed; English made to look foreign (words moved, lost and cut, no capitals); earlier layers with that "
        "and states hidden, and noise, or centred; three times the learning rate, alone and with layer 11 and all "
        "that; a weight of low rank (projected after each step); a contrast of paraphrases (token by token, weight "
        f"{WEIGHT}, the pairs of PAWS and MRPC that are in P3); distillation; four times the steps, alone and with "
        "layer 11 and all that."
    )
    limits: ClassVar[str] = (
        "What is `centred` sees other languages, but only when the bridge is used. Each idea was tried in "
        "one strength; the few paraphrases come again and again."
    )

    def fields(self, name: str) -> Sequence[str]:
        """Lengthen what is to be longer."""
        longer = (f"training.steps={TIMES * self.step_count}",) if name.endswith(LONG) else ()
        return [*self.settings[name], *longer]

    def lacking(self) -> dict[str, str]:
        """Leave the contrast out where there are no paraphrases."""
        found = super().lacking()
        if self.setting.data is None or not (self.setting.data / PLACE).is_file():
            found[CONTRAST] = f"--data with {PLACE}"
        return found

    def callbacks(self, name: str) -> Sequence[TrainerCallback]:
        """Return what disturbs or binds the bridge while it learns."""
        if name == CONTRAST and self.setting.data is not None:
            return [Contrast(paraphrases(read_p3(self.setting.data)), weight=WEIGHT, size=PAIRS)]
        if name.endswith("noise"):
            return [Noise(NOISE)]
        return [LowRank(int(name.split()[1]))] if name.startswith("rank ") else []

    def measure(self, cell: str) -> Cell:
        """Measure as every grid does; transfer of what is centred is that of centred states."""
        self.centring = cell.rpartition(", seed ")[0].endswith("centred")
        return super().measure(cell)

    def measured(self, generator: BridgedGenerator) -> Cell:
        """Replace transfer where each language is centred first."""
        cell = super().measured(generator)
        whole = self.setting.parallel()
        for part, text in self.texts.items() if self.centring else ():
            pivot = text.pivot_sample(self.counts[part])
            gain = compare(generator, pivot, pivot).gain
            for language, sources in text.sources.items():
                last = ending(whole if language in whole.sources else sanity_set())
                with centred(generator, last.sources[language], last.pivot_sample(MEANS)):
                    found = compare(generator, sources, text.references(language))
                cell[part][language] = round(found.gain / gain, 4)
                cell[f"nll_{part}"][language] = round(found.nll, 4)
        return cell

    def table(self, cells: Mapping[str, Cell]) -> str:
        """Add the verdict: does what the development languages choose raise transfer as wanted, at equal steps?"""
        rows = by_setting(cells, self.settings)
        short = {name: own for name, own in rows.items() if not name.endswith(LONG)}
        long = {name: own for name, own in rows.items() if name.endswith(LONG)}
        told = [self.verdict(part, base) for part, base in ((short, self.base), (long, LONG)) if base in part]
        return "\n\n".join([super().table(cells), *told])

    def verdict(self, rows: Mapping[str, Mapping[int, Cell]], base: str) -> str:
        """Tell what the development languages choose, and whether it reaches what is wanted over `base`."""
        taught = [name for name in rows if name not in unlearned(rows, base)]
        chosen = max(taught, key=lambda name: development(rows[name]))
        told = f"Chosen on the development languages among those with the steps of `{base}`: `{chosen}`"
        if chosen == base:
            return f"{told}, so that nothing tried is chosen."
        gain, low, high = median_gain(by_seed(rows[chosen]), by_seed(rows[base]))
        reached = "reaches" if gain >= (self.wanted or 0) else "does not reach"
        return (
            f"{told}; the median ratio of the test languages is {gain:+.3f} ({low:+.3f} to {high:+.3f}) from that of "
            f"`{base}`, which {reached} the aim of +{self.wanted}. Losses, English and test languages: "
            f"{both_losses(rows[chosen])}, against {both_losses(rows[base])}."
        )


def both_losses(own: Mapping[int, Cell]) -> str:
    """Return the English loss and that of the test languages, means over seeds, in nats per token."""
    found = [(cell["nll_test"][PIVOT], macro(foreign(cell["nll_test"]))) for cell in own.values()]
    return " and ".join(f"{sum(side) / len(side):.2f}" for side in zip(*found, strict=True))


def ending(text: Parallel) -> Parallel:
    """Return the last sentences of each language; a text of fewer than `MEANS` is given whole."""
    ends = ({language: column[-MEANS:] for language, column in side.items()} for side in (text.sources, text.english))
    return Parallel(text.name, *ends)


@contextlib.contextmanager
def centred(generator: BridgedGenerator, texts: Sequence[str], english: Sequence[str]) -> Iterator[None]:
    """Shift what the encoder gives, for a while, by English mean minus the mean of `texts`."""
    encoder = generator.model.encoder
    chosen = encoder.layers or (encoder.depth,)
    means = [encoder_layers(generator, part).mean(dim=1) for part in (texts, english)]  # (layers + 1, width)
    shift = torch.cat([(means[1] - means[0])[layer] for layer in chosen])

    def moved(module: Any, inputs: Any, states: Tensor) -> Tensor:
        return states + shift.to(states)

    hook = encoder.register_forward_hook(moved)
    try:
        yield
    finally:
        hook.remove()
