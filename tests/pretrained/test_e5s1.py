"""The E5S1 reader against a writer of its own, a loop over nibbles, and a BERT written out in numpy."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from langbridge.errors import PretrainedError
from langbridge.pretrained import e5s1

HIDDEN, LAYERS, HEADS, INTERMEDIATE, VOCABULARY, POSITIONS, TOKEN_TYPES = 24, 2, 3, 40, 11, 7, 2
EPSILON = 1e-5
TEXTS = ["query", "être", "నీరు"]  # pieces of the tokenizer, which the reader skips


@dataclass(frozen=True)
class Toy:
    """A file and, by its own short names, the values that it holds."""

    data: bytes
    values: dict[str, np.ndarray]


def quantised(size: int, rng: np.random.Generator) -> tuple[bytes, list[float]]:
    """Return random Q4_0 blocks for `size` weights, and the weights by a loop over nibbles.

    A block is one fp16 scale and 16 bytes; low nibbles are weights 0-15, high nibbles 16-31; (nibble - 8) * scale.
    """
    data, weights = b"", []
    for _ in range(math.ceil(size / 32)):
        scale = np.float16(rng.uniform(0.01, 0.1))
        packed = rng.integers(0, 256, 16, dtype=np.uint8).tolist()
        data += scale.tobytes() + bytes(packed)
        weights += [(byte % 16 - 8) * float(scale) for byte in packed]
        weights += [(byte // 16 - 8) * float(scale) for byte in packed]
    return data, weights[:size]


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "emb.word": (VOCABULARY, HIDDEN),
        "emb.pos": (POSITIONS, HIDDEN),
        "emb.type": (TOKEN_TYPES, HIDDEN),
        "emb.ln.w": (HIDDEN,),
        "emb.ln.b": (HIDDEN,),
    }
    for layer in range(LAYERS):
        for part in ("q", "k", "v", "ao"):
            found |= {f"l{layer}.{part}.w": (HIDDEN, HIDDEN), f"l{layer}.{part}.b": (HIDDEN,)}
        found |= {f"l{layer}.fi.w": (INTERMEDIATE, HIDDEN), f"l{layer}.fi.b": (INTERMEDIATE,)}
        found |= {f"l{layer}.fo.w": (HIDDEN, INTERMEDIATE), f"l{layer}.fo.b": (HIDDEN,)}
        for part in ("aln", "oln"):
            found |= {f"l{layer}.{part}.w": (HIDDEN,), f"l{layer}.{part}.b": (HIDDEN,)}
    return found


def toy() -> Toy:
    """Write a tiny E5S1 file: header, tokenizer, directory, tensors."""
    rng = np.random.default_rng(0)
    stored, values, kinds = {}, {}, {}
    for name, shape in shapes().items():
        kinds[name] = 1 if len(shape) == 2 and name != "emb.type" else 0
        if kinds[name]:
            stored[name], weights = quantised(math.prod(shape), rng)
            values[name] = np.array(weights, np.float32).reshape(shape)
        else:
            values[name] = rng.normal(size=shape).astype(np.float32)
            stored[name] = values[name].astype("<f4").tobytes()
    pieces = [text.encode() for text in TEXTS]
    ends = np.cumsum([0, *map(len, pieces)]).tolist()
    header = b"E5S1" + struct.pack("<I", 1)
    header += struct.pack("<7i", HIDDEN, LAYERS, HEADS, INTERMEDIATE, VOCABULARY, POSITIONS, TOKEN_TYPES)
    header += struct.pack("<fi", EPSILON, 32)  # block size
    header += struct.pack("<5i", len(pieces), 0, 2, 1, 3)  # pieces, bos, eos, pad, unk
    header += struct.pack("<Q", sum(map(len, pieces)))
    header += struct.pack(f"<{len(ends)}I", *ends) + struct.pack(f"<{len(pieces)}f", *[-1.0] * len(pieces))
    header += b"".join(pieces)
    header += struct.pack("<iI", 2, 5) + b"\x01\x02\x03\x04\x05"  # normalisation map
    header += struct.pack("<i", len(stored))
    start = len(header) + sum(2 + len(name) + 21 for name in stored)
    directory, body = b"", b""
    for name, block in stored.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kinds[name], values[name].size, start + len(body), len(block))
        body += block
    return Toy(header + directory + body, values)


@pytest.fixture(scope="module")
def written() -> Toy:
    return toy()


def read(data: bytes, folder: Path) -> e5s1.E5S1:
    path = folder / "toy.bin"
    path.write_bytes(data)
    return e5s1.read(path)


def bert(packed: e5s1.E5S1) -> BertModel:
    config = BertConfig(
        vocab_size=packed.vocabulary,
        hidden_size=packed.hidden,
        num_hidden_layers=packed.layers,
        num_attention_heads=packed.heads,
        intermediate_size=packed.intermediate,
        max_position_embeddings=packed.positions,
        type_vocab_size=packed.token_types,
        layer_norm_eps=packed.epsilon,
    )
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict(packed.weights, strict=True)
    return model.eval()


def normed(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON) * w + b


def oracle(values: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Run the encoder by hand: (length, hidden)."""
    v = {name: value.astype(np.float64) for name, value in values.items()}
    x = v["emb.word"][ids] + v["emb.pos"][: len(ids)] + v["emb.type"][0]
    x = normed(x, v["emb.ln.w"], v["emb.ln.b"])
    erf, width = np.vectorize(math.erf), HIDDEN // HEADS
    for layer in range(LAYERS):

        def linear(part: str, states: np.ndarray, layer: int = layer) -> np.ndarray:
            return states @ v[f"l{layer}.{part}.w"].T + v[f"l{layer}.{part}.b"]

        q, k, value = linear("q", x), linear("k", x), linear("v", x)
        heads = []
        for head in range(HEADS):
            own = slice(head * width, (head + 1) * width)
            scores = q[:, own] @ k[:, own].T / math.sqrt(width)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, own])
        x = normed(x + linear("ao", np.concatenate(heads, -1)), v[f"l{layer}.aln.w"], v[f"l{layer}.aln.b"])
        inner = linear("fi", x)
        inner = inner * (1 + erf(inner / math.sqrt(2))) / 2  # GELU
        x = normed(x + linear("fo", inner), v[f"l{layer}.oln.w"], v[f"l{layer}.oln.b"])
    return x


