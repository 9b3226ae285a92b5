"""Ids, offsets and decoded text against transformers' AutoTokenizer, on every text of the data sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distilfast.errors import ConfigError, InputError
from distilfast.tokenizer import Encoding, Tokenizer

AWKWARD = [
    "",
    " ",
    "Hello [MASK] world [SEP] and [CLS][PAD] [UNK]",
    "[mask] [MASKS] ##ing ## #",
    "Ärger, naïve façade; ÅNGSTRÖM ß ﬁ",
    "日本語とEnglish、混ぜて。",
    "tabs\tand\nlines\r\nand \u00a0 \u200b \u00ad \x00 \ufffd ends",
    "emoji 🙂👩‍👩‍👧 flags 🇩🇪",
    "e\u0301 combining, Ω ohm, Straße, İstanbul",
    "x" * 120,
    "isn't it? I'm 's n't . , ! ? ' quoted ' they've we're",
]


def reference(directory: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="session")
def directories(data_directory: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The real vocabularies, with all their files and without tokenizer.json."""
    root = tmp_path_factory.mktemp("tokenizers")
    made = {"cased": data_directory / "vocab-cased", "uncased": minilm}
    for name in ("cased", "uncased"):
        made[f"{name} from vocab.txt"] = copy = root / name
        copy.mkdir()
        for file in ("config.json", "vocab.txt", "tokenizer_config.json"):
            shutil.copyfile(made[name] / file, copy / file)
    return made


KINDS = ["cased", "cased from vocab.txt", "uncased", "uncased from vocab.txt"]


def assert_same(encodings: list[Encoding], expected: Any) -> None:
    """``expected``: a BatchEncoding with the special tokens mask and the offsets."""
    assert [e.ids for e in encodings] == expected["input_ids"]
    assert [e.special_mask for e in encodings] == expected["special_tokens_mask"]
    assert [e.offsets for e in encodings] == expected["offset_mapping"]
    for i, encoding in enumerate(encodings):
        assert encoding.type_ids == expected[i].type_ids
        assert encoding.sequence_ids == expected.sequence_ids(i)
        assert encoding.tokens == expected.tokens(i)


EVERYTHING = {"return_special_tokens_mask": True, "return_offsets_mapping": True}


@pytest.mark.parametrize("kind", ["cased", "uncased"])
def test_ids_of_every_text(
    directories: dict[str, Path], texts: list[str], kind: str, pytestconfig: pytest.Config
) -> None:
    """All 45,000 at night where case is kept, as in the models that this is for; otherwise a quarter of them."""
    texts = texts if kind == "cased" and pytestconfig.getoption("nightly") else texts[::4]
    encodings = Tokenizer.from_directory(directories[kind]).encode_batch(texts)
    expected = reference(directories[kind])(texts)["input_ids"]
    assert len(texts) > 10_000
    assert [encoding.ids for encoding in encodings] == expected


@pytest.mark.parametrize("kind", ["cased", "uncased"])
def test_ids_without_tokenizer_json(directories: dict[str, Path], texts: list[str], kind: str) -> None:
    with_it, without = (Tokenizer.from_directory(directories[name]) for name in (kind, f"{kind} from vocab.txt"))
    some = texts[::5]
    assert [e.ids for e in without.encode_batch(some)] == [e.ids for e in with_it.encode_batch(some)]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_of_pairs_and_awkward_texts(
    directories: dict[str, Path], question_pairs: list[tuple[str, str]], kind: str
) -> None:
    tokenizer, other = Tokenizer.from_directory(directories[kind]), reference(directories[kind])
    pairs = question_pairs[::5] + [(text, text) for text in AWKWARD]
    assert_same(tokenizer.encode_batch(pairs), other(*map(list, zip(*pairs, strict=True)), **EVERYTHING))
    assert_same(tokenizer.encode_batch(AWKWARD), other(AWKWARD, **EVERYTHING))
    assert_same(
        tokenizer.encode_batch(AWKWARD, add_special_tokens=False),
        other(AWKWARD, add_special_tokens=False, **EVERYTHING),
    )


