"""The settings of a server: from flags, then the environment, then one TOML file, then the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import tomllib

from distilfast.errors import ConfigError

PREFIX = "DISTILFAST_SERVE_"
"""Of environment variables: ``DISTILFAST_SERVE_PORT`` is the setting ``port``."""

_LEAST = {
    "deadline_ms": 0,
    "most_waiting": 0.1,
    "cache_bytes": 0,
    "most_body_bytes": 1,
    "most_texts": 1,
    "most_connections": 1,
    "header_timeout": 0.1,
    "drain_timeout": 0,
    "workers": 1,
}


@dataclass(frozen=True)
class ServedModel:
    """A checkpoint under a name: a directory or a hub id, with the options of ``pipeline``."""

    name: str
    path: str
    task: str | None = None
    precision: str = "fp32"
    backend: str = "auto"
    threads: int | None = None
    revision: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Settings:
    """What a server is told. Sizes are in bytes and times in seconds, unless the name says otherwise.

    ``deadline_ms``: for requests that name none; 0 for none. ``most_waiting``: seconds of work that may wait without a
    deadline. ``keys``: a file with an API key a line, which is read again when it changes; without it every client is
    served. ``certificate`` and ``private_key``: PEM files, for TLS. ``most_texts``: of one request. ``header_timeout``:
    within which a client has to send its request. ``workers``: processes that accept at the same address; the limits
    and the cache are each one's own. ``allow_pickle``: whether a checkpoint without safetensors may be read.
    """

    models: tuple[ServedModel, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    deadline_ms: float = 1000.0
    most_waiting: float = 10.0
    cache_bytes: int = 0
    keys: str = ""
    certificate: str = ""
    private_key: str = ""
    most_body_bytes: int = 1 << 20
    most_texts: int = 128
    most_connections: int = 512
    header_timeout: float = 10.0
    drain_timeout: float = 30.0
    log_level: str = "info"
    workers: int = 1
    allow_pickle: bool = False
    origins: dict[str, str] = field(default_factory=dict, compare=False)
    """Where each setting that is not the default is from."""

    def shown(self) -> dict[str, Any]:
        """Every setting and where it is from, as ``--show-config`` prints them."""
        values = asdict(self)
        origins = values.pop("origins")
        return {name: {"value": value, "from": origins.get(name, "default")} for name, value in values.items()}


def load(
    flags: Mapping[str, Any],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    origin: str = "flag",
) -> Settings:
    """The settings; ``flags`` are those given, without the others. Raises ConfigError, which names the source.

    ``origin``: what the flags are called there.
    """
    settings = Settings()
    if file is not None:
        settings = _from_file(settings, file)
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(PREFIX):
            settings = _with(settings, name[len(PREFIX) :].lower(), text, name)
    for name, value in flags.items():
        settings = _with(settings, name, value, origin)
    return _checked(settings)


def parsed_model(text: str, **options: Any) -> ServedModel:
    """``NAME=PATH`` or ``PATH``, whose last part is the name then."""
    name, separator, path = text.partition("=")
    if not separator:
        name, path = Path(text).name or text, text
    if not name or not path:
        raise ConfigError(f"model {text!r} is neither a path nor NAME=PATH.")
    return ServedModel(name, path, **options)


def with_tasks(models: Sequence[ServedModel], tasks: Sequence[str]) -> tuple[ServedModel, ...]:
    """``models`` with ``tasks``, each as NAME=TASK, or TASK for the only model. Raises ConfigError."""
    chosen = {}
    for text in tasks:
        name, separator, task = text.rpartition("=")
        if not separator and len(models) == 1:
            name = models[0].name
        if name not in [model.name for model in models]:
            raise ConfigError(f"task {text!r} names no model; there are {', '.join(model.name for model in models)}.")
        chosen[name] = task
    return tuple(replace(model, task=chosen.get(model.name)) for model in models)


def _from_file(settings: Settings, file: Path) -> Settings:
    try:
        read = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}.") from None
    for name, value in read.items():
        if name == "models":
            if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
                raise ConfigError(f"models in {file} is not an array of tables, [[models]].")
            value = tuple(table_model(each, str(file)) for each in value)
        settings = _with(settings, name, value, str(file))
    return settings


def table_model(table: dict[str, Any], origin: str) -> ServedModel:
    """The model of a table with its fields; raises ConfigError, which names the ``origin``."""
    kinds = get_type_hints(ServedModel)
    for name in table:
        if name not in kinds:
            raise ConfigError(f"models in {origin} has {name!r}; there are {', '.join(kinds)}.")
    if "path" not in table:
        raise ConfigError(f"A model in {origin} has no path.")
    values = {name: converted(name, value, kinds[name], origin) for name, value in table.items()}
    return ServedModel(**({"name": Path(values["path"]).name} | values))


def _with(settings: Settings, name: str, value: Any, origin: str) -> Settings:
    kinds = get_type_hints(Settings)
    known = [each.name for each in fields(Settings) if each.name != "origins"]
    if name not in known:
        raise ConfigError(f"{origin} sets {name!r}; there are {', '.join(known)}.")
    if name == "models" and isinstance(value, str):
        value = tuple(parsed_model(each) for each in value.split(",") if each)
    elif name != "models":
        value = converted(name, value, kinds[name], origin)
    return replace(settings, **{name: value}, origins=settings.origins | {name: origin})


def converted(name: str, value: Any, kind: Any, origin: str) -> Any:
    """``value`` in the type of the setting; texts of the environment are numbers where numbers are needed."""
    wanted = getattr(kind, "__args__", (kind,))
    if wanted == (bool,) and isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
    try:
        if isinstance(value, str) and str not in wanted and bool not in wanted:
            value = (float if float in wanted else int)(value)
        if float in wanted and type(value) is int:
            value = float(value)
    except ValueError:
        pass
    if type(value) not in wanted:
        needed = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}[wanted[0]]
        raise ConfigError(f"{name} is {value!r} in {origin}; {needed} is needed.")
    return value


def _checked(settings: Settings) -> Settings:
    """Raises ConfigError for values that no server can have."""
    names = [model.name for model in settings.models]
    if not names:
        raise ConfigError("There is no model to serve; name one, as in: distilfast serve MODEL.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"Two models are called {name!r}; give one another name, as NAME=PATH.")
        if "/" in name or not name.isprintable():
            raise ConfigError(f"A model is called {name!r}; a name has no slash.")
    for name, value in _LEAST.items():
        if not getattr(settings, name) >= value:
            raise ConfigError(f"{name} is {getattr(settings, name)!r}; at least {value} is needed.")
    if not 0 <= settings.port < 65536:
        raise ConfigError(f"port is {settings.port}; a number from 0 to 65535 is needed.")
    if bool(settings.certificate) != bool(settings.private_key):
        raise ConfigError("certificate and private_key belong together; one of them is missing.")
    if settings.log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"log_level is {settings.log_level!r}; there are debug, info, warning, error.")
    return settings
