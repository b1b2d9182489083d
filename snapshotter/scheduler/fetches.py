"""One fetch per key however many wait for it, retried while its source is away, ended when nobody waits."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from ipfs_store.errors import IpfsStoreError, NotFound, StorageFailed, Unavailable
from snapshotter.scheduler.retry import delays
from snapshotter.scheduler.slots import Priority, Slots, Ticket

_log = logging.getLogger(__name__)

# 32 wants fill a 1 Gbit/s link (MEASURED: 24 to 32 in flight, by bitswap); the other half is room for fetches that hang on a dead peer
# until the node gives them up, so that they do not stop everybody. Waiting for the next try takes no place.
FETCHES_IN_FLIGHT = 64
# A reader that got an error comes back at once: the kernel repeats a failed read-ahead page by page, programs repeat reads. It must not
# wait all over again; after this many seconds the source gets a new chance.
FAIL_FAST = 2.0
# A peer may come back with the block, the network with the peer, room with the next garbage collection.
_WORTH_A_RETRY = (NotFound, Unavailable, StorageFailed)

K = TypeVar("K")
T = TypeVar("T")


class GaveUp(Unavailable):
    """The source was asked again and again for as long as allowed; ``__cause__`` is its last answer, if it gave one."""


@dataclass(frozen=True, slots=True)
class Waiting(Generic[K]):
    """A fetch that somebody waits for."""

    key: K
    age: float
    """Seconds since it was first wanted."""
    readers: int
    attempts: int
    reason: str
    """Why the last attempt failed; empty if none did."""


class _Flight(Generic[T]):
    """A fetch under way; lives from its first reader until its result or until its last reader has left."""

    def __init__(self, job: Callable[[], Awaitable[T]], group: Hashable, priority: Priority, now: float) -> None:
        self.job = job
        self.group = group
        self.ticket = Ticket(priority)
        self.since = now
        self.readers = 0
        self.attempts = 0
        self.reason: Exception | None = None
        self.scope = trio.CancelScope()
        self.done = trio.Event()
        self.result: T | None = None
        self.failure: Exception | None = None


class Scheduler(Generic[K, T]):
    """Runs fetches: ``async with scheduler.running(): await scheduler.fetch(key, job)``.

    ``give_up``: seconds that a failing source is asked again before readers get GaveUp, from the first attempt. ``in_flight``: fetches at a
    time of one group; the groups do not wait for each other, so that one image's trouble is its own.
    """

    def __init__(self, *, give_up: float, in_flight: int = FETCHES_IN_FLIGHT, rng: random.Random | None = None) -> None:
        self.give_up = give_up
        self._in_flight = in_flight
        self._slots: dict[Hashable, Slots] = {}
        self._rng = rng or random.Random()
        self._flights: dict[K, _Flight[T]] = {}
        self._failed: dict[K, tuple[float, Exception]] = {}
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Fetches run inside this block and are cancelled at its end."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    async def fetch(self, key: K, job: Callable[[], Awaitable[T]], *, group: Hashable = None, priority: Priority = Priority.DEMAND) -> T:
        """What ``job`` returns; if ``key`` is being fetched already, what that fetch returns.

        Raises GaveUp, or what ``job`` raised if another try would not help. A caller that is cancelled leaves the others undisturbed;
        when the last one leaves, the fetch is cancelled.
        """
        failed = self._failed.get(key)
        if failed is not None:
            if trio.current_time() < failed[0]:
                raise _same(failed[1])
            del self._failed[key]
        flight = self._flights.get(key)
        if flight is None:
            if self._nursery is None:
                raise RuntimeError("the scheduler is not running")
            flight = self._flights[key] = _Flight(job, group, priority, trio.current_time())
            self._nursery.start_soon(self._fly, key, flight)
        else:
            self._slots_of(flight.group).promote(flight.ticket, priority)
        flight.readers += 1
        try:
            await flight.done.wait()
        finally:
            flight.readers -= 1
            if not flight.readers and not flight.done.is_set():
                flight.scope.cancel()
                self._forget(key, flight)
        if flight.failure is not None:
            raise _same(flight.failure)
        return flight.result  # type: ignore[return-value]  # set whenever done without failure

    def waiting(self) -> list[Waiting[K]]:
        """Every fetch under way, oldest first."""
        now = trio.current_time()
        return [
            Waiting(key, now - flight.since, flight.readers, flight.attempts, str(flight.reason or ""))
            for key, flight in self._flights.items()
        ]

    async def _fly(self, key: K, flight: _Flight[T]) -> None:
        with flight.scope:
            try:
                flight.result = await self._attempts(flight)
            except IpfsStoreError as error:
                flight.failure = error
            except Exception as error:  # noqa: BLE001 - logged; a defect must cost one read, not the mounts of the whole machine
                _log.exception("the fetch of %r failed in a way that nobody expected", key)
                flight.failure = error
        if not flight.scope.cancelled_caught:
            if flight.failure is not None:
                self._remember(key, flight.failure)
            self._forget(key, flight)
            flight.done.set()

    async def _attempts(self, flight: _Flight[T]) -> T:
        deadline: float | None = None
        for delay in delays(self._rng):
            async with self._slots_of(flight.group).held(flight.ticket):
                flight.attempts += 1
                if deadline is None:
                    deadline = trio.current_time() + self.give_up
                with trio.move_on_at(deadline) as allowed:
                    try:
                        return await flight.job()
                    except _WORTH_A_RETRY as error:
                        flight.reason = error
            await trio.sleep_until(min(trio.current_time() + delay, deadline))
            if allowed.cancelled_caught or trio.current_time() >= deadline:
                break
        tries = "1 attempt" if flight.attempts == 1 else f"{flight.attempts} attempts"
        last = flight.reason or "no answer"
        raise GaveUp(f"nothing in {self.give_up:g} s ({tries}): {last}") from flight.reason

    def _slots_of(self, group: Hashable) -> Slots:
        slots = self._slots.get(group)
        if slots is None:
            self._slots = {other: kept for other, kept in self._slots.items() if not kept.idle}
            slots = self._slots[group] = Slots(self._in_flight)
        return slots

    def _forget(self, key: K, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _remember(self, key: K, failure: Exception) -> None:
        now = trio.current_time()
        self._failed = {other: kept for other, kept in self._failed.items() if kept[0] > now}
        self._failed[key] = (now + FAIL_FAST, failure)


def _same(error: Exception) -> Exception:
    """``error`` to be raised for one more reader: without the traceback that the readers before it left on it."""
    return error.with_traceback(None)
