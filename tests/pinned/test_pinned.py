"""No output changes a bit unless a commit means it to: the table of hashes beside this file."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from host_build import cuda_build, imported

from distilfast import _cpu
from distilfast.backends import cpu, triton
from tests.pinned import outputs

KNOWN = json.loads(outputs.TABLE.read_text(encoding="utf-8"))
IN_TABLE = {key.split()[0] for key in KNOWN["hashes"]}
ISAS = [name for name, there in cpu.isas().items() if there and name in IN_TABLE]
"""Not avx2_vnni, nor amx, whose bits tests/amx compares with those of amx_simulated."""


@pytest.fixture(scope="session", autouse=True)
def _same_machine() -> None:
    if outputs.where() != KNOWN["where"]:
        pytest.skip(f"the hashes are of {KNOWN['where']}, which decides some bits")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Small ones with every head."""
    return outputs.checkpoints(tmp_path_factory.mktemp("pinned"))


def check(found: dict[str, str], prefix: str) -> None:
    known = {key: bits for key, bits in KNOWN["hashes"].items() if key.startswith(prefix)}
    assert known.keys() == found.keys()
    assert [key for key, bits in found.items() if bits != known[key]] == []


@pytest.mark.parametrize("isa", ISAS)
def test_cpu(checkpoints: dict[tuple[str, str], Path], isa: str) -> None:
    check(dict(outputs.on_cpu(_cpu, isa, checkpoints)), f"{isa} ")


def test_simulated_amx(checkpoints: dict[tuple[str, str], Path], amx_simulated_module: ModuleType) -> None:
    check(dict(outputs.on_cpu(amx_simulated_module, "amx_simulated", checkpoints)), "amx_simulated ")


@pytest.mark.parametrize("way", outputs.CUDA_WAYS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_simulated_cuda(checkpoints: dict[tuple[str, str], Path], precision: str, way: str) -> None:
    """The half of the table that takes seconds; the command of outputs.py compares all of it."""
    module = imported("_cuda_host", cuda_build())
    check(dict(outputs.on_simulated_cuda(module, checkpoints, precision, way)), f"cuda {precision} {way} ")


def test_triton_interpreter(checkpoints: dict[tuple[str, str], Path]) -> None:
    if outputs.where_of_triton() != KNOWN["where_of_triton"]:
        pytest.skip(f"the hashes are of {KNOWN['where_of_triton']}, where numpy decides some bits")
    if reason := triton.unavailable():
        pytest.skip(f"backend triton: {reason}")
    if not triton.is_interpreted():
        pytest.skip("triton compiles for the GPU here, and does not interpret")
    check(dict(outputs.on_triton(checkpoints, ("fp16",))), "triton fp16 ")
