"""Read the `E5S1` container of a 4-bit BERT-shaped encoder and give its weights under transformers' names."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from langbridge.errors import PretrainedError

MAGIC = b"E5S1"
FLOAT32, QUANTISED = 0, 1  # data types of the directory
BLOCK_BYTES = 18  # one fp16 scale and 32 weights of 4 bits

_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDING_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


@dataclass(frozen=True, kw_only=True)
class E5S1:
    """Contents of one file: shape of the encoder and its fp32 weights."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float
    weights: dict[str, Tensor]


def read(path: Path) -> E5S1:
    """Read and de-quantise an E5S1 file; raises PretrainedError when it is truncated or something else."""
    data = path.read_bytes()
    try:
        return _parse(data)
    except (struct.error, ValueError, KeyError, RuntimeError) as error:
        raise PretrainedError(f"{path} is not a complete E5S1 file ({error}); pull the model again.") from error


def _parse(data: bytes) -> E5S1:
    if data[:4] != MAGIC:
        raise ValueError(f"starts with {data[:4]!r}")
    hidden, layers, heads, intermediate, vocabulary, positions, token_types = struct.unpack_from("<7i", data, 8)
    (epsilon,) = struct.unpack_from("<f", data, 36)
    pieces = struct.unpack_from("<i", data, 44)[0]  # behind the block size
    (blob,) = struct.unpack_from("<Q", data, 64)
    cursor = 72 + 4 * (pieces + 1) + 4 * pieces + blob
    _, map_length = struct.unpack_from("<iI", data, cursor)  # the normalisation map, which tokenizer.json holds too
    cursor += 8 + map_length
    shapes = {"emb.word": (vocabulary, hidden), "emb.pos": (positions, hidden), "emb.type": (token_types, hidden)}
    weights = {}
    (count,) = struct.unpack_from("<i", data, cursor)
    cursor += 4
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, cursor)
        name = data[cursor + 2 : cursor + 2 + length].decode()
        kind, size, offset, stored = struct.unpack_from("<BIQQ", data, cursor + 2 + length)
        cursor += 2 + length + 21
        flat = _values(data, kind, offset, stored)[:size]
        if name.endswith(".w") and "ln." not in name:
            flat = flat.view(intermediate if name.split(".")[1] == "fi" else hidden, -1)
        weights[_full_name(name)] = flat.view(shapes[name]) if name in shapes else flat
    return E5S1(
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        positions=positions,
        token_types=token_types,
        epsilon=epsilon,
        weights=weights,
    )


def _values(data: bytes, kind: int, offset: int, stored: int) -> Tensor:
    if offset + stored > len(data):
        raise ValueError(f"ends at byte {len(data)}, needs {offset + stored}")
    if kind == FLOAT32:
        return torch.from_numpy(np.frombuffer(data, "<f4", stored // 4, offset).copy())
    blocks = np.frombuffer(data, np.uint8, stored, offset).reshape(-1, BLOCK_BYTES)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)  # (blocks, 1)
    packed = blocks[:, 2:]
    levels = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8.0  # low nibbles first
    return torch.from_numpy((levels * scale).reshape(-1))


def _full_name(name: str) -> str:
    if name in _EMBEDDING_NAMES:
        return _EMBEDDING_NAMES[name]
    layer, part, kind = name.split(".")
    return f"encoder.layer.{int(layer[1:])}.{_LAYER_NAMES[part]}.{'weight' if kind == 'w' else 'bias'}"
