"""Encoder states on disk: computed once by a frozen encoder, read by every epoch and run that needs them.

states/<key>/about.json       what made them: encoder, weights, layers
states/<key>/<shard>.states   half-precision numbers, token after token, read through a memory map
states/<key>/<shard>.npz      which encoder input lies where; a shard without it was not finished and does not count

The key is a fingerprint of the encoder's weights and of the layers that are read; a text is known by its encoder ids,
so that prefixes, tags and marks count too. Shards are written once and never changed, so readers need no lock.
"""

import hashlib
import json
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from langbridge.data.collate import pad
from langbridge.errors import DataError
from langbridge.files import replacing, write_text
from langbridge.model import Encoder
from langbridge.pretrained import home

ABOUT, LOCK = "about.json", ".lock"
SHARD = 2**28
"""Bytes after which a shard is closed; an interruption loses at most this much work."""
TOKENS_AT_ONCE = 4096
"""Encoder tokens, padding included, that are read at a time."""

Ids = Sequence[int]
Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Place = tuple[int, int, int]
"""(shard, first token, tokens)"""


@dataclass(frozen=True, kw_only=True)
class About:
    """What states depend on, beside the text."""

    encoder: str
    weights: str
    """Fingerprint of the weights and the kind of model."""
    layers: tuple[int, ...]
    dim: int

    @classmethod
    def of(cls, name: str, encoder: Encoder) -> "About":
        """Describe an encoder; its name is for people, the fingerprint is of its weights, read once."""
        return cls(encoder=name, weights=fingerprint(encoder), layers=encoder.layers, dim=encoder.dim)

    @property
    def key(self) -> str:
        """Name of the folder: the same weights and layers under another name are the same."""
        return _digest(json.dumps([self.weights, self.layers, self.dim]).encode())[:16].hex()

    @property
    def text(self) -> str:
        """The description as it is written down."""
        fields = {"encoder": self.encoder, "weights": self.weights, "layers": list(self.layers), "dim": self.dim}
        return json.dumps(fields, indent=2) + "\n"


