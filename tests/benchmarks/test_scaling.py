"""The model of benchmarks/scaling.py: it counts the work of a forward, and its constants are those of the kernels."""

import re
from pathlib import Path

import pytest

from benchmarks import scaling
from distilfast.config import ModelConfig

CSRC = Path(__file__).resolve().parents[2] / "csrc" / "cpu"


@pytest.fixture
def config(tiny_checkpoint) -> ModelConfig:
    return ModelConfig.from_file(tiny_checkpoint("distilbert", "feature-extraction") / "config.json")


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("parallel.cpp", "tasks_per_thread", scaling.TASKS_PER_THREAD),
        ("parallel.cpp", "max_panels", scaling.MAX_PANELS),
        ("encoder.cpp", "chunk_tokens", scaling.CHUNK),
        ("linear/vec.h", "mc", scaling.MC),
    ],
)
def test_the_constants_are_those_of_the_kernels(file, name, value):
    assert re.findall(rf"constexpr Index {name} = (\d+);", (CSRC / file).read_text()) == [str(value)]


@pytest.mark.parametrize(("batch", "length"), [(1, 16), (3, 200), (9, 128)])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_every_operation_is_counted_once(config, batch, length, threads):
    work = list(scaling.jobs(config, batch, length, "fp32", threads))
    width, ffn, tokens = config.hidden_size, config.ffn_size, batch * length
    linears = 2 * tokens * (4 * width * width + 2 * width * ffn)
    assert sum(job.operations for job in work) == config.num_layers * (linears + 4 * tokens * length * width)
    chunks = -(-batch // max(1, scaling.CHUNK // length))
    weights = 4 * config.num_layers * (4 * width * width + 2 * width * ffn)
    assert sum(job.weight_bytes for job in work) == chunks * weights
    assert all(job.tasks >= 1 for job in work)


def test_one_thread_takes_what_was_measured(config):
    work = list(scaling.jobs(config, 1, 128, "fp32", 1))
    here = scaling.calibrated(work, 0.5, float("inf"), 1e-7)
    assert scaling.seconds(work, here, 1) == pytest.approx(0.5)


def test_the_busiest_thread_the_memory_and_the_ping_decide():
    here = scaling.Machine(core_operations=100.0, bandwidth=10.0, ping=1.0)
    three = [scaling.Job(tasks=3, operations=300.0, weight_bytes=0.0)]
    assert scaling.seconds(three, here, 1) == 3.0
    assert scaling.seconds(three, here, 2) == 2.0 + 3.0  # two tasks on one of them; three lines between them
    assert scaling.seconds(three, here, 3) == 1.0 + 5.0
    assert scaling.seconds([scaling.Job(3, 300.0, 40.0)], here, 1) == 4.0
