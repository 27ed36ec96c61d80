"""Loading: what is placed, packed, tagged or read from GGUF, and what cannot work says so."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from conftest import LETTERS, letters_tokenizer
from families import BERT, ENCODERS, ENDS, ROTARY, SEQ2SEQ, Builder, make, t5
from langbridge.checkpoint import LangBridge
from langbridge.config import LanguageModelConfig, Recipe
from langbridge.data import Example
from langbridge.errors import ConfigError, PretrainedError
from langbridge.model import Encoder, LanguageModel
from langbridge.pretrained import load_encoder, load_language_model, load_tokenizer, with_source_language
from langbridge.pretrained.load import bits
from langbridge.pretrained.probe import check_encoder, check_language_model


def save(builder: Builder, folder: Path) -> Path:
    make(builder).save_pretrained(folder)
    letters_tokenizer(encloses=builder in ENCODERS.values()).save_pretrained(folder)
    return folder


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What transformers says at its usual level."""
    messages: list[str] = []
    logger = logging.getLogger("transformers")
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    yield messages
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.mark.parametrize("family", ENCODERS)
def test_loading_an_encoder_says_nothing(family: str, tmp_path: Path, said: list[str]) -> None:
    """What is left out on purpose (decoder, head) is not reported as if something were wrong."""
    folder = save(ENCODERS[family], tmp_path)
    said.clear()
    load_encoder(str(folder))
    assert said == []


@pytest.mark.parametrize("family", ["T5", "BERT", "M2M100"])
def test_missing_weights_are_named(family: str, tmp_path: Path) -> None:
    """Hazard: transformers fills missing weights with noise and only lists them in a log."""
    folder = save(ENCODERS[family], tmp_path)
    weights = load_file(folder / "model.safetensors")
    lost = sorted(name for name in weights if "encoder.layer" in name or "encoder.block" in name)[0]
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PretrainedError, match=f"lacks 1 weights.*{lost.split('encoder.')[-1]}"):
        load_encoder(str(folder))


def test_a_checkpoint_of_the_encoder_alone_is_an_encoder(tmp_path: Path) -> None:
    make(lambda: hf.T5EncoderModel(hf.T5Config(**SEQ2SEQ))).save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).dim == 24


def test_a_left_to_right_model_is_no_encoder(saved: dict[str, Path]) -> None:
    with pytest.raises(PretrainedError, match="not an encoder: it reads from left to right"):
        load_encoder(str(saved["qwen2"]))


def test_an_encoder_is_no_language_model(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"lacks .* weights of BertLMHeadModel"):
        load_language_model(str(saved["bert"]))
    with pytest.raises(PretrainedError, match="could not be loaded as AutoModelForCausalLM"):
        load_language_model(str(save(t5, tmp_path)))


def rwkv() -> hf.PreTrainedModel:
    return hf.RwkvForCausalLM(hf.RwkvConfig(vocab_size=len(LETTERS), hidden_size=24, num_hidden_layers=2))


def mamba() -> hf.PreTrainedModel:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "state_size": 8}
    return hf.MambaForCausalLM(hf.MambaConfig(vocab_size=len(LETTERS), **sizes))


def bert_lm() -> hf.PreTrainedModel:
    return hf.BertLMHeadModel(hf.BertConfig(**BERT))


@pytest.mark.parametrize(
    ("builder", "message"), [(rwkv, "no attribute"), (mamba, "must match"), (bert_lm, "reads ahead")]
)
def test_a_language_model_that_cannot_work_says_so(builder: Builder, message: str, tmp_path: Path) -> None:
    """Recurrent LMs have no key-value cache; BERT reads ahead."""
    with pytest.raises(PretrainedError, match=f"cannot read soft prompts: .*{message}"):
        load_language_model(str(save(builder, tmp_path)))


class Unscaled(hf.GPT2LMHeadModel):
    """Scales word embeddings only when it is given ids, as Gemma's layers did before transformers 5."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        if input_ids is not None:
            inputs_embeds = self.get_input_embeddings()(input_ids) * 5
        return super().forward(inputs_embeds=inputs_embeds, position_ids=position_ids, **rest)


class DeafToTheMask(hf.GPT2LMHeadModel):
    """Takes padding for words."""

    def forward(self, inputs_embeds: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
        return super().forward(inputs_embeds=inputs_embeds, **rest)


@pytest.mark.parametrize(
    ("kind", "trouble"), [(Unscaled, "vectors in place of"), (DeafToTheMask, "padding on the left")]
)
def test_an_lm_that_reads_vectors_in_its_own_way_is_refused(kind: type[hf.GPT2LMHeadModel], trouble: str) -> None:
    config = hf.GPT2Config(vocab_size=len(LETTERS), n_embd=24, n_layer=2, n_head=2, n_positions=64)
    model = LanguageModel(make(lambda: kind(config)))
    with pytest.raises(PretrainedError, match=trouble):
        check_language_model("it", model)


class PadBlind(hf.BertModel):
    """Takes padding for words."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return super().forward(input_ids=input_ids)


