"""`distilfast doctor` on the installation: Python, settings, the weights' cache, optional packages, the hub."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import fields
from typing import Any

from distilfast import __version__, cache
from distilfast.cli import hub as hub_client
from distilfast.cli import rich_tables
from distilfast.cli.matters import Matter, State, several, version

EXTRAS: dict[str, tuple[str, ...]] = {
    "serve": ("fastapi", "uvicorn", "httptools", "uvloop", "prometheus-client"),
    "ray": ("ray", "pyarrow"),
    "gpu": ("torch", "triton"),
}
"""Packages of each optional extra of pyproject.toml whose versions are shown."""

_USES = {"serve": "`distilfast serve`", "ray": "`distilfast map` and Ray Serve"}  # of gpu another matter speaks
_VARIABLES = ("DISTILFAST_BACKEND", "DISTILFAST_ISA", "DISTILFAST_THREADS", "DISTILFAST_CACHE")
"""Beside DISTILFAST_SERVE_…, the settings of the server."""
_HUB_VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY")
_OLDEST_GLIBC = (2, 17)  # of the wheels
_ASKED_FOR = "distilbert-base-cased"


def versions() -> Matter:
    """distilfast, Python, numpy and the C library."""
    library, library_version = platform.libc_ver()
    facts = {
        "distilfast": __version__,
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "libc": f"{library} {library_version}".strip() or platform.system(),
        "machine": platform.machine(),
    }
    numbers = tuple(int(part) for part in library_version.split(".") if part.isdecimal())
    advice = []
    if library == "glibc" and numbers < _OLDEST_GLIBC:
        advice.append("wheels need glibc 2.17: on this system distilfast is compiled from source")
    return Matter.of(
        "distilfast {distilfast}, Python {python}, numpy {numpy}, {libc}, {machine}".format_map(facts), advice, facts
    )


def settings() -> Matter:
    """What the environment asks of distilfast."""
    given = {name: value for name, value in sorted(os.environ.items()) if name.startswith("DISTILFAST_") and value}
    found = ", ".join(f"{name}={value}" for name, value in given.items()) or "no variable DISTILFAST_… is set"
    advice = [f"{name} is not read; there are {', '.join(_VARIABLES)}" for name in given if not _is_read(name)]
    return Matter.of(found, advice, {"environment": given})


def _is_read(variable: str) -> bool:
    if not variable.startswith("DISTILFAST_SERVE_"):
        return variable in _VARIABLES
    if sys.version_info < (3, 11):  # the server, whose settings they are, needs it
        return True
    from distilfast.serving.http.settings import PREFIX, Settings

    return variable.removeprefix(PREFIX) in {each.name.upper() for each in fields(Settings)} - {"ORIGINS"}


def weights_cache() -> Matter:
    """The folder of packed weights: whether it can be used, and what it holds."""
    state = cache.state()
    facts = {"directory": state.directory, "models": state.models, "bytes": state.size, "problem": state.problem}
    if state.problem is not None:
        found = f"{state.problem} ({state.directory or 'none'}): each start packs the weights again"
        return Matter("advice", found, ("DISTILFAST_CACHE names another folder",), facts)
    if state.directory is None:
        return Matter("advice", "off: each start packs the weights again", ("unset DISTILFAST_CACHE",), facts)
    held = f"{several(state.models, 'packed model')}, {state.size / 2**20:.0f} of {cache.MOST_BYTES >> 20:,} MiB"
    return Matter("good", f"{state.directory}: {held}", facts=facts)


def extras() -> Matter:
    """The optional packages, and what installs those that are missing."""
    found_by_extra = {extra: {name: version(name) for name in packages} for extra, packages in EXTRAS.items()}
    found, advice = [], []
    for extra, packages in found_by_extra.items():
        there = [f"{name} {number}" for name, number in packages.items() if number is not None]
        found.append(f"{extra}: {', '.join(there) or 'not installed'}")
        if len(there) < len(packages) and extra in _USES:
            advice.append(f"for {_USES[extra]}: pip install 'distilfast[{extra}]'")
    state: State = "absent" if advice else "good"
    return Matter(state, "; ".join(found), tuple(advice), {"extras": found_by_extra})


def hub(*, offline: bool) -> Matter:
    """Whether checkpoints can be fetched: one request, announced and limited in time, unless it is switched off."""
    endpoint, models = hub_client.endpoint(), hub_client.cached_models()
    kept = f"{several(len(models), 'model')} in {hub_client.cache_folder()}"
    variables = {name: os.environ[name] for name in _HUB_VARIABLES if os.environ.get(name)}
    facts: dict[str, Any] = {"endpoint": endpoint, "cached": models, "variables": sorted(variables)}
    if hub_client.is_switched_off():
        names = " or ".join(name for name in variables if name.endswith("OFFLINE"))
        return Matter("absent", f"switched off by {names}; {kept}", facts=facts | {"asked": False})
    if offline:
        return Matter("absent", f"{endpoint} was not asked; {kept}", facts=facts | {"asked": False})
    rich_tables.console(stderr=True).print(f"asking {endpoint}, {hub_client.SECONDS:g} s at most (not with --offline)")
    reason = hub_client.refusal(_ASKED_FOR)
    facts |= {"asked": True, "refusal": reason}
    if reason is None:
        return Matter("good", f"{endpoint} answers; {kept}", facts=facts)
    advice = (
        "a local folder works without it; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy",
        "`hf download ID` on another machine fills a folder that HF_HOME can name here",
    )
    return Matter("absent", f"{endpoint} {reason}; {kept}", advice, facts)
