"""The benchmark kit: its figures for known samples are right, and its workers, rows, tables and plots work."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.progress import Progress

from benchmarks import front_page, measure, report, roofs, rows, run, tables, timing, workloads
from benchmarks import worker as worker_module
from benchmarks.engines import Contestant, contestants, no_gpu
from benchmarks.worker import Failure, Runner, Worker
from distilfast.backends import cuda

ORIGIN = {
    "machine": {"processor": "P", "isa": "avx2", "cores": 2},
    "versions": {"python": "3"},
    "commit": "abc",
    "command": "python -m benchmarks.run",
    "when": "2026-01-01T00:00:00+00:00",
}


def latency_row(contestant: str, case: str, p50: float, ratio: float = 1.0) -> rows.Row:
    return {
        "what": "latency",
        "contestant": contestant,
        "precision": "fp32",
        "case": case,
        "threads": 2,
        "p50_ms": p50,
        "p90_ms": p50,
        "p99_ms": p50,
        "ratio_to_distilfast": {"fp32": {"median": ratio, "low": ratio, "high": ratio}},
        **ORIGIN,
    }


def test_percentiles():
    found = timing.percentiles([i / 1000 for i in range(1, 101)])
    assert found == pytest.approx({"p50_ms": 50.5, "p90_ms": 90.1, "p99_ms": 99.01})


def test_every_input_is_sampled_equally_often():
    calls: list[int] = []
    assert len(timing.samples(lambda: calls.append(1), seconds=0.0, every=5)) == len(calls) == 5
    assert len(timing.samples(lambda: None, seconds=0.01, every=3)) % 3 == 0


class FakeGpu:
    """The part of ``torch`` that the clock uses: it logs the calls in order, and each kernel takes 2 ms."""

    uint8 = "uint8"
    L2 = 1000

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now_ms = 0.0
        self.pending = 0
        self.cuda = self
        self.buffers: list[int] = []

    def kernel(self, name: str) -> None:
        """Enqueued, and complete at the next synchronisation."""
        self.log.append(name)
        self.pending += 1

    def synchronize(self) -> None:
        self.log.append("synchronize")
        self.now_ms += 2.0 * self.pending
        self.pending = 0

    def get_device_properties(self) -> SimpleNamespace:
        return SimpleNamespace(L2_cache_size=self.L2)

    def empty(self, size: int, dtype: str, device: str) -> SimpleNamespace:
        assert (dtype, device) == ("uint8", "cuda")
        self.buffers.append(size)
        return SimpleNamespace(zero_=lambda: self.kernel("flush"))

    def Event(self, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.at_ms: float | None = None

    def record(self) -> None:
        """Reached when everything enqueued before it is complete."""
        self.gpu.log.append("record")
        self.at_ms = self.gpu.now_ms + 2.0 * self.gpu.pending

    def synchronize(self) -> None:
        self.gpu.synchronize()

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.gpu.pending == 0, "read before it was reached"
        return end.at_ms - self.at_ms


def test_the_gpu_clock_measures_the_call_alone():
    gpu = FakeGpu()
    clock = timing.CudaClock(gpu, cold=False)
    assert clock(lambda: [gpu.kernel("a"), gpu.kernel("b")]) == pytest.approx(0.004)
    assert gpu.log == ["synchronize", "record", "a", "b", "record", "synchronize"]
    assert gpu.buffers == []


def test_the_l2_is_flushed_before_each_call_and_outside_its_time():
    gpu = FakeGpu()
    clock = timing.CudaClock(gpu, cold=True)
    assert [clock(lambda: gpu.kernel("call")) for _ in range(2)] == pytest.approx([0.002, 0.002])
    assert gpu.log == ["flush", "synchronize", "record", "call", "record", "synchronize"] * 2
    assert len(gpu.buffers) == 1 and gpu.buffers[0] > gpu.L2


def test_a_runner_on_a_gpu_copies_its_inputs_before_it_is_timed(tiny, monkeypatch):
    """It omits a mask without padding, and returns outputs as numpy."""
    torch = pytest.importorskip("torch", reason="torch is not installed (pip install torch)")
    seen, gpu = [], FakeGpu()
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    monkeypatch.setattr(torch, "cuda", gpu)
    monkeypatch.setattr(torch, "empty", lambda size, **_: gpu.empty(size, gpu.uint8, "cuda"))

    def forward(ids, mask):
        seen.append((type(ids).__module__, mask is None))
        gpu.kernel("forward")
        return torch.ones(*ids.shape, 2, dtype=torch.bfloat16)

    runner = Runner(forward, Contestant("transformers", "bf16", "sdpa", "cuda"), tiny)
    equal, ragged = workloads.Case(2, 5).batches(tiny), workloads.Case(2, 5, ragged=True).batches(tiny)
    assert runner.outputs(equal)[0].dtype == np.float32
    assert runner.samples(equal + ragged, 0.0, warm=True, cold_l2=True) == pytest.approx([0.002, 0.002])
    assert gpu.log.count("flush") == 2
    assert seen == [("torch", True), ("torch", True), ("torch", False)]


def test_the_interval_of_a_ratio_contains_the_true_one():
    """Two contestants whose medians have the ratio 1.5, in rounds with a common drift; the intervals are of 95 %."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(40):
        drift = rng.uniform(1, 2, 12)
        ours, theirs = ([list(d * scale * rng.lognormal(0, 0.05, 8)) for d in drift] for scale in (1.0, 1.5))
        ratio, low, high = timing.ratio(theirs, ours, draws=300)
        assert low <= ratio <= high
        inside += low <= 1.5 <= high
    assert inside >= 34


