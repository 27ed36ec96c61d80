"""What the outside tells the jail, and what the jail tells the outside: plain records, written as JSON."""

import dataclasses
from dataclasses import dataclass

from langbridge.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use. Memory and processor time are counted for each of its processes."""

    cpu_seconds: int = 5
    """Processor time of a process."""
    wall_seconds: float = 60.0
    """From start to verdict; a sleeping program is ended by it."""
    memory: int = 512 << 20
    """Bytes of address space of a process."""
    processes: int = 4
    """Processes and threads at a time, the first one included."""
    file_size: int = 4 << 20
    """Bytes of one file."""
    folder_size: int = 16 << 20
    """Bytes of all its files together, where the folder is a file system of its own."""
    open_files: int = 64
    """Descriptors of a process."""
    output: int = 1 << 20
    """Bytes written to stdout and stderr together."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(f"limit {field.name} must be more than 0, got {getattr(self, field.name)}")


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a jail is started with."""

    limits: Limits
    isolated: bool
    """Whether to use namespaces; without them only limits and another user protect the host."""
    folder: str
    """An empty folder, removed by the outside afterwards."""
    entry_point: str
    program: int
    """Descriptor of the program's text."""
    tests: int
    """Descriptor of the tests: JSON of [setup, tests]."""
    verdict: int
    """Descriptor that reports are written to."""
    parent: int
    """Process id of the outside."""
    user: int
    """Id of the user that the program runs as where the jail is started by root."""
