"""One fetch for many readers; what happens when its source is away. All on a virtual clock."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ipfs_store.errors import BlockNotFound, ChunkMismatch, NodeUnavailable
from snapshotter.scheduler import GaveUp, Priority, Scheduler, delays
from snapshotter.scheduler.fetches import FAIL_FAST
from snapshotter.scheduler.retry import FIRST_DELAY, LONGEST_DELAY


def scheduler(give_up: float = 60.0, in_flight: int = 64) -> Scheduler[str, bytes]:
    return Scheduler(give_up=give_up, in_flight=in_flight, rng=random.Random(1))


class Source:
    """Fails as often as it is told, then answers."""

    def __init__(self, *errors: Exception, answer: bytes = b"chunk", delay: float = 0.0) -> None:
        self.errors = list(errors)
        self.answer = answer
        self.delay = delay
        self.calls: list[float] = []

    async def __call__(self) -> bytes:
        self.calls.append(trio.current_time())
        await trio.sleep(self.delay)
        if self.errors:
            raise self.errors.pop(0) if len(self.errors) > 1 else self.errors[0]
        return self.answer


class AwayThenBack(Source):
    async def __call__(self) -> bytes:
        self.calls.append(trio.current_time())
        if self.errors:
            raise self.errors.pop(0)
        return self.answer


async def test_fifty_readers_of_one_stream_cost_one_fetch(autojump_clock: MockClock) -> None:
    source, got = Source(delay=1.0), []

    async def reader() -> None:
        got.append(await fetches.fetch("stream", source))

    async with (fetches := scheduler()).running(), trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(reader)
    assert got == [b"chunk"] * 50
    assert len(source.calls) == 1


async def test_a_stream_that_was_fetched_is_fetched_again_when_wanted_again(autojump_clock: MockClock) -> None:
    source = Source()
    async with (fetches := scheduler()).running():
        await fetches.fetch("stream", source)
        await fetches.fetch("stream", source)
    assert len(source.calls) == 2


@pytest.mark.parametrize("error", [NodeUnavailable("away"), BlockNotFound("nobody has it")], ids=["unavailable", "not found"])
async def test_a_source_that_comes_back_is_asked_again_until_it_answers(error: Exception, autojump_clock: MockClock) -> None:
    source = AwayThenBack(*[error] * 6)
    async with (fetches := scheduler()).running():
        assert await fetches.fetch("stream", source) == b"chunk"
    assert len(source.calls) == 7


async def test_a_source_that_stays_away_is_given_up_after_the_configured_time(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with (fetches := scheduler(give_up=30)).running():
        with pytest.raises(GaveUp, match=r"nothing in 30 s \(\d+ attempts\): the cable is out"):
            await fetches.fetch("stream", Source(NodeUnavailable("the cable is out")))
    assert trio.current_time() - start == pytest.approx(30)


async def test_a_source_that_never_answers_is_given_up_after_the_configured_time(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with (fetches := scheduler(give_up=30)).running():
        with pytest.raises(GaveUp, match="no answer"):
            await fetches.fetch("stream", trio.sleep_forever)  # type: ignore[arg-type]
    assert trio.current_time() - start == pytest.approx(30)


async def test_a_wrong_answer_is_final(autojump_clock: MockClock) -> None:
    source = Source(ChunkMismatch("wrong"))
    async with (fetches := scheduler()).running():
        with pytest.raises(ChunkMismatch):
            await fetches.fetch("stream", source)
    assert len(source.calls) == 1


async def test_the_repeated_read_after_an_error_fails_at_once_and_a_later_one_tries_again(autojump_clock: MockClock) -> None:
    source = Source(NodeUnavailable("away"))
    async with (fetches := scheduler(give_up=10)).running():
        with pytest.raises(GaveUp):
            await fetches.fetch("stream", source)
        tried, now = len(source.calls), trio.current_time()
        with pytest.raises(GaveUp):
            await fetches.fetch("stream", source)
        assert (len(source.calls), trio.current_time()) == (tried, now)
        await trio.sleep(FAIL_FAST)
        source.errors = []
        assert await fetches.fetch("stream", source) == b"chunk"


async def test_a_reader_that_leaves_disturbs_no_other(autojump_clock: MockClock) -> None:
    source, got = Source(delay=5.0), []

    async def reader(patience: float) -> None:
        with trio.move_on_after(patience):
            got.append(await fetches.fetch("stream", source))

    async with (fetches := scheduler()).running(), trio.open_nursery() as nursery:
        for patience in (1, 2, 100):
            nursery.start_soon(reader, patience)
    assert got == [b"chunk"]
    assert len(source.calls) == 1


async def test_a_fetch_is_cancelled_when_its_last_reader_has_left(autojump_clock: MockClock) -> None:
    ended: list[float] = []

    async def source() -> bytes:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(trio.current_time())
        return b""

    start = trio.current_time()
    async with (fetches := scheduler()).running():
        async with trio.open_nursery() as nursery:
            for patience in (1, 2):
                nursery.start_soon(leave_after, patience, fetches, source)
        await wait_all_tasks_blocked()
        assert fetches.waiting() == []
    assert ended == [pytest.approx(start + 2)]


async def test_a_reader_that_comes_after_the_last_one_left_gets_a_fetch_of_its_own(autojump_clock: MockClock) -> None:
    source = Source(delay=5.0)
    async with (fetches := scheduler()).running():
        await leave_after(1, fetches, source)
        assert await fetches.fetch("stream", source) == b"chunk"
    assert len(source.calls) == 2


async def test_no_more_fetches_run_at_a_time_than_allowed_and_demand_goes_first(autojump_clock: MockClock) -> None:
    order: list[str] = []
    running = most = 0

    def job(name: str) -> Callable[[], Awaitable[bytes]]:
        async def run() -> bytes:
            nonlocal running, most
            running += 1
            most = max(most, running)
            order.append(name)
            await trio.sleep(1.5 if name == "b" else 1)  # no two end at the same moment: who of them is next would be chance
            running -= 1
            return b""

        return run

    async def reader(name: str, priority: Priority) -> None:
        await fetches.fetch(name, job(name), priority=priority)

    async with (fetches := scheduler(in_flight=2)).running(), trio.open_nursery() as nursery:
        for name in ("a", "b"):
            nursery.start_soon(reader, name, Priority.BACKGROUND)
        await wait_all_tasks_blocked()
        for name in ("late", "later", "wanted after all"):
            nursery.start_soon(reader, name, Priority.BACKGROUND)
            await wait_all_tasks_blocked()
        nursery.start_soon(reader, "demand", Priority.DEMAND)
        await wait_all_tasks_blocked()
        nursery.start_soon(reader, "wanted after all", Priority.DEMAND)
    assert most == 2
    assert sorted(order[:2]) == ["a", "b"]
    assert order[2:] == ["demand", "wanted after all", "late", "later"]


async def test_a_fetch_that_waits_for_its_next_try_takes_no_place(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with (fetches := scheduler(give_up=60, in_flight=1)).running(), trio.open_nursery() as nursery:
        nursery.start_soon(leave_after, 50, fetches, Source(NodeUnavailable("away")))
        await wait_all_tasks_blocked()
        assert await fetches.fetch("other", Source()) == b"chunk"
        assert trio.current_time() == start
        nursery.cancel_scope.cancel()


async def test_a_cancelled_reader_in_the_line_gives_up_its_place(autojump_clock: MockClock) -> None:
    async with (fetches := scheduler(in_flight=1)).running(), trio.open_nursery() as nursery:
        nursery.start_soon(fetches.fetch, "first", Source(delay=10))
        await wait_all_tasks_blocked()
        await leave_after(1, fetches, Source())
        assert await fetches.fetch("third", Source()) == b"chunk"


async def test_what_waits_says_how_long_and_why(autojump_clock: MockClock) -> None:
    async with (fetches := scheduler()).running(), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(leave_after, 100, fetches, Source(NodeUnavailable("the peer is asleep")))
        await trio.sleep(7)
        (waiting,) = fetches.waiting()
        assert (waiting.key, waiting.readers, waiting.reason) == ("stream", 3, "the peer is asleep")
        assert waiting.age == pytest.approx(7)
        assert waiting.attempts > 1
        nursery.cancel_scope.cancel()


async def test_a_defect_in_a_fetch_reaches_its_readers_and_nobody_else(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with (fetches := scheduler()).running():
        with pytest.raises(ZeroDivisionError):
            await fetches.fetch("stream", Source(ZeroDivisionError()))
        assert await fetches.fetch("other", Source()) == b"chunk"
    assert "failed in a way that nobody expected" in caplog.text


def test_delays_grow_to_a_bound_and_differ_between_machines() -> None:
    one, other = ([next(waits) for _ in range(20)] for waits in (delays(random.Random(1)), delays(random.Random(2))))
    assert one != other
    assert FIRST_DELAY / 2 <= one[0] <= FIRST_DELAY
    assert all(LONGEST_DELAY / 2 <= delay <= LONGEST_DELAY for delay in one[10:])


async def leave_after(seconds: float, fetches: Scheduler[str, bytes], source: Callable[[], Awaitable[bytes]]) -> None:
    with trio.move_on_after(seconds):
        await fetches.fetch("stream", source)
