"""What the routes read, strictly, so that no field of a request is ignored; and the errors that they answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from distilfast.errors import InputError


class Body(BaseModel):
    """A JSON object without unknown fields. ``model``: the name of a served model, where there are several."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None


class Windows(BaseModel):
    """``window`` or ``stride`` read the whole of a long text, as in ``embed`` of the pipelines."""

    window: int | None = None
    stride: int | None = None
    over_windows: str | None = None

    def options(self) -> dict[str, Any]:
        """Those that are given, for the pipeline; raises InputError for a rule that has nothing to merge."""
        given = {"window": self.window, "stride": self.stride, "over_windows": self.over_windows}
        if self.over_windows is not None and self.window is None and self.stride is None:
            raise InputError("over_windows merges windows; give window or stride too.")
        return {name: value for name, value in given.items() if value is not None}


class Embed(Body, Windows):
    """``/embed``. ``truncate``: cut texts that are too long, instead of refusing them."""

    inputs: str | list[str]
    normalize: bool | None = None
    truncate: bool = False
    prompt_name: None = None
    truncation_direction: Literal["Right", "right"] = "Right"
    dimensions: Annotated[int | None, Field(ge=1)] = None
    errors: Literal["raise", "return"] = "raise"


class EmbedAll(Body):
    """``/embed_all``: a row for each token."""

    inputs: str | list[str]
    truncate: bool = False
    prompt_name: None = None
    truncation_direction: Literal["Right", "right"] = "Right"
    errors: Literal["raise", "return"] = "raise"


class Predict(Body):
    """``/predict``: a text, a pair [a, b], or a list of texts [a] and pairs [a, b].

    ``parameters`` are options of the pipeline, as huggingface_hub sends them.
    """

    inputs: str | list[str] | list[list[str]]
    parameters: dict[str, Any] = Field(default_factory=dict)
    raw_scores: bool = False
    truncate: bool = False
    truncation_direction: Literal["Right", "right"] = "Right"
    errors: Literal["raise", "return"] = "raise"


class Rerank(Body):
    """``/rerank``: how well each text answers the query."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    truncate: bool = False
    truncation_direction: Literal["Right", "right"] = "Right"


class Sentences(BaseModel):
    """A sentence and those it is compared with."""

    model_config = ConfigDict(extra="forbid", strict=True)

    source_sentence: str
    sentences: list[str]


class Similarity(Body):
    """``/similarity``: cosines of the source sentence with each other one."""

    inputs: Sentences
    parameters: dict[str, Any] = Field(default_factory=dict, max_length=0)


class Tokenize(Body):
    """``/tokenize``: the tokens of texts."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: None = None


class Decode(Body):
    """``/decode``: the text of ids."""

    ids: list[int] | list[list[int]]
    skip_special_tokens: bool = True


class OpenAIEmbeddings(Windows):
    """``/v1/embeddings``, as OpenAI's clients send it. ``user``: whose part of the queue the request takes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: str | list[str] | list[int] | list[list[int]]
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int | None, Field(ge=1)] = None
    user: str | None = None


class FillMask(Body):
    """``/fill-mask``: the most likely words at each mask; ``parameters`` are options of the pipeline."""

    inputs: str | list[str]
    parameters: dict[str, Any] = Field(default_factory=dict)
    errors: Literal["raise", "return"] = "raise"


class Ner(FillMask):
    """``/ner``: entities, or a label for each token."""


class ZeroShot(FillMask):
    """``/zero-shot``: ``parameters`` have the ``candidate_labels``."""


class Question(BaseModel):
    """A question about a context."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: str
    context: str


class QuestionAnswering(Body):
    """``/question-answering``: the span of the context that answers the question."""

    inputs: Question | list[Question]
    parameters: dict[str, Any] = Field(default_factory=dict)
    errors: Literal["raise", "return"] = "raise"


class Error(BaseModel):
    """An error in the form of text-embeddings-inference; ``error`` is one sentence."""

    error: str
    error_type: Literal["Validation", "Unauthorized", "Overloaded", "Unhealthy", "Backend"]


class OpenAIErrorFields(BaseModel):
    """What has gone wrong; ``message`` is one sentence."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: None
    code: None


class OpenAIError(BaseModel):
    """An error in OpenAI's form."""

    error: OpenAIErrorFields


ERRORS = {
    400: "The body cannot be read.",
    401: "An API key is needed, or the one that is given is not known.",
    404: "The model is not served.",
    413: "The body is too large.",
    422: "The request cannot be answered as it is.",
    429: "The request cannot be answered in time; Retry-After says when to try again.",
    500: "The server has failed.",
    503: "The server is starting or ending.",
    504: "The deadline has passed.",
}
"""What each status means, for the OpenAPI document."""


def errors(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The errors of a route, as FastAPI's ``responses``; ``model``: their form."""
    return {status: {"model": model, "description": what} for status, what in ERRORS.items()}
