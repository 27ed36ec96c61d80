"""What a run shows and records while it trains: progress bar, metrics.jsonl, validation."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

METRICS = "metrics.jsonl"


class Bar(TrainerCallback):
    """A progress bar with loss, LM tokens per second and remaining time; plain lines where there is no terminal."""

    def __init__(self, tokens_seen: Callable[[], int]) -> None:
        self.console = Console(file=sys.stderr)
        self.tokens_seen = tokens_seen
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.start = self.first_tokens = 0.0
        self.first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self.start, self.first_tokens, self.first_step = time.monotonic(), self.tokens_seen(), state.global_step
        if state.is_world_process_zero:
            self.bar.start()
            self.task = self.bar.add_task("", total=state.max_steps, completed=state.global_step, loss="-", speed="-")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest loss and speed."""
        if self.task is None or logs is None or "loss" not in logs:
            return
        elapsed = time.monotonic() - self.start
        speed = (self.tokens_seen() - self.first_tokens) / elapsed
        self.bar.update(self.task, completed=state.global_step, loss=f"{logs['loss']:.3f}", speed=f"{speed:.0f}")
        if not self.console.is_terminal:
            left = elapsed / max(1, state.global_step - self.first_step) * (state.max_steps - state.global_step)
            self.console.print(
                f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.3f}  {speed:.0f} tokens/s  "
                f"{left / 60:.1f} min left",
                highlight=False,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.bar.stop()


class Metrics(TrainerCallback):
    """Appends every log and validation to `metrics.jsonl`."""

    def __init__(self, path: Path, records: int | None) -> None:
        """`records`: those of an epoch; None: not known, as the data is a stream."""
        self.path, self.records = path, records

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs is not None:
            read = state.global_step * args.train_batch_size * args.world_size
            logged = {"step": state.global_step, **logs, "epoch": read / (self.records or read or 1)}
            if self.records is None:
                del logged["epoch"]
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(logged) + "\n")


def cut_after(path: Path, step: int) -> None:
    """Drop lines of a metrics file behind `step`, which a resumed run will write again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
