"""A model of a forward's time on an H100 and an H200: a prediction, of bf16; nothing here was measured.

    python -m benchmarks.gpu_time             the tables of all three backends, to the terminal
    python -m benchmarks.gpu_time --readme    the same into csrc/cuda/README.md and kernels/README.md

Launches, tiles, operations and bytes are those of the sources (gpu_launches.py). A launch takes

    rounds · latency + max(memory, L2, copies in flight, steps, tensor cores + exposed share of the vector units)

on the busiest multiprocessor, and between two launches is a gap. Every efficiency is one of ``Estimates``, with its
source or called a guess, and has a better and a worse end. The uncertainty is that of the total where each estimate is
moved to its ends alone, the differences added in quadrature.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, sqrt
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks import gpu_launches, tables, workloads
from benchmarks.gpu_launches import MULTIPROCESSORS, PARTS, Launch
from distilfast.base_models import base_config
from distilfast.config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- predictions -->", "<!-- end of predictions -->"
COMMAND = "python -m benchmarks.gpu_time --readme"
CASES = (
    *(workloads.Case(batch, tokens) for batch, tokens in ((1, 16), (1, 128), (8, 128), (32, 128), (256, 128))),
    workloads.Case(256, 128, ragged=True),
)


@dataclass(frozen=True)
class Gpu:
    """An SXM module. ``peak``: bf16 operations a second, dense; ``bandwidth``: bytes a second of device memory."""

    name: str
    peak: float
    bandwidth: float
    l2_bytes: float = 50e6
    clock: float = 1.83e9  # at which 132 multiprocessors of 4 x 512 multiply-adds make the peak


# NVIDIA's data sheets of the H100 and the H200 (SXM): 1,979 TFLOP/s of bf16 with sparsity, which is half of it dense;
# 3.35 and 4.8 TB/s. Both have 132 multiprocessors and 50 MB of L2 (NVIDIA H100 Tensor Core GPU Architecture).
H100, H200 = Gpu("H100", 989.4e12, 3.35e12), Gpu("H200", 989.4e12, 4.8e12)
PCIE_BANDWIDTH = 50e9  # bytes a second of 16 lanes of PCIe 5.0, of 63e9 in theory; a guess
LANES = 128  # fp32 operations that a multiprocessor starts in a cycle (the same paper)
SHARED_BYTES, REGISTERS, THREADS, BLOCKS = 228 * 1024, 65536, 2048, 32  # of a multiprocessor (CUDA C++ guide)
OTHER_REGISTERS, ROW_REGISTERS = 96, 48  # of a thread beside its accumulators, and where it has none; guesses
MMA_OPERATIONS, MMA_CYCLES = 4096, 4  # of mma.m16n8k16, and at the peak in a quarter of a multiprocessor


@dataclass(frozen=True)
class Range:
    """An estimate: its better end, the likely value, its worse end."""

    better: float
    likely: float
    worse: float


@dataclass(frozen=True)
class Estimates:
    """What decides the time beside counts and peaks. Times in seconds."""

    # Of a memory's bandwidth. A megakernel for Llama-1B reached 78 % on an H100 (Hazy Research, "Look Ma, No Bubbles!",
    # 2025); large copies reach some 90 %.
    memory_share: Range = Range(0.92, 0.85, 0.78)
    # Bytes a second from L2: an A100 reads 5,120 bytes a cycle (NVIDIA A100 Tensor Core GPU Architecture), which would
    # be 9.4 TB/s here; how much of it is reached, and in which share of L2 a launch still finds what the one before it
    # wrote, are guesses.
    l2_bandwidth: Range = Range(7.5e12, 6.0e12, 4.5e12)
    l2_kept: Range = Range(0.8, 0.6, 0.4)
    # Of the peak, by mma.sync alone: 62.9 % measured (Luo et al., arXiv 2402.13499). The share of a main loop's other
    # instructions that it does not hide is a guess, with which a finished kernel comes to 45 %.
    mma_share: Range = Range(0.66, 0.63, 0.60)
    exposed_issue: Range = Range(0.3, 0.6, 0.9)
    # By wgmma, cuBLAS has reached 754 TFLOP/s, 76 %; with cp.async and without warp specialisation less: a guess.
    wgmma_share: Range = Range(0.70, 0.62, 0.52)
    wgmma_by_tma_share: Range = Range(0.80, 0.73, 0.62)
    # One dependent access to memory: 479 cycles, 0.26 us, where nothing else runs (Luo et al.); addresses, a barrier
    # and the start of a block are a guess. Under load: a guess.
    latency: Range = Range(0.30e-6, 0.45e-6, 0.70e-6)
    loaded_latency: Range = Range(0.5e-6, 0.7e-6, 1.0e-6)
    # Cycles of a main loop's step at least: a barrier, loads from shared memory, dependent products. A guess.
    step_cycles: Range = Range(100, 150, 250)
    # Vector instructions for GELU of an element, and for the softmax of a score, and the share of all these that the
    # tensor cores do not hide: guesses.
    gelu_instructions: Range = Range(25, 32, 40)
    softmax_instructions: Range = Range(8, 10, 14)
    exposed: Range = Range(0.3, 0.6, 1.0)
    # Between two kernels of a graph: 1.3 us on an H100, the kernel included (Hazy Research). Where the second one is
    # launched before the first has ended, and a barrier of all blocks instead: guesses.
    gap: Range = Range(0.8e-6, 1.0e-6, 1.3e-6)
    dependent_gap: Range = Range(0.3e-6, 0.5e-6, 0.9e-6)
    grid_barrier: Range = Range(0.8e-6, 1.2e-6, 2.0e-6)
    # A copy of a few bytes from the host as the graph's first node, and the host's own work before it: guesses.
    copy: Range = Range(1.5e-6, 2.5e-6, 4.0e-6)
    cuda_host: Range = Range(8e-6, 12e-6, 20e-6)
    triton_host: Range = Range(30e-6, 45e-6, 70e-6)


STEP_INSTRUCTIONS, MMA_INSTRUCTIONS = 62, 2.7
"""That a warp issues for a step of a main loop, and for each mma in it.

