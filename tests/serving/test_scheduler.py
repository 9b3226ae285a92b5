"""The order of requests, what is refused, and what is promised to those that are accepted."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from conftest import CURVE
from hypothesis import given, settings
from hypothesis import strategies as st

from distilfast.serving.cost import Cost
from distilfast.serving.scheduler import Batch, Model, Request, Scheduler

Make = Callable[..., Scheduler]


def accepted(scheduler: Scheduler, *requests: Request, now: float = 0.0) -> None:
    for request in requests:
        assert scheduler.submit(request, now) is None


def taken(scheduler: Scheduler, lane: str = "short", now: float = 0.0) -> Batch:
    batch, late = scheduler.take(lane, now)  # type: ignore[arg-type]
    assert batch is not None
    assert not late
    return batch


def names(batch: Batch) -> list[str]:
    return [piece.request.payload for piece in batch.pieces]


def test_the_earliest_deadline_of_the_highest_priority_is_first(scheduler: Make) -> None:
    each = scheduler()
    accepted(
        each,
        Request([60], deadline=3.0, payload="late"),
        Request([60], payload="whenever"),
        Request([60], deadline=1.0, payload="soon"),
        Request([60], deadline=2.0, priority=1, payload="important"),
    )
    order = []
    for now in range(4):
        batch = taken(each, now=now / 10)
        order += names(batch)
        each.finish(batch, now / 10 + 0.01)
    assert order == ["important", "soon", "late", "whenever"]


def test_a_batch_takes_what_fits_in_a_quantum(scheduler: Make) -> None:
    each = scheduler()
    accepted(each, *(Request([length], payload=str(length)) for length in (30, 40, 20, 14, 1)))
    assert names(taken(each)) == ["30", "20", "14"]


def test_company_does_not_make_the_first_one_late(scheduler: Make) -> None:
    """16 tokens take 3 ms, 32 take 5."""
    each = scheduler()
    accepted(each, Request([16], deadline=5.2e-3, payload="a"))
    accepted(each, Request([16], deadline=1.0, payload="b"))
    batch, _ = each.take("short", 1e-3)  # 4.2 ms are left
    assert batch is not None
    assert names(batch) == ["a"]


def test_only_one_group_of_one_model_is_in_a_batch(scheduler: Make) -> None:
    each = scheduler({"a": 1.0, "b": 1.0})
    accepted(
        each,
        Request([8], model="a", group=1, payload="a1"),
        Request([8], model="a", group=2, payload="a2"),
        Request([8], model="b", group=1, payload="b1"),
        Request([8], model="a", group=1, payload="a1 too"),
    )
    assert names(taken(each)) == ["a1", "a1 too"]


def test_a_long_sequence_has_its_own_lane(scheduler: Make) -> None:
    each = scheduler()
    accepted(each, Request([512], payload="long"), Request([64], payload="short"))
    assert names(taken(each, "long")) == ["long"]
    assert names(taken(each, "short")) == ["short"]
    alone = scheduler(lanes=1)
    accepted(alone, Request([512], payload="long"), Request([64], payload="short"))
    assert names(taken(alone)) == ["long"]


def test_many_sequences_are_run_a_quantum_at_a_time(scheduler: Make) -> None:
    """And a request with a deadline goes between them."""
    each = scheduler()
    document = Request([50] * 3, payload="document")
    accepted(each, document)
    first = taken(each)
    assert first.lengths == [50]
    accepted(each, Request([10], deadline=0.1, payload="urgent"), now=0.01)
    assert each.finish(first, 0.01) == []
    second = taken(each, now=0.01)
    assert names(second) == ["urgent", "document"]
    (urgent,) = each.finish(second, 0.02)
    assert urgent.payload == "urgent"
    assert each.finish(taken(each, now=0.02), 0.03) == [document]


def test_what_would_be_late_is_refused_with_the_time_to_wait(scheduler: Make) -> None:
    each = scheduler()
    refusal = each.submit(Request([16], deadline=1e-3), 0.0)  # alone it takes 3 ms
    assert refusal is not None
    assert refusal.retry_after == pytest.approx(3e-3 * 1.1 - 1e-3)
    assert refusal.reason == "It would be answered in 3.3 ms, 2.3 ms too late."
    passed = each.submit(Request([16], deadline=1e-3), 2e-3)
    assert passed is not None and passed.reason == "Its deadline has passed."
    assert len(each) == 0


def test_an_accepted_request_is_not_made_late(scheduler: Make) -> None:
    """An urgent one that would go before it is refused, where both fit it is not."""
    for deadline, fits in ((17e-3, False), (40e-3, True)):
        each = scheduler()
        accepted(each, Request([64], deadline=deadline))  # 9 ms
        refusal = each.submit(Request([64], deadline=deadline - 1e-3), 0.0)
        assert (refusal is None) == fits
        if refusal:
            assert refusal.reason == "It would make an accepted request late."


def test_work_without_a_deadline_does_not_delay_what_has_one(scheduler: Make) -> None:
    each = scheduler()
    accepted(each, *(Request([64]) for _ in range(100)))  # 0.9 s
    accepted(each, Request([16], deadline=20e-3, payload="urgent"))
    assert names(taken(each))[0] == "urgent"


def test_the_batch_that_runs_counts(scheduler: Make) -> None:
    each = scheduler()
    accepted(each, Request([64]))
    taken(each)
    assert each.submit(Request([16], deadline=12e-3), 0.0) is not None  # 9 ms, and a batch of up to 9 ms
    assert each.submit(Request([16], deadline=8e-3 + 12e-3), 8e-3) is None


def test_a_batch_with_a_deadline_interrupts_a_long_sequence(scheduler: Make) -> None:
    """3 ms of work take as long beside it, but admission counts with three quarters of the processor."""
    each = scheduler()
    accepted(each, Request([512]))
    long = taken(each, "long")
    assert each.submit(Request([16], deadline=4e-3), 0.0) is not None
    accepted(each, Request([16], deadline=5e-3))
    short = taken(each)
    assert short.urgent
    assert not long.urgent
    before = long.left
    each.finish(short, 3e-3)
    assert long.left == before
    accepted(each, Request([16]), now=3e-3)
    assert not taken(each, now=3e-3).urgent
    each.finish(each.running[-1], 9e-3)
    assert long.left == pytest.approx(before - 3e-3)


def test_a_long_request_is_admitted_by_what_the_short_ones_leave(scheduler: Make) -> None:
    each = scheduler()
    alone = CURVE([512])
    assert each.submit(Request([512], deadline=alone), 0.0) is not None
    now = 0.0
    for _ in range(500):  # half of the time for urgent batches
        accepted(each, Request([16], deadline=now + 1.0), now=now)
        batch = taken(each, now=now)
        each.finish(batch, now + batch.work)
        now += 2 * batch.work
    assert each.submit(Request([512], deadline=now + 1.8 * alone), now) is not None
    assert each.submit(Request([512], deadline=now + 2.2 * alone), now) is None


def test_the_queue_without_deadlines_is_bounded(scheduler: Make) -> None:
    each = scheduler(most_waiting=0.1)
    count = 0
    while (refusal := each.submit(Request([64]), 0.0)) is None:
        count += 1
    assert count == 11  # of 9 ms
    assert refusal.reason == "0.1 s of work wait."
    assert scheduler(most_waiting=1e-6).submit(Request([64]), 0.0) is None  # nothing waits: one has to be accepted


def test_one_client_leaves_room_for_others(scheduler: Make) -> None:
    each = scheduler(most_waiting=1.0)
    greedy = 0
    accepted(each, Request([64], client="other"))
    while each.submit(Request([64], client="greedy"), 0.0) is None:
        greedy += 1
    assert 0.45 < greedy * 9e-3 < 0.55
    accepted(each, *(Request([64], client="modest") for _ in range(4)))
    assert each.submit(Request([64], client="greedy"), 0.0) is not None


def test_what_has_become_too_late_is_given_up(scheduler: Make) -> None:
    each = scheduler()
    accepted(each, Request([16], deadline=20e-3, payload="missed"), Request([16], deadline=1.0, payload="kept"))
    batch, late = each.take("short", 18e-3)  # it would take 3 ms
    assert [request.payload for request in late] == ["missed"]
    assert batch is not None
    assert names(batch) == ["kept"]


def test_a_cancelled_request_does_not_run(scheduler: Make) -> None:
    each = scheduler()
    gone, kept = Request([16], payload="gone"), Request([16], payload="kept")
    accepted(each, gone, kept)
    each.cancel([gone])
    each.cancel([gone])  # twice is once
    assert names(taken(each)) == ["kept"]
    document = Request([50] * 3, payload="document")
    accepted(each, document)
    each.finish(each.running[0], 0.01)
    batch = taken(each, now=0.01)
    each.cancel([document])
    assert each.finish(batch, 0.02) == []
    assert len(each) == 0


def test_models_share_by_weight(scheduler: Make) -> None:
    """While both have work, the processor is divided 3 : 1; a model that was idle has saved nothing up."""
    each = scheduler({"a": 3.0, "b": 1.0})
    accepted(each, *(Request([64], model="a") for _ in range(200)))
    now, used = 0.0, {"a": 0, "b": 0}
    for _ in range(50):
        now += 9e-3
        each.finish(taken(each, now=now), now + 9e-3)
    accepted(each, *(Request([64], model="b") for _ in range(200)), now=now)
    for _ in range(100):
        batch = taken(each, now=now)
        used[batch.model] += 1
        now += 9e-3
        each.finish(batch, now)
    assert used["a"] == pytest.approx(75, abs=4)


def test_only_a_batch_that_ran_alone_teaches_the_cost_model(scheduler: Make) -> None:
    each = scheduler()
    accepted(each, Request([512]), Request([64]))
    long, short = taken(each, "long"), taken(each)
    each.finish(short, 0.1)
    each.finish(long, 1.0)
    assert each.models[""].cost.factor == 1.0
    accepted(each, Request([64]), now=1.0)
    each.finish(taken(each, now=1.0), 1.0 + 2 * CURVE([64]))
    assert each.models[""].cost.factor > 1.0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 0.02),  # seconds since the one before
            st.lists(st.integers(1, 200), min_size=1, max_size=4),
            st.one_of(st.none(), st.floats(1e-3, 0.2)),
            st.integers(0, 1),
            st.sampled_from(["", "a", "b"]),
            st.booleans(),  # cancelled at the end
        ),
        max_size=30,
    ),
    st.sampled_from([1, 2]),
)
def test_every_request_ends_once_and_accepted_ones_in_time(
    requests: list[tuple[float, list[int], float | None, int, str, bool]], lanes: int
) -> None:
    """Where forwards take what the model says, one at a time, no accepted request is late; every sequence runs once."""
    scheduler = Scheduler({"": Model(Cost(CURVE))}, lanes=lanes, most_waiting=0.3)
    now, ran, ended, gone = 0.0, {}, set(), set()
    everyone = []

    def serve(until: float) -> float:
        """Run batches, the short lane's first, until the time or the end of the work."""
        at = now
        while at < until:
            for lane in scheduler.lanes:
                batch, late = scheduler.take(lane, at)
                gone.update(late)
                if batch is not None:
                    break
            else:
                return max(at, until) if until < math.inf else at
            assert batch.tokens <= CURVE.quantum() or len(batch.lengths) == 1
            for piece in batch.pieces:
                for k in range(piece.first, piece.first + piece.count):
                    assert (piece.request, k) not in ran
                    ran[piece.request, k] = True
            at += CURVE(batch.lengths)
            for request in scheduler.finish(batch, at):
                assert request not in ended
                ended.add(request)
                request.payload = at
        return at

    for gap, lengths, deadline, priority, client, cancelled in requests:
        now = max(now, serve(now + gap))
        request = Request(lengths, now + (math.inf if deadline is None else deadline), priority, client)
        if scheduler.submit(request, now) is None:
            everyone.append(request)
            if cancelled:
                scheduler.cancel([request])
                gone.add(request)
    serve(math.inf)
    assert len(scheduler) == 0
    assert not scheduler._clients
    assert ended.isdisjoint(gone)
    assert ended | gone == set(everyone)
    assert {key for key in ran if key[0] in ended} == {(each, k) for each in ended for k in range(len(each.lengths))}


def test_a_curve_that_is_far_too_slow_does_not_refuse_for_ever(scheduler: Callable[..., Scheduler]) -> None:
    """An idle server tries again after some refusals, and learns from the first forward; a busy one does not."""
    made = scheduler()
    cost = made.models[""].cost
    cost.factor = 100.0  # 0.2 s for 8 tokens, by the curve of a machine on which everything else computed
    asked = [made.submit(Request([8], deadline=i + 0.025), float(i)) for i in range(100)]
    refused = asked.index(None)
    assert 10 < refused < 60
    batch, _ = made.take("short", float(refused))
    assert batch is not None
    factor = cost.factor
    assert made.submit(Request([512], deadline=refused + 0.001), float(refused)) is not None
    assert cost.factor == factor
