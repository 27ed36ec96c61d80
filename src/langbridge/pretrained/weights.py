"""Weight files of a folder, tensor by tensor: safetensors or torch, whole or in shards; never unpickled freely."""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from langbridge.errors import CheckpointError

WHOLE = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Weights:
    """Names of tensors and the files they are in; `weights[name]` reads one."""

    files: Mapping[str, Path]
    _open: dict[Path, dict[str, Tensor]] = field(default_factory=dict)
    """Torch files that were read; their tensors stay on disk until they are used."""

    @classmethod
    def of(cls, folder: Path) -> "Weights":
        """Find the weights of a folder; raises CheckpointError when there are none, or a file is missing or damaged."""
        for name in WHOLE:
            index = folder / f"{name}.index.json"
            if index.is_file():
                return cls(_indexed(index))
            if (path := folder / name).is_file():
                found = cls({})
                return cls(dict.fromkeys(found._names(path), path), found._open)
        names = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(f"{folder} has neither {' nor '.join(WHOLE)}, nor an index of shards; found {names}.")

    def __getitem__(self, name: str) -> Tensor:
        path = self.files[name]
        try:
            if path.suffix == ".safetensors":
                with safetensors.safe_open(path, framework="pt") as file:
                    tensor: Tensor = file.get_tensor(name)
                    return tensor
            return self._torch(path)[name]
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged or lacks {name}: {error}.") from error

    def under(self, *prefixes: str) -> dict[str, str]:
        """Return the names that start with one of `prefixes`: without it -> as stored."""
        return {
            name.removeprefix(prefix): name for name in self.files for prefix in prefixes if name.startswith(prefix)
        }

    def _names(self, path: Path) -> list[str]:
        if path.suffix != ".safetensors":
            return list(self._torch(path))
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return list(file.keys())
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged: {error}.") from error

    def _torch(self, path: Path) -> dict[str, Tensor]:
        if path not in self._open:
            try:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except pickle.UnpicklingError as error:
                raise CheckpointError(
                    f"{path} holds more than tensors, and running what it holds is not safe: it was not read."
                ) from error
            except (OSError, RuntimeError, EOFError, ValueError) as error:
                raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}.") from error
            if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
                raise CheckpointError(f"{path} is not a state dict: wanted names and tensors.")
            self._open[path] = found
        return self._open[path]


def _indexed(index: Path) -> dict[str, Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: index.parent / str(file) for name, file in names.items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards: {error!r}.") from error
    if missing := sorted({path.name for path in files.values() if not path.is_file()}):
        raise CheckpointError(f"{index.parent} lacks {missing[0]}, which {index.name} names: is the download complete?")
    return files