class StateCache:
    """The states that one encoder made. Raises DataError where a shard is damaged or another encoder's."""

    def __init__(self, about: About, root: Path | None = None) -> None:
        self.about = about
        self.folder = (root or states_home()) / about.key
        self._shards: list[NDArray[np.float16]] = []
        self._places: dict[bytes, Place] = {}
        self._read: set[str] = set()
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, ids: Ids) -> bool:
        return _name(ids) in self._places

    def refresh(self) -> None:
        """Take in shards that were finished since."""
        for index in sorted(self.folder.glob("*.npz")):
            if index.name not in self._read:
                self._take_in(index)

    def states(self, ids: Ids) -> Tensor | None:
        """Return the states of one encoder input: (source, dim), fp16; None where they were never computed."""
        place = self._places.get(_name(ids))
        if place is None:
            return None
        shard, first, tokens = place
        return torch.from_numpy(np.array(self._shards[shard][first : first + tokens]))

    def batch(self, rows: Sequence[Ids]) -> Tensor:
        """Return states padded on the right: (batch, source, dim), fp16; raises DataError where a row is missing."""
        found = [states for ids in rows if (states := self.states(ids)) is not None]
        if len(found) < len(rows):
            raise DataError(f"{self.folder} lacks the states of {len(rows) - len(found)} texts: was it changed?")
        return torch.nn.utils.rnn.pad_sequence(found, batch_first=True)

    def missing(self, inputs: Iterable[Ids]) -> list[Ids]:
        """Return the different inputs whose states are not here, short ones first."""
        wanted = {_name(ids): ids for ids in inputs}
        return sorted((ids for name, ids in wanted.items() if name not in self._places), key=len)

    def room(self, inputs: Sequence[Ids]) -> int:
        """Return the bytes that the states of some inputs take."""
        return sum(map(len, inputs)) * self.about.dim * 2

    def build(
        self,
        encoder: Encoder,
        inputs: Iterable[Ids],
        fill: int,
        *,
        announce: Callable[[str], object] = print,
        progress: Progress = lambda done, total: None,
        shard: int = SHARD,
    ) -> int:
        """Compute and keep what is missing, and return how many inputs that were; says first what disk it will take.

        `fill` is the encoder's padding id. One process builds at a time; another one waits and then finds everything
        there. Raises DataError where the disk has too little room.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        inputs = self.missing(inputs)
        if not inputs:
            return 0
        with lock:
            self.refresh()
            wanted = self.missing(inputs)
            self._check_room(wanted, announce)
            write_text(self.folder / ABOUT, self.about.text)
            for stray in set(self.folder.glob("*.states")) - {p.with_suffix(".states") for p in indexes(self.folder)}:
                stray.unlink()  # left by a builder that was killed: whoever holds the lock is the only one
            done = 0
            while done < len(wanted):
                done = self._write_shard(encoder, wanted, done, fill, shard, progress)
                self.refresh()
        return len(wanted)

    def _check_room(self, wanted: Sequence[Ids], announce: Callable[[str], object]) -> None:
        room, free = self.room(wanted), shutil.disk_usage(self.folder).free
        announce(
            f"encoder states of {len(wanted):,} texts will take {readable(room)} in {self.folder} "
            f"({readable(free)} free)"
        )
        if room > 0.95 * free:
            raise DataError(
                f"{self.folder}: the encoder states need {readable(room)}, but only {readable(free)} are free. Set "
                "LANGBRIDGE_HOME to a larger disk, use data.limit, or set training.cache_states: false."
            )

    def _write_shard(
        self, encoder: Encoder, wanted: Sequence[Ids], first: int, fill: int, most: int, progress: Progress
    ) -> int:
        """Write states of wanted[first:] until the shard is full, then its index; return where to go on."""
        path = self.folder / f"{uuid.uuid4().hex}.states"
        done, tokens, check = first, 0, 0
        with path.open("wb") as file:
            while done < len(wanted) and tokens * self.about.dim * 2 < most:
                rows = wanted[done : done + max(1, TOKENS_AT_ONCE // len(wanted[done]))]
                rows = rows[: max(1, TOKENS_AT_ONCE // len(rows[-1]))]  # sorted: the last is the longest
                data = _computed(encoder, rows, fill, self.about).tobytes()
                file.write(data)
                check = zlib.crc32(data, check)
                done, tokens = done + len(rows), tokens + sum(map(len, rows))
                progress(done, len(wanted))
        written = wanted[first:done]
        with replacing(path.with_suffix(".npz")) as temporary, temporary.open("wb") as index:
            np.savez(
                index,
                names=np.frombuffer(b"".join(map(_name, written)), dtype=np.uint8).reshape(-1, 16),
                lengths=np.array([len(ids) for ids in written], dtype=np.int32),
                key=np.array(self.about.key),
                check=np.array(check, dtype=np.uint32),
            )
        return done

    def _take_in(self, index: Path) -> None:
        names, lengths, key, _ = read_index(index)
        path = index.with_suffix(".states")
        tokens = int(lengths.sum())
        found = path.stat().st_size if path.is_file() else 0
        if key != self.about.key:
            raise DataError(
                f"{path} holds states of another encoder (key {key}, wanted {self.about.key}): run "
                f"`langbridge cache clear {self.folder.name}`."
            )
        if found != tokens * self.about.dim * 2:
            raise DataError(
                f"{path} is damaged: {found} bytes, wanted {tokens * self.about.dim * 2}. Run `langbridge cache clear "
                f"{self.folder.name}`; what is needed is computed again."
            )
        starts = np.concatenate([[0], lengths.cumsum()])
        number = len(self._shards)
        self._shards.append(np.memmap(path, dtype=np.float16, mode="r", shape=(tokens, self.about.dim)))
        for row, name in enumerate(names):
            self._places[name] = (number, int(starts[row]), int(lengths[row]))
        self._read.add(index.name)


def read_index(index: Path) -> tuple[list[bytes], NDArray[np.int64], str, int]:
    """Return names, lengths, key and checksum of a shard; raises DataError."""
    try:
        with index.open("rb") as file, np.load(file) as read:
            names = [row.tobytes() for row in read["names"]]
            return names, read["lengths"].astype(np.int64), str(read["key"]), int(read["check"])
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{index} is damaged ({error}): run `langbridge cache clear {index.parent.name}`; what is needed is "
            "computed again."
        ) from error


def fingerprint(encoder: Encoder) -> str:
    """Return a digest of all weights and of the model's kind and settings."""
    digest = hashlib.sha256(type(encoder.model).__name__.encode())
    settings = encoder.model.config.to_dict()
    kept = {name: value for name, value in settings.items() if name not in ("_name_or_path", "transformers_version")}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, value in sorted(encoder.model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def states_home() -> Path:
    """Return the folder of all caches."""
    return home() / "states"


def readable(size: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"


@torch.no_grad()
def _computed(encoder: Encoder, rows: Sequence[Ids], fill: int, about: About) -> NDArray[np.float16]:
    """Return states of some inputs, one behind the other: (tokens, dim)."""
    ids, mask = pad(rows, fill, left=False)
    states = encoder(ids, mask).float().cpu()[mask.bool()]
    half = states.half()
    if not bool(half.isfinite().all()):
        raise DataError(
            f"states of {about.encoder} reach {float(states.abs().max()):.3g}, but half precision ends at 65,504: set "
            "training.cache_states: false."
        )
    return np.asarray(half.numpy())


def indexes(folder: Path) -> list[Path]:
    """Return the shards of a cache that were finished."""
    return sorted(folder.glob("*.npz"))


def _name(ids: Ids) -> bytes:
    return _digest(np.asarray(ids, dtype=np.int32).tobytes())[:16]


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