def test_an_encoder_that_reads_padding_is_refused() -> None:
    encoder = Encoder(make(lambda: PadBlind(hf.BertConfig(**BERT)))).eval()
    with pytest.raises(PretrainedError, match="padding changes what it reads"):
        check_encoder("it", encoder)


def test_damaged_numbers_are_refused(tmp_path: Path) -> None:
    """An LM that answers not-a-number is not taken for one that agrees with itself."""
    folder = save(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**ROTARY)), tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PretrainedError, match="nan"):
        load_language_model(str(folder))


# source-language tags


@pytest.fixture
def nllb(tmp_path: Path) -> Path:
    """An M2M100 model with the tokenizer class of NLLB, which always puts a tag in front."""
    make(ENCODERS["M2M100"]).save_pretrained(tmp_path)
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", "h", "i", "▁h"])}
    tags = ["eng_Latn", "swh_Latn", "tel_Telu"]
    tokenizer = hf.NllbTokenizer(vocab=vocab, merges=[("▁", "h")], extra_special_tokens=tags)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("language", "tokens"),
    [(None, ["▁h", "i", "</s>"]), ("swh_Latn", ["swh_Latn", "▁h", "i", "</s>"])],
)
def test_the_language_tag_is_the_chosen_one_or_absent(
    language: str | None, tokens: list[str], nllb: Path, saved: dict[str, Path], tmp_path: Path
) -> None:
    """Hazard: NLLB's tokenizer marks every text as English unless told otherwise, also after a run is loaded again."""
    fields = {"encoder": {"name": str(nllb), "language": language}, "language_model": {"name": str(saved["llama"])}}
    model = LangBridge.from_recipe(Recipe.of(fields, "test"))
    model.save_pretrained(tmp_path / "run")
    again = LangBridge.from_pretrained(tmp_path / "run")
    for tokenizer in (model.encoder_tokenizer, again.encoder_tokenizer):
        for _ in range(2):  # the class sets its tag anew at each call
            assert tokenizer.convert_ids_to_tokens(tokenizer("hi").input_ids) == tokens
        assert tokenizer(["hi", "h"], padding=True).input_ids[1][-1] == tokenizer.pad_token_id == 1
    batch = model.collate([Example(source="hi", target="yes")])
    assert torch.equal(model.log_likelihood(batch), again.log_likelihood(batch))


def test_an_unknown_tag_names_near_ones(nllb: Path) -> None:
    tokenizer = load_tokenizer(str(nllb))
    with pytest.raises(PretrainedError, match="'swa_Latn' is not a language tag of NLLB; did you mean swh_Latn"):
        with_source_language(tokenizer, "swa_Latn", "NLLB")
    with pytest.raises(PretrainedError, match="known: eng_Latn, swh_Latn, tel_Telu"):
        with_source_language(tokenizer, "中文", "NLLB")


def test_a_tokenizer_without_tags_wants_none() -> None:
    tokenizer = letters_tokenizer(encloses=True)
    assert with_source_language(tokenizer, None, "XLM-R") is tokenizer
    with pytest.raises(PretrainedError, match="no language tags: set it to null"):
        with_source_language(tokenizer, "eng_Latn", "XLM-R")


# GGUF


def halves_swapped(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """GGUF's order of Llama's rotary rows: pairs beside each other instead of half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(model: hf.PreTrainedModel, path: Path) -> None:
    """Write a Llama with a letter-wise tokenizer as llama.cpp would."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    pieces = [letter.replace(" ", "Ġ").replace("\n", "Ċ") for letter in [*LETTERS, "ab"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if i < 4 else 1 for i in range(len(pieces))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            value = halves_swapped(value, config.num_attention_heads)
        stem, _, kind = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def gguf_folder(tmp_path: Path) -> tuple[Path, hf.PreTrainedModel]:
    model = make(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**ROTARY | {"vocab_size": len(LETTERS) + 1}, **ENDS)))
    write_gguf(model, tmp_path / "tiny.gguf")
    return tmp_path, model


