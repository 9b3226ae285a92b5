"""`distilfast doctor`: each matter against what the test sets up, the screen, and the exit status."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import CliRunner

import distilfast
from distilfast import cache, machine
from distilfast.backends import cpu, measured
from distilfast.cli import app, examine_installation, examine_machine, hub, processors
from distilfast.cli import doctor as doctor_module
from distilfast.cli.matters import Matter

ROOT = Path(__file__).parents[2]
COMMAND = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable, no hub, no GPU, whatever machine the tests run on."""
    for name in ("ISA", "THREADS", "BACKEND"):
        monkeypatch.delenv(f"DISTILFAST_{name}", raising=False)
    monkeypatch.setattr(hub, "refusal", lambda name: pytest.fail("the hub was asked"))
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(measured, "has_driver", lambda: False)


def doctor(*args: str) -> Any:
    return CliRunner().invoke(COMMAND, ["doctor", "--offline", *args])


@pytest.mark.parametrize("columns", [80, 140])
def test_one_screen(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = doctor()
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= columns and len(lines) <= 40
    shown = [line.split()[1] for line in lines if line[0] in "✓!·✗"]
    assert shown == list(doctor_module.examine(offline=True))


def test_what_is_broken_is_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFAST_THREADS", "0")
    done = doctor("--json")
    shown = json.loads(done.stdout)
    assert (done.exit_code, shown["broken"], shown["version"]) == (1, True, distilfast.__version__)
    assert [name for name, matter in shown["matters"].items() if matter["state"] == "broken"] == ["threads"]


# --- the processor ---


def test_the_isa_is_the_engines(tiny_checkpoint: Callable[..., Path]) -> None:
    engine = distilfast.Engine.from_pretrained(tiny_checkpoint("distilbert", "fill-mask"))
    found = examine_machine.processor().facts
    assert (found["isa"], found["runs"][0]) == (engine.info()["isa"], engine.info()["isa"])
    assert examine_machine.threads().facts["threads"] == engine.info()["threads"]


@pytest.mark.parametrize(
    ("variable", "value", "look"),
    [
        ("DISTILFAST_ISA", "avx3", examine_machine.processor),
        ("DISTILFAST_THREADS", "many", examine_machine.threads),
        ("DISTILFAST_BACKEND", "gpu", examine_machine.usable_backends),
    ],
)
def test_what_was_asked_for_and_is_not_there_is_broken(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, look: Callable[[], Matter]
) -> None:
    monkeypatch.setenv(variable, value)
    found = look()
    assert found.state == "broken" and value in found.found
    assert found.advice[0].startswith(f"unset {variable}")


def test_without_compiled_kernels_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "unavailable", lambda: "There is no compiled _cpu.")
    found = examine_machine.processor()
    assert found.state == "broken" and "install" in found.advice[0]
    assert examine_machine.usable_backends().state == "broken" and examine_machine.precision().state == "absent"


def test_a_missing_module_is_told_from_one_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distilfast._cpu", None)
    monkeypatch.delattr(distilfast, "_cpu")
    assert str(cpu.unavailable()).endswith("has it, and `pip install .` in a clone compiles it.")
    monkeypatch.setattr(cpu, "find_spec", lambda name: "a spec")
    assert str(cpu.unavailable()).endswith("; install distilfast again for this system.")


def test_a_slower_isa_is_advised_against(monkeypatch: pytest.MonkeyPatch) -> None:
    fastest = next(name for name, there in cpu.isas().items() if there)
    if fastest == "ref":
        pytest.skip("this processor has no other ISA than ref")
    monkeypatch.setenv("DISTILFAST_ISA", "ref")
    assert fastest in examine_machine.processor().advice[0]


@pytest.mark.parametrize(
    ("vendor", "family", "model", "stepping", "isa"),
    [
        ("GenuineIntel", 6, 85, 4, "avx512"),  # Xeon Gold 6130, Skylake
        ("GenuineIntel", 6, 85, 7, "avx512_vnni"),  # Xeon Gold 6230, Cascade Lake
        ("GenuineIntel", 6, 85, 11, "avx512_bf16"),  # Xeon Gold 6328H, Cooper Lake
        ("GenuineIntel", 6, 106, 6, "avx512_vnni"),  # Xeon Gold 6330, Ice Lake
        ("GenuineIntel", 6, 143, 8, "amx"),  # Xeon Gold 6430, Sapphire Rapids
        ("GenuineIntel", 6, 158, 10, None),  # Core i7-8700
        ("AuthenticAMD", 25, 17, 1, "avx512_bf16"),  # EPYC 9354, Genoa
        ("AuthenticAMD", 25, 1, 1, None),  # EPYC 7763, Milan
        ("AuthenticAMD", 26, 2, 1, "avx512_bf16"),  # EPYC 9355, Turin
    ],
)
def test_a_processor_by_its_model(
    tmp_path: Path, vendor: str, family: int, model: int, stepping: int, isa: str | None
) -> None:
    first = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: A\n"
    (tmp_path / "cpuinfo").write_text(f"{first}stepping\t: {stepping}\n\nprocessor\t: 1\nmodel\t: 0\n")
    assert processors.known_isa(processors.facts(tmp_path / "cpuinfo")) == isa


