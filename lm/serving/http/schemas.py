"""The bodies of requests, as OpenAI's API has them where it has them; the document that
`/openapi.json` shows is made of these.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)


def _whole(value: object) -> object:
    """A number as JSON has it: 3.0 is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _false(value: object) -> object:
    """Refuses all but false, also 0."""
    if value is not False:
        raise ValueError("only false is supported")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_whole)]
Top = Annotated[int, Field(ge=0, le=20), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
Never = Annotated[Literal[False], BeforeValidator(_false)]
Text = Annotated[str, StringConstraints(max_length=4_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_whole)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Body(BaseModel):
    """What all bodies have in common: values have the types that are declared, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: Name = Field(description="a name of /v1/models")
    user: Name | None = Field(None, description="accepted, and not looked at")


class Sampled(Body):
    """How tokens are drawn."""

    temperature: float = Field(1.0, ge=0.0, le=100.0, description="0 takes the likeliest token")
    top_p: float = Field(1.0, ge=0.0, le=1.0)
    top_k: Whole = Field(0, ge=0, lt=2**31, description="0: all tokens")
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    seed: Seed | None = Field(None, description="None: another one each time")
    n: Whole = Field(1, ge=1, le=16, description="continuations of each prompt")
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: "StreamOptions | None" = None
    presence_penalty: float = Field(0.0, ge=0.0, le=0.0, description="only 0")
    frequency_penalty: float = Field(0.0, ge=0.0, le=0.0, description="only 0")

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class StreamOptions(BaseModel):
    """What a stream has besides text."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool = False


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=64)]
        | Annotated[list[TokenId], Field(min_length=1, max_length=1_000_000)]
    )
    max_tokens: Count = 16
    logprobs: Top | None = Field(None, description="likeliest tokens to report")
    echo: Never = Field(False, description="only false; /v1/score rates a text")

    @property
    def prompts(self) -> list[Any]:
        """Texts, or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Name | None = None

    @property
    def plain(self) -> dict[str, str]:
        """Role and content, as a chat template reads them."""
        parts = [self.content] if isinstance(self.content, str) else [p.text for p in self.content]
        return {"role": self.role, "content": "".join(parts)}


class ChatBody(Sampled):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Top | None = Field(None, description="likeliest tokens; needs logprobs")

    @model_validator(mode="after")
    def _agrees(self) -> "ChatBody":
        """Refuses fields of which one would be ignored."""
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_tokens and self.max_completion_tokens:
            raise ValueError("give one of max_tokens and max_completion_tokens")
        return self


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=256)]
    encoding_format: Literal["float", "base64"] = "float"

    @property
    def texts(self) -> list[str]:
        """The texts to embed."""
        return [self.input] if isinstance(self.input, str) else self.input


class ScoredAnswer(BaseModel):
    """An answer and the text that it follows."""

    model_config = ConfigDict(strict=True, extra="forbid")

    text: Text = ""
    answer: Annotated[str, StringConstraints(min_length=1, max_length=4_000_000)]


class ScoreBody(Body):
    """POST /v1/score."""

    answers: list[ScoredAnswer] = Field(min_length=1, max_length=256)


Words = Annotated[list[Text], Field(min_length=1, max_length=100_000)]


class PredictionBody(Body):
    """POST /v1/classify, /v1/tag or /v1/answer."""

    inputs: list[Text | Words | dict[Name, Any]] = Field(
        min_length=1,
        max_length=256,
        description="each a text, a list of texts or words, or columns as in a file of examples",
    )


class NextTokensBody(Body):
    """POST /v1/next_tokens."""

    text: Text
    top: Whole = Field(10, ge=1, le=100, description="likeliest tokens to show")


class AttentionBody(Body):
    """POST /v1/attention."""

    text: Text
    layer: Whole = Field(0, ge=0, le=10_000)
    head: Whole = Field(0, ge=0, le=10_000)


class AdapterBody(BaseModel):
    """POST /v1/load_lora_adapter or /v1/unload_lora_adapter."""

    model_config = ConfigDict(strict=True, extra="forbid")

    lora_name: Name = Field(description="a subfolder of --adapters")


class ErrorDetail(BaseModel):
    """What went wrong, as OpenAI's API tells it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer of a status from 400 on."""

    error: ErrorDetail