Of linear's tiles nvcc 13.0 makes 70, 101, 170 and 232 instructions for 4, 16, 32 and 64 mma on sm_90, copies included.
"""
ROUNDS = {"embed": 4, "linear": 3, "attention": 4, "add_layer_norm": 3, "gather": 3}
"""Dependent accesses to memory of a block, one after the other: the number of rows, what it reads, what it stores."""

Values = dict[str, float]
ESTIMATES: dict[str, Range] = {field.name: getattr(Estimates(), field.name) for field in fields(Estimates)}
LIKELY: Values = {name: estimate.likely for name, estimate in ESTIMATES.items()}


@dataclass(frozen=True)
class Prediction:
    """Seconds by part; ``gaps`` and ``host`` are parts too, and what the head adds is none of the total."""

    parts: dict[str, float]
    floor: float
    uncertainty: float = 0.0

    @property
    def total(self) -> float:
        return sum(seconds for part, seconds in self.parts.items() if part != "head")


# ----------------------------------------------------------------------------------------------------------- the model


def resident_blocks(launch: Launch) -> int:
    """Blocks on a multiprocessor at once; registers are guessed from the accumulators."""
    threads = max(32, launch.threads)
    registers = min(255.0, launch.accumulators + OTHER_REGISTERS) if launch.accumulators else ROW_REGISTERS
    most = (SHARED_BYTES / (launch.shared_bytes + 1024), REGISTERS / (registers * threads), THREADS / threads, BLOCKS)
    return max(1, int(min(most)))


def launch_seconds(launch: Launch, gpu: Gpu, now: Values, *, resident: int, from_memory: bool = True) -> float:
    """``from_memory``: the weights are read from device memory, and not prefetched into L2."""
    if launch.part == "copy":
        return now["copy"] + launch.reads / PCIE_BANDWIDTH
    busiest = ceil(launch.blocks / MULTIPROCESSORS)
    waves, together = ceil(busiest / resident), min(resident, busiest)
    activations = launch.reads + launch.writes
    spilled = activations if activations > now["l2_kept"] * gpu.l2_bytes else 0.0
    memory = (spilled + (launch.weights if from_memory else 0.0)) / (gpu.bandwidth * now["memory_share"])
    copied = launch.blocks * launch.steps * launch.step_bytes
    l2 = (copied + launch.writes) / now["l2_bandwidth"]
    in_flight = ceil(busiest / together) * launch.steps / launch.stages * now["loaded_latency"]
    chain = waves * launch.steps * now["step_cycles"] / gpu.clock if launch.instruction else 0.0
    tensor = busiest * launch.block_operations / (gpu.peak / MULTIPROCESSORS * tensor_share(launch, now))
    instructions = now["softmax_instructions" if launch.part == "attention" else "gelu_instructions"]
    vector = busiest * launch.elements * instructions / (LANES * gpu.clock)
    limits = (memory, l2, in_flight, chain, tensor + now["exposed"] * vector)
    return ROUNDS[_family(launch.kernel)] * now["latency"] + max(limits)


def _family(kernel: str) -> str:
    return next(name for name in ROUNDS if name in kernel.split("persistent_"))


def tensor_share(launch: Launch, now: Values) -> float:
    """Of the peak: what the instruction reaches, and for mma less what the main loop's other instructions take."""
    if launch.instruction == "wgmma":
        return now["wgmma_share"]
    if launch.instruction == "wgmma by TMA":
        return now["wgmma_by_tma_share"]
    products = launch.block_operations / MMA_OPERATIONS / max(1, launch.steps) / max(1, launch.threads / 32)
    others = MMA_INSTRUCTIONS + STEP_INSTRUCTIONS / products if products else 0.0
    return MMA_CYCLES / (MMA_CYCLES / now["mma_share"] + now["exposed_issue"] * others)