@pytest.mark.parametrize("strategy", [True, "longest_first", "only_first", "only_second"])
def test_truncated_pairs(
    directories: dict[str, Path], question_pairs: list[tuple[str, str]], strategy: bool | str
) -> None:
    tokenizer, other = Tokenizer.from_directory(directories["cased"]), reference(directories["cased"])
    pairs = [pair if strategy != "only_first" else pair[::-1] for pair in question_pairs[::10]]
    columns = list(map(list, zip(*pairs, strict=True)))
    for length in (64, 65, None):
        encodings = tokenizer.encode_batch(pairs, truncation=strategy, max_length=length)
        assert_same(encodings, other(*columns, truncation=strategy, max_length=length, **EVERYTHING))


@pytest.mark.parametrize("length", [3, 4, 5, 20])
def test_longest_first_at_small_lengths(directories: dict[str, Path], length: int) -> None:
    tokenizer, other = Tokenizer.from_directory(directories["cased"]), reference(directories["cased"])
    pairs = [("one two three", "four five six seven"), ("one", "a b c d e f g h i j k l m n o p q r s t"), ("", "a b")]
    encodings = tokenizer.encode_batch(pairs, truncation=True, max_length=length)
    assert_same(
        encodings, other(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=length, **EVERYTHING)
    )


