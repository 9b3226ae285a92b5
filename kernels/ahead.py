"""Every kernel that the encoder would launch, compiled ahead of time for GPUs that need not be present.

``python -m distilfast.kernels.ahead`` prints what each uses: registers, shared memory, bytes spilled to the stack, and
which matrix instructions. The launches are recorded from a forward of a full-size DistilBERT on torch's
``meta`` device, so what is compiled is what would run, for every bucket in which the tiles differ.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from rich.console import Console
from rich.table import Column, Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from distilfast.base_models import base_config
from distilfast.config import ModelConfig
from distilfast.heads import head_for
from distilfast.kernels.device import Gpu
from distilfast.kernels.encoder import Arena, Encoder, Inputs, Shape, stored_as
from distilfast.kernels.launch import Launch, compile_options, recording
from distilfast.weights import layout

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MULTIPROCESSORS = {"sm_90": 132}  # of the targets with tensor descriptors and dependent launches
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BUCKETS = (16, 32, 64, 256, 1024, 4096, 32_768)
TASK = "text-classification"
# In order of preference: what a large tile should compile to on Hopper, on Ampere, on CDNA.
MATRIX_INSTRUCTIONS = {"wgmma": "wgmma.mma_async", "mma": "mma.sync", "mfma": "v_mfma"}

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64"}
_LAUNCH_OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Compiled:
    """One kernel on one target. ``tokens``: the smallest bucket that uses it; bytes are of one program."""

    kernel: str
    target: str
    precision: str
    tokens: int
    tile: str  # block_m × block_n × block_k, warps, stages
    registers: int
    shared_bytes: int
    spilled_bytes: int
    matrix: str  # wgmma, mma, mfma or none
    descriptor_loads: int  # of whole blocks (TMA), in the PTX
    before_wait: str | None  # "loads, stores" before the wait for the kernel before; None where there is no wait
    full_divisions: int  # div.full.f32 in the PTX, each off by up to 2 ulp


def compile_all(
    config: ModelConfig, targets: Iterable[str] = TARGETS, precisions: Iterable[str] = DTYPES
) -> Iterator[Compiled]:
    """Compile what a classifier of this architecture launches, each kernel once."""
    for target in targets:
        seen = set()
        for precision in precisions:
            for tokens in BUCKETS:
                for launch in launches(config, target, DTYPES[precision], tokens):
                    source, options = _source(launch)
                    if (key := (source.hash(), *options.values())) not in seen:
                        seen.add(key)
                        yield _compiled(launch, source, options, target, precision, tokens)


def worst(found: Iterable[Compiled]) -> list[Compiled]:
    """For each kernel, target and type the one that spills most and, among those, uses the most registers."""
    kept: dict[tuple[str, str, str], Compiled] = {}
    for compiled in found:
        key = compiled.kernel, compiled.target, compiled.precision
        cost = compiled.spilled_bytes, compiled.registers
        if key not in kept or cost > (kept[key].spilled_bytes, kept[key].registers):
            kept[key] = compiled
    return list(kept.values())


def launches(config: ModelConfig, gpu: str, dtype: torch.dtype, tokens: int) -> list[Launch]:
    """What a forward of ``tokens`` launches: all rows of the last layer, then again with only the rows of the head."""
    head = head_for(config, TASK)
    shapes = {need.name: (need.shape[0] * len(need.pieces), *need.shape[1:]) for need in layout(config, TASK)}
    weights = {name: torch.empty(shape, dtype=stored_as(name, dtype), device="meta") for name, shape in shapes.items()}
    multiprocessors = MULTIPROCESSORS.get(gpu, 0)
    described = Gpu(gpu, 0 if dtype == torch.float32 else multiprocessors, dependent_launches=multiprocessors > 0)
    encoder = Encoder(weights, config, head, dtype, described)
    with recording() as found:
        for hidden in (True, False):
            shape = Shape(tokens, rows=16, all_rows=False, hidden=hidden)
            arena = Arena(torch.empty(1 << 46, dtype=torch.uint8, device="meta"))
            staged = torch.empty(sum(Inputs.staged_sizes(shape)), dtype=torch.int32, device="meta")
            encoder.run(shape, encoder.buffers(shape, arena), staged)
    return found


def _source(launch: Launch) -> tuple[ASTSource, dict[str, int]]:
    """The compiler's input for a launch, specialised as triton would specialise it when launching."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes = {}
    for i, (name, value) in enumerate(zip(launch.kernel.arg_names, launch.arguments, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, TensorDescriptor):
            block = ",".join(map(str, value.block_shape))
            signature[name] = f"tensordesc<{_NAMES[value.base.dtype]}[{block}]>"
            continue
        pointer = isinstance(value, torch.Tensor)
        signature[name] = f"*{_NAMES[value.dtype]}" if pointer else "i32" if isinstance(value, int) else "fp32"
        if pointer or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    for name, value in launch.options.items():
        if name not in _LAUNCH_OPTIONS:
            signature[name], constants[name] = "constexpr", value
    options = {name: launch.options[name] for name in _LAUNCH_OPTIONS} | compile_options(launch.options)
    return ASTSource(launch.kernel, signature, constants, attributes), options


def _compiled(
    launch: Launch, source: ASTSource, options: dict[str, int], target: str, precision: str, tokens: int
) -> Compiled:
    binary = triton.compile(source, target=TARGETS[target], options=options)
    is_cuda = "cubin" in binary.asm
    registers, spilled = _cubin_usage(binary.asm["cubin"]) if is_cuda else _amd_usage(binary.asm["amdgcn"])
    text = binary.asm["ptx" if is_cuda else "amdgcn"]
    given = launch.options
    blocks = "×".join(str(given[name]) for name in ("block_m", "block_n", "block_k", "block_width") if name in given)
    activation = given.get("activation", "none")
    return Compiled(
        kernel=launch.kernel.__name__.removesuffix("_kernel") + ("" if activation == "none" else f"_{activation}"),
        target=target,
        precision=precision,
        tokens=tokens,
        tile=f"{blocks} w{given['num_warps']} s{given['num_stages']}",
        registers=registers,
        shared_bytes=binary.metadata.shared,
        spilled_bytes=spilled,
        matrix=next((name for name, word in MATRIX_INSTRUCTIONS.items() if word in text), "none"),
        descriptor_loads=text.count("cp.async.bulk.tensor.2d.shared"),
        before_wait=_before_wait(text),
        full_divisions=text.count("div.full.f32"),
    )


def _before_wait(ptx: str) -> str | None:
    before, found, _ = ptx.partition("griddepcontrol.wait")
    loads, stores = (len(re.findall(words, before)) for words in (r"ld\.global|cp\.async", r"st\.global|red\.|atom\."))
    return f"{loads}, {stores}" if found else None


def _cubin_usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) of a thread, from the cuobjdump that comes with triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()  # type: ignore[union-attr]
    return int(registers), int(stack)