def floor(config: ModelConfig, lengths: Sequence[int], gpu: Gpu) -> float:
    """The operations at the peak, or the encoder's weights once at the full bandwidth."""
    launches = [each for each in gpu_launches.cuda_graph(config, lengths) if each.part != "head"]
    weights = sum(each.weights for each in launches) / len(list(gpu_launches.cuda_chunks(lengths)))
    return max(sum(each.operations for each in launches) / gpu.peak, weights / gpu.bandwidth)


def graph_parts(launches: Sequence[Launch], gpu: Gpu, now: Values, gap: float, host: float) -> dict[str, float]:
    parts = dict.fromkeys((*PARTS[1:-1], "gaps", "host", "head"), 0.0)
    parts["host"] = host
    for launch in launches:
        seconds = launch_seconds(launch, gpu, now, resident=resident_blocks(launch))
        if launch.part == "head":
            parts["head"] += seconds + gap
        elif launch.part == "copy":
            parts["host"] += seconds
            parts["gaps"] += now["gap"]  # a copy is waited for as a whole
        else:
            parts[launch.part] += seconds
            parts["gaps"] += gap
    parts["gaps"] -= gap  # none after the last one
    return parts


def cuda_parts(launches: Sequence[Launch], gpu: Gpu, now: Values) -> dict[str, float]:
    gap = now["dependent_gap" if gpu_launches.cuda_overlaps_predecessor() else "gap"]
    return graph_parts(launches, gpu, now, gap, now["cuda_host"])


def triton_parts(launches: Sequence[Launch], gpu: Gpu, now: Values) -> dict[str, float]:
    gap = now["dependent_gap" if gpu_launches.triton_overlaps_predecessor() else "gap"]
    return graph_parts(launches, gpu, now, gap, now["triton_host"])


def persistent_parts(launches: Sequence[Launch], gpu: Gpu, now: Values) -> dict[str, float]:
    """A few blocks on each multiprocessor; a linear finds the W that was prefetched, or waits for memory."""
    parts = dict.fromkeys((*PARTS[1:-1], "gaps", "host", "head"), 0.0)
    parts["host"], weights, blocks = now["cuda_host"], 0.0, gpu_launches.persistent_blocks()
    for launch in launches:
        seconds = launch_seconds(launch, gpu, now, resident=blocks, from_memory=False)
        if launch.part == "copy":
            parts["host"] += seconds
            parts["gaps"] += now["gap"]
            continue
        parts[launch.part] += seconds
        parts["head" if launch.part == "head" else "gaps"] += now["grid_barrier"]
        weights += launch.weights if launch.part != "head" else 0.0
    kernel = sum(seconds for part, seconds in parts.items() if part not in ("host", "head"))
    parts["gaps"] += max(0.0, weights / (gpu.bandwidth * now["memory_share"]) - kernel)
    return parts


@dataclass(frozen=True)
class Backend:
    """``launches``: None where it does not run the batch."""

    name: str
    readme: Path
    launches: Callable[[ModelConfig, Sequence[int]], list[Launch] | None]
    parts: Callable[[Sequence[Launch], Gpu, Values], dict[str, float]]


BACKENDS = (
    Backend("CUDA graph", ROOT / "csrc/cuda/README.md", gpu_launches.cuda_graph, cuda_parts),
    Backend("persistent kernel", ROOT / "csrc/cuda/README.md", gpu_launches.persistent, persistent_parts),
    Backend("Triton", ROOT / "kernels/README.md", gpu_launches.triton_graph, triton_parts),
)


def predict(backend: Backend, config: ModelConfig, lengths: Sequence[int], gpu: Gpu) -> Prediction | None:
    launches = backend.launches(config, lengths)
    if launches is None:
        return None
    likely = Prediction(backend.parts(launches, gpu, LIKELY), floor(config, lengths, gpu))
    squares = 0.0
    for name, estimate in ESTIMATES.items():
        moved = (LIKELY | {name: end} for end in (estimate.better, estimate.worse))
        totals = [Prediction(backend.parts(launches, gpu, now), 0).total for now in moved]
        squares += max(abs(total - likely.total) for total in totals) ** 2
    return replace(likely, uncertainty=sqrt(squares))


# ----------------------------------------------------------------------------------------------------------- the tables


