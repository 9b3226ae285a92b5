"""Every output that is pinned: each operation, whole models of both families with every head, on every backend.

``python -m tests.pinned.outputs`` writes hashes.json, the table that test_pinned.py checks: run it when a change of
bits is meant, and say in the commit what changed. ``--compare`` prints the keys that differ instead; names of sections
(``avx512``, ``cuda`` …) leave out the others.

Inputs are integers over powers of two, the same with every version of numpy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, product
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np

from distilfast import Engine, PackedBatch, quantize
from distilfast.heads import TASKS
from distilfast.synthetic import write_checkpoint

TABLE = Path(__file__).with_name("hashes.json")
MODELS: dict[str, dict[str, Any]] = {
    "distilbert 32": {"model_type": "distilbert", "dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 48},
    "distilbert 260": {"model_type": "distilbert", "dim": 260, "n_heads": 4, "n_layers": 1, "hidden_dim": 401},
    "bert 128": {
        "model_type": "bert", "hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2,
        "intermediate_size": 320,
    },
}  # fmt: skip
VOCABULARY = 256
LENGTHS = (1, 17, 5, 40, 2, 16, 150)
SHORT = LENGTHS[:6]
SLOW = (("distilbert 32", "text-classification"), ("distilbert 32", "token-classification"), ("bert 128", "fill-mask"))
"""What the simulated device and the interpreter run: seconds each."""
SIZES = ((1, 1), (23, 31), (49, 257), (100, 768), (33, 1025))
"""(N, K) of a linear alone: they straddle panels, tiles and blocks of K."""

Outputs = Iterator[tuple[str, str]]


def where() -> str:
    """What decides bits beside the sources: a pooler's tanh is libc's. The processor does not: see arithmetic.py."""
    return " ".join(platform.libc_ver())


def where_of_triton() -> str:
    """The interpreter computes in numpy, which chooses its instructions by the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    chip = " ".join(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model"))
    return f"{chip}, numpy {np.__version__}"


def numbers(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float32, uniform from -scale to scale."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    values = ((raw >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0) * scale
    return values.astype(np.float32).reshape(shape)


def digest(*arrays: np.ndarray | None) -> str:
    """Of the bits, in order."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def ends(lengths: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def batch(lengths: tuple[int, ...], types: bool) -> PackedBatch:
    """Ragged, with token types where the model has them."""
    ids = [np.random.PCG64(seed).random_raw(length) % VOCABULARY for seed, length in enumerate(lengths)]
    kinds = [each % np.uint64(2) for each in ids] if types else None
    return PackedBatch.from_sequences([each.tolist() for each in ids], kinds and [each.tolist() for each in kinds])


def cpu_operations(module: ModuleType, isa: str, precision: str) -> Outputs:
    """Each operation alone, on the CPU."""
    for n, k in SIZES:
        extra = ()
        if precision == "int8":
            extra = (numbers(4, k), np.arange(quantize.outlier_channels(k), dtype=np.int32))
        linear = module.Linear(numbers(1, n, k), numbers(2, n), *extra, isa=isa, precision=precision)
        for activation in ("none", "gelu", "relu", "tanh"):
            x = [numbers(3, rows, k, scale=0.2) for rows in (1, 9, 33, 270)]
            yield f"linear {n}x{k} {activation}", digest(*(linear(each, activation) for each in x))
    for head_size in (8, 33, 64):
        qkv = numbers(5, sum(LENGTHS), 3 * 2 * head_size, scale=2.0)
        yield f"attention {head_size}", digest(*module.attention(qkv, ends(LENGTHS), 2, isa=isa, precision=precision))
    if precision == "fp32":
        for width in (7, 33, 768):
            x, residual = numbers(6, 9, width), numbers(7, 9, width)
            weight, bias = numbers(8, width), numbers(9, width)
            made = module.add_layer_norm(x, residual, weight, bias, eps=1e-12, isa=isa)
            ids = np.arange(9, dtype=np.int32)
            tables = (x, residual, numbers(10, 2, width), weight, bias)
            yield f"add_layer_norm {width}", digest(made)
            yield f"embed {width}", digest(module.embed(ids, ids[::-1].copy(), ids % 2, *tables, eps=1e-3, isa=isa))


def checkpoints(folder: Path) -> dict[tuple[str, str], Path]:
    """One for each model and task."""
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 200}
    return {
        (name, task): write_checkpoint(folder / f"{name} {task}", task=task, config=config | common, num_labels=7)
        for name, config in MODELS.items()
        for task in TASKS
    }


def models(made: dict[tuple[str, str], Path], lengths: tuple[int, ...], **engine: Any) -> Outputs:
    """Whole forwards: all intermediates, the answers alone, some rows and some columns; the CPU's packed weights."""
    for (name, task), directory in made.items():
        loaded = Engine.from_pretrained(directory, **engine)
        ragged = batch(lengths, types=name.startswith("bert"))
        trace = loaded.trace(ragged)
        yield f"{name} {task} trace", digest(*(trace[each] for each in sorted(trace)))
        # "none" stands for an output that a head, or its absence, does not have.
        has_head = bool(loaded.head.linears)
        output = trace[f"head.{len(loaded.head.linears) - 1}"] if has_head else None
        yield f"{name} {task}", digest(loaded.encode(ragged), output, None, loaded.logits(ragged) if has_head else None)
        if has_head:
            rows, columns = np.array([0, 1, 17, ragged.num_tokens - 1], np.int32), np.array([0], np.int32)
            some = loaded.logits(ragged, rows=rows), loaded.logits(ragged, rows=rows, columns=columns)
            yield f"{name} {task} rows", digest(*some)
        if engine["backend"] == "cpu":
            yield f"{name} {task} packed", digest(loaded._backend._encoder.packed)


def on_cpu(module: ModuleType, isa: str, made: dict[tuple[str, str], Path]) -> Outputs:
    """One ISA of ``module``, in each precision."""
    import distilfast
    from distilfast.backends import cpu

    with (
        mock.patch.object(distilfast, "_cpu", module),
        mock.patch.dict(sys.modules, {"distilfast._cpu": module}),
        mock.patch.dict(os.environ, {"DISTILFAST_ISA": isa, "DISTILFAST_CACHE": "off"}),
    ):
        for precision in cpu.PRECISIONS:
            for key, bits in cpu_operations(module, isa, precision):
                yield f"{isa} {precision} {key}", bits
            for key, bits in models(made, LENGTHS, precision=precision, backend="cpu", threads=2):
                yield f"{isa} {precision} {key}", bits


CUDA_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
CUDA_WAYS: dict[str, tuple[bool, tuple[int, ...], tuple[tuple[str, str], ...]]] = {
    "graph": (False, SHORT, SLOW),
    "persistent": (True, SHORT[:3], SLOW[-1:]),
    "clusters": (True, (*SHORT, *LENGTHS), SLOW[:1]),
}
"""Whether persistent kernels and clusters are on, the lengths of the batches, and the models."""


def on_simulated_cuda(module: ModuleType, made: dict[tuple[str, str], Path], precision: str, way: str) -> Outputs:
    """Backend cuda over the simulated device: a graph for each bucket, one persistent launch, or clusters."""
    from distilfast.backends import cuda

    options, lengths, which = CUDA_WAYS[way]
    with (
        mock.patch.object(cuda, "extension", return_value=module),
        mock.patch.object(cuda, "PERSISTENT", options),
        mock.patch.object(cuda, "CLUSTERS", options),
    ):
        few = {key: made[key] for key in which}
        for key, bits in models(few, lengths, precision=precision, backend="cuda"):
            yield f"cuda {precision} {way} {key}", bits


def on_triton(made: dict[tuple[str, str], Path], precisions: Sequence[str] = ("fp32", "fp16")) -> Outputs:
    """Backend triton under its interpreter, whose bf16 products are wrong and left out."""
    for precision in precisions:
        few = {key: made[key] for key in SLOW[1:]}
        for key, bits in models(few, SHORT[:3], precision=precision, backend="triton"):
            yield f"triton {precision} {key}", bits


def everything(sections: Sequence[str]) -> Outputs:
    """All of it, key by key: the ISAs here, amx_simulated, cuda and triton; or only the ``sections`` of these names."""
    from host_build import simulated_amx, simulated_cuda

    from distilfast import _cpu
    from distilfast.backends import cpu, triton

    with tempfile.TemporaryDirectory() as folder:
        made = checkpoints(Path(folder))
        runs: dict[str, Callable[[], Outputs]] = {
            isa: partial(on_cpu, _cpu, isa, made) for isa, there in cpu.isas().items() if there
        }
        runs["amx_simulated"] = lambda: on_cpu(simulated_amx(), "amx_simulated", made)
        runs["cuda"] = lambda: chain.from_iterable(
            on_simulated_cuda(simulated_cuda(), made, *each) for each in product(CUDA_PRECISIONS, CUDA_WAYS)
        )
        if triton.unavailable() is None and triton.is_interpreted():
            runs["triton"] = lambda: on_triton(made)
        for name, run in runs.items():
            if not sections or name in sections:
                yield from run()


def main() -> None:
    """Write the table, or compare with it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ.setdefault("TRITON_INTERPRET", "1")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sections", nargs="*", help="ISAs, amx_simulated, cuda, triton; with none: all of them")
    parser.add_argument("--compare", action="store_true", help="print what differs from the table, and write nothing")
    options = parser.parse_args()
    table = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {"hashes": {}}
    found = dict(everything(options.sections))
    if options.compare:
        different = [key for key, bits in found.items() if table["hashes"].get(key) != bits]
        print(*different, f"{len(found)} hashes, {len(different)} differ", sep="\n")
        sys.exit(bool(different))
    hashes = (table["hashes"] if options.sections else {}) | found
    triton_anew = any(key.startswith("triton") for key in found)
    here = where_of_triton() if triton_anew else table["where_of_triton"]
    made = {"where": where(), "where_of_triton": here, "hashes": hashes}
    TABLE.write_text(json.dumps(made, indent=0) + "\n", encoding="utf-8")
    print(f"{len(found)} hashes written")


if __name__ == "__main__":
    main()
