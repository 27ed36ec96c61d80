"""The sections of a recipe: frozen dataclasses that reject nonsense."""

from dataclasses import dataclass

from langbridge.errors import ConfigError


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """A pretrained model by name."""

    name: str
    """`embedded:...`, a folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    dtype: str = "float32"
    """float32, bfloat16, float16, or auto: what is fast on this machine, bfloat16 or float32."""
    quantization: str | None = None
    """8bit or 4bit: weights packed by bitsandbytes, on a GPU; null: as stored, in `dtype`."""
    device_map: str | None = None
    """auto, balanced, sequential, or a device such as cuda:1: where the model stays; null: where the run is."""

    def __post_init__(self) -> None:
        _need(bool(self.name.strip()), "a model name is empty; wanted embedded:..., a folder or a hub id")
        known = ("float32", "bfloat16", "float16", "auto")
        _need(self.dtype in known, f"dtype {self.dtype!r} of {self.name} is not one of {', '.join(known)}")
        packed = (None, "8bit", "4bit")
        _need(
            self.quantization in packed, f"quantization {self.quantization!r} of {self.name} is not 8bit, 4bit or null"
        )


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(PretrainedConfig):
    """The causal LM."""

    gguf_file: str | None = None
    """Name of a GGUF file in the model's folder or repository, read in place of its safetensors files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _need(
            self.gguf_file is None or self.quantization is None,
            f"language_model.gguf_file {self.gguf_file} and language_model.quantization {self.quantization} exclude "
            "each other: a GGUF file is unpacked to dtype while it is read",
        )


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(PretrainedConfig):
    """The multilingual encoder."""

    prefix: str = ""
    """Text put in front of every source, where the encoder was trained with one (E5: `query: `)."""
    longest: int = 512
    """Most tokens of a source; a longer prompt is refused."""
    language: str | None = None
    """Source-language tag put beside every text, for encoders that know such tags (NLLB: `eng_Latn`); null: no tag."""
    whitespace: bool = False
    """Give its tokenizer tokens for whatever whitespace it drops (new lines, tabs, runs of spaces): code needs them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _need(self.longest > 0, f"encoder.longest must be positive, got {self.longest}")


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """The bridge: what it reads of the encoder, and its shape."""

    kind: str = "linear"
    """linear (the paper's choice), mlp, or resampler (a fixed number of vectors, however long the prompt)."""
    layers: str | tuple[int, ...] = "last"
    """Encoder layers it reads: last (paper), mix (a learned softmax over all), or numbers side by side, 0 = words."""
    start: str | None = None
    """Run folder, hub id or `embedded` whose bridge is trained further; null: the warm start of `warm_start`."""
    token_dropout: float = 0.0
    """Share of the encoder's states that the bridge does not see while training, so that others carry it too."""
    hidden_layers: int = 1
    """mlp: hidden layers, 1 or 2."""
    width: float = 4.0
    """mlp: width of a hidden layer relative to the encoder's."""
    latents: int = 32
    """resampler: vectors it makes, the boundary not counted."""
    depth: int = 2
    """resampler: attention blocks."""
    heads: int = 6
    """resampler: attention heads; the encoder's width must be a multiple."""
    dropout: float = 0.0
    """resampler: dropout while training."""
    output_norm: bool = False
    """resampler: a LayerNorm behind its last layer."""

    def __post_init__(self) -> None:
        kinds = ("linear", "mlp", "resampler")
        _need(self.kind in kinds, f"bridge.kind {self.kind!r} is unknown; known: {', '.join(kinds)}")
        named = isinstance(self.layers, str)
        _need(
            self.layers in ("last", "mix") if named else bool(self.layers),
            f"bridge.layers must be last, mix or a list of layer numbers, got {self.layers!r}",
        )
        _need(self.start is None or bool(self.start.strip()), "bridge.start is empty; wanted a run, or null")
        _need(self.hidden_layers in (1, 2), f"bridge.hidden_layers must be 1 or 2, got {self.hidden_layers}")
        for name in ("width", "latents", "depth", "heads"):
            _need(getattr(self, name) > 0, f"bridge.{name} must be positive, got {getattr(self, name)}")
        for name in ("dropout", "token_dropout"):
            _need(0 <= getattr(self, name) < 1, f"bridge.{name} must lie in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Where the soft prompt sits."""

    template: str | None = None
    """chat, metamath, orca, none, or own text with one `{prompt}`; null: chat for chat LMs, none for others."""
    encoder_template: str | None = None
    """Text around every prompt for the encoder, where the paper has its template: metamath, orca, own; null: none."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """English training data."""

    train: str = "shipped"
    """`shipped`, a file (.jsonl, .parquet, .txt; .gz too), a folder of such files, or hub:OWNER/NAME."""
    streaming: bool = False
    """Read while training and hold only `buffer` records, for data larger than memory; see docs/training.md."""
    buffer: int = 8192
    """streaming: records that are shuffled together and grouped by length."""
    bad_records: str = "refuse"
    """refuse or skip: what is no record (broken JSON, empty or missing fields, not UTF-8 ...); counted and shown."""
    most_bad: float = 0.05
    """bad_records skip: largest share that is skipped; with more, it is probably another kind of file."""
    over_long: str = "skip"
    """skip or refuse: records too long for the encoder, for longest_target or for the LM; counted and shown."""
    limit: int | None = None
    """Use only the first so many records."""
    validation: int = 100
    """Records held out for the English validation loss; streaming: the first so many."""
    longest_target: int = 128
    """Most LM tokens of a target."""
    answers: float | None = None
    """Share of records that are answered rather than repeated; null: as they come."""
    shuffle_words: float = 0.0
    """Share of sentences to repeat whose words are moved a little, so that word order is not copied but restored."""
    shuffle_reach: float = 3.0
    """Largest distance, in words, by which one word can overtake another."""
    gloss: float = 0.0
    """Share of small words and endings lost in a sentence whose words are moved, as translations have others."""
    plain_case: float = 0.0
    """Share of sentences to repeat that lose capitals and final punctuation, as many scripts have none."""
    cut_words: float = 0.0
    """Share of words that are cut in two before tokenisation, as words of other languages are cut into pieces."""

    def __post_init__(self) -> None:
        for name in ("shuffle_words", "gloss", "plain_case", "cut_words"):
            _need(0 <= getattr(self, name) <= 1, f"data.{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("bad_records", "over_long"):
            _need(
                getattr(self, name) in ("refuse", "skip"),
                f"data.{name} must be refuse or skip, got {getattr(self, name)!r}",
            )
        _need(0 <= self.most_bad <= 1, f"data.most_bad must lie between 0 and 1, got {self.most_bad}")
        _need(self.buffer > 0, f"data.buffer must be positive, got {self.buffer}")
        _need(self.answers is None or 0 <= self.answers <= 1, f"data.answers must be 0 to 1, got {self.answers}")
        _need(self.limit is None or self.limit > 1, f"data.limit must be at least 2, got {self.limit}")
        _need(self.validation > 0, f"data.validation must be positive, got {self.validation}")
        _need(self.longest_target > 0, f"data.longest_target must be positive, got {self.longest_target}")
        _need(self.shuffle_reach >= 0, f"data.shuffle_reach must not be negative, got {self.shuffle_reach}")


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """Closed-form initial weights of the bridge."""

    enabled: bool = True
    sentences: int = 1500
    """Training sources that the regression sees."""
    ridge: float = 0.01
    """Regularisation relative to the mean variance of the encoder states."""
    sharpen: int = 1000
    """Steps that teach the map to tell each word from others, behind the closed form; 0: the closed form alone."""

    def __post_init__(self) -> None:
        _need(self.sentences >= 10, f"warm_start.sentences must be at least 10, got {self.sentences}")
        _need(self.ridge > 0, f"warm_start.ridge must be positive, got {self.ridge}")
        _need(self.sharpen >= 0, f"warm_start.sharpen must not be negative, got {self.sharpen}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Optimisation; AdamW throughout (LangBridge, appendix D)."""

    steps: int = 100
    batch_size: int = 32
    """Samples in one optimizer step on one device."""
    accumulate: int = 1
    """Micro-batches, at least, that one step is split into; the result is that of the whole batch."""
    gradient_checkpointing: bool = False
    """Compute what layers kept for the way back a second time: far less memory, about a third more time."""
    token_budget: int | None = None
    """Most LM tokens of a micro-batch, padding included: bounds the memory of activations; null: no bound."""
    packing: int | None = None
    """LM positions of a row that several records share, each seeing itself alone; null: a row for each record."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    """Share of the steps over which the rate rises."""
    schedule: str = "cosine"
    """Name of a transformers schedule: cosine, linear, constant_with_warmup ..."""
    shard: bool = False
    """Spread the layers of both frozen models over all processes (FSDP2) instead of holding them in each."""
    cache_states: bool = False
    """Keep a frozen encoder's states on disk (LANGBRIDGE_HOME/states), for all epochs and for other runs."""
    clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 42
    precision: str = "auto"
    """fp32, bf16 (autocast), or auto: bf16 on a GPU that has it; on a CPU what a short measurement favours."""
    save_every: int = 50
    """Steps between checkpoints."""
    evaluate_every: int = 50
    """Steps between validations: English loss, and transfer to the development languages."""
    keep: int = 2
    """Checkpoints kept."""
    workers: int = 0
    """Processes that prepare batches beside each training process; 0: it does so itself. The order is the same."""
    report_to: tuple[str, ...] = ()
    """tensorboard, wandb ..."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "save_every", "evaluate_every", "keep"):
            _need(getattr(self, name) > 0, f"training.{name} must be positive, got {getattr(self, name)}")
        _need(
            self.accumulate <= self.batch_size,
            f"training.accumulate {self.accumulate} is more than training.batch_size {self.batch_size}",
        )
        _need(
            self.token_budget is None or self.token_budget > 0,
            f"training.token_budget must be positive or null, got {self.token_budget}",
        )
        _need(
            self.packing is None or self.packing > 0,
            f"training.packing must be a number of LM positions or null, got {self.packing}",
        )
        _need(self.workers >= 0, f"training.workers must not be negative, got {self.workers}")
        _need(self.learning_rate > 0, f"training.learning_rate must be positive, got {self.learning_rate}")
        known = ("auto", "fp32", "bf16")
        _need(self.precision in known, f"training.precision {self.precision!r} is not one of {', '.join(known)}")
        _need(0 <= self.warmup < 1, f"training.warmup must lie in [0, 1), got {self.warmup}")
        _need(self.clip > 0, f"training.clip must be positive, got {self.clip}")
