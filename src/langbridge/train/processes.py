"""A run of several processes: who writes and speaks, that all agree, and what the others say when one dies.

One path for a laptop and for many nodes: alone, a process is the main one and agrees with itself.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from langbridge.errors import TrainingError
from langbridge.model import LangBridge

Value = TypeVar("Value")


def here() -> Any:
    """Return accelerate's view of this process among the others."""
    return PartialState(cpu=not torch.accelerator.is_available())


def agreed(value: Value) -> Value:
    """Return the main process's value in every process."""
    values = [value]
    if here().num_processes > 1:
        broadcast_object_list(values)
    return values[0]


@torch.no_grad()
def same_weights(model: LangBridge) -> None:
    """Give every process the main one's learning weights: other machines may round a warm start differently."""
    state = here()
    if state.num_processes > 1:
        for parameter in model.parameters():
            if parameter.requires_grad:
                shared = parameter.data.to(state.device)
                torch.distributed.broadcast(shared, 0)
                parameter.copy_(shared)


@contextlib.contextmanager
def watched(run: Path) -> Iterator[None]:
    """Turn the death of another process, or a request to stop, into a TrainingError that says how to go on."""
    alone = here().num_processes == 1
    old: Any = None
    if not alone and threading.current_thread() is threading.main_thread():
        old = signal.signal(signal.SIGTERM, _stopped)
    try:
        yield
    except _Stopped as error:
        raise TrainingError(
            f"stopped by SIGTERM: another process of the run died (see its messages), or the job was ended. "
            f"{_way_on(run)}"
        ) from error
    except RuntimeError as error:  # gloo and NCCL raise no kind of their own
        if alone or not _lost(error):
            raise
        raise TrainingError(f"another process of the run died (see its messages). {_way_on(run)}") from error
    finally:
        if old is not None:
            signal.signal(signal.SIGTERM, old)


class _Stopped(BaseException):
    """SIGTERM arrived."""


def _stopped(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _lost(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.distributed.DistError) or any(
        sign in text for sign in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    )


def _way_on(run: Path) -> str:
    found = sorted(run.glob("checkpoint-*/complete"), key=lambda path: int(path.parent.name.split("-")[-1]))
    if not found:
        return f"{run} holds no complete checkpoint yet: delete it and train again."
    return f"Complete up to {found[-1].parent}: go on with --resume."