def _amd_usage(assembly: str) -> tuple[int, int]:
    """(vector registers of a lane, bytes of its private segment)."""
    found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size): *(\d+)", assembly))
    return int(found["vgpr_count"]), int(found["private_segment_fixed_size"])


def main() -> None:
    """The table, or JSON rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", choices=list(TARGETS), nargs="+", default=list(TARGETS))
    parser.add_argument("--precision", choices=list(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--worst", action="store_true", help="one line for each kernel, target and type: its largest")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    found = compile_all(base_config(TASK), arguments.target, arguments.precision)
    if arguments.json:
        for compiled in found:
            print(json.dumps(asdict(compiled)), flush=True)
        return
    console = Console()
    titles = (
        "kernel",
        "target",
        "type",
        "from",
        "tile",
        "regs",
        "shared",
        "spill",
        "matrix",
        "TMA",
        "early",
        "div.full",
    )
    table = Table(*(Column(title, no_wrap=True) for title in titles), box=None, padding=(0, 1, 0, 0))
    with console.status("compiling") as status:
        rows = []
        for compiled in found:
            status.update(f"compiling {compiled.kernel} for {compiled.target} {compiled.precision}")
            rows.append(compiled)
    for compiled in worst(rows) if arguments.worst else rows:
        table.add_row(*(str(value) for value in asdict(compiled).values()))
    console.print(table)
    console.print(f"{len(rows)} kernels, {sum(compiled.spilled_bytes > 0 for compiled in rows)} of them spill")


if __name__ == "__main__":
    main()