@pytest.mark.parametrize(
    ("amx", "advice"),
    [
        ("is not supported by this processor", "hidden by the virtual machine"),
        ("is not supported by this operating system, which does not grant the tiles", "Linux 5.16"),
        (None, None),
    ],
)
def test_what_the_processor_could_run(monkeypatch: pytest.MonkeyPatch, amx: str | None, advice: str | None) -> None:
    sapphire_rapids = {"vendor_id": "GenuineIntel", "cpu family": "6", "model": "143", "stepping": "8"}
    monkeypatch.setattr(processors, "facts", lambda: sapphire_rapids)
    monkeypatch.setattr(cpu, "missing", lambda: {"amx": amx, "avx2": None, "ref": None})
    given = examine_machine.processor().advice
    assert len(given) == (advice is not None)
    assert advice is None or advice in given[0]


def test_every_isa_has_its_precisions() -> None:
    assert set(examine_machine._PRECISIONS) == set(cpu.missing()) - {"amx_simulated"}


# --- threads and memory ---


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_bounds_the_threads() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        facts = examine_machine.threads().facts
    finally:
        os.sched_setaffinity(0, before)
    assert (facts["affinity"], facts["allowed"], facts["threads"], facts["cores"]) == (1, 1, 1, os.cpu_count())


@pytest.mark.parametrize(("siblings", "advised"), [("0-1", True), (None, False)])
def test_smt_siblings_are_counted_once(monkeypatch: pytest.MonkeyPatch, siblings: str | None, advised: bool) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(cpu, "available_cores", lambda: 2)
    monkeypatch.setattr(examine_machine, "text", lambda path: siblings)
    found = examine_machine.threads()
    assert found.facts["physical"] == (1 if siblings else None)
    assert any("SMT" in advice for advice in found.advice) is advised


def test_a_quota_and_too_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpu, "available_cores", lambda: 3)
    monkeypatch.setenv("DISTILFAST_THREADS", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = examine_machine.threads()
    assert "3 by the CPU quota" in found.found and "OMP_NUM_THREADS=1 is not read" in found.found
    assert found.facts["threads"] == 4 and "more than the 3" in found.advice[0]


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / "meminfo"
    facts.write_text("MemTotal: 8000000 kB\nMemFree:  1 kB\nMemAvailable:     300000 kB\nHugePages_Total: 0\n")
    sizes = machine.memory(facts)
    assert sizes == (8_000_000 * 1024, 300_000 * 1024) and machine.memory(tmp_path / "none") == (None, None)
    monkeypatch.setattr(machine, "memory", lambda: sizes)
    monkeypatch.setattr(examine_machine, "text", lambda path: "always madvise [never]")
    found = examine_machine.memory()
    assert found.facts["huge_pages"] == "never" and len(found.advice) == 2
    monkeypatch.setattr(machine, "memory", lambda: (sizes[0], sizes[0]))
    monkeypatch.setattr(machine, "memory_limit", lambda: 2**28)
    assert "may not fit" in examine_machine.memory().advice[1]


@pytest.mark.parametrize(
    ("devices", "driver", "advice"),
    [(["/dev/nvidia0"], False, "libcuda.so.1"), ([], True, "--gpus all"), (["/dev/nvidia0"], True, "-DCUDA=ON")],
)
def test_what_a_gpu_lacks(monkeypatch: pytest.MonkeyPatch, devices: list[str], driver: bool, advice: str) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: devices)
    monkeypatch.setattr(measured, "has_driver", lambda: driver)
    monkeypatch.setattr(examine_machine, "find_spec", lambda name: None)
    monkeypatch.setattr("distilfast.backends.triton.unavailable", lambda: "torch sees no GPU.")
    found = examine_machine.usable_backends()
    assert found.state == "advice" and advice in found.advice[0]
    assert found.facts["triton"] == "torch sees no GPU." and found.facts["auto"] == ("cpu",)


def test_what_disturbs_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "current_clocksource": "hpet",
        "scaling_governor": "powersave",
        "stat": "cpu  9 0 11 50 0 0 0 30 5 5\ncpu0",
    }
    monkeypatch.setattr(examine_machine, "text", lambda path: answers[Path(path).name])
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 1.0, 1.0))
    found = examine_machine.timing()
    assert found.facts == {"load": 3.0, "steal": 0.3, "clock_source": "hpet", "governor": "powersave"}
    assert len(found.advice) == 4


# --- the installation ---