def test_truncation_does_not_persist_between_calls(directories: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_directory(directories["uncased"])  # its tokenizer.json truncates and pads to 128
    text = "word " * 600
    assert len(tokenizer.encode(text).ids) == 602
    assert len(tokenizer.encode(text, truncation=True, max_length=10).ids) == 10
    assert len(tokenizer.encode(text, truncation=True).ids) == 512
    assert len(tokenizer.encode(text).ids) == 602
    assert len(tokenizer.encode("word").ids) == 3


def test_one_text_is_a_batch_of_one(directories: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_directory(directories["cased"])
    assert tokenizer.encode("a b", "c") == tokenizer.encode_batch([("a b", "c"), "other"])[0]
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("kind", ["cased", "uncased"])  # the first has clean_up_tokenization_spaces set
@pytest.mark.parametrize("skip", [False, True])
def test_decoding(directories: dict[str, Path], texts: list[str], kind: str, skip: bool) -> None:
    tokenizer, other = Tokenizer.from_directory(directories[kind]), reference(directories[kind])
    for text in texts[::200] + AWKWARD:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip) == other.decode(ids, skip_special_tokens=skip)
        assert tokenizer.decode(ids[1:2], skip) == other.decode(ids[1:2], skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_and_special_tokens(directories: dict[str, Path], kind: str) -> None:
    tokenizer, other = Tokenizer.from_directory(directories[kind]), reference(directories[kind])
    assert tokenizer.vocab == other.get_vocab()
    for role in ("mask", "pad", "cls", "sep", "unk"):
        assert getattr(tokenizer, f"{role}_id") == getattr(other, f"{role}_token_id")
    assert (tokenizer.token_to_id("the"), tokenizer.token_to_id("never-a-token")) == (
        other.get_vocab()["the"],
        None,
    )
    assert (tokenizer.id_to_token(103), tokenizer.id_to_token(10**6)) == ("[MASK]", None)
    assert tokenizer.max_length == 512
    assert (tokenizer.num_special_tokens(), tokenizer.num_special_tokens(pair=True)) == (2, 3)


def added(content: str, special: bool, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return plain | flags | {"content": content, "special": special}


# Settings that change ids, with the cased vocabulary: (tokenizer_config.json, special_tokens_map.json)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no settings at all": ({}, {}),
    "lower case": ({"do_lower_case": True}, {}),
    "lower case, accents kept": ({"do_lower_case": True, "strip_accents": False}, {}),
    "accents stripped": ({"do_lower_case": False, "strip_accents": True}, {}),
    "Chinese left together": ({"do_lower_case": False, "tokenize_chinese_chars": False}, {}),
    "the map overrides": ({"cls_token": "[CLS]"}, {"cls_token": "[unused1]", "mask_token": added("[MASK]", True)}),
    "a mask that eats the space": ({"mask_token": added("[MASK]", True, lstrip=True) | {"__type": "AddedToken"}}, {}),
    "extra special tokens": ({}, {"additional_special_tokens": ["<ent>", "</ent>"]}),
    "added tokens": (
        {
            "do_lower_case": False,
            "added_tokens_decoder": {
                "103": added("[MASK]", True),
                "28997": added("second-new", False),
                "28996": added("first-new", False, single_word=True),
            },
        },
        {"cls_token": "[unused1]"},
    ),
    "a fast class name": ({"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}, {}),
    "the file alone counts": ({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": True}, {}),
}


@pytest.mark.parametrize("source", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(data_directory: Path, texts: list[str], tmp_path: Path, setting: str, source: str) -> None:
    config, special_map = SETTINGS[setting]
    if source == "vocab.txt" and setting == "the file alone counts":
        pytest.skip("this class needs tokenizer.json")
    for file in ("config.json", source):
        shutil.copyfile(data_directory / "vocab-cased" / file, tmp_path / file)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if special_map:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(special_map))
    tokenizer, other = Tokenizer.from_directory(tmp_path), reference(tmp_path)
    some = texts[::500] + AWKWARD + ["<ent>x</ent> [MASK] first-new second-new first-newer [unused1] FIRST-NEW"]
    assert_same(tokenizer.encode_batch(some), other(some, **EVERYTHING))
    ids = tokenizer.encode(some[-1]).ids
    for skip in (False, True):
        assert tokenizer.decode(ids, skip) == other.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize(("given", "limit"), [({}, None), ({"model_max_length": 10**30}, None), ({"max_len": 77}, 77)])
def test_max_length(data_directory: Path, tmp_path: Path, given: dict[str, int], limit: int | None) -> None:
    shutil.copyfile(data_directory / "vocab-cased" / "vocab.txt", tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(given))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.max_length == limit
    assert len(tokenizer.encode("a " * 600, truncation=True).ids) == (limit or 602)


def test_many_threads(directories: dict[str, Path], texts: list[str]) -> None:
    tokenizer = Tokenizer.from_directory(directories["cased"])
    some = [text for text in texts[::100] if text]
    lengths = [None, 5, 9, 17]

    def work(i: int) -> tuple[list[int], str]:
        length = lengths[i % len(lengths)]
        ids = tokenizer.encode(some[i], truncation=length is not None, max_length=length).ids
        return ids, tokenizer.decode(ids)

    alone = [work(i) for i in range(len(some))]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(len(some)))) == alone


# --- what cannot be used ---


@pytest.fixture
def tiny(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoint("distilbert", "fill-mask"), tmp_path / "tiny")


def test_a_synthetic_vocabulary_works(tiny: Path) -> None:
    tokenizer = Tokenizer.from_directory(tiny)
    text = "It's [MASK], 42%!"
    tokens = ["[CLS]", "I", "##t", "'", "s", "[MASK]", ",", "4", "##2", "%", "!", "[SEP]"]
    assert tokenizer.encode(text).tokens == tokens
    assert tokenizer.encode(text).ids == reference(tiny)(text)["input_ids"]


@pytest.mark.parametrize("bad", [5, None, b"bytes", ("a",), ("a", "b", "c"), ("a", 5), ["a", None]])
def test_inputs_that_are_not_text(tiny: Path, bad: Any) -> None:
    with pytest.raises(InputError, match=r"^Input 1 is neither a string nor a pair of strings\.$"):
        Tokenizer.from_directory(tiny).encode_batch(["fine", bad])


def test_half_a_surrogate_pair(tiny: Path) -> None:
    with pytest.raises(InputError, match="surrogate"):
        Tokenizer.from_directory(tiny).encode("a \ud800")


@pytest.mark.parametrize("length", [-1, 0, 2])
def test_a_length_too_short_for_the_special_tokens(tiny: Path, length: int) -> None:
    with pytest.raises(InputError, match=f"^max_length is {length}; the special tokens alone need 3"):
        Tokenizer.from_directory(tiny).encode("a", "b", truncation=True, max_length=length)


@pytest.mark.parametrize("strategy", ["only_second", "bogus"])
def test_impossible_truncation_is_an_error(tiny: Path, strategy: str) -> None:
    with pytest.raises(InputError, match="cannot be encoded"):
        Tokenizer.from_directory(tiny).encode("abcdef", truncation=strategy, max_length=4)


def test_no_files_at_all(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"has neither tokenizer.json nor vocab.txt; copy those of the model it was trained from\.$"
    ):
        Tokenizer.from_directory(tmp_path)


def test_a_class_that_needs_its_file(tiny: Path) -> None:
    (tiny / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ConfigError, match=r"no tokenizer.json, which its tokenizer_class 'PreTrainedTokenizer' needs"):
        Tokenizer.from_directory(tiny)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not readable JSON"),
        ("tokenizer.json", "[]", "tokenizer.json is not a JSON object"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}', "tokenizer.json holds no WordPiece model"),
        ("tokenizer.json", '{"model": {"vocab": ["a"]}}', "tokenizer.json holds no vocabulary"),
        ("tokenizer_config.json", "nonsense", "tokenizer_config.json is not readable JSON"),
        ("special_tokens_map.json", "5", "special_tokens_map.json is not a JSON object"),
        ("vocab.txt", "", "vocab.txt holds no vocabulary"),
        ("vocab.txt", b"\xff\xfe", "vocab.txt is not readable text"),
    ],
)
def test_a_bad_file_is_named(tiny: Path, file: str, content: str | bytes, words: str) -> None:
    (tiny / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        Tokenizer.from_directory(tiny)
    message = str(caught.value)
    assert words in message and message.endswith(".") and "\n" not in message


def test_a_bad_file_of_another_class(tiny: Path) -> None:
    (tiny / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (tiny / "tokenizer.json").write_text('{"model": {"type": "Unknown"}}')
    with pytest.raises(ConfigError, match="tokenizer.json is not a tokenizer"):
        Tokenizer.from_directory(tiny)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_lower_case": "false"}, "do_lower_case = 'false'; true or false is needed"),
        ({"model_max_length": "512"}, "model_max_length = '512'; a positive integer is needed"),
        ({"model_max_length": 0}, "model_max_length = 0"),
        ({"strip_accents": 1}, "strip_accents = 1; true, false or null is needed"),
        ({"mask_token": 5}, "mask_token = 5"),
        ({"mask_token": {"content": 5}}, "mask_token = {'content': 5}"),
        ({"added_tokens_decoder": {"x": "a"}}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"300": {"content": "a", "lstrip": "x"}}}, "cannot be used"),
        ({"extra_special_tokens": 7}, "extra_special_tokens = 7; a list of tokens is needed"),
    ],
)
def test_a_bad_setting_is_named(tiny_checkpoint: Callable[..., Path], tmp_path: Path, change, words) -> None:
    directory = shutil.copytree(tiny_checkpoint("distilbert", "fill-mask"), tmp_path / "tiny")
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as caught:
        Tokenizer.from_directory(directory)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_added_tokens_of_an_old_checkpoint(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """added_tokens.json beside vocab.txt, with neither tokenizer.json nor added_tokens_decoder."""
    directory = shutil.copytree(tiny_checkpoint("distilbert", "fill-mask"), tmp_path / "tiny")
    (directory / "added_tokens.json").write_text(json.dumps({"<new>": 256, "<newer>": 257}))
    ours, text = Tokenizer.from_directory(directory), "a<newer> b <new>"
    assert ours.encode(text).ids == reference(directory)(text)["input_ids"]
    assert {256, 257} <= set(ours.encode(text).ids)


def test_a_cased_tokenizer_under_a_silent_config_warns(directories: dict[str, Path], tmp_path: Path) -> None:
    directory = shutil.copytree(directories["cased"], tmp_path / "cased")
    (directory / "tokenizer_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="texts are lowercased"):
        ours = Tokenizer.from_directory(directory)
    assert ours.encode("Paris").ids == reference(directory)("Paris")["input_ids"]


@pytest.mark.parametrize("kind", ["cased", "uncased"])
@pytest.mark.parametrize(("length", "stride", "most"), [(40, 7, 8), (64, 0, 30), (384, 128, 64), (24, 9, 1)])
def test_windows_over_the_second_text_of_a_pair(
    directories: dict[str, Path],
    question_pairs: list[tuple[str, str]],
    kind: str,
    length: int,
    stride: int,
    most: int,
) -> None:
    """Also where the first text is cut: as the reference does with the tokens that are kept as its text."""
    ours, theirs = Tokenizer.from_directory(directories[kind]), reference(directories[kind])
    pairs = [*question_pairs[::70], ("word " * 100, question_pairs[0][1]), ("?", "é 🙂 " * 30), ("?", "short")]
    cut, whole = zip(*pairs, strict=True)
    found = ours.encode_pair_windows(cut, whole, max_length=length, max_first=most, stride=lambda _: stride)
    for (first, second), windows in zip(pairs, found, strict=True):
        offsets = ours.encode(first, add_special_tokens=False).offsets[:most]
        expected = theirs(
            first[: offsets[-1][1]],
            second,
            truncation="only_second",
            max_length=length,
            stride=stride,
            return_overflowing_tokens=True,
            **EVERYTHING,
        )
        assert_same(windows, expected)
        assert [window.words for window in windows] == [expected.word_ids(i) for i in range(len(windows))]
        assert sum(window.part(0) == range(1, 1 + len(offsets)) for window in windows) == len(windows)


def test_a_stride_is_chosen_by_the_room(directories: dict[str, Path]) -> None:
    ours = Tokenizer.from_directory(directories["cased"])
    rooms: list[int] = []

    def half(room: int) -> int:
        rooms.append(room)
        return room // 2

    ((first, second, *_),) = ours.encode_pair_windows(
        ["word word"], ["word " * 50], max_length=25, max_first=9, stride=half
    )
    assert rooms == [20] and first.part(1) == second.part(1) == range(4, 24)
    assert second.offsets[4] == (5 * 10, 5 * 10 + 4)
    with pytest.raises(InputError, match="stride is 20; a window holds 20 tokens"):
        ours.encode_pair_windows(["word word"], ["word"], max_length=25, max_first=9, stride=lambda room: room)


@pytest.mark.parametrize(
    ("first", "last", "whole", "want"),
    [
        (1, 1, False, "Who"),
        (5, 5, False, "rk"),
        (5, 5, True, "Merkel"),
        (4, 6, True, "Merkel"),
        (6, 8, True, "Merkel e\u0301"),
        (6, 7, False, "el e"),
        (9, 9, True, "🙂"),
    ],
)
def test_the_characters_of_tokens(directories: dict[str, Path], first: int, last: int, whole: bool, want: str) -> None:
    """Of [CLS] Who ##m [SEP] Me …: words of the first text end at the second."""
    ours = Tokenizer.from_directory(directories["cased"])
    text, pair = "Whom", "Merkel e\u0301 🙂"
    encoding = ours.encode(text, pair)
    tokens = ["[CLS]", "Who", "##m", "[SEP]", "Me", "##rk", "##el", "e", "##\u0301", "[UNK]", "[SEP]"]
    assert encoding.tokens == tokens
    start, end = encoding.characters(first, last, whole_words=whole)
    assert (text if last < 3 else pair)[start:end] == want
