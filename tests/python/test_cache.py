"""Packed weights on disk: whatever the state of the cache, the answers have the bits of those without one."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distilfast import Engine, _cpu, cache, config, info
from distilfast.backends import cpu
from distilfast.errors import WeightsError
from distilfast.weights import StoredTensors

Make = Callable[..., Path]

TASK = "text-classification"
IDS = [[2, 5, 9, 200, 3], [2, 77, 3, 0, 0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
HERE = [name for name, there in cpu.isas().items() if there]


def answer(directory: Path, **arguments: Any) -> tuple[bytes, str]:
    """The bits of an answer, and where the packed weights came from."""
    engine = Engine.from_pretrained(directory, **arguments)
    return engine(IDS, MASK).logits.tobytes(), str(engine.info()["packed_weights"])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, not yet created."""
    folder = tmp_path / "store"
    monkeypatch.setenv("DISTILFAST_CACHE", str(folder))
    return folder


@pytest.fixture
def model(tiny_checkpoint: Make, tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return shutil.copytree(tiny_checkpoint("distilbert", TASK), tmp_path / "model")


@pytest.fixture
def truth(model: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The answer without a cache."""
    return uncached(model)


def uncached(directory: Path, **arguments: Any) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILFAST_CACHE", "off")
        bits, origin = answer(directory, **arguments)
    assert origin == "packed, cache off"
    return bits


def entries(store: Path) -> list[Path]:
    return sorted(store.glob("*.packed"))


def only_entry(store: Path) -> Path:
    (path,) = entries(store)
    return path


def is_written(origin: str) -> bool:
    return origin.startswith("packed, written to ")


def is_read(origin: str) -> bool:
    return origin.startswith("cache ")


# --- the checkpoint's file after loading ---


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("state", ["off", "written", "read"])
def test_a_loaded_model_does_not_depend_on_the_checkpoint(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch, state: str, precision: str
) -> None:
    if state == "off":
        monkeypatch.setenv("DISTILFAST_CACHE", "off")
    if state == "read":
        answer(model, precision=precision)
    engine = Engine.from_pretrained(model, precision=precision)
    before = engine(IDS, MASK).logits.tobytes()
    path = model / "model.safetensors"
    with open(path, "r+b") as file:  # in place: the same inode
        file.write(bytes(path.stat().st_size))
    assert engine(IDS, MASK).logits.tobytes() == before


_TRUNCATES = """
import sys
from distilfast import Engine
directory, precision = sys.argv[1:]
engine = Engine.from_pretrained(directory, precision=precision, backend="cpu")
before = engine([[1, 2, 3]]).logits.tobytes()
with open(directory + "/model.safetensors", "r+b") as file:
    file.truncate(0)
assert engine([[1, 2, 3]]).logits.tobytes() == before
"""


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("state", ["off", "written", "read"])
def test_a_truncated_checkpoint_kills_no_process(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch, state: str, precision: str
) -> None:
    """A page of a mapped file that has become shorter is a SIGBUS, hence a process of its own."""
    if state == "off":
        monkeypatch.setenv("DISTILFAST_CACHE", "off")
    if state == "read":
        answer(model, precision=precision)
    done = subprocess.run(
        [sys.executable, "-c", _TRUNCATES, str(model), precision], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- the next process ---


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("precision", cpu.PRECISIONS)
@pytest.mark.parametrize(
    ("model_type", "task", "dtype"),
    [("distilbert", TASK, "float32"), ("bert", "fill-mask", "float16"), ("bert", "token-classification", "bfloat16")],
)
def test_answers_are_those_without_a_cache(
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    tiny_checkpoint: Make,
    isa: str,
    precision: str,
    model_type: str,
    task: str,
    dtype: str,
) -> None:
    monkeypatch.setenv("DISTILFAST_ISA", isa)
    directory = tiny_checkpoint(model_type, task, dtype=dtype)
    wanted = uncached(directory, precision=precision)
    first, second = answer(directory, precision=precision), answer(directory, precision=precision)
    assert first[0] == second[0] == wanted
    assert is_written(first[1]) and is_read(second[1])


def test_with_a_warm_cache_no_linear_is_read(
    store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    original = StoredTensors.__getitem__

    def recorded(self: StoredTensors, name: str) -> np.ndarray:
        read.add(name)
        return original(self, name)

    monkeypatch.setattr(StoredTensors, "__getitem__", recorded)
    answer(model)
    linears = {f"layer.{i}.{name}.weight" for i in (0, 1) for name in ("qkv", "attention_out", "ffn_in", "ffn_out")}
    assert linears | {"head.0.weight", "head.1.weight"} <= read
    read.clear()
    monkeypatch.setattr(StoredTensors, "check_finite", None)  # calling it would raise
    assert answer(model)[0] == truth
    assert not any(name.endswith(".weight") and "norm" not in name for name in read)


def test_each_precision_isa_and_task_has_its_own_entry(
    store: Path, tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_checkpoint("bert", TASK)
    assert is_written(answer(directory)[1])
    assert is_written(answer(directory, precision="bf16")[1])
    monkeypatch.setenv("DISTILFAST_ISA", "ref")
    assert is_written(answer(directory)[1])
    assert is_written(str(Engine.from_pretrained(directory, task="feature-extraction").info()["packed_weights"]))
    assert len(entries(store)) == 4


def test_another_layout_or_version_is_another_entry(
    store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(model)
    with monkeypatch.context() as patch:
        patch.setattr(_cpu, "packed_layout", lambda isa, precision: "another layout")
        assert is_written(answer(model)[1])
    with monkeypatch.context() as patch:
        patch.setattr(cache, "__version__", "0.0.0")
        assert is_written(answer(model)[1])
    assert answer(model)[0] == truth and is_read(answer(model)[1])
    assert len(entries(store)) == 3


def test_the_same_content_under_another_path(store: Path, model: Path, truth: bytes, tmp_path: Path) -> None:
    answer(model)
    bits, origin = answer(shutil.copytree(model, tmp_path / "elsewhere"))
    assert bits == truth and is_read(origin)


def test_shards_with_other_content_have_their_own_entry(store: Path, tiny_checkpoint: Make) -> None:
    for seed in (1, 2):
        directory = tiny_checkpoint("distilbert", TASK, shards=3, seed=seed)
        assert is_written(answer(directory)[1])
        bits, origin = answer(directory)
        assert bits == uncached(directory) and is_read(origin)


# --- the checkpoint has changed ---


def overwrite(file: Path, status: os.stat_result) -> None:
    """Other numbers in the last tensor, in place: same path, inode, size and mtime."""
    with file.open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(np.float32(7).tobytes())
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_other_content_under_the_same_path(store: Path, model: Path, truth: bytes) -> None:
    """Even within the same tick of the clock: the digest of so new a file is not stored."""
    file = model / "model.safetensors"
    answer(model)
    overwrite(file, file.stat())
    bits, origin = answer(model)
    assert bits == uncached(model) != truth and is_written(origin)


def stored_digests(store: Path) -> dict[str, Any]:
    path = store / "digests.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_a_new_file_is_digested_each_time_and_an_old_one_once(
    store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(model)
    assert stored_digests(store) == {}  # written by this test, a moment ago
    monkeypatch.setattr(cache, "SETTLED_NS", -(10**18))
    answer(model)
    assert list(stored_digests(store)) == [str(model / "model.safetensors")]
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_digest_of", None)  # calling it would raise
        assert answer(model)[0] == truth


@pytest.mark.parametrize("place", range(4), ids=["size", "inode", "mtime", "ctime"])
def test_a_digest_is_not_used_for_another_file(
    store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    monkeypatch.setattr(cache, "SETTLED_NS", -(10**18))
    answer(model)
    found = stored_digests(store)
    (entry,) = found.values()
    assert len(entry) == 5
    entry[place] += 1
    entry[4] = "0" * 64
    (store / "digests.json").write_text(json.dumps(found))
    bits, origin = answer(model)
    assert bits == truth and is_read(origin)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 3}', "\xff", '{"FILE": [1]}', '{"FILE": null}'])
def test_malformed_stored_digests(
    store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(cache, "SETTLED_NS", -(10**18))
    answer(model)
    text = text.replace("FILE", str(model / "model.safetensors"))
    (store / "digests.json").write_text(text, encoding="latin-1")
    bits, origin = answer(model)
    assert bits == truth and is_read(origin)
    assert str(model / "model.safetensors") in stored_digests(store)


def test_digests_do_not_grow_without_bound(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SETTLED_NS", -(10**18))
    monkeypatch.setattr(cache, "MOST_DIGESTS", 2)
    others = [shutil.copytree(model, model.with_name(f"copy{i}")) for i in range(3)]
    for directory in others:
        answer(directory)
    assert list(stored_digests(store)) == [str(path / "model.safetensors") for path in others[1:]]


def test_a_checkpoint_with_nan_is_refused_and_not_cached(store: Path, model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as stream:
        stream.seek(-4, os.SEEK_END)
        stream.write(np.float32("nan").tobytes())
    for _ in range(2):
        with pytest.raises(WeightsError, match="NaN or inf"):
            answer(model)
    assert entries(store) == []


# --- the file in the cache has changed ---


def flipped(at: int, bit: int = 0) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        return bytes(damaged)

    return change


def other_header(at: int, value: bytes) -> Callable[[bytes], bytes]:
    """Another value in a field of the header, whose checksum is right."""

    def change(data: bytes) -> bytes:
        page = bytearray(data[:4096])
        page[at : at + len(value)] = value
        page[-4:] = zlib.crc32(page[:-4]).to_bytes(4, "little")
        return bytes(page) + data[4096:]

    return change


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    **{
        f"header bit of byte {at}": flipped(at, at % 8)
        for at in (0, 7, 8, 16, 23, 24, 31, 32, 63, 64, 4000, 4092, 4095)
    },
    **{f"body bit of byte {at}": flipped(at, 7) for at in (4096, 4099, 30_000, -1)},
    **{f"cut to {size}": lambda data, size=size: data[:size] for size in (0, 1, 63, 4095, 4096, 4097, 9000)},  # type: ignore[misc]
    "cut by one byte": lambda data: data[:-1],
    "cut by one float": lambda data: data[:-4],
    "one byte too many": lambda data: data + b"\0",
    "a body of zeros": lambda data: data[:4096] + bytes(len(data) - 4096),
    "no file of ours": lambda data: random.Random(0).randbytes(len(data)),
    "another magic": other_header(0, b"DFPACKEX"),
    "another format": other_header(8, (2).to_bytes(4, "little")),
    "another size": other_header(16, (64).to_bytes(8, "little")),
    "another checksum": other_header(24, bytes(8)),
    "another key": other_header(32, bytes(32)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_detected_and_repaired(store: Path, model: Path, truth: bytes, damage: str) -> None:
    answer(model)
    path = only_entry(store)
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    assert path.read_bytes() != whole
    bits, origin = answer(model)
    assert bits == truth and is_written(origin)
    assert path.read_bytes() == whole
    assert answer(model) == (truth, f"cache ({path})")


def test_another_models_file_under_this_name(store: Path, model: Path, truth: bytes, tiny_checkpoint: Make) -> None:
    answer(model)
    path = only_entry(store)
    path.unlink()
    answer(tiny_checkpoint("distilbert", TASK, seed=5))
    only_entry(store).rename(path)
    bits, origin = answer(model)
    assert bits == truth and is_written(origin)


def test_only_regular_files_are_read(store: Path, model: Path, truth: bytes, tmp_path: Path) -> None:
    answer(model)
    path = only_entry(store)
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert answer(model)[0] == truth and not path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    assert answer(model)[0] == truth and path.is_file()
    path.unlink()
    path.mkdir()
    bits, origin = answer(model)
    assert bits == truth and origin == "packed, cache not writable: Is a directory"
    assert [each.name for each in store.iterdir()] == [path.name]


# --- owners and permissions ---


def test_only_the_user_has_access_to_the_cache(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SETTLED_NS", -(10**18))
    before = os.umask(0)
    try:
        answer(model)
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in store.iterdir()] == [0o600, 0o600]


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_not_read(store: Path, model: Path, truth: bytes, mode: int) -> None:
    answer(model)
    only_entry(store).chmod(mode)
    bits, origin = answer(model)
    assert bits == truth and is_written(origin)
    assert stat.S_IMODE(only_entry(store).stat().st_mode) == 0o600


def status_of(uid: int) -> Callable[[int], SimpleNamespace]:
    """``os.fstat`` as if every file belonged to ``uid``."""
    real = os.fstat

    def status(number: int) -> SimpleNamespace:
        found = real(number)
        return SimpleNamespace(
            **{name: getattr(found, name) for name in dir(found) if name[:3] == "st_"} | {"st_uid": uid}
        )

    return status


def test_a_file_of_another_user_is_not_read(
    store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(model)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", status_of(4242))
        bits, origin = answer(model)
        assert bits == truth and is_written(origin)
        patch.setattr(os, "fstat", status_of(0))  # root can change every file anyway, so its files are trusted
        assert is_read(answer(model)[1])


def test_a_folder_of_another_user_is_not_written(
    store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    if store.stat().st_uid == 0:
        os.chown(store, 4243, -1)
    assert answer(model) == (truth, f"packed, cache not writable: {store} belongs to another user")


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_can_write_is_not_written(store: Path, model: Path, truth: bytes, mode: int) -> None:
    store.mkdir()
    store.chmod(mode)
    assert answer(model) == (truth, f"packed, cache not writable: {store} can be written by other users")
    assert list(store.iterdir()) == []


# --- where nothing can be written ---


def test_off_writes_nothing(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(model)
    before = sorted(store.iterdir())
    shutil.rmtree(store)
    uncached(model)
    assert before and not store.exists()


def test_a_file_in_place_of_the_folder(store: Path, model: Path, truth: bytes) -> None:
    store.write_text("mine")
    for _ in range(2):
        assert answer(model) == (truth, "packed, cache not writable: File exists")
    assert store.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_read(store: Path, model: Path, truth: bytes) -> None:
    answer(model)
    store.chmod(0o500)
    assert answer(model)[0] == truth and is_read(answer(model)[1])
    assert answer(model, precision="bf16")[1] == "packed, cache not writable: Permission denied"
    store.chmod(0o700)


def test_no_home_directory(model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise OSError("there is no home directory")

    monkeypatch.setattr(cache, "cache_directory", none)
    assert answer(model) == (truth, "packed, no cache: there is no home directory")


PROGRAM = """
import os, resource, signal, sys
from distilfast import Engine, cache
{before}
engine = Engine.from_pretrained(sys.argv[1])
print(engine([[2, 5, 9, 200, 3], [2, 77, 3, 0, 0]], [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).logits.tobytes().hex())
print(engine.info()["packed_weights"], flush=True)
{after}
"""


def start(directory: Path, before: str = "", after: str = "") -> subprocess.Popen[str]:
    program = PROGRAM.format(before=before, after=after)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[bytes, str]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    bits, origin = [line for line in out.splitlines() if line != "ready"][:2]  # HELD prints one for each call
    return bytes.fromhex(bits), origin


def test_a_full_disk(store: Path, model: Path, truth: bytes) -> None:
    """A limit on the size of files makes a write fail midway, as on a full disk, and for root too."""
    limited = "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
    assert finish(start(model, limited)) == (truth, "packed, cache not writable: File too large")
    assert list(store.iterdir()) == []
    assert is_written(finish(start(model))[1])


# --- several processes ---


HELD = """
real = {function}
def held(*arguments):
    print("ready", flush=True); sys.stdin.readline(); return real(*arguments)
{function} = held
"""


def wait_until_held(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stdout.readline() == "ready\n"


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_that_start_together_share_one_file(store: Path, model: Path, truth: bytes) -> None:
    """All have packed and found no file when they store their weights: the first writes one, the others map it."""
    shown = "print([line.split()[4] for line in open('/proc/self/maps') if '.packed' in line][0])"
    processes = [start(model, HELD.format(function="cache.Entry.keep"), shown) for _ in range(4)]
    for process in processes:
        wait_until_held(process)
    for process in processes:
        release(process)
    inodes = set()
    for process in processes:
        out, err = process.communicate()
        bits, origin, inode = out.splitlines()
        assert bytes.fromhex(bits) == truth and is_written(origin), err
        inodes.add(int(inode))
    assert inodes == {only_entry(store).stat().st_ino}
    assert list(store.glob(".*")) == []


def test_a_stopped_writer_does_not_block_the_others(store: Path, model: Path, truth: bytes) -> None:
    """Each stops in its write until all have reached it: the others time out waiting, and write for themselves."""
    before = "cache.MOST_WAIT_S = 0.01\n" + HELD.format(function="cache._write")
    processes = [start(model, before) for _ in range(3)]
    for process in processes:
        wait_until_held(process)
    for process in processes:
        release(process)
    for process in processes:
        bits, origin = finish(process)
        assert bits == truth and is_written(origin)
    only_entry(store)
    assert list(store.glob(".*")) == []
    bits, origin = answer(model)
    assert bits == truth and is_read(origin)


def test_threads_at_once(store: Path, model: Path, truth: bytes) -> None:
    found: list[tuple[bytes, str]] = []
    threads = [threading.Thread(target=lambda: found.append(answer(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [bits for bits, _ in found] == [truth] * 4 and all(is_read(o) or is_written(o) for _, o in found)


def test_two_processes_share_the_pages(store: Path, tiny_checkpoint: Make) -> None:
    """Pss counts a process's share of each page: half where two processes map it, the writer of the file included."""
    model = tiny_checkpoint("distilbert", TASK, config={"hidden_dim": 4096})
    processes = []
    try:
        for expected in (is_written, is_read):
            processes.append(process := start(model, after="sys.stdin.readline()"))
            assert process.stdout is not None
            assert process.stdout.readline() and expected(process.stdout.readline().strip())
        entry = only_entry(store)
        for process in processes:
            sizes = mapping(process.pid, entry)
            assert sizes["Rss"] * 1024 >= entry.stat().st_size > 2_000_000
            assert sizes["Private_Dirty"] == 0
            assert sizes["Pss"] <= 0.55 * sizes["Rss"]
    finally:
        for process in processes:
            process.communicate("\n")


def mapping(pid: int, path: Path) -> dict[str, int]:
    """KiB of a process's mapping of ``path``, by the names of /proc/<pid>/smaps."""
    lines = iter(Path(f"/proc/{pid}/smaps").read_text().splitlines())
    assert any(line.endswith(str(path)) for line in lines)
    sizes = {}
    for line in lines:
        words = line.split()
        if not words[0].endswith(":"):
            break
        if words[-1] == "kB":
            sizes[words[0][:-1]] = int(words[1])
    return sizes


# --- killed while writing ---


def killed_at(size: int) -> str:
    """The kernel kills the process when its file would exceed ``size`` bytes: in the middle of a write."""
    return (
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    )


def killed_before(function: str) -> str:
    return f"os.{function} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)"


MOMENTS = [
    *(killed_at(size) for size in sorted(random.Random(1).sample(range(1, 60_000), 6))),
    killed_before("rename"),
    "real = os.rename\nos.rename = lambda *names: (real(*names), os.kill(os.getpid(), signal.SIGKILL))",
    "cache._evict = lambda path: os.kill(os.getpid(), signal.SIGKILL)",
]


@pytest.mark.parametrize("moment", MOMENTS, ids=range(len(MOMENTS)))
def test_killed_while_writing(store: Path, model: Path, truth: bytes, moment: str) -> None:
    process = start(model, moment)
    process.communicate()
    assert process.returncode in (-signal.SIGKILL, -signal.SIGXFSZ)
    left = list(store.glob(".*.tmp"))
    assert len(left) + len(entries(store)) == 1
    bits, origin = finish(start(model))
    assert bits == truth and (is_written(origin) if left else is_read(origin))
    assert list(store.glob(".*")) == []
    bits, origin = answer(model)
    assert bits == truth and is_read(origin)


def test_the_file_of_a_running_writer_is_not_removed(
    store: Path, model: Path, tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(model, HELD.format(function="os.rename"))
    wait_until_held(process)
    monkeypatch.setattr(cache, "MOST_WAIT_S", 0.01)
    assert is_written(answer(tiny_checkpoint("distilbert", TASK, seed=5))[1])  # removes abandoned files
    assert process.stdin is not None
    process.stdin.write("\n" * 3)
    process.stdin.flush()
    assert is_written(finish(process)[1])
    assert len(entries(store)) == 2


def test_a_file_that_is_mistaken_for_abandoned_is_created_again(
    store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process removes it between its creation and its lock."""
    lock, taken = fcntl.flock, []

    def late(number: int, operation: int) -> None:
        if operation & fcntl.LOCK_NB:  # the lock of the one writer
            return lock(number, operation)
        monkeypatch.setattr(fcntl, "flock", lock)
        taken.extend(store.glob(".*"))
        cache._remove_abandoned(store)
        lock(number, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    bits, origin = answer(model)
    assert len(taken) == 1 and bits == truth and is_written(origin)
    assert list(store.iterdir()) == [only_entry(store)]


def test_a_file_system_without_locks(store: Path, model: Path, truth: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(number: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    assert answer(model) == (truth, "packed, cache not writable: No locks available")
    assert list(store.iterdir()) == []


# --- its size and location ---


def test_least_recently_used_goes_first(store: Path, tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    directories = [tiny_checkpoint("distilbert", TASK, seed=seed) for seed in (1, 2, 3, 4)]
    paths = []
    for directory in directories[:3]:
        answer(directory)
        (path,) = set(entries(store)) - set(paths)
        os.utime(path, ns=(0, 10**9 * (1 + len(paths))))  # last used long ago, in this order
        paths.append(path)
    assert is_read(answer(directories[0])[1])  # and now used again
    monkeypatch.setattr(cache, "MOST_BYTES", 3 * paths[0].stat().st_size)
    answer(directories[3])
    (last,) = set(entries(store)) - set(paths)
    assert entries(store) == sorted([paths[0], paths[2], last])
    monkeypatch.setattr(cache, "MOST_BYTES", 1)
    answer(directories[1])
    assert is_read(answer(directories[1])[1])  # the newest is kept, whatever its size
    only_entry(store)


def test_the_location_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("DISTILFAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert config.cache_directory() == Path("/home/someone/.cache/distilfast")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert config.cache_directory() == Path("/home/someone/.cache/distilfast")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert config.cache_directory() == Path("/var/cache/distilfast")
    assert info()["cache"] == "/var/cache/distilfast"
    monkeypatch.setenv("DISTILFAST_CACHE", "~/here")
    assert config.cache_directory() == Path("/home/someone/here")
    for off in ("off", "OFF", "Off"):
        monkeypatch.setenv("DISTILFAST_CACHE", off)
        assert config.cache_directory() is None and info()["cache"] == "off"
    monkeypatch.setenv("DISTILFAST_CACHE", "~nobody-of-this-name/here")
    with pytest.raises(OSError, match="there is no home directory"):
        config.cache_directory()
    assert info()["cache"] == "none: there is no home directory"


def test_a_pickle_is_not_cached(store: Path, model: Path, truth: bytes) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert answer(model) == (truth, "packed, not cached: they are not from safetensors files")
    assert not store.exists()


@pytest.fixture(autouse=True)
def no_core_files() -> Iterator[None]:
    """A process killed by SIGXFSZ would leave one."""
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, limits)
