"""The files of deploy/ and SECURITY.md: the command lines that they name exist, and so do the tests."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import Client
from typer.testing import CliRunner, Result

from distilfast.cli import app
from distilfast.serving.http.settings import load

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def unit(name: str) -> configparser.ConfigParser:
    read = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read(DEPLOY / name)
    return read


def shown(command: list[str], environment: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [*command, "--show-config"], env=environment or {})


def test_the_service_starts_what_there_is() -> None:
    service = unit("distilfast.service")["Service"]
    program, *command = shlex.split(service["ExecStart"])
    assert Path(program).name == "distilfast"
    assert command[-1] == "/etc/distilfast/serve.toml"
    done = shown([*command[:-1], str(DEPLOY / "serve.toml")])
    assert done.exit_code == 0, done.output
    settings = load({}, DEPLOY / "serve.toml", {})
    assert json.loads(done.stdout)["models"]["value"][0]["path"] == settings.models[0].path
    assert int(service["TimeoutStopSec"]) > 2 * settings.drain_timeout
    assert not {"host", "port"} & set(settings.origins)  # a socket is passed
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert unit("distilfast.socket")["Socket"]["ListenStream"].startswith("127.0.0.1:")


def test_the_service_is_confined() -> None:
    service = unit("distilfast.service")["Service"]
    assert service["DynamicUser"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    for name in ("NoNewPrivileges", "MemoryDenyWriteExecute", "PrivateDevices", "ProtectKernelModules", "PrivateUsers"):
        assert service[name] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert f"DISTILFAST_CACHE=/var/cache/{service['CacheDirectory']}" in service["Environment"]

    stages = instructions()
    users = [words for name, words in stages if name == "USER"]
    assert users == ["10001:10001"]
    assert [name for name, _ in stages[stages.index(("USER", users[0])) :] if name == "RUN"] == []
    assert container_environment()["DISTILFAST_CACHE"] == "/cache"


def instructions() -> list[tuple[str, str]]:
    """Of the Containerfile: each with its words, continued lines joined."""
    text = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, " ".join(words.split())) for name, _, words in (line.partition(" ") for line in lines)]


def container_environment() -> dict[str, str]:
    words = " ".join(words for name, words in instructions() if name == "ENV")
    return dict(each.split("=", 1) for each in shlex.split(words))


def test_the_container_starts_what_there_is() -> None:
    found = dict(instructions())
    program, *command = json.loads(found["ENTRYPOINT"])
    assert program == "distilfast"
    example = re.search(r"distilfast (/models/\S+ .*)", (DEPLOY / "Containerfile").read_text())
    assert example is not None
    done = shown([*command, *shlex.split(example[1])], container_environment())
    assert done.exit_code == 0, done.output
    settings = json.loads(done.stdout)
    assert settings["host"] == {"value": "0.0.0.0", "from": "DISTILFAST_SERVE_HOST"}
    assert str(settings["port"]["value"]) == found["EXPOSE"]


def test_the_containers_health_check(client: Client) -> None:
    """Its code, at the port of a server that is ready and at one where there is none."""
    check = dict(instructions())["HEALTHCHECK"]
    program, option, code = json.loads(check[check.index("[") :])
    assert (program, option) == ("python", "-c")
    assert ":8000/" in code
    exec(code.replace("8000", str(client.port)), {})
    with pytest.raises(OSError, match="refused"):
        exec(code.replace("8000", "1"), {})


def test_each_promise_names_a_test() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    links = re.findall(r"`(tests/\S+\.py)::(\w+)`", text)
    assert len(links) == len([line for line in text.splitlines() if line.startswith("| ")]) - 1
    for path, name in links:
        tests = [node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)]
        assert name in tests, f"{path}::{name}"
