"""Threads that wait for us, watched so that SIGKILL still ends them.

pyfuse3 does not tell of interrupted requests, and a thread that waits in a request which we took dies only when it is answered. So whoever
waits longer than a moment is looked at in /proc, and its wait is cancelled when it has to go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from snapshotter.dataplane.processes import is_dying

LOOK_FOR_KILLED = 0.2
"""Seconds between two looks: one small file of /proc for each waiting thread."""


class Waiters:
    """Who waits, and the scopes to be cancelled."""

    def __init__(self) -> None:
        self._scopes: dict[trio.CancelScope, int] = {}

    @contextmanager
    def wait(self, thread: int) -> Iterator[trio.CancelScope]:
        """Around a wait on behalf of ``thread``; afterwards ``cancelled_caught`` says whether it was given up because the thread dies."""
        with trio.CancelScope() as scope:
            self._scopes[scope] = thread
            try:
                yield scope
            finally:
                del self._scopes[scope]

    async def watch(self) -> None:
        """Run for ever."""
        while True:
            await trio.sleep(LOOK_FOR_KILLED)
            for scope, thread in list(self._scopes.items()):
                if thread and is_dying(thread):
                    scope.cancel()