def test_shape_of_the_encoder_is_read(written: Toy, tmp_path: Path) -> None:
    packed = read(written.data, tmp_path)
    assert (packed.hidden, packed.layers, packed.heads, packed.intermediate) == (HIDDEN, LAYERS, HEADS, INTERMEDIATE)
    assert (packed.vocabulary, packed.positions, packed.token_types) == (VOCABULARY, POSITIONS, TOKEN_TYPES)
    assert packed.epsilon == pytest.approx(EPSILON)


def test_every_weight_equals_the_loop_over_nibbles(written: Toy, tmp_path: Path) -> None:
    """Bit by bit, and under the names of transformers; a tensor may end inside a block (emb.word, emb.pos)."""
    assert any(value.size % 32 for name, value in written.values.items() if name in ("emb.word", "emb.pos"))
    weights = read(written.data, tmp_path).weights
    assert len(weights) == len(written.values)
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    full_names = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
        "emb.ln.w": "embeddings.LayerNorm.weight",
        "l0.q.w": "encoder.layer.0.attention.self.query.weight",
        "l1.k.b": "encoder.layer.1.attention.self.key.bias",
        "l1.fi.w": "encoder.layer.1.intermediate.dense.weight",
        "l0.fo.w": "encoder.layer.0.output.dense.weight",
        "l1.oln.b": "encoder.layer.1.output.LayerNorm.bias",
    }
    for short, full in full_names.items():
        np.testing.assert_array_equal(weights[full].numpy(), written.values[short])
    flat = sorted(tuple(weight.flatten().tolist()) for weight in weights.values())
    assert flat == sorted(tuple(value.flatten().tolist()) for value in written.values.values())


def test_weights_load_strictly_and_the_encoder_computes_what_they_say(written: Toy, tmp_path: Path) -> None:
    """Every tensor in its place and the right way round: states equal those of a BERT written out in numpy."""
    model = bert(read(written.data, tmp_path))
    ids = [3, 0, 10, 7, 7]
    with torch.inference_mode():
        states = model(torch.tensor([ids])).last_hidden_state[0]
    np.testing.assert_allclose(states.numpy(), oracle(written.values, ids), atol=2e-5)


def test_weights_are_writable_copies(written: Toy, tmp_path: Path) -> None:
    """The encoder may be tuned: no weight may be a view of the read-only file content."""
    for weight in read(written.data, tmp_path).weights.values():
        weight.add_(1)


@pytest.mark.parametrize("magic", [b"GGUF", b"E5S2", b"e5s1"])
def test_another_format_is_refused(written: Toy, tmp_path: Path, magic: bytes) -> None:
    with pytest.raises(PretrainedError, match=rf"toy\.bin is not a complete E5S1 file .*{magic.decode()}.*pull"):
        read(magic + written.data[4:], tmp_path)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="not a complete E5S1 file"):
        read(b"", tmp_path)


def test_file_cut_anywhere_is_refused(written: Toy, tmp_path: Path) -> None:
    """In the header, the tokenizer, the directory, at the last byte: never a wrong weight, never another error."""
    size = len(written.data)
    for kept in [*range(0, 300, 3), *range(300, size, 97), size - 1]:
        with pytest.raises(PretrainedError, match="not a complete E5S1 file"):
            read(written.data[:kept], tmp_path)
    with pytest.raises(PretrainedError, match=f"ends at byte {size - 1}, needs {size}"):
        read(written.data[:-1], tmp_path)


def test_unknown_tensor_is_refused(written: Toy, tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match="not a complete E5S1 file"):
        read(written.data.replace(b"l0.oln.w", b"l0.xyz.w"), tmp_path)


def test_tensors_that_do_not_fit_the_header_are_refused(written: Toy, tmp_path: Path) -> None:
    """A vocabulary in the header that is not the one of the word embeddings."""
    data = bytearray(written.data)
    struct.pack_into("<i", data, 24, VOCABULARY + 1)
    with pytest.raises(PretrainedError, match="not a complete E5S1 file"):
        read(bytes(data), tmp_path)