def test_a_variable_that_nothing_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFAST_THREAD", "2")
    monkeypatch.setenv("DISTILFAST_SERVE_PORT", "8080")
    found = examine_installation.settings()
    assert len(found.advice) == 1 and found.advice[0].startswith("DISTILFAST_THREAD is not read")
    monkeypatch.setenv("DISTILFAST_SERVE_PRT", "8080")
    found = examine_installation.settings()
    assert [advice.split()[0] for advice in found.advice] == (
        ["DISTILFAST_SERVE_PRT", "DISTILFAST_THREAD"] if sys.version_info >= (3, 11) else ["DISTILFAST_THREAD"]
    )


def test_the_cache_is_described_and_not_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Callable[..., Path]
) -> None:
    folder = tmp_path / "packed"
    monkeypatch.setenv("DISTILFAST_CACHE", str(folder))
    assert examine_installation.weights_cache().state == "good" and not folder.exists()
    checkpoint = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("distilbert", "fill-mask"), checkpoint)
    origin = distilfast.Engine.from_pretrained(checkpoint).info()["packed_weights"]
    (file,) = folder.glob("*.packed")
    assert str(file) in origin
    assert cache.state() == cache.State(folder, 1, file.stat().st_size)
    folder.chmod(0o777)
    assert "other users" in examine_installation.weights_cache().found
    monkeypatch.setenv("DISTILFAST_CACHE", str(checkpoint / "config.json" / "below"))
    assert "cannot be written" in examine_installation.weights_cache().found
    monkeypatch.setenv("DISTILFAST_CACHE", "off")
    assert examine_installation.weights_cache().advice == ("unset DISTILFAST_CACHE",)


def test_the_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra, packages in examine_installation.EXTRAS.items():
        assert all(any(line.startswith(package) for line in declared[extra]) for package in packages), extra


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_installation, "version", lambda name: None if name == "uvicorn" else "1.0")
    found = examine_installation.extras()
    assert found.advice == ("for `distilfast serve`: pip install 'distilfast[serve]'",) and found.state == "absent"


def test_an_old_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_installation.platform, "libc_ver", lambda: ("glibc", "2.16"))
    assert "compiled from source" in examine_installation.versions().advice[0]


@pytest.mark.parametrize(
    ("given", "wanted"), [({}, "(c++ or g++ or clang++)"), ({"CXX": "no-such-compiler -m64"}, "(no-")]
)
def test_a_build_without_a_compiler_names_what_to_install(tmp_path: Path, given: dict[str, str], wanted: str) -> None:
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    clean = {name: value for name, value in os.environ.items() if name != "CXX"}
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "build_ext",
        "--build-temp",
        str(tmp_path),
        "--build-lib",
        str(tmp_path),
    ]
    environment = {**clean, "PATH": str(tmp_path), **given}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and f"no C++ compiler {wanted}" in done.stderr and "a wheel." in done.stderr


# --- the hub ---


def test_the_hub_is_asked_once_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "refusal", asked.append)  # returns None, as where the hub answers
    monkeypatch.setattr(hub, "is_switched_off", lambda: False)
    done = CliRunner().invoke(COMMAND, ["doctor", "--json"])
    found = json.loads(done.stdout)["matters"]["hub"]
    assert len(asked) == 1 and found["state"] == "good" and found["facts"]["asked"]
    assert f"asking {hub.endpoint()}" in done.stderr


def test_the_hub_is_not_asked_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_switched_off", lambda: True)
    found = examine_installation.hub(offline=False)
    assert found.state == "absent" and not found.facts["asked"]


def test_a_hub_that_never_answers_is_waited_for_no_longer_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    never, waited = threading.Event(), list[float | None]()

    class Asking(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            waited.append(timeout)
            super().join(timeout)

    monkeypatch.setattr(hub.threading, "Thread", Asking)
    monkeypatch.setattr(hub, "is_switched_off", lambda: False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: never.wait(60))
    assert hub.refusal("any/model", seconds=0.05) == "did not answer within 0.05 s"
    assert waited == [0.05]
    never.set()


# --- the shell ---


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("distilfast doc", "doctor"),
        ("distilfast run te", "text-classification"),
        ("distilfast run ne", "ner"),
        ("distilfast run fill-mask m --precision b", "bf16x3 bf16"),
        ("distilfast parity m --backend c", "cpu cuda"),
        ("distilfast info m --task q", "question-answering"),
        ("distilfast evaluate m", "mrpc mnli"),
        ("distilfast map z", "zero-shot-classification"),
        ("distilfast run fill-mask team/", "team/model"),
        ("distilfast run fill-mask ./", ""),
        ("distilfast run mask", ""),
    ],
)
def test_what_a_shell_completes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, offered: str) -> None:
    """By bash's protocol; what is offered for nothing known is left to the shell, which offers files."""
    monkeypatch.setattr(hub, "cache_folder", lambda: str(tmp_path))
    (tmp_path / "models--team--model").mkdir()
    protocol = {
        "_DISTILFAST_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    done = CliRunner().invoke(COMMAND, [], prog_name="distilfast", env=protocol)
    assert done.stdout.split() == offered.split()