@torch.no_grad()
def test_a_gguf_file_is_the_model_it_was_made_from(
    gguf_folder: tuple[Path, hf.PreTrainedModel], saved: dict[str, Path], tmp_path: Path
) -> None:
    folder, original = gguf_folder
    lm = {"name": str(folder), "gguf_file": "tiny.gguf"}
    fields = {"encoder": {"name": str(saved["bert"])}, "language_model": lm, "prompt": {"template": "none"}}
    model = LangBridge.from_recipe(Recipe.of(fields, "test"))
    ids = torch.tensor([model.lm_tokenizer("cab d").input_ids])
    assert ids.tolist() == [[LETTERS.index("c"), len(LETTERS), LETTERS.index(" "), LETTERS.index("d")]]
    loaded = model.language_model.model(input_ids=ids).logits
    assert torch.allclose(loaded, original(input_ids=ids).logits, atol=1e-5)
    model.save_pretrained(tmp_path / "run")
    again = LangBridge.from_pretrained(tmp_path / "run")
    batch = model.collate([Example(source="hi", target="yes")])
    assert torch.equal(model.log_likelihood(batch), again.log_likelihood(batch))


def test_gguf_mistakes_are_named(gguf_folder: tuple[Path, hf.PreTrainedModel]) -> None:
    folder, _ = gguf_folder
    with pytest.raises(PretrainedError, match=r"holds no big.gguf; GGUF files there: tiny.gguf"):
        load_language_model(str(folder), gguf_file="big.gguf")
    with pytest.raises(
        PretrainedError, match=r"set language_model.name to .* and language_model.gguf_file to tiny.gguf"
    ):
        load_language_model(str(folder / "tiny.gguf"))
    with pytest.raises(ConfigError, match="exclude each other"):
        LanguageModelConfig(name="x", gguf_file="tiny.gguf", quantization="4bit")
    with pytest.raises(PretrainedError, match=r"set language_model.gguf_file to read tiny.gguf"):
        load_language_model(str(folder))
    (folder / "tiny.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(PretrainedError, match="could not be loaded"):
        load_language_model(str(folder), gguf_file="tiny.gguf")


# where weights lie, and how they are packed


@torch.no_grad()
def test_a_placed_model_stays_where_it_was_put(saved: dict[str, Path]) -> None:
    """Moving a LangBridge moves its bridge, never a model that `device_map` placed."""

    def load(device_map: str | None) -> LangBridge:
        parts = {"encoder": str(saved["bert"]), "language_model": str(saved["gpt2"])}
        fields = {part: {"name": name, "device_map": device_map} for part, name in parts.items()}
        torch.manual_seed(0)
        return LangBridge.from_recipe(Recipe.of(fields, "test"))

    placed, free = load("cpu"), load(None)
    batch = free.collate([Example(source="hi", target="yes")])
    assert torch.equal(placed.log_likelihood(batch), free.log_likelihood(batch))
    for model, where in ((placed, "cpu"), (free, "meta")):
        model.to("meta")
        assert {p.device.type for part in (model.encoder, model.language_model) for p in part.parameters()} == {where}
        assert model.bridge.boundary.device.type == "meta"


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("nonsense", r"\(device_map: nonsense\): .* or 'auto'"),
        ("meta", "does not fit into the memory that device_map 'meta' names"),
    ],
)
def test_a_place_that_is_not_there_is_named(device_map: str, message: str, saved: dict[str, Path]) -> None:
    load: Callable[..., object]
    for load, name in ((load_encoder, "bert"), (load_language_model, "llama")):
        with pytest.raises(PretrainedError, match=message):
            load(str(saved[name]), device_map=device_map)


def test_quantisation_is_what_the_recipe_says() -> None:
    eight, four = bits("8bit", "float16"), bits("4bit", "bfloat16")
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)
    assert (four.load_in_8bit, four.load_in_4bit) == (False, True)
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    with pytest.raises(ConfigError, match="quantization '2bit' of x is not 8bit, 4bit or null"):
        LanguageModelConfig(name="x", quantization="2bit")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantisation_without_a_gpu_says_what_is_missing(kind: str, saved: dict[str, Path]) -> None:
    load: Callable[..., object]
    for load, name in ((load_encoder, "bert"), (load_language_model, "llama")):
        with pytest.raises(PretrainedError, match=rf"quantization {kind} needs a GPU .* missing here: a GPU"):
            load(str(saved[name]), quantization=kind)
