"""What the pipelines share: checked options, and a stream of inputs answered in order, some thousand tokens a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from typing import Any, ClassVar

import numpy as np

from distilfast.arguments import count, flag, listed, one_of
from distilfast.batch import PackedBatch
from distilfast.engine import Engine
from distilfast.errors import InputError
from distilfast.pipelines.encoders import Encoder, EncodingOptions, TruncationWarning
from distilfast.pipelines.progress import shown
from distilfast.tokenizer import Encoding, checked_text
from distilfast.types import Task

READ_AHEAD = 64
"""Inputs that are read and encoded together, and run together if they are short enough."""

KEPT_PLANS = 64
"""Combinations of options whose checked plans a pipeline keeps."""

CHARACTERS = 2**17
"""Of texts that are encoded together, some 30,000 tokens; the text that goes beyond it is the last of them."""

TOKENS = 4096
"""Tokens in one forward: enough to amortise a pass over the weights, few enough to bound the memory of the results."""

Item = Any
"""An input that has been checked: a text, a pair of texts, or what else the task takes."""

Compute = Callable[[Sequence[Encoding], PackedBatch], Iterable[Any]]
"""From a group of windows, and the same as a batch, to one result for each, in order."""

Combine = Callable[[Item, Sequence[Encoding], Sequence[Any]], Any]
"""From an input, its windows and their results to its answer."""

SHARED = ("batch_size", "errors", "return_truncation")
"""The options of every pipeline."""


def only_result(_: Item, __: Sequence[Encoding], results: Sequence[Any]) -> Any:
    """The answer to an input that is read whole: the result of its only window."""
    return results[0]


@dataclass(frozen=True)
class Plan:
    """A call whose options are checked: how inputs become windows, windows results, and results answers.

    ``sequences``: about how many windows a text becomes, whatever its length. ``first``: the first input's number.
    ``is_kept``: whether it serves later calls with the same options too; not where making it has warned.
    """

    encode: Encoder
    compute: Compute
    combine: Combine = only_result
    sequences: int = 1
    batch_size: int = READ_AHEAD
    return_errors: bool = False
    return_truncation: bool = False
    first: int = 0
    is_kept: bool = True


@dataclass(frozen=True)
class Prepared:
    """An input whose windows are encoded: it can be computed with those of other inputs of the same options.

    ``compute`` gives one result for each of some windows, and ``answer`` that of the input from the results of all of
    its ``windows``, in order.
    """

    windows: Sequence[Encoding]
    compute: Compute
    answer: Callable[[Sequence[Any]], Any]


class Pipeline:
    """Inputs in, dicts out, as ``transformers.pipeline`` answers. Subclasses name their ``task``.

    One input gives its answer and a list a list of answers. A generator, or any other iterator, gives an iterator:
    inputs are read as its answers are taken, at most ``batch_size`` ahead. However many and long the inputs are, what
    is kept at a time is bounded: ``batch_size`` texts (64), fewer of long ones, and the results of some 4,000 tokens.
    Batches hold no padding, so inputs need not be sorted by length. On a terminal a list that takes long has a
    progress bar.

    Options of every call, and of ``pipeline`` as defaults of all calls:

    * ``batch_size``: the most texts that are read and computed together; answers do not depend on it.
    * ``errors``: "raise" stops at the first input that cannot be answered; "return" gives its InputError in the place
      of its answer and goes on. Either names the input by its index. ``embed`` has no such option.
    * ``return_truncation``: True wraps each answer as ``{"answer": …, "tokens_dropped": n}``, n being how many tokens
      of the input were cut off. Without it the first cut of a process warns.

    An option that is not known, or whose value could have no effect, raises InputError, from ``pipeline`` too.
    """

    task: ClassVar[str]
    engine_task: ClassVar[Task]
    """The task whose head the engine has."""

    _how_to_cut: ClassVar[str] = "truncation=True"
    _how_to_read_all: ClassVar[str] = "stride=0 reads all of it, in windows, and "
    _elsewhere: ClassVar[dict[str, str]] = {
        "device": 'backend="cuda" or "triton" runs on a GPU and backend="cpu" on the processor',
        "device_map": 'backend="cuda" or "triton" runs on a GPU and backend="cpu" on the processor',
        "dtype": "precision says how the model computes",
        "torch_dtype": "precision says how the model computes",
        "num_workers": "threads says how many cores are used",
        "tokenizer": "the checkpoint's own is used",
    }
    """Arguments of the reference that have another name here, or none."""

    _plan: Callable[..., Plan]
    """From the task's options, keywords only, to a plan; raises InputError."""

    _known: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        """The options of a task are the keywords of its ``_plan``; a class without one is a base of others."""
        if hasattr(cls, "_plan"):
            options = signature(cls._plan).parameters.items()
            cls._known = (*(name for name, each in options if each.kind is Parameter.KEYWORD_ONLY), *SHARED)

    def __init__(self, engine: Engine, defaults: dict[str, Any] | None = None) -> None:
        """``defaults``: keyword arguments of every call, unless the call gives its own."""
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self._defaults = defaults or {}
        self._plans = dict[Any, Plan]()
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
            return self._answer_to_one(inputs, next(self._answers([inputs], plan)), options)
        several = self._listed(inputs)
        return list(shown(self._answers(several, plan), several))

    def stream(self, inputs: Iterable[Any], *, first: int = 0, **options: Any) -> Iterator[Any]:
        """An answer for each input in order, an InputError in the place of one that cannot be answered.

        Inputs are read as answers are taken; one that is an InputError already is given back. ``first`` is the number
        that errors give the first input.
        """
        plan = self._checked_plan(**(self._defaults | options | {"errors": "return"}))
        return self._answers(inputs, replace(plan, first=first))

    def prepare(self, given: Any, **options: Any) -> Prepared:
        """One input, for a caller that forms batches itself; its answer is that of a call. Raises InputError."""
        for name in options:
            if name in ("batch_size", "errors"):
                raise InputError(f"{name} is an option of calls with several inputs; here is one.")
        plan = self._checked_plan(**(self._defaults | options))
        prepared = self._prepared(given, plan)
        return replace(prepared, answer=lambda results: self._answer_to_one(given, prepared.answer(results), options))

    def _prepared(self, given: Any, plan: Plan) -> Prepared:
        item = self._item(0, given, plan)
        (windows,) = self._encoded(0, [item], plan)
        if isinstance(windows, InputError):
            raise windows

        def answer(results: Sequence[Any]) -> Any:
            return self._with_truncation(0, item, windows, plan.combine(item, windows, results), plan)

        return Prepared(windows, plan.compute, answer)

    def _answer_to_one(self, given: Any, answer: Any, options: dict[str, Any]) -> Any:
        """What a call with one input and these options returns."""
        return answer

    @classmethod
    def check_names(cls, options: Iterable[str]) -> None:
        """Raises InputError for the name of an option that no call takes."""
        for name in options:
            if name not in cls._known:
                instead = cls._elsewhere.get(name) or listed(name, cls._known)
                raise InputError(f"{name} is not an option of {cls.task}; {instead}.")

    def _checked_plan(self, **options: Any) -> Plan:
        """Of these options; kept for later calls, since checking options takes as long as encoding a short text."""
        plain = all(isinstance(value, (str, int, float, type(None))) for value in options.values())
        key = tuple((name, type(value), value) for name, value in options.items()) if plain else None
        plan = self._plans.get(key)
        if plan is None:
            plan = self._planned(**options)
            if key is not None and plan.is_kept:
                if len(self._plans) >= KEPT_PLANS:
                    self._plans.clear()
                self._plans[key] = plan
        return plan

    def _planned(
        self, batch_size: Any = None, errors: Any = "raise", return_truncation: Any = False, **options: Any
    ) -> Plan:
        self._check_names(options)
        return replace(
            self._plan(**options),
            batch_size=READ_AHEAD if batch_size is None else count("batch_size", batch_size),
            return_errors=one_of("errors", errors, ("raise", "return")) == "return",
            return_truncation=flag("return_truncation", return_truncation),
        )

    def _check_names(self, options: Iterable[str]) -> None:
        self.check_names(options)

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str)

    def _listed(self, inputs: Any) -> Iterable[Any]:
        """Several inputs; raises InputError for what is neither one nor several."""
        found = None if isinstance(inputs, (dict, bytes)) else several(inputs)
        if found is None:
            raise InputError(f"The input is of type {type(inputs).__name__}; a text or a list of texts is needed.")
        return found

    def _item(self, i: int, given: Any, plan: Plan) -> Item:
        """Input ``i``, checked; raises InputError."""
        if not isinstance(given, str):
            raise InputError(f"Input {i} is of type {type(given).__name__}; a string is needed.")
        return checked_text(i, given)

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
        """What a window takes of the memory of a forward, in tokens."""
        return len(encoding.ids)

    def _answers(self, inputs: Iterable[Any], plan: Plan) -> Iterator[Any]:
        """An answer, or where the plan returns errors an InputError, for each input in order."""
        for first, items in self._read(inputs, plan):
            windows = self._encoded(first, items, plan)
            results = self._computed([each for some in windows if isinstance(some, list) for each in some], plan)
            for k, some in enumerate(windows):
                if isinstance(some, list):
                    answer = plan.combine(items[k], some, [next(results) for _ in some])
                    yield self._with_truncation(first + k, items[k], some, answer, plan)
                elif plan.return_errors:
                    yield some
                else:
                    raise some

    def _read(self, inputs: Iterable[Any], plan: Plan) -> Iterator[tuple[int, list[Item | InputError]]]:
        """The inputs that are encoded together, or their errors, and the index of the first."""
        items: list[Item | InputError] = []
        characters = 0
        for i, given in enumerate(inputs, plan.first):
            item = given if isinstance(given, InputError) else _or_error(self._item, i, given, plan)
            items.append(item)
            characters += plan.sequences * _characters(item)
            if len(items) == plan.batch_size or characters >= CHARACTERS:
                yield i + 1 - len(items), items
                items, characters = [], 0
        if items:
            yield i + 1 - len(items), items

    def _computed(self, windows: list[Encoding], plan: Plan) -> Iterator[Any]:
        types = self.engine.config.token_types > 0
        for group in _groups(windows, self._cost):
            yield from plan.compute(group, PackedBatch.from_encodings(group, token_types=types))

    def _encoded(self, first: int, items: list[Item | InputError], plan: Plan) -> list[list[Encoding] | InputError]:
        """The windows of inputs ``first``, ``first + 1``, …; those that cannot be answered as their errors."""
        found: list[Any] = list(items)
        good = [k for k, item in enumerate(found) if not isinstance(item, InputError)]
        try:
            windows: list[Any] = plan.encode([found[k] for k in good])
        except InputError:  # one of them spoils the batch
            windows = [_or_error(_encoded_alone, first + k, found[k], plan) for k in good]
        for k, some in zip(good, windows, strict=True):
            found[k] = _or_error(self._checked_windows, first + k, some)
        return found

    def _checked_windows(self, i: int, windows: list[Encoding] | InputError) -> list[Encoding]:
        if isinstance(windows, InputError):
            raise windows
        for window in windows:
            self._check_encoding(i, window)
        return windows

    def _with_truncation(self, i: int, item: Item, windows: list[Encoding], answer: Any, plan: Plan) -> Any:
        if plan.return_truncation:
            return {"answer": answer, "tokens_dropped": plan.encode.dropped(item, windows)}
        if not TruncationWarning.given and (dropped := plan.encode.dropped(item, windows)):
            TruncationWarning.give_once(i, dropped, self._how_to_read_all)
        return answer

    def _encoding_options(self, **given: Any) -> EncodingOptions:
        """The options of the tokeniser that a task takes, checked; see ``EncodingOptions.checked``."""
        return EncodingOptions.checked(self.tokenizer, self.engine.config.max_positions, **given)

    def _nested_options(self, name: str, options: Any) -> dict[str, Any]:
        """Options of the tokeniser that the task takes as a dict called ``name``; raises InputError."""
        known = ("add_special_tokens", "max_length", "padding", "truncation")
        if options is None:
            return {}
        if not isinstance(options, dict):
            raise InputError(f"{name} is of type {type(options).__name__}; a dict is needed.")
        for key in options:
            if key not in known:
                raise InputError(f"{name} has {key!r}, which is not known; there are {', '.join(known)}.")
        return options


