"""Ray Serve around a Batcher: the routes of ``distilfast serve``, on one machine or a cluster.

    serve run distilfast.integrations.ray:app model=intent=path/to/model precision=int8 deadline_ms=25

or in a config file of Serve, for ``serve run FILE`` on a laptop and ``serve deploy FILE`` on a cluster:

    http_options: {request_timeout_s: 30}
    applications:
      - name: intent
        import_path: distilfast.integrations.ray:app
        args: {model: intent=path/to/model, precision: int8, deadline_ms: 25, threads: 4, max_replicas: 8}

A replica is a process with its models, a Batcher in front of them and cores that no other replica of its machine has;
packed weights are mapped from one file, so replicas of a machine share them. Ray starts and ends replicas by how many
requests are in flight, and sends a request to one of them. Whether it can be answered in time is the Batcher's decision
alone: Ray holds back none below ``max_ongoing_requests``, and beyond it a few until one is done.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

if sys.version_info < (3, 11):
    raise ImportError("distilfast.integrations.ray needs Python 3.11 or newer, as the server does.")

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from distilfast.backends.cpu import available_cores, urgent
from distilfast.engine import Engine
from distilfast.errors import BackendError, ClosedError, ConfigError
from distilfast.integrations import cores
from distilfast.serving.curves import one_token
from distilfast.serving.http.app import create_app
from distilfast.serving.http.settings import ServedModel, Settings, converted, load, parsed_model, table_model

HEALTH_S = 10.0
"""Seconds within which a forward of one token has to end."""

MOST_THREADS = 8
"""Of a replica, unless more are asked for: see csrc/cpu/THREADS.md."""

_OF_SETTINGS = ("deadline_ms", "most_waiting", "cache_bytes", "keys", "most_body_bytes", "most_texts", "drain_timeout")
_OF_MODEL = ("task", "precision", "backend", "revision", "weight")
_LIVE = ("deadline_ms", "most_texts")


@dataclass(frozen=True)
class Scale:
    """How replicas are made and how many.

    ``threads``: of each, and the CPUs that Ray reserves for it; None for those of the machine, at most 8. ``gpus``: of
    each. ``pin``: bind each to cores of its own. There are ``min_replicas`` to ``max_replicas``, as many as give each
    ``target_ongoing_requests`` in flight: about what one batch and the next one hold. ``max_ongoing_requests``: in
    flight in one replica; beyond it up to ``max_queued_requests`` wait outside, and others are answered 503.
    """

    threads: int | None = None
    gpus: float = 0.0
    pin: bool = hasattr(os, "sched_setaffinity")
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 16.0
    max_ongoing_requests: int = 512
    max_queued_requests: int = 64

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        least = {"threads": 1, "gpus": 0, "min_replicas": 1, "max_replicas": self.min_replicas}
        for name, value in (least | {"max_ongoing_requests": 1, "max_queued_requests": 0}).items():
            given = getattr(self, name)
            if given is not None and given < value:
                raise ConfigError(f"{name} is {given!r}; at least {value} is needed.")
        if not self.target_ongoing_requests > 0:
            raise ConfigError(f"target_ongoing_requests is {self.target_ongoing_requests!r}; more than 0 is needed.")


def app(args: dict[str, Any]) -> Application:
    """The application of ``args``, for the command line and the config files of Ray Serve.

    ``model``: PATH or NAME=PATH; or ``models``: a list of these, or of tables with the fields of ``ServedModel``.
    ``task``, ``precision``, ``backend``, ``revision``: of all models that name none. ``deadline_ms``, ``most_waiting``,
    ``cache_bytes``, ``keys``, ``most_body_bytes``, ``most_texts``, ``drain_timeout``: as of ``distilfast serve``. The
    fields of ``Scale``. Raises ConfigError for any other, since Ray Serve has its own ``http_options``. The
    environment's ``DISTILFAST_SERVE_…`` are not read: each machine has its own.
    """
    scale, rest = _scale(args)
    threads = scale.threads or min(MOST_THREADS, available_cores())
    settings = _settings(rest, threads)
    deployment = serve.deployment(
        serve.ingress(_application)(Replica),
        name="Replica",
        ray_actor_options={"num_cpus": threads, "num_gpus": scale.gpus},
        max_ongoing_requests=scale.max_ongoing_requests,
        max_queued_requests=scale.max_queued_requests,
        autoscaling_config={
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_ongoing_requests,
            "upscale_delay_s": 5,  # a replica is ready within seconds
        },
        health_check_timeout_s=2 * HEALTH_S,
        graceful_shutdown_timeout_s=settings.drain_timeout,
    )
    return deployment.bind(settings, threads if scale.pin else None)


class Replica:
    """One process of the deployment: over HTTP, or by a handle as ``handle.answer.remote("What a film.")``.

    ``reconfigure`` takes ``deadline_ms`` and ``most_texts`` as the deployment's ``user_config``, without a restart.
    """

    def __init__(self, settings: Settings, cores_of_its_own: int | None) -> None:
        """Binds itself to cores, and loads the models."""
        if cores_of_its_own is not None:
            cores.take(cores_of_its_own)
        self._settings = settings
        _served.append(create_app(settings))
        self._service = _served[-1].state.service
        self._service.load_models()

    async def answer(self, given: Any, **options: Any) -> Any:
        """As ``answer`` of ``Batcher``: ``model``, ``deadline`` in seconds, ``priority``, options of the pipeline."""
        return await self._service.ready.answer(given, **options)

    async def vector(self, text: str, **options: Any) -> Any:
        """As ``vector`` of ``Batcher``."""
        return await self._service.ready.vector(text, **options)

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Ray calls it at the start and when the config has changed; raises ConfigError for what needs a restart."""
        kinds = get_type_hints(Settings)
        for name in user_config:
            if name not in _LIVE:
                raise ConfigError(f"user_config sets {name!r}; there are {', '.join(_LIVE)}, the rest are args.")
        values = {name: converted(name, value, kinds[name], "user_config") for name, value in user_config.items()}
        settings = load({"models": self._settings.models, **_shown(self._settings), **values}, environment={})
        self._service.settings = settings
        self._service.ready.deadline = settings.deadline_ms / 1e3 or None

    async def check_health(self) -> None:
        """Raises ClosedError or BackendError where this process answers nothing any more; Ray then replaces it."""
        batcher = self._service.ready
        if not batcher.is_alive:
            raise ClosedError("The batcher is closed, or one of its threads has died.")
        engines = [pipe.engine for pipe in batcher.pipelines.values()]
        try:
            await asyncio.wait_for(asyncio.to_thread(_run_one_token, engines), HEALTH_S)
        except asyncio.TimeoutError:
            raise BackendError(f"A forward of one token has not ended within {HEALTH_S:.0f} s.") from None


