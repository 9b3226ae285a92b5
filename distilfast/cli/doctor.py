"""`distilfast doctor`: what is fast on this machine, what is missing and how to get it, on one screen.

Nothing is changed, and only the last matter asks the network, which it says. Imported whenever the command line is, so
nothing heavy is imported above its functions.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from distilfast.cli.options import Json
from distilfast.cli.terminal import errors, print_json

if TYPE_CHECKING:
    from distilfast.cli.matters import Matter


def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask the hub whether it answers.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is fast here, what is missing and how to get it; exit status 1 where something is broken."""
    with errors(as_json):
        from distilfast import __version__
        from distilfast.cli import rich_tables

        matters = examine(offline=offline)
        broken = any(matter.state == "broken" for matter in matters.values())
        if as_json:
            shown = {name: asdict(matter) for name, matter in matters.items()}
            print_json({"version": __version__, "broken": broken, "matters": shown})
        else:
            rich_tables.console().print(rich_tables.matters(matters))
    raise typer.Exit(1 if broken else 0)


def examine(*, offline: bool = False) -> dict[str, Matter]:
    """Every matter, in the order in which they are shown."""
    from distilfast.cli import examine_installation as installation
    from distilfast.cli import examine_machine as machine

    return {
        "versions": installation.versions(),
        "processor": machine.processor(),
        "precision": machine.precision(),
        "threads": machine.threads(),
        "memory": machine.memory(),
        "backends": machine.usable_backends(),
        "settings": installation.settings(),
        "cache": installation.weights_cache(),
        "extras": installation.extras(),
        "timing": machine.timing(),
        "hub": installation.hub(offline=offline),
    }
