"""``SentenceTransformer`` on our kernels, ``encode`` of our own, and the embedders of LangChain and Haystack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from one_sentence import raises_one_sentence

import distilfast
from distilfast import InputError

library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is what is compared with")

from sentence_transformers.sentence_transformer.modules import Normalize, Pooling  # noqa: E402

from distilfast.integrations import sentence_transformers as ours  # noqa: E402
from distilfast.pipelines.quantized_vectors import quantized  # noqa: E402

TEXTS = ["a film about a dog", "What?", "rain " * 300, "Zürich is nice", ""]


@pytest.fixture(scope="module")
def model(minilm: Path) -> Any:
    return library.SentenceTransformer(str(minilm), device="cpu")


@pytest.fixture(scope="module")
def pipe(minilm: Path) -> Any:
    return distilfast.pipeline("feature-extraction", minilm)


@pytest.fixture(scope="module", params=["accelerate", "Transformer"])
def fast(request: pytest.FixtureRequest, model: Any, minilm: Path) -> Any:
    if request.param == "accelerate":
        return ours.accelerate(model)
    modules = [ours.Transformer(minilm, 256), Pooling(384, "mean"), Normalize()]
    return library.SentenceTransformer(modules=modules, device="cpu", prompts=model.prompts)


def test_the_library_gives_its_own_vectors(fast: Any, model: Any) -> None:
    np.testing.assert_allclose(fast.encode(TEXTS), model.encode(TEXTS), rtol=0, atol=1e-5)
    np.testing.assert_allclose(fast.encode("one"), model.encode("one"), rtol=0, atol=1e-5)
    got, want = (each.encode(TEXTS, prompt="query: ", batch_size=2) for each in (fast, model))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert fast.max_seq_length == model.max_seq_length and fast.get_embedding_dimension() == 384


def test_the_accelerated_model_leaves_the_other_as_it_is(model: Any) -> None:
    before = model.encode(TEXTS)
    fast = ours.accelerate(model, precision="int8")
    assert fast[0].model.engine.precision == "int8"
    assert (model.encode(TEXTS) == before).all() and type(model[0].model) is not type(fast[0].model)
    raises_one_sentence(InputError, "no SentenceTransformer", lambda: ours.accelerate(model[0]))


def test_the_evaluator_of_the_library(fast: Any, model: Any, sentences: Any) -> None:
    """Semantic similarity of real sentences, against scores that the library's own model gives with noise."""
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    first, second = sentences(40, (3, 20), seed=1), sentences(40, (3, 20), seed=2)
    close = np.sum(model.encode(first) * model.encode(second), axis=1)
    scores = close + np.random.default_rng(0).normal(0, 0.1, len(close))
    evaluate = EmbeddingSimilarityEvaluator(first, second, scores.tolist())
    got, want = evaluate(fast), evaluate(model)
    assert want.keys() == got.keys() and len(want) >= 2
    assert all(abs(got[key] - want[key]) < 1e-4 and 0.1 < want[key] < 1 for key in want)


def test_prompts_that_are_not_pooled(minilm: Path) -> None:
    pooling = [Pooling(384, "mean", include_prompt=False), Pooling(384, "mean", include_prompt=False)]
    theirs = library.SentenceTransformer(
        modules=[library.models.Transformer(str(minilm), max_seq_length=128), pooling[0]], device="cpu"
    )
    fast = library.SentenceTransformer(modules=[ours.Transformer(minilm, 128), pooling[1]], device="cpu")
    got, want = (each.encode(TEXTS, prompt="a query: ") for each in (fast, theirs))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert np.abs(want - theirs.encode(TEXTS)).max() > 1e-3


