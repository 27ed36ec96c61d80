"""Import of checkpoints in the published layout, against a forward pass of that layout written by hand."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import Tensor, nn
from transformers import LlamaForCausalLM, MT5EncoderModel, PreTrainedTokenizerFast

from conftest import letters_tokenizer, llama, mt5
from langbridge.checkpoint import LangBridge, read_config
from langbridge.data import Example
from langbridge.errors import CheckpointError
from langbridge.model import join
from langbridge.prompt import NAMED
from langbridge.released import Names, bridge_weights, import_released
from test_cli import cli

State = dict[str, Tensor]


def begins() -> PreTrainedTokenizerFast:
    """As Llama's tokenizer: a begin token in front of every text."""
    tokenizer = letters_tokenizer(encloses=False)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@dataclass(frozen=True)
class Published:
    """The parts of a checkpoint, and the folders of the models it was made from."""

    encoder: MT5EncoderModel
    lm: LlamaForCausalLM
    alignment: nn.Module
    folder: Path

    @property
    def names(self) -> Names:
        return Names(encoder_tokenizer=str(self.folder / "encoder_tokenizer"))

    def config(self, **changes: Any) -> dict[str, Any]:
        return {
            "enc": str(self.folder / "mt5"),
            "lm": str(self.folder / "llama"),
            "dim_enc": 24,
            "dim_lm": 24,
            "alignments": "linear" if hasattr(self.alignment, "linear") else "ffn",
            "freeze_encoder": True,
            "freeze_language_model": True,
        } | changes

    def state(self) -> State:
        state = {f"lb.enc.{k}": v for k, v in self.encoder.state_dict().items()}
        state |= {f"lb.alignment.{k}": v for k, v in self.alignment.state_dict().items()}
        state |= {f"lb.lm.{k}": v for k, v in self.lm.model.state_dict().items()}
        state["lb.lm_head.weight"] = self.lm.lm_head.weight
        state["lb.embeddings.weight"] = self.lm.model.embed_tokens.weight
        return {name: value.detach().clone() for name, value in state.items()}

    @torch.no_grad()
    def logits(self, prompt: str, answer: str) -> Tensor:
        """By hand: begin token, soft prompt of the whole prompt, boundary, answer."""
        ids = torch.tensor([letters_tokenizer(encloses=True)(prompt).input_ids])
        states = self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        inner = self.alignment.linear if hasattr(self.alignment, "linear") else self.alignment.ffn
        words = self.lm.model.embed_tokens
        said = torch.tensor([letters_tokenizer(encloses=False)(answer, add_special_tokens=False).input_ids])
        begin = words(torch.tensor([[1]]))
        parts = [begin, inner(states), self.alignment.enc_eos[None, None], words(said)]
        return self.lm(inputs_embeds=torch.cat(parts, dim=1)).logits[0]


def alignment(kind: str) -> nn.Module:
    module = nn.Module()
    if kind == "linear":
        module.linear = nn.Linear(24, 24)
    else:
        module.ffn = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
    module.enc_eos = nn.Parameter(torch.randn(24))
    return module


@pytest.fixture
def published(tmp_path: Path) -> Callable[[str], Published]:
    def make(kind: str = "linear") -> Published:
        torch.manual_seed(3)
        folder = tmp_path / "published"
        whole, lm = mt5().eval(), llama().eval()
        whole.save_pretrained(folder / "mt5")
        lm.save_pretrained(folder / "llama")
        letters_tokenizer(encloses=True).save_pretrained(folder / "mt5")
        letters_tokenizer(encloses=True).save_pretrained(folder / "encoder_tokenizer")
        begins().save_pretrained(folder / "llama")
        encoder = MT5EncoderModel.from_pretrained(folder / "mt5").eval()
        return Published(encoder, lm, alignment(kind), folder)

    return make


