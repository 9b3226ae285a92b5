"""Text to ids and back, over the ``tokenizers`` library, with the ids of transformers' AutoTokenizer.

Sources: tokenization_bert.py and tokenization_utils_tokenizers.py of transformers 5. For a BERT or DistilBERT
tokenizer class the reference takes only the vocabulary and the added tokens from tokenizer.json: how text is
normalised comes from tokenizer_config.json, where ``do_lower_case`` is true unless it says otherwise. So do we.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distilfast.arguments import flag, integer
from distilfast.errors import ConfigError, InputError
from distilfast.files import Key, boolean, checked, open_regular, read_object, string
from distilfast.locks import ForkSafeLock

if TYPE_CHECKING:
    import tokenizers

Text = str | tuple[str, str]
"""One text, or a pair."""

_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_WORD_PIECE_CLASSES = ("BertTokenizer", "DistilBertTokenizer")
_NO_LIMIT = 10**20  # from here on the reference reads model_max_length as "none given"

# What `decode` closes up where the config asks for clean_up_tokenization_spaces; the order matters.
_CLOSED_UP = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


class Encoding:
    """One encoded text or pair, or a window of it, of T tokens; every field is a list of T.

    Fields but ``ids`` are made when they are read.
    """

    __slots__ = ("_made", "ids")

    def __init__(self, made: tokenizers.Encoding) -> None:
        """From what the library returned."""
        self._made = made
        self.ids: list[int] = made.ids

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Encoding):
            return NotImplemented
        names = ("ids", "type_ids", "tokens", "offsets", "special_mask", "sequence_ids", "words")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    __hash__ = None  # type: ignore[assignment]

    @property
    def type_ids(self) -> list[int]:
        """The token types: 1 for what belongs to the second text of a pair, else 0."""
        return self._made.type_ids

    @property
    def tokens(self) -> list[str]:
        """The tokens as the vocabulary writes them."""
        return self._made.tokens

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters of each token in its own text (in its own word if it came split); (0, 0) for special ones."""
        return self._made.offsets

    @property
    def special_mask(self) -> list[int]:
        """1 for special tokens that were added, else 0."""
        return self._made.special_tokens_mask

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 or 1, the text the token comes from, None for special tokens that were added."""
        return self._made.sequence_ids

    @property
    def words(self) -> list[int | None]:
        """The word of its text that each token belongs to, counted from 0; None for special tokens that were added."""
        return self._made.word_ids

    def part(self, sequence: int) -> range:
        """The tokens of the first text (0) or of the second (1)."""
        sequences = self.sequence_ids
        tokens = sequences.count(sequence)
        first = sequences.index(sequence) if tokens else 0
        return range(first, first + tokens)

    def characters(self, first: int, last: int, *, whole_words: bool = False) -> tuple[int, int]:
        """Where tokens ``first`` to ``last`` begin and end in their text.

        ``whole_words``: from the beginning of the word that ``first`` is in to the end of that of ``last``, as far as
        this window holds them.
        """
        if whole_words:
            words = list(zip(self.sequence_ids, self.words, strict=True))
            while first > 0 and words[first - 1] == words[first]:
                first -= 1
            while last + 1 < len(words) and words[last + 1] == words[last]:
                last += 1
        offsets = self.offsets
        return offsets[first][0], offsets[last][1]


class PairWindow(Encoding):
    """A window over the second text of a pair whose texts were encoded one by one.

    Of such a pair the library has the token types right in the first window only, and the texts in the others.
    """

    __slots__ = ("_first", "_first_text")

    def __init__(self, made: tokenizers.Encoding, first: tokenizers.Encoding, first_text: int) -> None:
        """``first``: the first window of the pair; ``first_text``: tokens of the first text, which are in each."""
        super().__init__(made)
        self._first = first
        self._first_text = first_text

    @property
    def type_ids(self) -> list[int]:
        """See ``Encoding``."""
        types, second = self._first.type_ids, self.part(1)
        return types[: second.stop] + types[len(types) - len(self.ids) + second.stop :]

    @property
    def sequence_ids(self) -> list[int | None]:
        """See ``Encoding``."""
        found: list[int | None] = [None] * len(self.ids)
        tokens = (place for place, special in enumerate(self.special_mask) if not special)
        for i, place in enumerate(tokens):
            found[place] = int(i >= self._first_text)
        return found


class Tokenizer:
    """A checkpoint's tokenizer; safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        """``config``: tokenizer_config.json with special_tokens_map.json merged into it."""
        self._backend = backend
        self._config = config
        self._vocab: dict[str, int] | None = None
        self._special_ids: dict[str, int | None] = {}
        self._lock = ForkSafeLock()  # truncation is a setting of the backend, not an argument of a call

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and copies are independent: truncation, which each call sets, is not shared."""
        return _restored, (self._backend.to_str(), self._config)

    @classmethod
    def from_directory(cls, directory: str | Path) -> Tokenizer:
        """From tokenizer.json or vocab.txt, and tokenizer_config.json; raises ConfigError."""
        directory = Path(directory)
        config = _config(directory)
        serialized = _serialized(directory)
        declared = str(config.get("tokenizer_class") or _WORD_PIECE_CLASSES[0]).removesuffix("Fast")
        if declared not in _WORD_PIECE_CLASSES and not serialized:
            raise ConfigError(f"{directory} has no tokenizer.json, which its tokenizer_class {declared!r} needs.")
        make = _word_piece if declared in _WORD_PIECE_CLASSES else _as_serialized
        try:
            return cls(make(directory, config, serialized), config)
        except ConfigError:
            raise
        except Exception as error:  # the library raises plain Exception, and TypeError for odd flags of a token
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise ConfigError(f"The tokenizer files in {directory} cannot be used: {reason}.") from None

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> Encoding:
        """Encode one text or pair; see ``encode_batch``."""
        one: Text = text if pair is None else (text, pair)
        return self.encode_batch(
            [one], truncation=truncation, max_length=max_length, add_special_tokens=add_special_tokens
        )[0]

    def encode_batch(
        self,
        texts: Sequence[Text],
        *,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> list[Encoding]:
        """Encode texts and pairs, nothing padded.

        ``truncation``: False (also "do_not_truncate"), or "longest_first" (also True), "only_first" or "only_second";
        to ``max_length`` tokens, else to the tokenizer's own limit if it has one. None cuts where ``max_length`` is
        given. Raises InputError for what is not text, and for a ``max_length`` that cannot be kept or cuts nothing.
        """
        inputs = [checked_text(i, text) for i, text in enumerate(texts)]
        strategy = truncation_strategy(truncation, max_length)
        limit = self._limit(inputs, max_length, add_special_tokens) if strategy else None
        made = self._encoded(inputs, limit, strategy, add_special_tokens=add_special_tokens)
        return [Encoding(each) for each in made]

    def encode_windows(
        self,
        texts: Sequence[Text] | Sequence[list[str]],
        *,
        max_length: int | None,
        stride: int = 0,
        add_special_tokens: bool = True,
        is_split_into_words: bool = False,
    ) -> list[list[Encoding]]:
        """Windows of at most ``max_length`` tokens, which together hold the whole of each text; None for a single one.

        Two neighbours have ``stride`` tokens of the text in common. The windows of a pair are over the longer of its
        texts, and hold the whole of the other. ``is_split_into_words``: each text is a list of words. Raises
        InputError, also where a window has no room for more than the stride.
        """
        check: Callable[[int, Any], Any] = checked_words if is_split_into_words else checked_text
        inputs = [check(i, text) for i, text in enumerate(texts)]
        if max_length is not None:
            room = max_length - (self.num_special_tokens() if add_special_tokens else 0)
            check_stride(stride, room)
        is_pair = [max_length is not None and isinstance(each, tuple) for each in inputs]
        made = self._encoded(
            [each for each, pair in zip(inputs, is_pair, strict=True) if not pair],
            max_length,
            None,
            stride=stride,
            add_special_tokens=add_special_tokens,
            is_split_into_words=is_split_into_words,
        )
        singles = (_windows(each) for each in made)
        return [
            self._pair_windows(each, max_length or 0, stride, add_special_tokens) if pair else next(singles)
            for each, pair in zip(inputs, is_pair, strict=True)
        ]

    def _pair_windows(
        self, pair: tuple[str, str], max_length: int, stride: int, add_special_tokens: bool
    ) -> list[Encoding]:
        """Over the longer text of a pair, the first of two as long."""
        with self._lock:
            encoded = self._encoded_once(pair)
            lengths = [len(encoded[text].ids) for text in pair]
            longer = int(lengths[1] > lengths[0])
            added = self.num_special_tokens(pair=True) if add_special_tokens else 0
            room = max_length - lengths[1 - longer] - added
            windows = self._text_windows(pair[longer], encoded[pair[longer]], room, check_stride(stride, room))
            other = encoded[pair[1 - longer]]
            parts = [(other, window) if longer else (window, other) for window in windows]
            return [self._joined(*part, add_special_tokens) for part in parts]

    def _joined(self, first: tokenizers.Encoding, second: tokenizers.Encoding, add_special_tokens: bool) -> Encoding:
        """A pair of what was encoded by itself; the caller holds the lock."""
        made = self._backend.post_process(first, second, add_special_tokens)
        return PairWindow(made, made, len(first.ids))

    def _text_windows(
        self, text: str, encoded: tokenizers.Encoding, room: int, stride: int
    ) -> list[tokenizers.Encoding]:
        """Windows of ``room`` tokens over ``text``, encoded whole as ``encoded``; the caller holds the lock.

        Each is by itself: the library keeps the others with the first one, and pairs made of that would have them too,
        with token types that are wrong.
        """
        if len(encoded.ids) <= room:
            return [encoded]
        whole = self._backend.encode(text, add_special_tokens=False)
        whole.truncate(room, stride=stride)
        return [self._cut(text, encoded, room), *whole.overflowing]

    def encode_pair_windows(
        self,
        firsts: Sequence[str],
        seconds: Sequence[str],
        *,
        max_length: int,
        max_first: int,
        stride: Callable[[int], int],
    ) -> list[list[Encoding]]:
        """Windows of at most ``max_length`` tokens over each of ``seconds``, with the text of ``firsts`` in each.

        Of that, ``max_first`` tokens are kept. ``stride``: from how many tokens of the second text a window has room
        for to how many of them two neighbours have in common. Raises InputError.
        """
        for i, pair in enumerate(zip(firsts, seconds, strict=True)):
            checked_text(i, pair)
        with self._lock:
            encoded = self._encoded_once([*firsts, *seconds])
            heads = [self._cut(first, encoded[first], max_first) for first in firsts]
            found: list[list[Encoding]] = []
            for head, second in zip(heads, seconds, strict=True):
                room = max_length - len(head.ids) - self.num_special_tokens(pair=True)
                self._truncate(max_length, "only_second", check_stride(stride(room), room))
                made = self._backend.post_process(head, encoded[second], True)
                found.append([PairWindow(each, made, len(head.ids)) for each in (made, *made.overflowing)])
        return found

    def encode_product(
        self,
        texts: Sequence[str],
        seconds: Sequence[str],
        *,
        truncation: str | None,
        max_length: int | None,
        stride: int | None = None,
    ) -> list[list[Encoding]]:
        """Every pair of one of ``texts`` and one of ``seconds``, a list for each text; each text is tokenised once.

        ``truncation`` None leaves the pairs as long as they are. With a ``stride`` the text is read in windows, as of
        ``encode_windows``, the same beside each of ``seconds``: all pairs of the first window, then of the next. Raises
        InputError.
        """
        for i, text in enumerate((*texts, *seconds)):
            checked_text(i, text)
        if stride is not None and max_length is not None:
            return self._products_in_windows(texts, seconds, max_length, stride)
        limit = None if truncation is None else self._limit([("", "")], max_length, True)
        with self._lock:
            encoded = self._encoded_once([*texts, *seconds])
            self._truncate(limit, truncation, 0)
            try:
                return [
                    [Encoding(self._backend.post_process(encoded[text], encoded[second], True)) for second in seconds]
                    for text in texts
                ]
            except Exception as error:  # the library raises plain Exception for what truncation cannot do
                raise InputError(f"The texts cannot be encoded: {str(error).rstrip('.')}.") from None

    def _products_in_windows(
        self, texts: Sequence[str], seconds: Sequence[str], max_length: int, stride: int
    ) -> list[list[Encoding]]:
        with self._lock:
            encoded = self._encoded_once([*texts, *seconds])
            longest = max(len(encoded[second].ids) for second in seconds)
            room = max_length - longest - self.num_special_tokens(pair=True)
            check_stride(stride, room)
            return [
                [
                    self._joined(window, encoded[second], True)
                    for window in self._text_windows(text, encoded[text], room, stride)
                    for second in seconds
                ]
                for text in texts
            ]

    def _encoded_once(self, texts: Sequence[str]) -> dict[str, tokenizers.Encoding]:
        """Each distinct text, whole and without special tokens; the caller holds the lock."""
        distinct = list(dict.fromkeys(texts))
        self._truncate(None, None, 0)
        return dict(zip(distinct, self._backend.encode_batch(distinct, add_special_tokens=False), strict=True))

    def _cut(self, text: str, encoded: tokenizers.Encoding, tokens: int) -> tokenizers.Encoding:
        """The first ``tokens`` of ``text``, encoded whole as ``encoded``; the caller holds the lock."""
        if len(encoded.ids) <= tokens:
            return encoded
        cut = self._backend.encode(text, add_special_tokens=False)  # `encoded` may be that of another pair too
        # What is cut off stays with the rest as further windows, of which this pair would have as many. The first
        # tokens as the window before the last ones have none.
        cut.truncate(tokens + 1)
        cut.truncate(tokens, stride=tokens - 1, direction="left")
        return cut.overflowing[0]

    def _encoded(
        self,
        inputs: list[Any],
        limit: int | None,
        strategy: str | None,
        *,
        stride: int = 0,
        add_special_tokens: bool,
        is_split_into_words: bool = False,
    ) -> list[tokenizers.Encoding]:
        with self._lock:
            try:
                self._truncate(limit, strategy, stride)
                return self._backend.encode_batch(
                    inputs, add_special_tokens=add_special_tokens, is_pretokenized=is_split_into_words
                )
            except Exception as error:  # the library raises plain Exception for what truncation cannot do
                raise InputError(f"The texts cannot be encoded: {str(error).rstrip('.')}.") from None

    def _limit(self, inputs: list[Text], max_length: int | None, add_special_tokens: bool) -> int | None:
        limit = self.max_length if max_length is None else integer("max_length", max_length)
        if limit is None:
            return None
        added = max((self.num_special_tokens(pair=isinstance(text, tuple)) for text in inputs), default=0)
        if limit < 1 or (add_special_tokens and limit < added):
            raise InputError(f"max_length is {limit}; the special tokens alone need {added}.")
        return limit

    def _truncate(self, limit: int | None, strategy: str | None, stride: int) -> None:
        if limit is None:
            self._backend.no_truncation()
        else:
            self._backend.enable_truncation(limit, stride=stride, strategy=strategy or "longest_first")

    def is_same_as(self, other: Tokenizer) -> bool:
        """Whether both make the same tokens of every text, and the same text of tokens."""
        settings = [
            (each.max_length, each._config.get("clean_up_tokenization_spaces", False)) for each in (self, other)
        ]
        return settings[0] == settings[1] and self._serialized() == other._serialized()

    def _serialized(self) -> str:
        with self._lock:
            self._truncate(None, None, 0)  # the setting of the last call
            text: str = self._backend.to_str()
            return text

    def lowercased(self) -> Tokenizer:
        """Another tokenizer, which makes the letters of a text small before it does what this one does."""
        from tokenizers.normalizers import Lowercase
        from tokenizers.normalizers import Sequence as Normalizers

        backend = copy.deepcopy(self._backend)
        kept = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = Normalizers([Lowercase(), *kept])
        return Tokenizer(backend, self._config)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of ``ids``, spaces before punctuation closed up where the config asks for it."""
        with self._lock:
            text: str = self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        if self._config.get("clean_up_tokenization_spaces", False):
            for spaced, closed in _CLOSED_UP.items():
                text = text.replace(spaced, closed)
        return text

    def join(self, tokens: Sequence[str]) -> str:
        """The text of tokens as the vocabulary writes them: "##" closed up, and spaces before punctuation."""
        decoder = self._backend.decoder
        text: str = " ".join(tokens) if decoder is None else decoder.decode(list(tokens))
        return text

    @property
    def subword_prefix(self) -> str:
        """What the vocabulary writes before a token that goes on a word, "##"; "" where it marks none."""
        return getattr(self._backend.model, "continuing_subword_prefix", None) or ""

    def num_special_tokens(self, *, pair: bool = False) -> int:
        """How many special tokens ``encode`` adds to a text, or to a pair."""
        return int(self._backend.num_special_tokens_to_add(pair))

    @property
    def vocab(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        if self._vocab is None:  # cached_property has a lock before Python 3.12, which a forked child could wait for
            self._vocab = dict(self._backend.get_vocab(with_added_tokens=True))
        return self._vocab

    def token_to_id(self, token: str) -> int | None:
        """The id of ``token``, None where the vocabulary lacks it."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token of ``token_id``, None where the vocabulary lacks it."""
        return self._backend.id_to_token(token_id)

    @property
    def max_length(self) -> int | None:
        """``model_max_length`` of tokenizer_config.json, None where it gives none."""
        limit = self._config.get("model_max_length", self._config.get("max_len"))
        return None if limit is None or limit > _NO_LIMIT else int(limit)

    @property
    def mask_id(self) -> int | None:
        """Id of the token to be filled in, "[MASK]"."""
        return self._special_id("mask_token")

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token, "[PAD]"."""
        return self._special_id("pad_token")

    @property
    def cls_id(self) -> int | None:
        """Id of the token before every text, "[CLS]"."""
        return self._special_id("cls_token")

    @property
    def sep_id(self) -> int | None:
        """Id of the token after every text, "[SEP]"."""
        return self._special_id("sep_token")

    @property
    def unk_id(self) -> int | None:
        """Id of the token for what the vocabulary lacks, "[UNK]"."""
        return self._special_id("unk_token")

    def _special_id(self, role: str) -> int | None:
        if role not in self._special_ids:  # the ids are asked for often
            self._special_ids[role] = self.token_to_id(_content(self._config.get(role) or _SPECIAL[role]))
        return self._special_ids[role]


def _restored(serialized: str, config: dict[str, Any]) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    return Tokenizer(Backend.from_str(serialized), config)


def truncation_strategy(truncation: bool | str | None, max_length: int | None) -> str | None:
    """How texts are cut, None for not at all; see ``Tokenizer.encode_batch``. Raises InputError."""
    if truncation is None:
        return None if max_length is None else "longest_first"
    if isinstance(truncation, str) and truncation != "do_not_truncate":
        return truncation
    if not isinstance(truncation, str) and flag("truncation", truncation):
        return "longest_first"
    if max_length is not None:
        raise InputError(f"max_length is {max_length}, and truncation={truncation!r} cuts nothing.")
    return None


def checked_text(i: int, text: Any) -> Text:
    """``text`` if it is a string or a pair of strings; raises InputError, which calls it input ``i``."""
    parts = (text,) if isinstance(text, str) else text
    is_pair = isinstance(text, (tuple, list)) and len(text) == 2
    if not (isinstance(text, str) or is_pair) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"Input {i} is neither a string nor a pair of strings.")
    try:
        "".join(parts).encode()
    except UnicodeEncodeError:
        raise InputError(f"Input {i} holds half of a surrogate pair, which is no character.") from None
    return text if isinstance(text, str) else (text[0], text[1])


def check_stride(stride: int, room: int) -> int:
    """``stride`` if windows with room for so many tokens of a text can overlap by it; raises InputError."""
    if not 0 <= stride < room:
        raise InputError(f"stride is {stride}; a window holds {max(room, 0)} tokens of the text, which must be more.")
    return stride


def _windows(made: tokenizers.Encoding) -> list[Encoding]:
    return [Encoding(window) for window in (made, *made.overflowing)]


def checked_words(i: int, words: Any) -> list[str]:
    """``words`` if it is a list of strings; raises InputError, which calls it input ``i``."""
    if not isinstance(words, (list, tuple)):
        raise InputError(f"Input {i} is not a list of words.")
    for word in words:
        if not isinstance(word, str):
            raise InputError(f"Input {i} has {word!r:.40} among its words; strings are needed.")
        checked_text(i, word)
    return list(words)


def _serialized(directory: Path) -> dict[str, Any]:
    """tokenizer.json, {} where there is none."""
    path = directory / "tokenizer.json"
    read = read_object(path) or {}
    tokens = read.get("added_tokens") or []
    if not isinstance(tokens, list) or not all(
        isinstance(each, dict) and _is_token(each) and _is_id(each.get("id")) for each in tokens
    ):
        raise ConfigError(f"{path} says added_tokens = {tokens!r:.60}; a list of tokens with their ids is needed.")
    return read


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _is_token_list(value: Any) -> bool:
    return isinstance(value, (list, dict)) and all(
        _is_token(each) for each in (value.values() if isinstance(value, dict) else value)
    )


def _is_token_map(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_id(key) and _is_token(entry) for key, entry in value.items())


def _is_id(key: Any) -> bool:
    return str(key).isdecimal() and len(str(key)) < 10


_TOKEN = Key("a string or an object with its content", lambda value: value is None or _is_token(value), None)
_TOKENS = Key("a list of tokens", _is_token_list, None, optional=True)
# A float too, since the reference writes 1e30 for "none".
_LIMIT = Key("a positive integer", lambda value: type(value) in (int, float) and value >= 1, None, optional=True)
_KEYS = {
    "do_lower_case": boolean(True),
    "strip_accents": boolean(None, null=True),
    "tokenize_chinese_chars": boolean(True),
    "clean_up_tokenization_spaces": boolean(False),
    "model_max_length": _LIMIT,
    "max_len": _LIMIT,
    "tokenizer_class": string(),
    "added_tokens_decoder": Key("a map from ids to tokens", _is_token_map, None, optional=True),
    "additional_special_tokens": _TOKENS,
    "extra_special_tokens": _TOKENS,
    **dict.fromkeys(_SPECIAL, _TOKEN),
}


def _config(directory: Path) -> dict[str, Any]:
    """What tokenizer_config.json and special_tokens_map.json say; keys that neither has are absent."""
    raw = read_object(directory / "tokenizer_config.json") or {}
    if "added_tokens_decoder" not in raw:  # an older layout: the map overrides the config, as in the reference
        raw |= read_object(directory / "special_tokens_map.json") or {}
    if "added_tokens_decoder" not in raw and not (directory / "tokenizer.json").exists():
        raw |= _added_tokens(directory)
    read = checked(raw, _KEYS, str(directory / "tokenizer_config.json"))
    return {name: value for name, value in read.items() if name in raw}


def _added_tokens(directory: Path) -> dict[str, Any]:
    """added_tokens.json of the oldest layout, {token: id}, as today's added_tokens_decoder."""
    path = directory / "added_tokens.json"
    found = read_object(path)
    if found is None:
        return {}
    if not all(_is_id(number) for number in found.values()):
        raise ConfigError(f"{path} is not a map from tokens to ids.")
    return {"added_tokens_decoder": {str(number): {"content": token} for token, number in found.items()}}


def _word_piece(directory: Path, config: dict[str, Any], serialized: dict[str, Any]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = _vocabulary(directory, serialized)
    normalizer = serialized.get("normalizer")
    if "do_lower_case" not in config and isinstance(normalizer, dict) and normalizer.get("lowercase") is False:
        warnings.warn(
            f"{directory / 'tokenizer.json'} keeps capitals and tokenizer_config.json has no do_lower_case, which is "
            "true by default: texts are lowercased, as the reference does.",
            stacklevel=4,
        )
    special = {role: _content(config.get(role) or token) for role, token in _SPECIAL.items()}
    backend = Backend(models.WordPiece(vocabulary, unk_token=special["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),  # None: as do_lower_case
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    _add_tokens(backend, config, serialized)
    cls_token, sep_token = special["cls_token"], special["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls_token}:0 $A:0 {sep_token}:0",
        pair=f"{cls_token}:0 $A:0 {sep_token}:0 $B:1 {sep_token}:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in (cls_token, sep_token)],
    )
    return backend


def _vocabulary(directory: Path, serialized: dict[str, Any]) -> dict[str, int]:
    if serialized:
        model = serialized.get("model")
        if not isinstance(model, dict) or model.get("type", "WordPiece") != "WordPiece":
            raise ConfigError(f"{directory / 'tokenizer.json'} holds no WordPiece model, which its class needs.")
        return _checked_vocabulary(directory / "tokenizer.json", model.get("vocab"))
    from tokenizers.models import WordPiece

    path = directory / "vocab.txt"
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise ConfigError(
            f"{directory} has neither tokenizer.json nor vocab.txt; copy those of the model it was trained from."
        ) from None
    try:
        vocabulary = WordPiece.read_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{path} is not readable text: {str(error).rstrip('.')}.") from None
    return _checked_vocabulary(path, vocabulary)


def _checked_vocabulary(path: Path, vocabulary: Any) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not vocabulary or not all(type(i) is int for i in vocabulary.values()):
        raise ConfigError(f"{path} holds no vocabulary.")
    return vocabulary


def _as_serialized(directory: Path, config: dict[str, Any], _: dict[str, Any]) -> tokenizers.Tokenizer:
    """For every other class, for instance PreTrainedTokenizerFast: tokenizer.json says everything."""
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise ConfigError(f"{directory / 'tokenizer.json'} is not a tokenizer: {str(error).rstrip('.')}.") from None
    backend.no_padding()
    _add_tokens(backend, dict.fromkeys(_SPECIAL) | config, {})
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any], serialized: dict[str, Any]) -> None:
    """Added tokens in the order of their ids, then special tokens not among them.

    Added is what is found in a text before it is split into words: "[MASK]" there is one token.
    """
    from tokenizers import AddedToken

    special = [value for role in _SPECIAL if (value := config.get(role, _SPECIAL[role]))]
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    special += extra.values() if isinstance(extra, dict) else extra
    named = {_content(value) for value in special}
    listed = config.get("added_tokens_decoder") or {
        entry["id"]: entry for entry in serialized.get("added_tokens") or []
    }
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    tokens: dict[str, AddedToken] = {}
    for value in [*(listed[key] for key in sorted(listed, key=int)), *special]:
        content, entry = _content(value), value if isinstance(value, dict) else {}
        is_special = content in named or bool(entry.get("special"))
        chosen = {flag: entry[flag] for flag in flags if flag in entry}
        tokens.setdefault(content, AddedToken(content, special=is_special, **chosen))
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for content, token in tokens.items() if content not in known])


def _content(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)
