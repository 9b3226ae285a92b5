"""Answers kept by their bytes."""

from __future__ import annotations

import pickle

import numpy as np

from distilfast.serving.result_cache import ResultCache


def test_an_answer_comes_back_and_can_be_changed() -> None:
    cache = ResultCache(10_000)
    vector = np.arange(4.0)
    cache.put("a", 1, {"scores": [1.0, 2.0], "vector": vector})
    found, answer = cache.get("a")
    assert found
    assert answer["scores"] == [1.0, 2.0]
    assert answer["vector"].tobytes() == vector.tobytes()
    answer["scores"].clear()
    answer["vector"][0] = 9
    assert cache.get("a")[1]["scores"] == [1.0, 2.0]
    assert vector[0] == 0
    assert cache.get("b") == (False, None)
    assert (cache.hits, cache.misses) == (2, 1)


def test_the_bytes_are_bounded_and_the_oldest_goes() -> None:
    cache = ResultCache(5_000)
    for i in range(20):
        cache.put(i, 10, "x" * 800)
        assert cache.bytes <= 5_000
        cache.get(0)  # asked for again and again
    size = len(pickle.dumps("x" * 800, pickle.HIGHEST_PROTOCOL))
    assert len(cache) == 5_000 // (size + 10 + 200)
    assert cache.get(0)[0]
    assert not cache.get(1)[0]
    assert cache.get(19)[0]
    assert cache.evictions == 20 - len(cache)


def test_a_new_answer_replaces_the_old_one() -> None:
    cache = ResultCache(5_000)
    for answer in ("x" * 100, "y" * 200, "z"):
        cache.put("a", 1, answer)
    assert len(cache) == 1
    assert cache.get("a") == (True, "z")
    before = cache.bytes
    cache.put("b", 1, "z")
    assert cache.bytes == 2 * before


def test_what_is_larger_than_the_cache_is_not_kept() -> None:
    cache = ResultCache(1_000)
    cache.put("a", 1, "small")
    cache.put("b", 1, "x" * 2_000)
    cache.put("a", 1, "x" * 2_000)
    assert len(cache) == 0
    assert cache.bytes == 0
    assert ResultCache(0).get("a") == (False, None)


def test_it_forgets_everything() -> None:
    cache = ResultCache(1_000)
    cache.put("a", 1, "small")
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
