"""What a server loads and refuses: pickles, memory, processes that cannot share a model; and a full disk, a clock."""

from __future__ import annotations

import ast
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distilfast.serving
from distilfast import Engine, checkpoint, pipeline
from distilfast.config import ModelConfig
from distilfast.errors import ConfigError, WeightsError
from distilfast.machine import memory_limit
from distilfast.serving.batcher import Batcher
from distilfast.serving.http import memory
from distilfast.serving.http.service import Service, load
from distilfast.serving.http.settings import ServedModel, Settings

Make = Callable[..., Path]


# --- pickles ---


@pytest.fixture
def pickled(tiny_checkpoint: Make, tmp_path: Path) -> Path:
    """A checkpoint as a pickle, with a dense layer that is another."""
    import torch
    from safetensors.torch import load_file

    directory = tmp_path / "pickled"
    shutil.copytree(tiny_checkpoint("distilbert", "feature-extraction"), directory)
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    for name in ("1_Pooling", "2_Dense"):
        (directory / name).mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (directory / "2_Dense" / "config.json").write_text("{}")
    torch.save(
        {"linear.weight": torch.eye(32), "linear.bias": torch.zeros(32)}, directory / "2_Dense/pytorch_model.bin"
    )
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (directory / "modules.json").write_text(json.dumps(modules))
    return directory


def test_a_pickle_is_refused_unless_it_is_allowed(pickled: Path) -> None:
    """The library reads it, tensors only; the server where the operator says so. A dense layer's counts too."""
    model = ServedModel("a", str(pickled))
    sentence = "pytorch_model.bin is a pickle, which is not allowed; convert it to model.safetensors."
    with pytest.raises(WeightsError) as error:
        load(model, Settings())
    assert str(error.value) == f"{pickled}/{sentence}"
    allowed = load(model, Settings(allow_pickle=True))
    want = pipeline("feature-extraction", pickled).embed("a b")
    assert allowed.embed("a b").tobytes() == want.tobytes()  # type: ignore[attr-defined]
    again = pipeline("feature-extraction", Engine.from_pretrained(pickled))

    import torch
    from safetensors.torch import save_file

    save_file(torch.load(pickled / "pytorch_model.bin", weights_only=True), pickled / "model.safetensors")
    assert again.embed("a b").tobytes() == want.tobytes()
    with pytest.raises(WeightsError) as error:
        load(model, Settings()).embed("a b")  # type: ignore[attr-defined]
    assert str(error.value) == f"{pickled}/2_Dense/{sentence}"


@pytest.mark.parametrize("allowed", [True, False])
def test_a_pickle_is_fetched_only_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    patterns: list[str] = []
    monkeypatch.setattr(checkpoint, "_fetch", lambda *given: (patterns.extend(given[-1]), tmp_path)[1])
    checkpoint.resolve("team/model", allow_pickle=allowed)
    assert "model.safetensors" in patterns
    assert ("pytorch_model.bin" in patterns) is allowed


# --- memory ---


def group(root: Path, name: str, **files: str) -> None:
    (root / name).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (root / name / file.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("groups", "membership", "limit"),
    [
        ({"": "max"}, "0::/\n", None),
        ({"": "1000\n"}, "0::/\n", 1000),
        ({"a": "4000", "a/b": "max"}, "0::/a/b\n", 4000),
        ({"a": "4000", "a/b": "3000"}, "0::/a/b\n", 3000),
        ({"": "2000"}, "0::/kubepods/pod\n", 2000),  # in a container that sees its own group only
        ({"other": "10"}, "0::/a\n", None),
        ({}, "", None),
    ],
)
def test_the_memory_limit_of_version_2(
    tmp_path: Path, groups: dict[str, str], membership: str, limit: int | None
) -> None:
    for name, text in groups.items():
        group(tmp_path / "cgroup", name, memory__max=text)
    (tmp_path / "self").write_text(membership)
    assert memory_limit(tmp_path / "cgroup", tmp_path / "self") == limit


def test_the_memory_limit_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("5:cpu,cpuacct:/c\n4:memory:/docker/x\n")
    assert memory_limit(tmp_path, tmp_path / "self") is None
    group(tmp_path, "memory", memory__limit_in_bytes="9223372036854771712\n")
    assert memory_limit(tmp_path, tmp_path / "self") is None
    group(tmp_path, "memory/docker/x", memory__limit_in_bytes="5000\n")
    assert memory_limit(tmp_path, tmp_path / "self") == 5000
    assert memory_limit(tmp_path, tmp_path / "nowhere") is None


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_weights_are_known_before_they_are_loaded(tiny_checkpoint: Make, precision: str) -> None:
    """At most what the loaded engine has: linears in their precision, without padding and scales, and the tables."""
    sizes = {"dim": 128, "hidden_dim": 512}
    model = ServedModel(
        "a", str(tiny_checkpoint("distilbert", "feature-extraction", config=sizes)), precision=precision
    )
    pipe = load(model, Settings())
    config = ModelConfig.from_file(Path(model.path) / "config.json")
    tables = 4 * (config.vocab_size + config.max_positions) * 128
    packed = int(pipe.engine.info()["packed_bytes"])
    assert 0.7 * packed <= memory.least_bytes(model, Settings()) - tables <= packed


