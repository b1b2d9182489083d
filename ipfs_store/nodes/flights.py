"""One fetch per key, however many wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from ipfs_store.errors import IpfsStoreError, NotFound

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Flight(Generic[V]):
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.result: V | None = None
        self.failure: IpfsStoreError | None = None
        self.late = False


class Flights(Generic[K, V]):
    """Joins calls for the same key. The first does the work; if it is cancelled, one that waits does it instead."""

    def __init__(self) -> None:
        """Nothing in flight."""
        self._flights: dict[K, _Flight[V]] = {}

    async def run(self, key: K, work: Callable[[], Awaitable[V]], timeout: float, late: Callable[[], IpfsStoreError]) -> V:
        """The result of ``work``, or of the same work that is under way.

        ``work`` ends after ``timeout`` seconds by itself, with NotFound; who waits for another's work raises ``late()`` then.
        """
        deadline = trio.current_time() + timeout
        while True:
            flight = self._flights.get(key)
            if flight is None:
                return await self._lead(key, work, deadline)
            with trio.move_on_at(deadline):
                await flight.landed.wait()
            if not flight.landed.is_set():
                raise late()
            if flight.result is not None:
                return flight.result
            # A leader that was cancelled, or gave up for want of time, says nothing about us: our turn.
            if flight.failure is not None and not (isinstance(flight.failure, NotFound) and flight.late):
                raise type(flight.failure)(flight.failure.message, hint=flight.failure.hint) from flight.failure

    async def _lead(self, key: K, work: Callable[[], Awaitable[V]], deadline: float) -> V:
        flight = self._flights[key] = _Flight[V]()
        try:
            flight.result = await work()
        except IpfsStoreError as error:
            flight.failure = error
            flight.late = trio.current_time() >= deadline
            raise
        finally:
            del self._flights[key]
            flight.landed.set()
        return flight.result
