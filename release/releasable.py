"""Prints the version that can be released from this tree, or says in one sentence why none can.

Run before anything is built, by ``make release``, so it needs nothing but Python and git.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def git(*arguments: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def version() -> str:
    """Of pyproject.toml, by its one line: tomllib is not in Python 3.10."""
    found = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        sys.exit('error: pyproject.toml has no line `version = "…"`.')
    return found[1]


def refusal(version: str) -> str | None:
    """Why ``version`` cannot be released; None where it can."""
    if changes := git("status", "--porcelain"):
        return f"the tree has uncommitted changes, in {changes.split(maxsplit=1)[1].splitlines()[0]} first."
    if git("tag", "--list", f"v{version}"):
        return f"the tag v{version} exists; raise the version in pyproject.toml."
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        return f"CHANGELOG.md has no heading `## [{version}] - YYYY-MM-DD`."
    return None


if __name__ == "__main__":
    if reason := refusal(version()):
        sys.exit(f"error: not released: {reason}")
    print(version())