def test_a_row_without_provenance_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [latency_row("distilfast", "1x16", 1.0)])
    rows.append(path, [{"what": "latency", "machine": {}, "commit": "abc"}])
    with pytest.raises(ValueError, match=r"rows.jsonl:2 has no machine, versions, command, when; .*"):
        rows.read([path])


def test_rows_are_appended(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    for case in ("1x16", "1x128"):
        rows.append(path, [latency_row("distilfast", case, 1.0)])
    assert [row["case"] for row in rows.read([path])] == ["1x16", "1x128"]


def test_provenance_is_complete():
    origin = rows.provenance()
    assert all(origin[name] for name in rows.PROVENANCE)
    assert json.loads(json.dumps(origin)) == origin


def test_a_report_uses_all_runs_of_the_newest_file():
    """Each kind of measurement comes from the newest file that has it; of repeated rows the last one counts."""
    first = [latency_row("distilfast", "1x16", 1.0), latency_row("other", "1x16", 2.0)]
    later = {"when": "2026-01-02T00:00:00+00:00"}
    second = [latency_row("other", "1x16", 3.0) | later, {**latency_row("distilfast", "", 0), "what": "text"} | later]
    old = [latency_row("old", "1x16", 9.0) | {"when": "2025-01-01T00:00:00+00:00"}]
    on_gpu = [latency_row("distilfast triton", "1x16", 0.2) | {"device": "cuda", "when": "2025-06-01T00:00:00+00:00"}]
    found = report.latest([old, first + second, on_gpu])
    assert {(row["contestant"], row["p50_ms"], row["what"]) for row in found} == {
        ("distilfast", 1.0, "latency"),
        ("other", 3.0, "latency"),
        ("distilfast", 0, "text"),
        ("distilfast triton", 0.2, "latency"),
    }
    titles = [title for title, _ in tables.sections(found)]
    assert "Latency of the encoder" in titles and "Latency of the encoder (GPU)" in titles


def test_rows_are_kept_if_a_later_measurement_fails(tiny, tmp_path, monkeypatch):
    def fail(_run):
        raise KeyboardInterrupt
        yield

    out = tmp_path / "rows.jsonl"
    monkeypatch.setitem(measure.ALL, "memory", fail)
    words = ["--model", tiny, "--contestants", "distilfast fp32", "--only", "cold_start", "memory", "--quick"]
    monkeypatch.setattr("sys.argv", ["run.py", *map(str, words), "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        run.main()
    found = rows.read([out])
    assert [(row["what"], row.get("case")) for row in found] == [
        ("parity", None),
        ("cold_start", "prepared"),
        ("cold_start", "first start"),
    ]
    assert all(row["detail"].endswith("fp32, 2 threads") or row["detail"] for row in rows.read([out]))


def test_ragged_cases_have_one_sequence_of_full_length(tiny):
    [(ids, mask)] = workloads.Case(16, 9, ragged=True).batches(tiny)
    lengths = mask.sum(axis=1)
    assert lengths[0] == 9 and lengths.min() >= 1 and len(set(lengths)) > 3
    assert (ids[mask == 0] == 0).all()
    assert {"256x128", "256x128 ragged"} <= {case.name for case in workloads.grid("cuda")}
    assert "256x128" not in {case.name for case in workloads.grid("cpu")}


def test_pad():
    ids, mask = workloads.pad([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_tables():
    found = [latency_row("distilfast", "1x16", 2.0), latency_row("other", "1x16", 3.0, 1.5)]
    found.append(latency_row("other", "1x128", 9.0, 3.0))
    assert tables.latencies(found) == [
        ["median ms", "1x16", "1x128"],
        ["distilfast fp32", "2.00", "–"],
        ["other fp32", "3.00", "9.00"],
    ]
    assert tables.ratios(found)[1] == ["other fp32 / fp32", "1.50 [1.50, 1.50]", "3.00 [3.00, 3.00]"]
    assert tables.markdown([["a", "b"], ["1|2", "3"]]) == "| a | b |\n| --- | ---: |\n| 1\\|2 | 3 |"


def test_tables_of_the_state():
    more = {"share_of_roof": 0.51, "state": state() | {"kind": "near"}, "rounds_of_another_state": 1}
    shown = dict(tables.sections([latency_row("distilfast", "1x16", 2.0) | more]))
    assert shown["Time of the linears at the machine's peaks / time of the forward"][1] == ["distilfast fp32", "51%"]
    assert shown["The machine meanwhile"][1] == ["1x16", "30 (near)", "fp32_fma 100", "20", "1"]
    assert "The machine meanwhile" not in dict(tables.sections([latency_row("distilfast", "1x16", 2.0)]))


def test_a_contestant_is_compared_with_its_own_precision():
    """With ours of the same precision, or else with our fp32; on a GPU with our first backend."""
    interval = {"median": 1.0, "low": 1.0, "high": 1.0}

    def against(precision: str, *ours: str) -> str:
        return tables.yardstick({"precision": precision, "ratio_to_distilfast": dict.fromkeys(ours, interval)})

    assert against("bf16", "fp32", "bf16") == "bf16"
    assert against("int8", "bf16", "fp32") == "fp32"
    assert against("fp16", "triton fp32", "triton fp16", "cuda fp16") == "triton fp16"


def test_the_committed_tables_and_plot_are_those_of_the_rows():
    """By ``python -m benchmarks.report --publish``, and by nothing else."""
    files = [rows.read([path]) for path in sorted(rows.RESULTS.glob("*.jsonl"))]
    for path, text in report.published(report.by_machine(report.latest(files))).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what benchmarks.report --publish writes"


def test_machines_are_not_mixed():
    """Not even where another machine's rows are newer; RESULTS.md has a chapter for each, with its origin."""
    other = {"machine": {"processor": "Q", "isa": "amx", "cores": 4}, "when": "2026-02-01T00:00:00+00:00"}
    files = [
        [latency_row("distilfast", "1x16", 2.0), latency_row("distilfast", "1x32", 3.0)],
        [latency_row("distilfast", "1x16", 7.0) | other],
    ]
    machines = report.by_machine(report.latest(files))
    assert [[row["p50_ms"] for row in found] for found in machines] == [[2.0, 3.0], [7.0]]
    first, second = report.results(machines).split("## Machine 2: Q, amx, 4 cores")
    assert "| distilfast fp32 | 2.00 | 3.00 |" in first and "| distilfast fp32 | 7.00 |" in second
    assert "2026-02-01: `python -m benchmarks.run`" in second


def front_page_run(when: str, longest: float) -> list[rows.Row]:
    names = [name.rpartition(" ") for name in front_page.CONTESTANTS]
    cases = ("1x16", "1x128", "8x128")
    made = [latency_row(name, case, 1.0) | {"precision": last} for name, _, last in names for case in cases]
    made[-2]["p50_ms"] = longest  # 1x128 of the last contestant
    return [row | {"when": when} for row in made]


def test_the_front_page_shows_the_newest_whole_run():
    old, new = front_page_run("2026-01-01T00:00:00+00:00", 5.0), front_page_run("2026-01-02T00:00:00+00:00", 4.0)
    newest = front_page_run("2026-01-03T00:00:00+00:00", 9.0)[:-1]  # it lacks a case
    run = front_page.comparison([old, new + newest])
    assert {row["when"] for row in run} == {"2026-01-02T00:00:00+00:00"}
    assert "| CTranslate2 int8 | 1.00 | 4.00 | 1.00 |" in front_page.markdown(run, ["here"])
    with pytest.raises(SystemExit, match="no run has all"):
        front_page.comparison([newest])


def test_the_bars_of_a_length_have_one_scale():
    drawn = ElementTree.fromstring(front_page.plot(front_page_run("2026-01-02T00:00:00+00:00", 4.0)))
    bars = [node for node in drawn.iter() if node.get("class") in ("ours", "other") and node.tag.endswith("rect")]
    short, long = ([float(bar.get("width")) for bar in bars[i::2]] for i in (0, 1))
    assert len(short) == len(long) == 8 and len(set(short)) == 1
    assert long[-1] == pytest.approx(4 * long[0], abs=0.2) and set(long[:-1]) == {long[0]}
    widths = [float(bar.get("x")) + float(bar.get("width")) for bar in bars]
    assert max(widths) + 45 < float(drawn.get("width"))  # beside the longest there is room for its figure


def test_the_part_of_the_readme_is_between_its_marks():
    marked = "before\n<!-- results -->\nold\n<!-- end of results -->\nafter\n"
    assert report.filled(marked, "new") == "before\n<!-- results -->\n\nnew\n\n<!-- end of results -->\nafter\n"
    with pytest.raises(SystemExit, match="lacks the marks"):
        report.filled("before", "new")


def test_the_page_escapes_what_it_shows():
    row = latency_row("<b>", "1x16", 2.0)
    assert "&lt;b&gt; fp32" in report.page([[row]], {})


def test_every_contestant_names_its_precision():
    every = contestants()
    names = {
        "distilfast fp32",
        "transformers eager bf16",
        "transformers sdpa fp32",
        "openvino bf16",
        "ctranslate2 int8",
    }
    assert names <= set(map(str, every))
    for contestant in every:
        reason = contestant.module.unavailable(contestant)
        assert reason is None or reason.endswith(".")
        assert contestant.precision in measure.WRONG


def test_contestants_are_unavailable_on_the_wrong_device():
    reasons = {str(each): each.module.unavailable(each) for each in contestants("cpu")}
    assert reasons["distilfast triton fp32"] == "The backend triton is not for --device cpu."
    assert reasons["transformers sdpa fp16"].startswith("fp16 needs a GPU")
    reasons = {str(each): each.module.unavailable(each) for each in contestants("cuda")}
    assert reasons["onnxruntime fp32"] == "onnxruntime is compared on the CPU only."
    assert reasons["distilfast fp32"] == "The backend cpu is not for --device cuda."
    if no_gpu():
        assert all(reasons.values())


def test_an_option_that_the_device_lacks_is_unavailable(monkeypatch):
    """Without clusters the contestant would run the default."""
    from benchmarks.engines import distilfast as ours

    monkeypatch.setattr(cuda, "unavailable", lambda: None)
    monkeypatch.setattr(ours, "no_gpu", lambda: None)
    clusters, plain = (Contestant("distilfast", "bf16", name, "cuda") for name in ("cuda clusters", "cuda"))
    lacking = "The device has no clusters of blocks; they need compute capability 9.0 or newer."
    for architecture, reason in ((89, lacking), (90, None)):
        monkeypatch.setattr(cuda, "extension", lambda found=architecture: SimpleNamespace(architecture=lambda: found))
        assert ours.unavailable(clusters) == reason
        assert ours.unavailable(plain) is None


@pytest.mark.parametrize(
    ("variant", "switched_on"),
    [("cuda", []), ("cuda persistent", ["PERSISTENT"]), ("cuda clusters", ["CLUSTERS"])],
)
def test_an_option_is_on_only_in_its_own_contestant(monkeypatch, variant, switched_on):
    from benchmarks.engines import distilfast as ours

    switches = ("PERSISTENT", "CLUSTERS")
    for name in switches:
        monkeypatch.setattr(cuda, name, False)
    loads = lambda *_, backend, **__: SimpleNamespace(info=lambda: {"detail": backend})  # noqa: E731
    monkeypatch.setattr("distilfast.Engine.from_pretrained", loads)
    monkeypatch.setattr(ours, "_on_device", lambda engine, **_: engine.info)
    loaded = ours.load(Contestant("distilfast", "bf16", variant, "cuda"), Path(), 1, Path())
    assert loaded.detail == "cuda"
    assert [name for name in switches if getattr(cuda, name)] == switched_on


@pytest.mark.parametrize(("flags", "unit"), [(["avx512_bf16", "amx_bf16"], "amx_bf16"), (["avx512f"], None)])
def test_openvino_has_bf16_only_with_bf16_instructions(monkeypatch, flags, unit):
    from benchmarks.engines import openvino

    monkeypatch.setattr(openvino, "processor_flags", lambda: flags)
    assert openvino._bf16_unit() == unit
    reason = openvino.unavailable(Contestant("openvino", "bf16")) or ""
    assert ("no units for bf16" in reason) is (unit is None)


def state(ping: float = 30.0, fp32: float = 100.0, reading: float = 20.0) -> roofs.State:
    return {"ping_ns": ping, "giga_operations": {"fp32_fma": fp32}, "read_gb_by_mib": {"170": reading}}


def test_a_state_is_read_until_two_agree():
    readings = [state(fp32=50.0), state(fp32=101.0), state(fp32=100.0, reading=19.5), state()]
    found = roofs.settled(iter(readings).__next__)
    assert found["giga_operations"] == {"fp32_fma": 101.0}
    assert found["read_gb_by_mib"] == {"170": 20.0}
    unsteady = [state(fp32=100.0 * 2**i) for i in range(roofs.TRIES + 1)]
    assert roofs.settled(iter(unsteady).__next__)["giga_operations"] == {"fp32_fma": 100.0 * 2 ** (roofs.TRIES - 1)}


def test_only_rounds_of_one_state_are_counted(tiny):
    pings = [30, 30, 200, 30, 25, 28]
    states = [(state(before), state(after)) for before, after in zip(pings, pings[1:], strict=False)]
    readings = {Worker(contestants()[0], tiny, 1, tiny): [[float(i)] for i in range(5)]}
    facts = measure._of_one_state(readings, states, {"fp32_fma": 100.0})
    assert list(readings.values()) == [[[0.0], [3.0], [4.0]]]
    assert facts["rounds_of_another_state"] == 2
    assert facts["state"]["kind"] == "near" and facts["state"]["ping_ns"] == 29.0


def test_rounds_beside_a_busy_process_are_counted_only_where_there_are_no_others(tiny):
    worker = Worker(contestants()[0], tiny, 1, tiny)
    states = [(state(ping, fp32), state(ping, fp32)) for ping, fp32 in ((2000, 50), (30, 99), (1500, 79))]
    readings = {worker: [[float(i)] for i in range(3)]}
    facts = measure._of_one_state(readings, states, {"fp32_fma": 100.0})
    assert readings[worker] == [[1.0]] and facts["state"]["kind"] == "near"
    readings = {worker: [[float(i)] for i in range(2)]}
    facts = measure._of_one_state(readings, [states[0], states[2]], {"fp32_fma": 100.0})
    assert readings[worker] == [[0.0], [1.0]] and facts["state"]["kind"] == "busy"


def test_the_roof_is_the_longer_of_computing_and_reading():
    row = {"precision": "fp32", "linear_flops": 1e9, "linear_bytes": 1e8, "p50_ms": 20.0, "state": state()}
    assert measure._share_of_roof(row) == pytest.approx({"roof_ms": 10.0, "share_of_roof": 0.5})
    row["linear_bytes"] = 3e8
    assert measure._share_of_roof(row) == pytest.approx({"roof_ms": 15.0, "share_of_roof": 0.75})
    assert measure._share_of_roof(row | {"precision": "int8"}) == {}
    row |= {"linear_bytes": 1e8, "state": state() | {"giga_operations": {"fp32_fma": 100.0, "bf16_amx": 900.0}}}
    assert measure._share_of_roof(row)["roof_ms"] == pytest.approx(1e9 / 150 * 1e-6)  # six products of bf16


def test_the_program_of_the_roofs_reads_a_state():
    made = roofs.program(1)
    assert not isinstance(made, str), made
    found = made.run("state")
    made.close()
    assert found["read_gb_by_mib"].keys() == {"170"} and found["read_gb_by_mib"]["170"] > 0
    assert found["giga_operations"] and found["ping_ns"] >= 0


def test_a_case_that_there_is_not_ends_the_run_before_anything_is_prepared(monkeypatch):
    assert workloads.no_case(["1x16", "32x128"], "cpu", quick=False) is None
    assert "no case 1x17; there are 1x8, " in str(workloads.no_case(["1x16", "1x17"], "cpu", quick=False))
    monkeypatch.setattr(workloads, "unavailable", lambda: "the folder is absent.")
    wrong = str(workloads.no_case(["clinc150 x32"], "cpu", quick=False))
    assert wrong.endswith("clinc150 x32 needs real text: the folder is absent.")
    monkeypatch.setattr("sys.argv", ["run", "--cases", "1x17"])
    monkeypatch.setattr(run, "_checkpoint", lambda *_: pytest.fail("a checkpoint was prepared"))
    with pytest.raises(SystemExit, match="error: no case 1x17; there are"):
        run.main()


def test_without_a_gpu_there_is_no_gpu_roof():
    reason = no_gpu()
    if reason is None:
        pytest.skip("there is a GPU")
    assert roofs.measure_gpu() == {"reason": reason}


@pytest.fixture
def tiny(tiny_checkpoint) -> Path:
    return tiny_checkpoint("distilbert", "feature-extraction")


@pytest.fixture
def worker(tiny, tmp_path):
    worker = Worker(Contestant("distilfast", "fp32"), tiny, 1, tmp_path)
    worker.load()
    yield worker
    worker.close()


def test_a_worker_answers_and_takes_samples(worker, tiny):
    batches = workloads.Case(2, 5).batches(tiny)
    [output] = worker("outputs", batches)
    assert output.shape == (2, 5, 32)
    assert len(worker("samples", batches * 2, 0.0, False)) == 2
    assert len(worker("text_samples", [["one"], ["a text", "two"]], 0.0, False)) == 2
    assert len(worker("memory_of_shapes", [(1, 3)] * 9, 1, 0.0)) == 2
    assert len(worker("memory_of_shapes", [(1, 3)] * 9, 3, 60.0)) == 3
    assert min(worker("load", batches, 200.0, 0.1)) > 0


def test_packed_weights_are_cached_in_the_folder_of_the_run(worker, tiny, tmp_path, packed_weights):
    users = sorted(packed_weights.iterdir())
    assert len(list((tmp_path / "packed").glob("*.packed"))) == 1
    other = Worker(Contestant("distilfast", "fp32"), tiny, 1, tmp_path, tmp_path / "other")
    other.load()
    other.close()
    assert len(list((tmp_path / "other").glob("*.packed"))) == 1
    assert sorted(packed_weights.iterdir()) == users


def test_cold_starts_are_side_by_side():
    row = {"what": "cold_start", "contestant": "distilfast", "precision": "fp32", "seconds": 0.2}
    other = row | {"contestant": "other", "seconds": 3.0}
    assert tables.cold_start([row | {"case": "prepared"}, row | {"case": "first start", "seconds": 0.4}, other]) == [
        ["process start to first answer, s", "prepared", "first start"],
        ["distilfast fp32", "0.20", "0.40"],
        ["other fp32", "3.00", "–"],
    ]


def test_a_failure_is_one_line_and_the_worker_survives(worker, tiny):
    with pytest.raises(Failure, match=r"^InputError: Row 0 of input_ids has 999; the model's table holds 0 to 255\.$"):
        worker("outputs", [(np.full((1, 3), 999), np.ones((1, 3), np.int64))])
    assert worker("outputs", workloads.Case(1, 2).batches(tiny))


def test_a_checkpoint_that_cannot_be_loaded_is_a_failure(tmp_path):
    worker = Worker(Contestant("distilfast", "fp32"), tmp_path, 1, tmp_path)
    with pytest.raises(Failure, match="^ConfigError: .*config.json does not exist"):
        worker.load()
    worker.close()


def test_a_wrong_answer_gets_the_verdict_wrong(worker, tiny, monkeypatch):
    run = SimpleNamespace(workers=[worker], directory=tiny, progress=Progress(disable=True))
    assert [row["verdict"] for row in measure.parity(run)] == ["right"]
    monkeypatch.setitem(measure.WRONG, "fp32", 1e-12)
    assert [row["verdict"] for row in measure.parity(run)] == ["wrong"]


def test_a_worker_that_does_not_answer_in_time_is_ended(worker, tiny, monkeypatch):
    monkeypatch.setattr(worker_module, "TIMEOUT", 0.05)
    with pytest.raises(Failure, match="There was no answer within 0 s"):
        worker("load", workloads.Case(1, 4).batches(tiny), 1.0, 5.0)
    with pytest.raises(Failure, match="The process has ended"):
        worker("peak_memory")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_plot_is_made_of_rows(tmp_path, device):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install distilfast[bench])")
    name = "distilfast triton" if device == "cuda" else "distilfast"
    found = [latency_row(name, case, 2.0) for case in ("1x16", "1x128")]
    found += [
        {
            **latency_row("other", case, 3.0),
            "ratio_to_distilfast": {
                f"{name} fp32".removeprefix("distilfast "): {"median": 1.5, "low": 1.4, "high": 1.6}
            },
        }
        for case in ("1x16", "1x128")
    ]
    for row in found:
        row |= {"device": device, "linear_flops": 1e9, "linear_bytes": 1e8, "share_of_roof": 0.8}
    speeds = {"copy_gb": 4000.0} if device == "cuda" else {"read_gb_by_mib": {"340": 30.0}}
    found.append({"what": "roof", "device": device, "giga_operations": {"fp32": 300.0}, **speeds, **ORIGIN})
    suffix = "_gpu" if device == "cuda" else ""
    assert set(report.write_plots(found, tmp_path)) == {
        f"{name}{suffix}" for name in ("latency_by_length", "ratio_map", "roofline", "share_of_roof")
    }