def test_what_cannot_fit_is_refused_before_it_is_loaded(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ServedModel("a", str(tiny_checkpoint("distilbert", "feature-extraction")))
    least = memory.least_bytes(model, Settings())
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    for limit, cache_bytes, workers in ((least - 1, 0, 1), (least + 1999, 1000, 2)):
        monkeypatch.setattr(memory, "memory_limit", lambda limit=limit: limit)
        with pytest.raises(ConfigError, match=r"^The models need .* MB and the caches .* container is .* MB\.$"):
            Service(Settings((model,), cache_bytes=cache_bytes, workers=workers)).load_models()
    for limit in (least + 2000, None):
        monkeypatch.setattr(memory, "memory_limit", lambda limit=limit: limit)
        memory.check_memory(Settings((model,), cache_bytes=1000, workers=2))


# --- processes, disks, clocks ---


def test_workers_share_no_gpu(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ServedModel("a", str(tiny_checkpoint("distilbert", "feature-extraction")))
    info = Engine.info
    monkeypatch.setattr(Engine, "info", lambda engine: info(engine) | {"backend": "cuda"})
    error = Service(Settings((model,), workers=2)).load_or_say_why()
    assert str(error) == "a runs on cuda, which one process can use; set workers to 1."


def test_workers_share_the_cores(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilfast.backends import cpu

    monkeypatch.setattr(cpu, "available_cores", lambda: 8)
    monkeypatch.delenv("DISTILFAST_THREADS", raising=False)
    model = ServedModel("a", str(tiny_checkpoint("distilbert", "feature-extraction")))
    for workers, threads in ((1, 8), (2, 4), (3, 2), (100, 1)):
        assert load(model, Settings(workers=workers)).engine.info()["threads"] == threads


def test_a_reload_and_the_end_wait_for_what_was_accepted(
    tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as the operator says; that closing a batcher answers what waits is tested there."""
    waited: list[tuple[Batcher, float | None]] = []
    close = Batcher.close

    def note(batcher: Batcher, timeout: float | None = None) -> bool:
        waited.append((batcher, timeout))
        return close(batcher, timeout)

    monkeypatch.setattr(Batcher, "close", note)
    model = ServedModel("a", str(tiny_checkpoint("distilbert", "feature-extraction")))
    service = Service(Settings((model,), drain_timeout=7.0))
    service.load_models()
    first = service.ready
    service.load_models()
    second = service.ready
    service.close()
    assert waited == [(first, 7.0), (second, 7.0)]


def test_a_full_disk_is_said_once(
    tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server serves; the next reload says nothing new."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("DISTILFAST_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "rename", full)
    directory = tiny_checkpoint("distilbert", "feature-extraction")
    service = Service(Settings((ServedModel("a", str(directory)),)))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert service.load_or_say_why() is None
    found = service.ready.submit_vector("a b").result(60)
    assert found.tobytes() == pipeline("feature-extraction", directory).embed("a b")[0].tobytes()  # type: ignore[attr-defined]
    service.close()
    assert [record.getMessage() for record in caplog.records] == [
        "The weights are not kept for the next start of a: packed, cache not writable: No space left on device.",
        "The cost curve is not kept for the next start of a: "
        "measured, not kept, cache not writable: No space left on device.",
    ]


def test_an_error_of_another_kind_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    service = Service(Settings())
    monkeypatch.setattr(service, "load_models", fail)
    assert str(service.load_or_say_why()) == "The models cannot be loaded: MemoryError."
    assert caplog.records[0].exc_info


def test_no_deadline_depends_on_the_time_of_day() -> None:
    """A step of the clock changes what is shown to people and to tracers, and nothing else."""
    root = Path(distilfast.serving.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
                found.add((path.relative_to(root).as_posix(), node.attr))
    clocks = {(path, name) for path, name in found if name not in ("monotonic", "perf_counter")}
    assert clocks == {
        ("http/middleware.py", "strftime"),  # of a log line
        ("http/middleware.py", "gmtime"),
        ("http/service.py", "time"),  # "created" in OpenAI's list of models
        ("http/systemd.py", "clock_gettime_ns"),  # the monotonic one
        ("http/systemd.py", "CLOCK_MONOTONIC"),
        ("http/tracing.py", "time_ns"),  # of a span
    }
    assert {name for path, name in found if path in ("batcher.py", "forwards.py")} == {"monotonic"}
