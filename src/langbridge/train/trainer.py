"""A thin subclass of transformers' Trainer: our loss, our sampler, trained weights only."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer

from langbridge.checkpoint import WEIGHTS, LangBridge, read_weights, save_weights
from langbridge.errors import CheckpointError
from langbridge.files import write_text
from langbridge.model import Batch
from langbridge.train.micro import micro_batches
from langbridge.train.optimizer import groups
from langbridge.train.order import order_of
from langbridge.train.sharding import as_many_everywhere
from langbridge.train.stream import FILE, PLACE, Stream, unpacked

COMPLETE = "complete"
"""File in a checkpoint that is written last; it holds the number of processes."""


class BridgeTrainer(Trainer):
    """Trains what requires a gradient in a LangBridge; everything else is the Trainer users know."""

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the tokens of the whole accumulated batch
    steps_done = 0
    """Steps of the run that this one resumes."""
    sharded = False
    """Whether the frozen models are spread over the processes."""
    place: Tensor | None = None
    """Where a stream stood when its latest batch was made, as `stream.packed` gave it; None: no stream."""
    tokens_seen = 0
    """LM tokens that this process has trained on, padding not counted."""

    @property
    def bridge_model(self) -> LangBridge:
        """The model without the wrappers of distributed training."""
        model: LangBridge = self.accelerator.unwrap_model(self.model)
        return model

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this micro-batch's part of the mean loss per target token over the whole batch."""
        batch = Batch(**inputs)
        tokens = batch.target_mask.sum()
        loss = model(batch)
        if num_items_in_batch is not None:
            loss = loss * tokens * self.accelerator.num_processes / num_items_in_batch
        return (loss, None) if return_outputs else loss

    def training_step(
        self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run a whole batch forward and backward in micro-batches, and return its loss."""
        model.train()
        settings = self.bridge_model.recipe.training
        self.place = inputs.pop(PLACE, None)
        batch = Batch(**self._prepare_inputs(inputs))
        parts = micro_batches(self.bridge_model, batch, parts=settings.accumulate, budget=settings.token_budget)
        if self.sharded:
            parts = as_many_everywhere(parts, self.accelerator)
        self.tokens_seen += int(self.bridge_model.lengths(batch).sum())
        losses = []
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)  # gradients of devices are added up once
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                loss = self.compute_loss(model, part.parts(), num_items_in_batch=num_items_in_batch)
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Return the optimizer, with a group for each part that trains."""
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            kind, arguments = self.get_optimizer_cls_and_kwargs(self.args, self.bridge_model)
            self.optimizer: torch.optim.Optimizer = kind(groups(self.bridge_model), **arguments)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        tokens = torch.stack([sample["target_mask"].sum() for sample in batch_samples]).sum().to(device)
        total: Tensor = self.accelerator.gather(tokens).sum()
        return total

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        if isinstance(self.train_dataset, Stream):
            return SequentialSampler(self.train_dataset)
        training = self.bridge_model.recipe.training
        return order_of(self.train_dataset, self.data_collator, training, self.args.world_size, start=self.steps_done)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, mark it complete once every process has written its part, and drop old ones."""
        super()._save_checkpoint(model, trial)
        if self.place is not None and self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            write_text(folder / FILE, json.dumps(unpacked(self.place)) + "\n")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            run = Path(self.args.output_dir)
            (run / f"checkpoint-{self.state.global_step}" / COMPLETE).write_text(f"{self.args.world_size}\n")
            for folder in checkpoints(run)[self.bridge_model.recipe.training.keep :]:
                (folder / COMPLETE).unlink(missing_ok=True)  # first: what is half deleted does not count
                shutil.rmtree(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(self.bridge_model.trained(), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.bridge_model.load_trained(read_weights(Path(resume_from_checkpoint)))


def checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, complete or not, the newest first."""
    return sorted(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[-1]), reverse=True)


def newest_checkpoint(run: Path, processes: int = 1) -> Path:
    """Return the newest checkpoint that was written to its end.

    Raises CheckpointError when there is none, and when it was written by another number of processes.
    """
    for folder in checkpoints(run):
        try:
            written_by = int((folder / COMPLETE).read_text(encoding="utf-8"))
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            read_weights(folder)
        except (OSError, ValueError, CheckpointError):
            continue
        if written_by != processes:
            raise CheckpointError(
                f"{folder} was written by a run of {written_by} processes, this one has {processes}: resume with as "
                "many, or batches would be others."
            )
        return folder
    found = ", ".join(folder.name for folder in checkpoints(run)) or "no checkpoint"
    raise CheckpointError(f"{run}: nothing to resume from (found {found}); train without --resume.")
