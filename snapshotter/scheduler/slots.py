"""A limited number of places, given out by priority and then in order of arrival."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum

import trio


class Priority(IntEnum):
    """Who goes first; gaps leave room for what comes between (a profile's predictions)."""

    DEMAND = 0
    """Somebody waits for it."""
    BACKGROUND = 100
    """Nobody waits yet."""


class Ticket:
    """One task's place in the line."""

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self._called = trio.Event()


class Slots:
    """``limit`` places. A ticket may be raised to a higher priority while it waits."""

    def __init__(self, limit: int) -> None:
        self._limit = self._free = limit
        self._arrivals = 0
        self._line: list[tuple[Priority, int, Ticket]] = []

    @property
    def idle(self) -> bool:
        """Whether nobody has a place, nor waits for one."""
        return self._free == self._limit

    @asynccontextmanager
    async def held(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for a place and keep it inside the block."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(ticket)
        try:
            yield
        finally:
            self._pass_on()

    def promote(self, ticket: Ticket, priority: Priority) -> None:
        """Let ``ticket`` overtake, if it still waits and ``priority`` is higher than its own."""
        if priority >= ticket.priority:
            return
        waits = any(entry[2] is ticket for entry in self._line)
        ticket.priority = priority
        if waits:
            self._line = [entry for entry in self._line if entry[2] is not ticket]
            heapq.heapify(self._line)
            self._stand(ticket)

    def _stand(self, ticket: Ticket) -> None:
        self._arrivals += 1
        heapq.heappush(self._line, (ticket.priority, self._arrivals, ticket))

    async def _wait(self, ticket: Ticket) -> None:
        ticket._called = trio.Event()
        self._stand(ticket)
        try:
            await ticket._called.wait()
        except BaseException:  # cancelled: give back a place that was called out at the same moment, or step out of the line
            if ticket._called.is_set():
                self._pass_on()
            else:
                self._line = [entry for entry in self._line if entry[2] is not ticket]
                heapq.heapify(self._line)
            raise

    def _pass_on(self) -> None:
        if self._line:
            heapq.heappop(self._line)[2]._called.set()
        else:
            self._free += 1
