"""Tiny random models and tokenizers: real classes, no downloads, milliseconds."""

import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5Model,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from langbridge.checkpoint import LangBridge
from langbridge.config import BridgeConfig, EncoderConfig, LanguageModelConfig, PromptConfig, Recipe
from langbridge.model import Encoder, LanguageModel
from langbridge.pretrained import PREFIX, home, quiet

os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that tests start
huggingface_hub.constants.HF_HUB_OFFLINE = True  # for this one, which has read the variable already
quiet()
torch.set_num_threads(1)  # for what is made once for many tests


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> None:
    """Tiny tensors: threads cost more than they save; and sums of two threads round otherwise than those of one."""
    torch.set_num_threads(2 if request.node.get_closest_marker("embedded") else 1)


LETTERS = ["<pad>", "<s>", "</s>", "<unk>", *string.ascii_letters, *string.digits, *" .,!?'{}:\n"]
TEMPLATE = "ask: {prompt}\nsay: "
SHAPE = {"vocab_size": len(LETTERS), "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def letters_tokenizer(*, encloses: bool) -> PreTrainedTokenizerFast:
    """A token per character; `encloses` puts <s> and </s> around every text."""
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(LETTERS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if encloses:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=200,
    )


def bert() -> PreTrainedModel:
    return BertModel(BertConfig(**SHAPE, intermediate_size=32, max_position_embeddings=200), add_pooling_layer=False)


def mt5() -> PreTrainedModel:
    return MT5Model(
        MT5Config(vocab_size=len(LETTERS), d_model=24, d_kv=12, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1)
    )


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, intermediate_size=32, max_position_embeddings=256))


def qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, intermediate_size=32, num_key_value_heads=2, max_position_embeddings=256)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(LETTERS), n_embd=24, n_layer=2, n_head=2, n_positions=256))


ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {"mt5": mt5, "bert": bert}
LANGUAGE_MODELS: dict[str, Callable[[], PreTrainedModel]] = {"llama": llama, "gpt2": gpt2, "qwen2": qwen2}


def build(
    encoder: str = "bert", lm: str = "llama", template: str = TEMPLATE, bridge: BridgeConfig | None = None
) -> LangBridge:
    """A LangBridge of tiny random models, the same each time."""
    torch.manual_seed(0)
    reader, speaker = ENCODERS[encoder](), LANGUAGE_MODELS[lm]()
    for model in (reader, speaker):  # larger than the usual 0.02, so that answers depend on prompts
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    if encoder == "mt5":
        reader = reader.get_encoder()
    recipe = Recipe(
        encoder=EncoderConfig(name="tiny-encoder"),
        language_model=LanguageModelConfig(name="tiny-lm"),
        prompt=PromptConfig(template=template),
        bridge=bridge or BridgeConfig(),
    )
    return LangBridge(
        Encoder(reader.eval()),
        LanguageModel(speaker.eval()),
        letters_tokenizer(encloses=True),
        letters_tokenizer(encloses=False),
        recipe,
    ).eval()


@pytest.fixture(params=[f"{encoder}-{lm}" for encoder in ENCODERS for lm in LANGUAGE_MODELS])
def tiny(request: pytest.FixtureRequest) -> LangBridge:
    """Every encoder family with every LM family."""
    return build(*request.param.split("-"))


@pytest.fixture
def one() -> LangBridge:
    """One pair, where the family does not matter."""
    return build()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of saved tiny models, with their tokenizers, as `from_pretrained` reads them."""
    folders = {}
    torch.manual_seed(0)
    for name, make in (ENCODERS | LANGUAGE_MODELS).items():
        folders[name] = tmp_path_factory.mktemp("models") / name
        make().save_pretrained(folders[name])
        letters_tokenizer(encloses=name in ENCODERS).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def embedded() -> None:
    """Skip where the embedded models were not pulled."""
    for name in ("e5-small", "smollm2-135m"):
        if not (home() / "models" / name).is_dir():
            pytest.skip(f"run `langbridge models pull {PREFIX}{name}` first")


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """Folder of benchmark data: LANGBRIDGE_DATA, or `../shared/data` beside the repository."""
    beside = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("LANGBRIDGE_DATA", beside))
    if not (folder / "mgsm").is_dir():
        pytest.skip("no benchmark data: set LANGBRIDGE_DATA to a folder that holds mgsm, msvamp, xcopa, bbh and sib200")
    return folder


@pytest.fixture(scope="session")
def tiny_run(saved: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a random bridge between tiny models."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": TEMPLATE},
    }
    LangBridge.from_recipe(Recipe.of(fields, "test")).save_pretrained(folder)
    return folder


@pytest.fixture
def quick(tiny_run: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that makes quick settings on the tiny run."""

    from langbridge.analyse.study import Setting  # it imports matplotlib, which most tests need not wait for

    def make(**fields: Any) -> Setting:
        given = {"out": tmp_path / "out", "work": tmp_path / "work", "run": str(tiny_run), "quick": True, **fields}
        return Setting(**given)

    return make


@pytest.fixture
def recipe(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A recipe of tiny models on a few pairs, for studies that train."""
    data = tmp_path / "pairs.jsonl"
    texts = [f"{word} is number {i}." for i in range(6) for word in ("tea", "rain", "a cat", "snow")]
    records = [{"source": text, "target": text} for text in texts]
    records += [{"source": f"How much is {text}", "target": "Ten."} for text in texts]
    data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": "ask: {prompt}\nsay: "},
        "data": {"train": str(data), "validation": 4},
        "training": {"precision": "fp32"},
    }
    Recipe.of(fields, "test").write(tmp_path / "tiny.yaml")
    return tmp_path / "tiny.yaml"


@pytest.fixture(scope="module")
def run(saved: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of {BERT, Llama} that every test of a file shares."""
    folder = tmp_path_factory.mktemp("run")
    fields = {
        "encoder": {"name": str(saved["bert"])},
        "language_model": {"name": str(saved["llama"])},
        "prompt": {"template": TEMPLATE},
    }
    LangBridge.from_recipe(Recipe.of(fields, "test")).save_pretrained(folder)
    return folder
