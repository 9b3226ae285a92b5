"""What `make release` refuses, what the forge's workflows run, and where the version stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import distilfast

yaml = pytest.importorskip("yaml", reason="PyYAML, which transformers brings, is not installed")
ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository whose version can be released."""
    (tmp_path / "release").mkdir()
    shutil.copy(ROOT / "release" / "releasable.py", tmp_path / "release")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("## [1.2.3] - 2026-01-31\n", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    somebody = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *somebody, *arguments], cwd=folder, check=True)


def commit(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "Change")


def asked(project: Path) -> tuple[str, str]:
    """What releasable.py writes to stdout and stderr."""
    script = project / "release" / "releasable.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stdout.strip(), done.stderr.strip()


def test_a_clean_tree_can_be_released(project: Path) -> None:
    assert asked(project) == ("1.2.3", "")


@pytest.mark.parametrize("name", ["CHANGELOG.md", "new.txt"])
def test_uncommitted_changes_are_refused(project: Path, name: str) -> None:
    with (project / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert asked(project) == ("", f"error: not released: the tree has uncommitted changes, in {name} first.")


def test_a_version_with_a_tag_is_refused(project: Path) -> None:
    git(project, "tag", "v1.2.3")
    assert asked(project) == ("", "error: not released: the tag v1.2.3 exists; raise the version in pyproject.toml.")


@pytest.mark.parametrize("heading", ["## [1.2.3] - Unreleased", "## [1.2.30] - 2026-01-31", "## [1x2.3] - 2026-01-31"])
def test_a_changelog_without_the_version_is_refused(project: Path, heading: str) -> None:
    (project / "CHANGELOG.md").write_text(f"{heading}\n", encoding="utf-8")
    commit(project)
    assert asked(project) == ("", "error: not released: CHANGELOG.md has no heading `## [1.2.3] - YYYY-MM-DD`.")


def test_the_version_is_written_once() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.*)"$', text, re.MULTILINE) == [distilfast.__version__]
    others = [ROOT / "CITATION.cff", ROOT / "setup.py", *(ROOT / "distilfast").glob("*.py")]
    assert [path.name for path in others if distilfast.__version__ in path.read_text(encoding="utf-8")] == []


def test_free_threaded_python_is_refused_in_a_sentence() -> None:
    """The build is asked as if this interpreter were one."""
    code = "import runpy, sysconfig; sysconfig.get_config_var = lambda name: 1; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: distilfast has not been tried on free-threaded Python")
    assert len(done.stderr.splitlines()) == 1


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def run_by(workflow: Path) -> list[str]:
    """The make targets that a workflow calls, with a matrix's own."""
    called = []
    for job in yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            for target in re.findall(r"\bmake (\$\{\{ matrix\.target \}\}|\S+)", step.get("run", "")):
                called += matrix["target"] if "matrix.target" in target else [target]
    return called


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_that_exist(workflow: Path) -> None:
    assert run_by(workflow), "it calls none"
    assert set(run_by(workflow)) <= targets()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_no_more(workflow: Path) -> None:
    """One job of one workflow publishes pages; what runs the sources has no right to write."""
    content = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert "permissions" not in job or not any("run" in step for step in job["steps"])
        assert job["timeout-minutes"] <= 300
        for step in job["steps"]:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/checkout@v6"))
            assert "checkout" not in step.get("uses", "") or step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.stem == "config":
        assert content == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "body"} <= content.keys()
    kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert all(each["type"] in kinds and each["attributes"] for each in content["body"])
    identities = [each["id"] for each in content["body"] if each["type"] != "markdown"]
    assert len(identities) == len(set(identities))
