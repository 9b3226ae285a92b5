"""The settings of a server: which source wins, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distilfast.errors import ConfigError
from distilfast.serving.http.settings import ServedModel, load, parsed_model, with_tasks

MODELS = {"models": (ServedModel("a", "path/a"),)}


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 1\nhost = "h"\ncache_bytes = 5\ndeadline_ms = 7\n[[models]]\npath = "x/y"\nweight = 2\n')
    environment = {"DISTILFAST_SERVE_PORT": "2", "DISTILFAST_SERVE_HOST": "e", "DISTILFAST_THREADS": "1"}
    settings = load({"port": 3}, file, environment)
    assert (settings.port, settings.host, settings.cache_bytes, settings.deadline_ms) == (3, "e", 5, 7.0)
    assert settings.models == (ServedModel("y", "x/y", weight=2.0),)
    shown = settings.shown()
    assert shown["port"] == {"value": 3, "from": "flag"}
    assert shown["host"] == {"value": "e", "from": "DISTILFAST_SERVE_HOST"}
    assert shown["cache_bytes"] == {"value": 5, "from": str(file)}
    assert shown["log_level"] == {"value": "info", "from": "default"}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_a_switch_in_the_environment(text: str, value: bool) -> None:
    assert load(MODELS, None, {"DISTILFAST_SERVE_ALLOW_PICKLE": text}).allow_pickle is value


def test_models_are_named(tmp_path: Path) -> None:
    assert parsed_model("dir/of/a-model") == ServedModel("a-model", "dir/of/a-model")
    assert parsed_model("intent=dir/a=b", precision="int8") == ServedModel("intent", "dir/a=b", precision="int8")
    two = [parsed_model("a=x"), parsed_model("b=y")]
    assert [each.task for each in with_tasks(two, ["b=ner"])] == [None, "ner"]
    assert with_tasks(two[:1], ["ner"])[0].task == "ner"
    environment = {"DISTILFAST_SERVE_MODELS": "a=x,y/z"}
    assert load({}, None, environment).models == (ServedModel("a", "x"), ServedModel("z", "y/z"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, "There is no model to serve"),
        ({"models": (ServedModel("a", "x"), ServedModel("a", "y"))}, "Two models are called 'a'"),
        ({"models": (ServedModel("a/b", "x"),)}, "A model is called 'a/b'; a name has no slash."),
        (MODELS | {"port": 70000}, "port is 70000; a number from 0 to 65535 is needed."),
        (MODELS | {"most_texts": 0}, "most_texts is 0; at least 1 is needed."),
        (MODELS | {"deadline_ms": float("nan")}, "deadline_ms is nan; at least 0 is needed."),
        (MODELS | {"certificate": "x"}, "certificate and private_key belong together"),
        (MODELS | {"log_level": "loud"}, "log_level is 'loud'; there are debug, info, warning, error."),
        (MODELS | {"workers": 0}, "workers is 0; at least 1 is needed."),
        (MODELS | {"colour": "red"}, "flag sets 'colour'; there are models, host,"),
    ],
)
def test_what_no_server_can_have_is_refused(flags: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(flags, None, {})
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("port = ", "is not TOML:"),
        ('port = "eighty"', "port is 'eighty' in"),
        ("port = 8.5", "port is 8.5 in"),
        ("port = true", "port is True in"),
        ("allow_pickle = 1", "allow_pickle is 1 in"),
        ('allow_pickle = "perhaps"', "true or false is needed."),
        ("colour = 1", "sets 'colour'; there are"),
        ("models = 3", "is not an array of tables, [[models]]."),
        ("[[models]]\nname = 'a'", "has no path."),
        ("[[models]]\npath = 'a'\nsize = 3", "has 'size'; there are name, path,"),
        ("[[models]]\npath = 'a'\nweight = 'heavy'", "weight is 'heavy' in"),
        ("origins = {}", "sets 'origins'; there are"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(MODELS, file, {})
    assert sentence in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml cannot be read: No such file or directory\.$"):
        load(MODELS, tmp_path / "nowhere.toml", {})
    with pytest.raises(ConfigError, match="^DISTILFAST_SERVE_PORT sets|^port is 'x' in DISTILFAST_SERVE_PORT"):
        load(MODELS, None, {"DISTILFAST_SERVE_PORT": "x"})
