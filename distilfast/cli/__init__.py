"""The command ``distilfast``: its arguments, and what it shows."""

from __future__ import annotations

from distilfast.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="distilfast")
