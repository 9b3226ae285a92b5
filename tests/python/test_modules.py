"""Imports between modules: none of a higher layer, no cycle, and no basename with two meanings."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = (
    "types errors",
    "files arguments integers locks",
    "config",
    "arithmetic batch heads outputs base_models",
    "checkpoint tokenizer operations",
    "weights reference quantize cache",
    "adapters synthetic kernels",
    "backends",
    "engine machine",
    "pipelines",
    "serving",
    "integrations",
    "parity",
    "evaluation",
    "cli",
)
"""From the bottom to the top: the modules and packages of distilfast; each imports from lower layers only."""
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts.split()}
EXTENSIONS = {"distilfast._cpu": {"arithmetic", "backends"}, "distilfast._cuda": {"backends"}}
"""The compiled modules, below all layers, and who may import them."""
SHARED_BASENAMES = {"base", "glue", "reference", "transformers"}
"""Basenames used twice with one meaning: base classes; GLUE; the reference and its backend; transformers."""


@cache
def modules() -> dict[str, Path]:
    """Every module of the package and of the benchmarks; kernels/ is installed as distilfast.kernels."""
    found = {}
    for folder, package in (
        ("distilfast", "distilfast"),
        ("kernels", "distilfast.kernels"),
        ("benchmarks", "benchmarks"),
    ):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """The names that a module imports, at its top or inside a function, but not those for type checkers only."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{each.name}" for each in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")))


def resolved(name: str, known: dict[str, Path]) -> str | None:
    """The module that ``name`` is or belongs to; None for the root packages, which import on first use."""
    while name and name not in known and name not in EXTENSIONS:
        name = name.rpartition(".")[0]
    return None if name in ("", "distilfast", "benchmarks") else name


@cache
def graph() -> dict[str, set[str]]:
    known = modules()
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        if module not in ("distilfast", "benchmarks"):
            targets = {resolved(name, known) for name in imports(path)} - {None, module}
            edges[module] = {target for target in targets if target is not None}
    return edges


def top_level(module: str) -> str:
    return module.split(".")[1]


def test_every_module_has_a_layer() -> None:
    parts = {top_level(module) for module in modules() if module.startswith("distilfast.")}
    assert parts == set(LEVEL)


def is_downwards(module: str, target: str) -> bool:
    if target in EXTENSIONS:
        return top_level(module) in EXTENSIONS[target]
    if not target.startswith("distilfast."):
        return False
    ours, theirs = top_level(module), top_level(target)
    return ours == theirs or LEVEL[theirs] < LEVEL[ours]


def test_imports_point_downwards() -> None:
    package = {module: targets for module, targets in graph().items() if module.startswith("distilfast.")}
    wrong = [
        f"{module} imports {target}"
        for module, targets in package.items()
        for target in targets
        if not is_downwards(module, target)
    ]
    assert not wrong
    assert not is_downwards("distilfast.quantize", "distilfast.reference")  # the check itself works


def test_only_backend_and_parity_import_the_reference() -> None:
    """The product does not compute with the oracle that it is tested against."""
    users = {module for module, targets in graph().items() if "distilfast.reference" in targets}
    product = {module for module in users if module.startswith("distilfast.")}
    assert product == {"distilfast.backends.reference", "distilfast.parity.steps"}


def test_imports_have_no_cycle() -> None:
    """A package's __init__ counts as itself: a module may import a neighbour through it."""
    TopologicalSorter(graph()).prepare()


def test_every_package_is_installed() -> None:
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(
        module for module, path in modules().items() if path.name == "__init__.py" and module.startswith("distilfast")
    )


def test_a_basename_has_one_meaning() -> None:
    places = defaultdict(set)
    for module, path in modules().items():
        if path.name != "__init__.py":
            places[path.stem].add(module)
    twice = {name: sorted(where) for name, where in places.items() if len(where) > 1}
    assert set(twice) == SHARED_BASENAMES, twice
