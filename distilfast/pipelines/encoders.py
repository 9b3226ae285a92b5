"""From inputs to what the model reads of them: texts and pairs, whole, cut, or in overlapping windows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from distilfast.arguments import count, flag, one_of
from distilfast.errors import InputError
from distilfast.tokenizer import Encoding, Tokenizer, check_stride, truncation_strategy

_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")


@dataclass(frozen=True)
class EncodingOptions:
    """How texts become tokens, checked.

    ``truncation``: how a text or pair longer than ``max_length`` tokens is cut, None for not at all; see
    ``Tokenizer.encode_batch``. ``stride``: texts are read in windows of ``max_length`` tokens, of which two neighbours
    have so many in common, None for texts read whole.
    """

    add_special_tokens: bool = True
    truncation: str | None = None
    max_length: int | None = None
    stride: int | None = None

    @classmethod
    def checked(
        cls,
        tokenizer: Tokenizer,
        positions: int,
        *,
        truncation: Any = None,
        max_length: Any = None,
        add_special_tokens: Any = True,
        padding: Any = False,
        window: Any = None,
        stride: Any = None,
        own_limit: int | None = None,
    ) -> EncodingOptions:
        """From arguments of a call; no text is longer than the model's ``positions`` wherever texts are cut.

        ``own_limit`` is that of texts cut without a ``max_length``, by default the tokeniser's. Padding adds nothing to
        an answer, and none is done; ``max_length`` beside ``padding="max_length"`` is that of the padding too. Raises
        InputError.
        """
        padding = checked_padding(padding)
        special = flag("add_special_tokens", add_special_tokens)
        added = tokenizer.num_special_tokens() if special else 0
        if max_length is not None:
            max_length = count("max_length", max_length)
            if padding == "max_length" and truncation in (None, False, "do_not_truncate"):
                max_length = None
            elif padding is not False and truncation is None:  # as the reference: here it does not cut by itself
                raise InputError(
                    f"max_length is {max_length}, which cuts nothing beside padding={padding!r}; add truncation."
                )
        own_limit = min(own_limit or tokenizer.max_length or positions, positions)
        if window is not None or stride is not None:
            return cls(special, None, *_windows(window, stride, truncation, max_length, own_limit, positions, added))
        if isinstance(truncation, str):
            one_of("truncation", truncation, _TRUNCATIONS)
        strategy = truncation_strategy(truncation, max_length)
        if strategy is None:
            return cls(special)
        limit = min(max_length or own_limit, positions)
        if limit < added:
            raise InputError(f"max_length is {limit}; the special tokens alone need {added}.")
        return cls(special, strategy, limit)


def _windows(
    window: Any, stride: Any, truncation: Any, max_length: int | None, own_limit: int, positions: int, added: int
) -> tuple[int, int]:
    """Tokens of a window, and of those the ones that the next has too."""
    if max_length is not None or truncation not in (None, False, "do_not_truncate"):
        raise InputError("window and stride read the whole of a text; truncation and max_length would cut it.")
    length = own_limit if window is None else count("window", window)
    if length > positions:
        raise InputError(f"window is {length}; the model has {positions} positions.")
    overlap = 0 if stride is None else count("stride", stride, least=0)
    return length, check_stride(overlap, length - added)


def checked_padding(padding: Any) -> bool | str:
    """A value that the reference takes; raises InputError."""
    if isinstance(padding, str):
        return one_of("padding", padding, ("longest", "max_length", "do_not_pad"))
    return flag("padding", padding)


class Encoder:
    """From checked inputs to the windows of each."""

    def __call__(self, items: Sequence[Any]) -> list[list[Encoding]]:
        """What the model reads of each input, in order; raises InputError."""
        raise NotImplementedError

    def dropped(self, item: Any, windows: Sequence[Encoding]) -> int:
        """How many tokens of an input are in none of its windows."""
        return 0


@dataclass(frozen=True)
class TextEncoder(Encoder):
    """Of texts and pairs, or lists of words; ``prompt`` is put before every text."""

    tokenizer: Tokenizer
    options: EncodingOptions
    prompt: str = ""
    is_split_into_words: bool = False

    def __call__(self, items: Sequence[Any]) -> list[list[Encoding]]:
        """One window each, several where the options have a stride."""
        options = self.options
        if options.stride is None and not self.is_split_into_words:
            return [[each] for each in self._whole(items, options.truncation, options.max_length)]
        windows = self.tokenizer.encode_windows(
            self._prompted(items),
            max_length=options.max_length,
            stride=options.stride or 0,
            add_special_tokens=options.add_special_tokens,
            is_split_into_words=self.is_split_into_words,
        )
        return windows if options.truncation is None else [some[:1] for some in windows]

    def dropped(self, item: Any, windows: Sequence[Encoding]) -> int:
        """Found by encoding the whole of a text that may have been cut."""
        if self.options.truncation is None or len(windows[0].ids) < (self.options.max_length or 0):
            return 0
        if self.is_split_into_words:
            whole = self.tokenizer.encode_windows(
                [item],
                max_length=None,
                add_special_tokens=self.options.add_special_tokens,
                is_split_into_words=True,
            )[0][0]
        else:
            whole = self._whole([item], None, None)[0]
        return len(whole.ids) - len(windows[0].ids)

    def _whole(self, items: Sequence[Any], truncation: str | None, max_length: int | None) -> list[Encoding]:
        return self.tokenizer.encode_batch(
            self._prompted(items),
            truncation=truncation,
            max_length=max_length,
            add_special_tokens=self.options.add_special_tokens,
        )

    def _prompted(self, items: Sequence[Any]) -> list[Any]:
        if not self.prompt:
            return list(items)
        return [self.prompt + item if isinstance(item, str) else item for item in items]


class TruncationWarning(UserWarning):
    """A text was cut, the first of the process."""

    given: ClassVar[bool] = False

    @classmethod
    def give_once(cls, i: int, dropped: int, how_to_read_all: str) -> None:
        """For input ``i``, of which ``dropped`` tokens are cut off; nothing after the first time."""
        if cls.given:
            return
        cls.given = True
        warnings.warn(
            f"Input {i} is cut by {dropped} tokens; {how_to_read_all}return_truncation=True says what is cut. "
            "No later cut of this process is reported.",
            cls,
            stacklevel=2,
        )
