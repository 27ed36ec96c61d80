"""What requests look like: OpenAI's fields, checked; what this server cannot do is refused, never ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from langbridge.engine.protocol import MOST_COMPLETIONS, MOST_LIKELY

MOST_PROMPTS = 64
"""Prompts, or texts to embed, in one request."""
MOST_TURNS = 128
"""Messages of one conversation."""
Name = Annotated[str, Field(max_length=256)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stop = StopText | Annotated[list[StopText], Field(max_length=16)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
NoPenalty = Annotated[float, Field(ge=0, le=0)]


class Strict(BaseModel):
    """Unknown fields are refused; numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(Strict):
    """What a stream has beside its pieces."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Asked(Strict):
    """What completions and chats have in common."""

    model: Name
    """NAME, or NAME:bridge, NAME:plain or NAME:raw."""
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Beyond OpenAI's fields; 0: no limit."""
    n: Annotated[int, Field(ge=1, le=MOST_COMPLETIONS)] | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    """Beyond OpenAI's fields: go on until max_tokens, for measurements."""
    frequency_penalty: NoPenalty | None = None
    """Only 0."""
    presence_penalty: NoPenalty | None = None
    """Only 0."""
    user: str | None = None
    """Taken and not used, as are metadata and store."""
    metadata: dict[str, Any] | None = None
    store: bool | None = None


class CompletionRequest(Asked):
    """`/v1/completions`."""

    prompt: str | Annotated[list[str] | TokenIds | list[TokenIds], Field(min_length=1, max_length=262_144)]
    """Text, LM token ids, or several of either."""
    max_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    """Default 16; 0 with `echo` only scores the prompt."""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None
    best_of: Count | None = None
    """Only as many as `n`."""
    suffix: Literal[""] | None = None

    @model_validator(mode="after")
    def _agree(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of must equal n")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 makes sense with echo only")
        if len(self.prompts) > MOST_PROMPTS:
            raise ValueError(f"at most {MOST_PROMPTS} prompts in one request")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class ContentPart(Strict):
    """A part of a message; only text."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """All that the message says."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Asked):
    """`/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_TURNS)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    """Default: as much as there is room for, up to the server's own limit."""
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_LIKELY)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


class EmbeddingRequest(Strict):
    """`/v1/embeddings`: the encoder's states, their mean, of length one."""

    model: Name
    input: str | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Count | None = None
    """Only the encoder's own width."""
    user: str | None = None


class ExplainRequest(Strict):
    """`/v1/explain`: the LM tokens nearest to a text's soft prompt."""

    model: Name
    input: str
    nearest: Annotated[int, Field(ge=1, le=10)] = 3
