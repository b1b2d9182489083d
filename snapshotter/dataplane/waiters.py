"""Threads that wait for us, watched so that SIGKILL still ends them.

pyfuse3 does not tell of interrupted requests, and a thread that waits in a request which we took dies only when it is answered. So whoever
waits longer than a moment is looked at in /proc, and its wait is cancelled when it has to go.

Reads are a matter of their own, since they do not say who waits: of an open file, those who opened it are looked at. Mostly nobody needs
that: who reads through the page cache waits for the page, and dies at once. A direct read, or one without read-ahead, waits for our answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from snapshotter.dataplane.openers import Openers
from snapshotter.dataplane.processes import is_dying, somebody_is_stuck

LOOK_FOR_KILLED = 0.2
"""Seconds between two looks: one small file of /proc for each waiting thread."""


class Waiters:
    """Who waits, and the scopes to be cancelled."""

    def __init__(self) -> None:
        self._scopes: dict[trio.CancelScope, tuple[int, bool]] = {}

    @contextmanager
    def wait(self, thread: int, *, gives_way: bool = False) -> Iterator[trio.CancelScope]:
        """Around a wait on behalf of ``thread``; afterwards ``cancelled_caught`` says whether it was given up because the thread dies.

        ``gives_way``: or another. Who looks for the same name waits in the kernel for the answer to the first, deaf to SIGKILL, and we do not
        know of it; so when anybody on the machine waits like that, those that can be answered in another way are given up.
        """
        with trio.CancelScope() as scope:
            self._scopes[scope] = thread, gives_way
            try:
                yield scope
            finally:
                del self._scopes[scope]

    async def watch(self) -> None:
        """Run for ever."""
        while True:
            await trio.sleep(LOOK_FOR_KILLED)
            for scope, (thread, _) in list(self._scopes.items()):
                if thread and is_dying(thread):
                    scope.cancel()
            yielding = [scope for scope, (_, gives_way) in self._scopes.items() if gives_way]
            if not yielding:
                continue
            known = {thread for thread, _ in self._scopes.values()}
            if await trio.to_thread.run_sync(somebody_is_stuck, known):
                for scope in yielding:
                    scope.cancel()


@dataclass(eq=False, slots=True)
class _File:
    opened: int = 0
    openers: set[int] = field(default_factory=set)
    """Threads; those that are found dying are not asked again."""
    slots: list[int] = field(default_factory=list)
    """Of `Openers`."""
    reads: set[trio.CancelScope] = field(default_factory=set)
    """Those that wait now."""


class OpenFiles:
    """Files that are open by their handle, which may be one for all who opened the file, or one for each."""

    def __init__(self) -> None:
        self._files: dict[int, _File] = {}
        self._record: Openers | None = None

    def recorded(self, record: Openers, *, new: bool) -> None:
        """From now on in ``record``. What is in there was opened in the process before this one, or, on a ``new`` connection, never."""
        self._record = record
        for slot, handle, thread in list(record):
            if new:
                record.drop(slot)
            else:
                self._opened(handle, thread, slot)

    def opened(self, handle: int, thread: int) -> None:
        """By ``thread``."""
        self._opened(handle, thread, self._record.note(handle, thread) if self._record is not None else None)

    def flushed(self, handle: int) -> None:
        """A descriptor was closed; if that was the end of a process that was killed, nobody waits for its reads any more."""
        file = self._files.get(handle)
        if file is not None:
            _leave_if_dying(file)

    def released(self, handle: int) -> None:
        """The last descriptor of one opening was closed."""
        file = self._files.get(handle)
        if file is not None:
            file.opened -= 1
            if file.opened <= 0 and not file.reads:
                self._forget(handle)

    @contextmanager
    def reading(self, handle: int) -> Iterator[trio.CancelScope]:
        """Around a read; afterwards ``cancelled_caught`` says whether it was given up because one who opened the file dies."""
        file = self._files.setdefault(handle, _File())  # it is new where the process before this one opened the file
        with trio.CancelScope() as scope:
            file.reads.add(scope)
            try:
                yield scope
            finally:
                file.reads.discard(scope)
                if file.opened <= 0 and not file.reads:
                    self._forget(handle)

    async def watch(self) -> None:
        """Run for ever."""
        while True:
            await trio.sleep(LOOK_FOR_KILLED)
            for file in [file for file in self._files.values() if file.reads and file.openers]:
                _leave_if_dying(file)

    def _opened(self, handle: int, thread: int, slot: int | None) -> None:
        file = self._files.setdefault(handle, _File())
        file.opened += 1
        file.openers.add(thread)
        if slot is not None:
            file.slots.append(slot)

    def _forget(self, handle: int) -> None:
        file = self._files.pop(handle, None)
        if file is not None and self._record is not None:
            for slot in file.slots:
                self._record.drop(slot)


def _leave_if_dying(file: _File) -> None:
    # Once for each opener: should another who has the file open read on, the kernel repeats what was read ahead, and that is served.
    if file.reads and (dying := {thread for thread in file.openers if is_dying(thread)}):
        file.openers -= dying
        for scope in file.reads:
            scope.cancel()
