"""Serving a FUSE connection that somebody else holds: taking it over, and what there is to say to its holder.

libfuse and pyfuse3 have one way in: a session begins with FUSE_INIT and ends with its connection. So the session is made on a socket pair
that looks to libfuse like the connection (``/dev/fd/N``); the INIT that the holder kept goes in, the reply comes out, and when the
connection is ours it is put in the socket's place with dup2. `pyfuse3.main` is left and entered again around that, since epoll follows the
open file and not the number.
"""

from __future__ import annotations

import logging
import os
import signal
import socket

import pyfuse3
import trio

from ipfs_store.errors import StorageFailed
from snapshotter.holder import channel
from snapshotter.holder.channel import Message
from snapshotter.holder.handshake import Handshake

_log = logging.getLogger(__name__)

# The kernel's 512 requests in the background, and lookups and page faults beside them: each waits in a task of its own, of a few KB.
MAX_TASKS = 2048
# pyfuse3 waits until the connection is readable and reads then, which waits, and everything with it, if the request was taken back meanwhile
# (its process was killed). A signal gets it out of there; two a second cost nothing that can be measured.
_NUDGE = 0.5
_ALIVE_EVERY = 5.0


class Session:
    """The one session of this process."""

    def __init__(self, operations: pyfuse3.Operations) -> None:
        self._operations = operations
        self._descriptor = -1
        self.handshake: Handshake | None = None

    @property
    def descriptor(self) -> int:
        """The connection, once it was taken."""
        return self._descriptor

    async def greet(self, handshake: Handshake) -> bytes:
        """Begin; libfuse's reply to INIT. Raises StorageFailed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            # Not a socket object's: libfuse closes it at the end, and dup2 changes what it is.
            self._descriptor = os.dup(theirs.fileno())
            ours.send(handshake.replayed())
            try:
                pyfuse3.init(self._operations, f"/dev/fd/{self._descriptor}", set())
            except RuntimeError as error:
                raise StorageFailed(f"libfuse does not take the connection: {error}") from error
            theirs.close()
            replies = trio.socket.from_stdlib_socket(ours)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                reply = await replies.recv(channel.LONGEST)
                nursery.cancel_scope.cancel()
        return reply

    def take(self, connection: int, handshake: Handshake) -> None:
        """``connection`` is ours now (closed here, in favour of the session's own number)."""
        self.handshake = handshake
        os.dup2(connection, self._descriptor, inheritable=False)
        os.close(connection)

    async def serve(self) -> None:
        """Answer the kernel until the connection ends or `leave` is called."""
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, _NUDGE, _NUDGE)
        try:
            await pyfuse3.main(max_tasks=MAX_TASKS)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def leave(self) -> None:
        """Take no more requests; `serve` returns when those that were taken are answered."""
        pyfuse3.terminate()


class Holder:
    """The channel to the process that started us, or that took over from it."""

    def __init__(self, end: socket.socket) -> None:
        self._end = trio.socket.from_stdlib_socket(end)
        self._changed = trio.Event()

    async def expect(self, word: str) -> Message:
        """The next message; raises StorageFailed if it is another, or the holder is gone."""
        packet = await self._end.recv(channel.LONGEST)
        message = channel.decode(packet) if packet else Message("nothing: it has ended")
        if message.say != word:
            raise StorageFailed(f"the holder said {message.say!r} where {word!r} was expected")
        return message

    async def say(self, message: Message) -> None:
        """Tell it; nobody hears it where the holder is gone, which is noticed elsewhere."""
        try:
            await self._end.send(channel.encode(message))
        except OSError:
            _log.debug("no holder heard %r", message.say)

    async def keep_company(self) -> None:
        """Run for ever: say that we live, to this holder and to those after it."""
        while True:
            self._changed = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._say_alive)
                await self._until_gone()
                nursery.cancel_scope.cancel()
            if not self._changed.is_set():
                _log.warning("the holder of the FUSE connection is gone; files are served on until the daemon brings another")
            await self._changed.wait()

    def replaced(self) -> socket.socket:
        """A new channel in place of this one; the holder's end of it, for the caller to hand over."""
        ours, theirs = channel.pair()
        before, self._end = self._end, trio.socket.from_stdlib_socket(ours)
        self._changed.set()
        before.close()
        return theirs

    async def _until_gone(self) -> None:
        try:
            while await self._end.recv(channel.LONGEST):
                pass
        except (OSError, trio.ClosedResourceError):
            pass

    async def _say_alive(self) -> None:
        while True:
            await self.say(Message("alive"))
            await trio.sleep(_ALIVE_EVERY)
