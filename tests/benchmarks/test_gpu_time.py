"""The model of benchmarks/gpu_time.py: it counts all of a forward's work, and the READMEs hold what it says now.

tests/cuda/test_cuda_launches.py compares its launches with those of csrc/cuda.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import pytest

from benchmarks import gpu_launches, gpu_time
from benchmarks.gpu_launches import MULTIPROCESSORS, Launch
from distilfast.base_models import base_config

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

LENGTHS = ((16,), (128,), (1, 2, 3), (128,) * 40, (5, 64, 65, 17, 300, 31))


@pytest.fixture(scope="module")
def config():
    return base_config(gpu_launches.TASK)


def backend(name: str) -> gpu_time.Backend:
    return next(each for each in gpu_time.BACKENDS if each.name == name)


@pytest.mark.parametrize("name", ["CUDA graph", "Triton"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda lengths: f"{sum(lengths)} tokens")
def test_every_operation_and_every_weight_is_counted_once(config, name, lengths):
    """Two operations for each parameter and token, and for each pair of a sequence's tokens those of both products."""
    launches = backend(name).launches(config, lengths)
    encoder = [each for each in launches if each.part != "head"]
    matrices = config.num_layers * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.ffn_size)
    pairs = 4 * config.num_layers * config.hidden_size * sum(length**2 for length in lengths)
    assert sum(each.operations for each in encoder) == 2 * matrices * sum(lengths) + pairs
    biases = config.num_layers * (5 * config.hidden_size + config.ffn_size)
    times = len(list(gpu_launches.cuda_chunks(lengths))) if name == "CUDA graph" else 1
    assert sum(each.weights for each in encoder) == times * (2 * matrices + 4 * biases)
    assert all(each.blocks * each.block_operations >= each.operations for each in launches)


def test_partial_sums_are_written_by_a_linear_and_read_by_a_layer_norm(config):
    for name in ("CUDA graph", "Triton"):
        launches = backend(name).launches(config, [16])
        pairs = list(zip(launches, launches[1:], strict=False))
        splits = [(one, next_one) for one, next_one in pairs if one.partial_sums and one.kernel == "linear"]
        assert len(splits) == 2 * config.num_layers
        assert all(one.partial_sums == next_one.partial_sums == one.writes for one, next_one in splits)


def test_the_copies_of_a_linear_are_its_tile_over_all_of_k(config):
    tile = gpu_launches.cta_tile(4096)
    for launch in gpu_launches.cuda_graph(config, [512] * 8):
        if launch.part in ("qkv", "ffn_out"):
            depth = config.ffn_size if launch.part == "ffn_out" else config.hidden_size
            assert launch.steps * launch.step_bytes == 2 * (tile.rows + tile.columns) * depth
            assert launch.block_operations == 2 * tile.rows * tile.columns * depth


def test_a_key_block_is_visited_by_each_program_with_a_row_of_its_sequence():
    assert gpu_launches._key_blocks([128], 32, 64) == (8, 4)
    assert gpu_launches._key_blocks([16, 16, 33], 32, 32) == (1 + 1 + 2 + 2, 3)  # two sequences, one, the same


LINEAR = Launch(
    "qkv", "linear", (264,), 264, 128, weights=4.08e6, reads=1e3, writes=1e3, block_operations=1e9, instruction="wgmma",
    steps=8, step_bytes=1000, stages=2, shared_bytes=100 * 1024,
)  # fmt: skip
NOW = gpu_time.LIKELY | {"memory_share": 0.85, "wgmma_share": 0.5, "latency": 1e-6, "loaded_latency": 1e-6}


@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        # Two blocks on each multiprocessor, one after the other or together, at half the peak.
        ({}, 3e-6 + 2e9 / (gpu_time.H200.peak / MULTIPROCESSORS / 2)),
        ({"blocks": 265}, 3e-6 + 3e9 / (gpu_time.H200.peak / MULTIPROCESSORS / 2)),
        # Weights from memory, at 85 % of 4.8 TB/s.
        ({"block_operations": 0.0, "steps": 1, "weights": 4.08e9}, 3e-6 + 1e-3),
        # What two blocks have in flight, 2 stages each: 8 steps in four times the loaded latency.
        ({"block_operations": 0.0}, 3e-6 + 4e-6),
        # Activations that L2 does not keep.
        ({"block_operations": 0.0, "steps": 1, "weights": 0.0, "reads": 4.08e9 - 1e3}, 3e-6 + 1e-3),
    ],
)
def test_the_slowest_of_what_a_launch_needs_decides(changes, seconds):
    launch = replace(LINEAR, **changes)
    assert gpu_time.launch_seconds(launch, gpu_time.H200, NOW, resident=2) == pytest.approx(seconds, rel=1e-3)


def test_blocks_are_resident_while_shared_memory_and_registers_last():
    assert gpu_time.resident_blocks(replace(LINEAR, shared_bytes=75 * 1024)) == 3
    assert gpu_time.resident_blocks(replace(LINEAR, shared_bytes=0, threads=512)) == 65536 // (512 * 48)
    assert gpu_time.resident_blocks(replace(LINEAR, shared_bytes=0, accumulators=64.0)) == 65536 // (128 * (64 + 96))
    assert gpu_time.resident_blocks(replace(LINEAR, shared_bytes=0, threads=32)) == 32


def test_worse_estimates_never_make_it_faster(config):
    """Each end on its side of the likely value, in every backend."""
    for each in gpu_time.BACKENDS:
        launches = each.launches(config, [16])
        likely = gpu_time.Prediction(each.parts(launches, gpu_time.H200, gpu_time.LIKELY), 0).total
        for name, estimate in gpu_time.ESTIMATES.items():
            better, worse = (
                gpu_time.Prediction(each.parts(launches, gpu_time.H200, gpu_time.LIKELY | {name: end}), 0).total
                for end in (estimate.better, estimate.worse)
            )
            assert better <= likely <= worse, name


def test_no_prediction_is_below_the_floor(config):
    for each in gpu_time.BACKENDS:
        for lengths in LENGTHS:
            for gpu in (gpu_time.H100, gpu_time.H200):
                if made := gpu_time.predict(each, config, lengths, gpu):
                    assert made.total - made.uncertainty > made.floor


def test_the_readmes_hold_the_tables():
    for path, text in gpu_time.readmes().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not current: {gpu_time.COMMAND}"