def write(checkpoint: Path, config: dict[str, Any], state: State, how: str = "safetensors") -> Path:
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(config))
    begins().save_pretrained(checkpoint)
    name = "pytorch_model.bin" if how.startswith("torch") else "model.safetensors"
    save: Callable[[State, Path], Any] = torch.save if how.startswith("torch") else save_file
    if not how.endswith("shards"):
        save(state, checkpoint / name)
        return checkpoint
    stem, suffix = name.split(".")
    shards = [f"{stem}-0000{number}-of-00003.{suffix}" for number in (1, 2, 3)]
    places = {key: shards[number % 3] for number, key in enumerate(state)}
    for shard in shards:
        save({key: state[key] for key in state if places[key] == shard}, checkpoint / shard)
    (checkpoint / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return checkpoint


@torch.no_grad()
def logits(model: LangBridge, prompt: str, answer: str) -> Tensor:
    """What the LM says behind the prompt as this package builds it, at every position."""
    batch = model.collate([Example(source=prompt, target=answer)], end=False)
    whole = join(model.prompt(batch), model.language_model.embed(batch.target_ids, batch.target_mask))
    return model.language_model.model(inputs_embeds=whole.vectors).logits[0].float()


@pytest.mark.parametrize("how", ["safetensors", "safetensors shards", "torch", "torch shards"])
@pytest.mark.parametrize("kind", ["linear", "ffn"])
def test_an_imported_checkpoint_says_what_it_said(
    kind: str, how: str, published: Callable[[str], Published], tmp_path: Path
) -> None:
    made = published(kind)
    checkpoint = write(tmp_path / "checkpoint", made.config(), made.state(), how)
    found = import_released(str(checkpoint), tmp_path / "run", made.names)
    model = LangBridge.from_pretrained(tmp_path / "run").eval()
    for prompt, answer in (("what is it?", "a cat"), ("a longer question: who is there", "me")):
        assert torch.allclose(logits(model, prompt, answer), made.logits(prompt, answer), atol=1e-5)
    kept = load_file(tmp_path / "run" / "bridge.safetensors")
    assert all(name.startswith("bridge.") for name in kept)
    assert "frozen; all" in found.encoder
    assert "tensors are equal" in found.language_model
    assert read_config(tmp_path / "run").encoder_policy == "frozen"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_trained_encoder_is_kept(dtype: torch.dtype, published: Callable[[str], Published], tmp_path: Path) -> None:
    """Also in half precision: on disk it stays half, and rounding is not taken for training."""
    made = published("linear")
    with torch.no_grad():
        made.encoder.encoder.block[0].layer[0].SelfAttention.q.weight += 0.05
    state = {name: value.to(dtype) for name, value in made.state().items()}
    for part in (made.encoder, made.lm, made.alignment):
        part.to(dtype).float()  # the rounding that the file has
    checkpoint = write(tmp_path / "checkpoint", made.config(freeze_encoder=False), state, "torch shards")
    found = import_released(str(checkpoint), tmp_path / "run", made.names)
    assert "kept (trained; 1 of" in found.encoder
    model = LangBridge.from_pretrained(tmp_path / "run").eval()
    assert read_config(tmp_path / "run").encoder_policy == "trained"
    kept = load_file(tmp_path / "run" / "bridge.safetensors")
    assert {value.dtype for name, value in kept.items() if name.startswith("encoder.")} == {dtype}
    assert {parameter.dtype for parameter in model.encoder.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.language_model.parameters()} == {dtype}
    wanted = made.logits("what is it?", "a cat")
    close = 1e-5 if dtype == torch.float32 else 0.05
    assert torch.allclose(logits(model, "what is it?", "a cat"), wanted, atol=close)


def test_an_encoder_that_is_another_is_kept_whatever_the_config_says(
    published: Callable[[str], Published], tmp_path: Path
) -> None:
    made = published("linear")
    with torch.no_grad():
        made.encoder.shared.weight[5] += 0.1
    checkpoint = write(tmp_path / "checkpoint", made.config(freeze_encoder=True), made.state())
    found = import_released(str(checkpoint), tmp_path / "run", made.names)
    assert "said to be frozen, but it is another; 1 of" in found.encoder
    model = LangBridge.from_pretrained(tmp_path / "run").eval()
    assert torch.allclose(logits(model, "what?", "a cat"), made.logits("what?", "a cat"), atol=1e-5)


def test_a_template_goes_through_the_encoder(published: Callable[[str], Published], tmp_path: Path) -> None:
    made = published("linear")
    checkpoint = write(tmp_path / "checkpoint", made.config(), made.state())
    names = Names(encoder_tokenizer=str(made.folder / "encoder_tokenizer"), encoder_template="ask {prompt}: say ")
    import_released(str(checkpoint), tmp_path / "run", names)
    model = LangBridge.from_pretrained(tmp_path / "run").eval()
    assert torch.allclose(logits(model, "who?", "me"), made.logits("ask who?: say ", "me"), atol=1e-5)
    assert "{prompt}" in NAMED["metamath"]  # `--encoder-template metamath` is such a text


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"lb.enc.x": print}, protocol=2))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("how", "config", "spoil", "complaint"),
    [
        ("safetensors", {"alignments": "latent"}, {}, "kind 'latent'; linear and ffn can be imported"),
        ("safetensors", {"lm": None}, {}, "lm is None, wanted str"),
        ("safetensors", {"freeze_language_model": False}, {}, "trained its LM too"),
        ("safetensors", {"dim_lm": 32}, {}, "made for sizes 24 and 32"),
        ("safetensors", {}, {"lb.lm.norm.weight": torch.zeros(24)}, r"the LM in the checkpoint is not .*norm\.weight"),
        ("safetensors", {}, {"lb.enc.shared.weight": None, "lb.enc.encoder.embed_tokens.weight": None}, "lacks embed"),
        ("safetensors", {}, {"lb.enc.shared.weight": torch.zeros(3, 24)}, r"embed_tokens.weight of \(3, 24\)"),
        ("safetensors", {}, {"lb.alignment.gate": torch.zeros(3)}, "alignment.gate is of no known bridge"),
        ("safetensors", {}, {"lb.alignment.linear.bias": None}, "linear.bias is nothing"),
        ("safetensors", {}, {"model.safetensors": cut}, "model.safetensors is damaged"),
        ("safetensors", {}, {"model.safetensors": Path.unlink}, "neither model.safetensors nor pytorch_model.bin"),
        ("torch", {}, {"pytorch_model.bin": pickled}, "holds more than tensors"),
        ("torch", {}, {"pytorch_model.bin": cut}, "damaged"),
        ("torch shards", {}, {"pytorch_model-00002-of-00003.bin": Path.unlink}, "lacks pytorch_model-00002-of-00003"),
    ],
)
def test_what_cannot_be_imported_is_named(
    how: str,
    config: dict[str, Any],
    spoil: dict[str, Any],
    complaint: str,
    published: Callable[[str], Published],
    tmp_path: Path,
) -> None:
    made = published("linear")
    state = made.state()
    if "lb.enc.shared.weight" in spoil:  # published with both names of the same table
        state.pop("lb.enc.encoder.embed_tokens.weight", None)
    for name, value in spoil.items():
        if value is None:
            state.pop(name, None)
        elif isinstance(value, Tensor):
            state[name] = value
    checkpoint = write(tmp_path / "checkpoint", made.config(**config), state, how)
    for name, action in spoil.items():
        if callable(action) and not isinstance(action, Tensor):
            action(checkpoint / name)
    with pytest.raises(CheckpointError, match=complaint):
        import_released(str(checkpoint), tmp_path / "run", made.names)
    assert not (tmp_path / "run" / "langbridge.json").exists()


def test_no_weights_at_all(published: Callable[[str], Published], tmp_path: Path) -> None:
    made = published("linear")
    checkpoint = write(tmp_path / "checkpoint", made.config(), {"x.y": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"holds no weights named lb.enc.\*; found x.y"):
        import_released(str(checkpoint), tmp_path / "run", made.names)
    with pytest.raises(CheckpointError, match="no known bridge"):
        bridge_weights({"perceiver.weight": torch.zeros(2)})


def test_the_command(published: Callable[[str], Published], tmp_path: Path) -> None:
    made = published("linear")
    checkpoint = write(tmp_path / "checkpoint", made.config(), made.state())
    command = ("import", str(checkpoint), "--out", str(tmp_path / "run"))
    found = cli(*command, "--encoder-tokenizer", str(made.folder / "encoder_tokenizer"))
    assert found.returncode == 0, found.stderr
    assert "bridge: linear, 624 weights" in found.stdout
    answer = cli("generate", str(tmp_path / "run"), "--prompt", "who?", "--max-new-tokens", "3")
    assert answer.returncode == 0, answer.stderr
    again = cli(*command)
    assert again.returncode == 2
    assert "is not empty: choose another --out" in again.stderr