def lengths_of(case: workloads.Case, config: ModelConfig) -> tuple[int, ...]:
    """Tokens of each sequence, as the benchmark draws them."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"vocab_size": config.vocab_size}))
        [(_, mask)] = case.batches(Path(folder))
    return tuple(int(length) for length in mask.sum(axis=1))


def counts_table(backend: Backend, config: ModelConfig) -> tables.Cells:
    """What the first layer launches, and sums over the forward; the head is left out."""
    names = ("qkv", "attention", "attention_out", "LayerNorm", "ffn_in", "ffn_out")
    lines = [["case", "launches", *names, "GFLOP", "weights", "activations", "partial sums"]]
    for case in CASES:
        lengths = lengths_of(case, config)
        launches = [each for each in backend.launches(config, lengths) or () if each.part != "head"]
        if not launches:
            continue
        first = {each.part: each for each in reversed(launches)}
        sizes = (
            sum(each.weights for each in launches),
            sum(each.reads + each.writes - each.partial_sums for each in launches),
            sum(each.partial_sums for each in launches),
        )
        blocks = [f"{first[name].blocks:,}{_waves(first[name])}" for name in names]
        operations = sum(each.operations for each in launches)
        lines.append(
            [case.name, f"{len(launches)}", *blocks, f"{operations / 1e9:,.1f}", *(f"{x / 1e6:,.0f} MB" for x in sizes)]
        )
    return lines


def _waves(launch: Launch) -> str:
    waves = launch.blocks / (MULTIPROCESSORS * resident_blocks(launch))
    return f" ({waves:.1f})" if waves > 1 else ""


def time_table(backends: Sequence[Backend], config: ModelConfig) -> tables.Cells:
    """Microseconds on an H200 by part, and the totals of both."""
    parts = (*PARTS[1:-1], "gaps", "host")
    lines = [["case", *parts, "H200", "floor", "H100", "floor", "head"]]
    for case in CASES:
        for backend in backends:
            lengths = lengths_of(case, config)
            on = {gpu.name: predict(backend, config, lengths, gpu) for gpu in (H200, H100)}
            if (first := on["H200"]) is None:
                continue
            name = case.name if backend is backends[0] else f"{case.name}, {backend.name}"
            cells = [f"{first.parts[part] * 1e6:,.0f}" for part in parts]
            for each in on.values():
                assert each is not None
                cells += [f"{each.total * 1e6:,.0f} ± {each.uncertainty * 1e6:,.0f}", f"{each.floor * 1e6:,.0f}"]
            lines.append([name, *cells, f"+{first.parts['head'] * 1e6:,.0f}"])
    return lines


def section(backends: Sequence[Backend], config: ModelConfig) -> str:
    """What stands between the marks of a README."""
    counted, timed = counts_table(backends[0], config), time_table(backends, config)
    return "\n\n".join(
        [
            BEGIN,
            "*Prediction*, bf16, from the sources; **nothing was measured**. Launches of a forward that gives the\n"
            "last hidden state; thread blocks of a layer's launches that have rows (in parentheses: waves, where they\n"
            "are more than one); operations; and bytes, each launch's once, over the whole forward:",
            tables.markdown(counted),
            "*Predicted* µs, by part on an H200 (SXM). Floor: the operations at the peak, or the weights once at the\n"
            "full bandwidth. Head: what a classifier adds.",
            tables.markdown(timed),
            f"<sub>`{COMMAND}` writes this; benchmarks/gpu_time.py has the model, and each estimate\n"
            "with its source or called a guess. ±: each estimate at its ends alone, added in quadrature.</sub>",
            END,
        ]
    )


def readmes() -> dict[Path, str]:
    """Each README as it should be."""
    config, made = base_config(gpu_launches.TASK), {}
    for path in dict.fromkeys(backend.readme for backend in BACKENDS):
        text = path.read_text(encoding="utf-8")
        if BEGIN not in text or END not in text:
            raise SystemExit(f"error: {path} lacks the marks {BEGIN} and {END}.")
        inside = section([backend for backend in BACKENDS if backend.readme == path], config)
        made[path] = text.partition(BEGIN)[0] + inside + text.partition(END)[2]
    return made


def main() -> None:
    """Print the tables, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readme", action="store_true", help="into csrc/cuda/README.md and kernels/README.md")
    if parser.parse_args().readme:
        for path, text in readmes().items():
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))
        return
    console, config = Console(markup=False, highlight=False), base_config(gpu_launches.TASK)
    for backend in BACKENDS:
        _show(console, f"{backend.name}: counts", counts_table(backend, config))
        _show(console, f"{backend.name}: predicted us", time_table([backend], config))


def _show(console: Console, title: str, cells: tables.Cells) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in cells[0]:
        table.add_column(name, justify="right")
    for line in cells[1:]:
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    main()
