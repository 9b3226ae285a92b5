"""What the pipelines share: checked options, and a stream of inputs answered in order, some thousand tokens a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, ClassVar

import numpy as np

from distilfast.arguments import count, flag, one_of
from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.tokenizer import Encoding, Text, Tokenizer, checked_text, truncation_strategy
from distilfast.types import Task

READ_AHEAD = 64
"""Inputs that are read and encoded together, and run together if they are short enough."""

CHARACTERS = 2**17
"""Of texts that are encoded together, some 30,000 tokens; the text that goes beyond it is the last of them."""

TOKENS = 4096
"""Tokens in one forward: enough to amortise a pass over the weights, few enough to bound the memory of the results."""

Answer = Callable[[Sequence[Encoding], PackedBatch], Iterable[Any]]
"""From a group of encoded texts, and the same as a batch, to one answer for each, in order."""

_SHARED = ("batch_size", "errors")
_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
_TOKENIZER_OPTIONS = ("add_special_tokens", "max_length", "padding", "truncation")


@dataclass(frozen=True)
class Plan:
    """A call whose options are checked: how texts become tokens, and tokens answers.

    ``encode`` has arguments of ``Tokenizer.encode_batch``; ``prompt`` is put before every text.
    """

    answer: Answer
    encode: dict[str, Any]
    tokenizer: Tokenizer
    prompt: str = ""
    batch_size: int = READ_AHEAD
    return_errors: bool = False


class Pipeline:
    """Texts in, dicts out, as ``transformers.pipeline`` answers. Subclasses name their ``task``.

    One input gives its answer and a list a list of answers. A generator, or any other iterator, gives an iterator:
    inputs are read as its answers are taken, at most ``batch_size`` ahead. However many and long the inputs are, what
    is kept at a time is bounded: ``batch_size`` texts (64), fewer of long ones, and the results of some 4,000 tokens.

    Options of every call, and of ``pipeline`` as defaults of all calls:

    * ``batch_size``: the most texts that are read and computed together; answers do not depend on it.
    * ``errors``: "raise" stops at the first input that cannot be answered; "return" gives its InputError in the place
      of its answer and goes on. Either names the input by its index. ``embed`` has no such option.

    An option that is not known, or whose value could have no effect, raises InputError, from ``pipeline`` too.
    """

    task: ClassVar[Task]
    _how_to_cut: ClassVar[str] = "truncation=True"
    _elsewhere: ClassVar[dict[str, str]] = {
        "device": 'backend="cuda" or "triton" runs on a GPU and backend="cpu" on the processor',
        "device_map": 'backend="cuda" or "triton" runs on a GPU and backend="cpu" on the processor',
        "dtype": "precision says how the model computes",
        "torch_dtype": "precision says how the model computes",
        "num_workers": "threads says how many cores are used",
        "tokenizer": "the checkpoint's own is used",
    }
    """Arguments of the reference that have another name here, or none."""

    _plan: Callable[..., tuple[dict[str, Any], Answer]]
    """From the task's options, keywords only, to those of its tokeniser and to its answers; raises InputError."""

    _known: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        """The options of a task are the keywords of its ``_plan``."""
        cls._known = (
            *(name for name, each in signature(cls._plan).parameters.items() if each.kind is Parameter.KEYWORD_ONLY),
            *_SHARED,
        )

    def __init__(self, engine: Engine, defaults: dict[str, Any] | None = None) -> None:
        """``defaults``: keyword arguments of every call, unless the call gives its own."""
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self._defaults = defaults or {}
        self._checked_plan(**self._defaults)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies load the engine's checkpoint again; raises InputError where there is none."""
        return type(self), (self.engine, self._defaults)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """One input, a list or an iterator of them; see the class for ``options``."""
        plan = self._checked_plan(**(self._defaults | options))
        if isinstance(inputs, Iterator):
            return self._answers(inputs, plan)
        if self._is_one(inputs):
            return next(self._answers([inputs], plan))
        return list(self._answers(self._listed(inputs), plan))

    @classmethod
    def check_names(cls, options: Iterable[str]) -> None:
        """Raises InputError for the name of an option that no call takes."""
        for name in options:
            if name not in cls._known:
                instead = cls._elsewhere.get(name, f"there are {', '.join(cls._known)}")
                raise InputError(f"{name} is not an option of {cls.task}; {instead}.")

    def _checked_plan(self, batch_size: Any = None, errors: Any = "raise", **options: Any) -> Plan:
        self.check_names(options)
        encode, answer = self._plan(**options)
        return Plan(
            answer,
            encode,
            self.tokenizer,
            batch_size=READ_AHEAD if batch_size is None else count("batch_size", batch_size),
            return_errors=one_of("errors", errors, ("raise", "return")) == "return",
        )

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def _listed(self, inputs: Any) -> Iterable[Any]:
        """Several inputs; raises InputError for what is neither one nor several."""
        if isinstance(inputs, (dict, bytes)) or not isinstance(inputs, Iterable):
            raise InputError(f"The input is of type {type(inputs).__name__}; a text or a list of texts is needed.")
        return inputs

    def _text(self, i: int, item: Any) -> Text:
        """Input ``i`` as what is encoded; raises InputError."""
        if not isinstance(item, str):
            raise InputError(f"Input {i} is of type {type(item).__name__}; a string is needed.")
        return item

    def _check_encoding(self, i: int, encoding: Encoding) -> None:
        """Raises InputError for what cannot be answered."""
        tokens, positions = len(encoding.ids), self.engine.config.max_positions
        if not tokens:
            raise InputError(f"Text {i} has no token.")
        if tokens > positions:
            raise InputError(
                f"Text {i} has {tokens} tokens and the model {positions} positions; pass {self._how_to_cut} to cut it."
            )

    def _cost(self, encoding: Encoding) -> int:
        """What a text takes of the memory of a forward, in tokens."""
        return len(encoding.ids)

    def _answers(self, inputs: Iterable[Any], plan: Plan) -> Iterator[Any]:
        """An answer, or where the plan returns errors an InputError, for each input in order."""
        for first, texts in self._read(inputs, plan):
            encoded = self._encoded(first, texts, plan)
            answers = self._computed([each for each in encoded if isinstance(each, Encoding)], plan)
            for each in encoded:
                if isinstance(each, Encoding):
                    yield next(answers)
                elif plan.return_errors:
                    yield each
                else:
                    raise each

    def _read(self, inputs: Iterable[Any], plan: Plan) -> Iterator[tuple[int, list[Text | InputError]]]:
        """The inputs that are encoded together, or their errors, and the index of the first."""
        texts: list[Text | InputError] = []
        characters = 0
        for i, item in enumerate(inputs):
            text = _or_error(self._checked_item, i, item, plan)
            texts.append(text)
            characters += len(text) if isinstance(text, str) else sum(map(len, text)) if isinstance(text, tuple) else 0
            if len(texts) == plan.batch_size or characters >= CHARACTERS:
                yield i + 1 - len(texts), texts
                texts, characters = [], 0
        if texts:
            yield i + 1 - len(texts), texts

    def _computed(self, encodings: list[Encoding], plan: Plan) -> Iterator[Any]:
        types = self.engine.config.token_types > 0
        for group in _groups(encodings, self._cost):
            yield from plan.answer(group, PackedBatch.from_encodings(group, token_types=types))

    def _encoded(self, first: int, texts: list[Text | InputError], plan: Plan) -> list[Encoding | InputError]:
        """Texts ``first``, ``first + 1``, … encoded; those that cannot be answered as their errors."""
        found: list[Any] = list(texts)
        good = [k for k, text in enumerate(found) if not isinstance(text, InputError)]
        try:
            encodings: list[Any] = plan.tokenizer.encode_batch([found[k] for k in good], **plan.encode)
        except InputError:  # one of them spoils the batch
            encodings = [_or_error(_encoded_alone, first + k, found[k], plan) for k in good]
        for k, encoding in zip(good, encodings, strict=True):
            found[k] = _or_error(self._checked_encoding, first + k, encoding)
        return found

    def _checked_item(self, i: int, item: Any, plan: Plan) -> Text:
        text = checked_text(i, self._text(i, item))
        return plan.prompt + text if plan.prompt and isinstance(text, str) else text

    def _checked_encoding(self, i: int, encoding: Encoding | InputError) -> Encoding:
        if isinstance(encoding, InputError):
            raise encoding
        self._check_encoding(i, encoding)
        return encoding

    def _encoding_options(
        self,
        *,
        truncation: Any = None,
        max_length: Any = None,
        add_special_tokens: Any = True,
        padding: Any = False,
        own_limit: int | None = None,
    ) -> dict[str, Any]:
        """Arguments of ``encode_batch`` that keep texts within the model's positions wherever they are cut.

        ``own_limit`` is that of texts cut without a ``max_length``, by default the tokeniser's. Padding adds nothing to
        an answer, and none is done; ``max_length`` beside ``padding="max_length"`` is that of the padding too.
        """
        padding = self._checked_padding(padding)
        options: dict[str, Any] = {"add_special_tokens": flag("add_special_tokens", add_special_tokens)}
        if max_length is not None:
            max_length = count("max_length", max_length)
            if padding == "max_length" and truncation in (None, False, "do_not_truncate"):
                max_length = None
            elif padding is not False and truncation is None:  # as the reference: here it does not cut by itself
                raise InputError(
                    f"max_length is {max_length}, which cuts nothing beside padding={padding!r}; add truncation."
                )
        if isinstance(truncation, str):
            one_of("truncation", truncation, _TRUNCATIONS)
        strategy = truncation_strategy(truncation, max_length)
        if strategy is None:
            return options
        positions = self.engine.config.max_positions
        limit = min(max_length or own_limit or self.tokenizer.max_length or positions, positions)
        added = self.tokenizer.num_special_tokens() if add_special_tokens else 0
        if limit < added:
            raise InputError(f"max_length is {limit}; the special tokens alone need {added}.")
        return options | {"truncation": strategy, "max_length": limit}

    def _checked_padding(self, padding: Any) -> bool | str:
        if isinstance(padding, str):
            return one_of("padding", padding, ("longest", "max_length", "do_not_pad"))
        return flag("padding", padding)

    def _nested_options(self, name: str, options: Any) -> dict[str, Any]:
        """Options of the tokeniser that the task takes as a dict called ``name``; raises InputError."""
        if options is None:
            return {}
        if not isinstance(options, dict):
            raise InputError(f"{name} is of type {type(options).__name__}; a dict is needed.")
        for key in options:
            if key not in _TOKENIZER_OPTIONS:
                raise InputError(f"{name} has {key!r}, which is not known; there are {', '.join(_TOKENIZER_OPTIONS)}.")
        return options


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64, so that float32 logits lose no precision."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _groups(encodings: Iterable[Encoding], cost: Callable[[Encoding], int]) -> Iterator[list[Encoding]]:
    """Encodings one after the other, as many as cost ``TOKENS`` together, at least one."""
    group: list[Encoding] = []
    total = 0
    for encoding in encodings:
        more = cost(encoding)
        if group and total + more > TOKENS:
            yield group
            group, total = [], 0
        group.append(encoding)
        total += more
    if group:
        yield group


def _encoded_alone(i: int, text: Text, plan: Plan) -> Encoding:
    try:
        return plan.tokenizer.encode_batch([text], **plan.encode)[0]
    except InputError as error:
        raise InputError(f"Text {i} cannot be encoded: {str(error).partition(': ')[2] or error}") from None


def _or_error(call: Callable[..., Any], *arguments: Any) -> Any:
    """What ``call`` returns, or the InputError that it raises."""
    try:
        return call(*arguments)
    except InputError as error:
        return error