def test_the_module_is_saved_and_refuses_other_tasks(minilm: Path, tmp_path: Path) -> None:
    ours.Transformer(minilm).save(str(tmp_path))
    again = library.SentenceTransformer(modules=[ours.Transformer(tmp_path), Pooling(384, "cls")], device="cpu")
    assert again.encode("a").shape == (384,)
    from distilfast.synthetic import write_checkpoint

    tiny = {"model_type": "distilbert", "dim": 32, "n_heads": 2, "n_layers": 1, "hidden_dim": 32, "vocab_size": 256}
    engine = distilfast.Engine.from_pretrained(write_checkpoint(tmp_path / "x", task="fill-mask", config=tiny))
    raises_one_sentence(InputError, "not for feature-extraction", lambda: ours.Transformer(engine))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_embeddings": True},
        {"truncate_dim": 100},
        {"truncate_dim": 100, "normalize_embeddings": True},
        {"prompt": "query: ", "batch_size": 2},
        {"precision": "binary"},
        {"precision": "ubinary"},
        {"precision": "int8"},
        {"precision": "uint8"},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
    ],
    ids=str,
)
def test_encode_is_that_of_the_library(pipe: Any, model: Any, options: dict[str, Any]) -> None:
    """Of numbers rounded to one byte some fall on the other side of a step."""
    got, want = pipe.encode(TEXTS, **options), model.encode(TEXTS, **options)
    assert type(got) is type(want) and len(got) == len(want)
    first, second = (np.stack([np.asarray(row) for row in each]) for each in (got, want))
    assert first.dtype == second.dtype and first.shape == second.shape
    largest = np.abs(first.astype(np.float64) - second.astype(np.float64)).max()
    precision = options.get("precision", "float32")
    assert largest <= {"float32": 1e-5, "int8": 1, "uint8": 1}.get(precision, 0)


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("shape", [(2, 7), (50, 64), (0, 8)])
def test_vectors_are_quantised_as_the_library_does(precision: str, shape: tuple[int, int]) -> None:
    """The same vectors; a column that does not vary among them."""
    vectors = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    vectors[:, 3] = 0.5
    want = library.util.quantize_embeddings(vectors, precision=precision)
    got = quantized(vectors, precision)
    assert got.dtype == want.dtype and got.shape == want.shape and (got == want).all()


def test_encode_takes_prompts_by_name(minilm: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(minilm, tmp_path / "model")
    path = tmp_path / "model" / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": {"query": "query: ", "text": "text: "}, "default_prompt_name": "text"}))
    pipe = distilfast.pipeline("feature-extraction", tmp_path / "model")
    model = library.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    for options in ({}, {"prompt_name": "query"}, {"prompt": ""}, {"prompt": "x", "prompt_name": "query"}):
        np.testing.assert_allclose(pipe.encode(TEXTS, **options), model.encode(TEXTS, **options), rtol=0, atol=1e-5)
    raises_one_sentence(InputError, "prompt_name 'no' is not known", lambda: pipe.encode("a", prompt_name="no"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"precision": "int4"}, "precision 'int4' is not known"),
        ({"precision": "int8"}, "at least two are needed"),
        ({"prompt": 5}, "prompt is 5"),
        ({"truncate_dim": 0}, "truncate_dim is 0"),
        ({"normalize_embeddings": "yes"}, "normalize_embeddings is 'yes'"),
    ],
)
def test_bad_arguments_of_encode(pipe: Any, options: dict[str, Any], what: str) -> None:
    raises_one_sentence(InputError, what, lambda: pipe.encode("a", **options))


def test_langchain(minilm: Path, pipe: Any) -> None:
    pytest.importorskip("langchain_core", reason="langchain-core is not installed")
    from distilfast.integrations.langchain import DistilfastEmbeddings

    embeddings = DistilfastEmbeddings(minilm, threads=1, query_prompt="query: ")
    assert embeddings.embed_documents(["a", "b c"]) == pipe.encode(["a", "b c"]).tolist()
    assert embeddings.embed_query("a") == pipe.encode("a", prompt="query: ").tolist()


def test_haystack(minilm: Path, pipe: Any) -> None:
    haystack = pytest.importorskip("haystack", reason="haystack-ai is not installed")
    from distilfast.integrations.haystack import DistilfastDocumentEmbedder, DistilfastTextEmbedder

    pipeline = haystack.Pipeline()
    pipeline.add_component("text", DistilfastTextEmbedder(minilm, threads=1))
    assert pipeline.run({"text": {"text": "a"}})["text"]["embedding"] == pipe.encode("a").tolist()
    documents = [haystack.Document(content="a"), haystack.Document(content=None, meta={"x": 1})]
    found = DistilfastDocumentEmbedder(minilm).run(documents=documents)["documents"]
    assert [each.embedding for each in found] == pipe.encode(["a", ""]).tolist()
    assert found[1].meta == {"x": 1} and documents[0].embedding is None