def _run_one_token(engines: list[Engine]) -> None:
    """Before all else that runs, or a replica with much to do would look as if it stood still."""
    for engine in engines:
        with urgent() if engine.info()["backend"] == "cpu" else nullcontext():
            one_token(engine)


_served: list[FastAPI] = []
"""The application of this process's replica, which Ray asks ``_application`` for when the replica has been made."""


def _application() -> FastAPI:
    return _served[-1]


def _shown(settings: Settings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in _OF_SETTINGS}


def _scale(args: Mapping[str, Any]) -> tuple[Scale, dict[str, Any]]:
    """The fields of ``Scale`` among ``args``, and the others."""
    kinds = get_type_hints(Scale)
    names = [each.name for each in fields(Scale)]
    given = {name: args[name] for name in names if name in args}
    if isinstance(pin := given.get("pin"), str):
        given["pin"] = {"true": True, "false": False}.get(pin.lower(), pin)
    values = {name: converted(name, value, kinds[name], "args") for name, value in given.items()}
    if "min_replicas" in values and "max_replicas" not in values:
        values["max_replicas"] = values["min_replicas"]
    return Scale(**values), {name: value for name, value in args.items() if name not in names}


def _settings(args: Mapping[str, Any], threads: int) -> Settings:
    known = ("model", "models", *_OF_MODEL, *_OF_SETTINGS, *(each.name for each in fields(Scale)))
    for name in args:
        if name not in known:
            raise ConfigError(f"args has {name!r}; there are {', '.join(known)}.")
    if ("model" in args) == ("models" in args):
        raise ConfigError("args needs model or models, and one of them: as in model=PATH.")
    given = args["models"] if "models" in args else [args["model"]]
    if not isinstance(given, (list, tuple)):
        raise ConfigError(f"models is {given!r}; a list is needed.")
    shared = {name: args[name] for name in _OF_MODEL if name in args}
    models = tuple(replace(_model(each, shared), threads=threads) for each in given)
    return load(
        {"models": models, **{name: args[name] for name in _OF_SETTINGS if name in args}}, environment={}, origin="args"
    )


def _model(given: Any, shared: Mapping[str, Any]) -> ServedModel:
    """PATH, NAME=PATH or a table, whose own fields go before the ``shared`` ones; raises ConfigError."""
    if isinstance(given, str):
        named = parsed_model(given)
        given = {"name": named.name, "path": named.path}
    if not isinstance(given, dict):
        raise ConfigError(f"A model is {given!r}; PATH, NAME=PATH or a table is needed.")
    return table_model({**shared, **given}, "args")
