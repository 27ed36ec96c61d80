"""Processes that a program left behind, where no namespace ends them."""

import contextlib
import os
import signal
from pathlib import Path

ROUNDS = 1000
"""Passes over the process table at most; each ends every descendant that is there."""


def tasks_of(user: int) -> int:
    """Count processes and threads of a user."""
    count = 0
    for process in processes():
        with contextlib.suppress(OSError):
            if process.stat().st_uid == user:
                count += len(list((process / "task").iterdir()))
    return count


def processes() -> list[Path]:
    """Return the folders of all processes."""
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def end_user(user: int) -> None:
    """Kill all processes of a user at one stroke; root only, for a user that nobody else is."""
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(user, user, user)
            os.kill(-1, signal.SIGKILL)  # reaches the caller too on some kernels
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def end_descendants() -> None:
    """Kill all descendants of this process, which has adopted the orphans among them."""
    for _ in range(ROUNDS):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        found = descendants(os.getpid())
        if not found:
            return
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)


def descendants(ancestor: int) -> list[int]:
    """Return children, their children, and so on."""
    children: dict[int, list[int]] = {}
    for process in processes():
        with contextlib.suppress(OSError):
            text = (process / "stat").read_text(encoding="utf-8", errors="replace")
            parent = int(text.rsplit(")", 1)[1].split()[1])  # behind the name, which may hold anything
            children.setdefault(parent, []).append(int(process.name))
    found, open_ = [], [ancestor]
    while open_:
        new = children.get(open_.pop(), [])
        found += new
        open_ += new
    return found