def several(inputs: Any) -> Iterable[Any] | None:
    """``inputs`` as they are iterated: a list, or a data set that has only a length and items; None for neither."""
    if isinstance(inputs, Iterable):
        return inputs
    if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
        return _Sequence(inputs)
    return None


class _Sequence:
    """The items of what has a length and items, as torch's data sets do."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        return (self._items[i] for i in range(len(self._items)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64, so that float32 logits lose no precision."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def highest(scores: np.ndarray, most: int) -> np.ndarray:
    """The places of the ``most`` largest of ``scores`` [N], the largest first; of equal ones the first."""
    if most == 0:
        return np.empty(0, np.int64)
    places = np.arange(len(scores))
    if most < len(scores):
        places = np.flatnonzero(~(scores < np.partition(scores, -most)[-most]))  # with a NaN, all
    return places[np.argsort(-scores[places], kind="stable")[:most]]


def _characters(item: Item) -> int:
    if isinstance(item, str):
        return len(item)
    return sum(map(_characters, item)) if isinstance(item, (tuple, list)) else 0


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


def _encoded_alone(i: int, item: Item, plan: Plan) -> list[Encoding]:
    try:
        return plan.encode([item])[0]
    except InputError as error:
        raise InputError(f"Text {i} cannot be encoded: {str(error).partition(': ')[2] or error}") from None


def _or_error(call: Callable[..., Any], *arguments: Any) -> Any:
    """What ``call`` returns, or the InputError that it raises."""
    try:
        return call(*arguments)
    except InputError as error:
        return error
