"""The holder at work: always one data plane on the connection, and an end to the connection where there can be none."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from snapshotter.holder import channel, worker
from snapshotter.holder.channel import Message
from snapshotter.holder.connection import Connection
from snapshotter.holder.handshake import RESEND
from snapshotter.holder.requests import Conversation, Request
from snapshotter.holder.worker import Worker, exit_reason

_log = logging.getLogger(__name__)

# A data plane that dies at once is started again after 0.1 s, 0.2 s ... 5 s: its cause may go away (a full disk, no memory), and imports
# cost half a second of a processor each time.
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
# It has shown that it can serve: its next death is a new one.
_PROVEN = 10.0
_TICK = 1.0
# From "go" to "serving" is a matter of milliseconds; readers wait meanwhile.
_TO_SERVE = 10.0
# A data plane whose mount is gone ends by itself, and takes its socket with it.
_GRACE = 5.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in seconds."""

    record: Path
    """Where the handshake is kept, beside the descriptor."""
    abandon: float
    """Without a data plane for so long, the connection is ended: readers get an error in place of waiting for ever."""
    watchdog: float
    """A data plane that says nothing for so long is killed and replaced."""
    drain: float
    """Where the kernel cannot send again: how long a data plane that is to be replaced may still answer what it has read."""
    code: str = ""
    """Names the code that we run, for who asks for our status."""


class Supervisor:
    """One connection and the data planes on it. ``run`` returns the exit status."""

    def __init__(
        self, settings: Settings, connection: Connection, listener: socket.socket, command: Sequence[str], serving: Worker | None = None
    ) -> None:
        self._settings = settings
        self._connection = connection
        self._command = tuple(command)
        self._serving = serving
        self._coming: Worker | None = None
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._status: int | None = None
        self._started_at = time.monotonic()
        self._alone_since = time.monotonic()
        self._delay = _FIRST_DELAY
        self._start_at: float | None = None
        self._wanted: tuple[str, ...] | None = None
        """What is to be started in place of the one that is coming."""
        self._last_trouble = ""
        self._served = 0 if serving is None else 1
        self._waiting: list[Conversation] = []
        """Those who asked for another data plane and have not heard yet."""
        self._ending: list[Conversation] = []

    def run(self, ready: Callable[[str], None]) -> int:
        """Supervise until told to stop, or until there is nothing to hold. ``ready`` hears "ready", or "error: ..." and why."""
        self._ready: Callable[[str], None] | None = ready
        self._heed_signals()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        if self._serving is not None:
            self._watch(self._serving)
            self._say_ready("ready")
        else:
            self._start(self._command)
        while self._status is None:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
                if self._status is not None:
                    break
            self._look_at_the_clock()
        for conversation in self._ending:
            conversation.answer(ok=True)
        return self._status

    # What happens.

    def _said(self, who: Worker) -> None:
        try:
            packet = who.channel.recv(channel.LONGEST)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if not packet:
            self._selector.unregister(who.channel)  # its process has ended or is about to
            return
        who.heard = time.monotonic()
        try:
            message = channel.decode(packet)
            reply = bytes.fromhex(message.reply)
        except ValueError as error:
            who.trouble = str(error)
            who.kill()
            return
        match message.say:
            case "prepared":
                who.state, who.reply = "prepared", reply
                self._hand_over()
            case "serving":
                self._now_serving(who)
            case "failed":
                who.trouble = message.text
            case "unmounted":
                _log.warning("%s was unmounted by somebody; nothing is left to hold", self._connection.mountpoint)
                self._end(0)

    def _ended(self, who: Worker) -> None:
        self._unwatch(who)
        # A last word may still lie in the channel.
        with contextlib.suppress(OSError, ValueError):
            while packet := who.channel.recv(channel.LONGEST):
                message = channel.decode(packet)
                who.trouble = message.text or who.trouble
        status = who.close()
        why = who.trouble or exit_reason(status)
        if who is self._serving:
            self._serving = None
            self._alone_since = time.monotonic()
            _log.log(
                logging.INFO if self._coming is not None else logging.ERROR,
                "the data plane (process %d) ended: %s; readers wait for the next", who.pid, why,
            )  # fmt: skip
        elif who is self._coming:
            self._coming = None
            if self._wanted is not None:
                wanted, self._wanted = self._wanted, None
                self._start(wanted)
                return
            self._last_trouble = why
            if self._ready is not None:
                self._end(1)
                self._say_ready(f"error: {why}")
                return
            _log.error("a data plane that was to serve (process %d) ended: %s", who.pid, why)
            if self._waiting:
                self._answer_waiting(error=f"the new data plane does not start: {why}")
        if not self._connection.alive:
            _log.error("the FUSE connection has ended")
            self._end(1)
        elif self._coming is not None:
            self._hand_over()
        elif self._serving is None:
            self._start_at = time.monotonic() + (0 if time.monotonic() - who.since > _PROVEN else self._delay)
            self._delay = min(2 * self._delay, _LONGEST_DELAY)

    def _hand_over(self) -> None:
        """Let the one that is prepared go on once the one before it is gone."""
        coming = self._coming
        if coming is None or coming.state != "prepared":
            return
        serving = self._serving
        if serving is not None:
            if serving.drain_until is None:
                if self._connection.resend:
                    serving.kill()  # what it leaves unanswered is sent again: nothing is quicker, and nothing is tried more often
                    serving.drain_until = time.monotonic()
                else:
                    serving.kill(signal.SIGTERM)
                    serving.drain_until = time.monotonic() + self._settings.drain
            return
        try:
            first = not self._connection.handshake.reply
            if first:
                self._connection.answer(coming.reply, self._settings.record)
            elif self._connection.resend:
                os.write(self._connection.descriptor, RESEND)
        except (OSError, ValueError) as error:
            _log.error("the FUSE connection cannot be handed over: %s", error)
            coming.kill()
            return
        coming.state, coming.heard = "going", time.monotonic()
        coming.send(Message("go", handshake=self._connection.handshake.encode(), first=first))

    def _now_serving(self, who: Worker) -> None:
        first = self._ready is not None
        who.state, who.since = "serving", time.monotonic()
        self._serving, self._coming = who, None
        self._command = who.command
        self._served += 1
        if not first:
            _log.info("the data plane is process %d now", who.pid)
        self._say_ready("ready")
        self._answer_waiting()

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        serving, coming = self._serving, self._coming
        if serving is not None:
            if serving.drain_until is not None and now >= serving.drain_until:
                serving.kill()
            elif now - serving.heard > self._settings.watchdog:
                _log.error("the data plane (process %d) has said nothing for %g s and is killed", serving.pid, self._settings.watchdog)
                serving.heard = now
                serving.kill()
            elif now - serving.since > _PROVEN:
                self._delay = _FIRST_DELAY
        if coming is not None and now - coming.heard > (patience := self._patience(coming)):
            coming.trouble = f"{'not ready' if coming.state == 'starting' else 'does not serve'} after {patience:g} s"
            coming.heard = now
            coming.kill()
        if serving is None and self._ready is None and now - self._alone_since > self._settings.abandon:
            _log.error(
                "no data plane could be started for %g s (%s): the FUSE connection is ended, and who waits for files of it gets an error",
                self._settings.abandon, self._last_trouble or "none got ready",
            )  # fmt: skip
            self._end(3)
        elif self._start_at is not None and now >= self._start_at:
            self._start(self._command)

    def _patience(self, coming: Worker) -> float:
        """How long a new one may say nothing; in time for another before the connection is abandoned, if readers wait."""
        if coming.state == "prepared" or self._serving is not None or self._ready is not None:
            return self._settings.watchdog
        return min(self._settings.watchdog, self._settings.abandon / 2 if coming.state == "starting" else _TO_SERVE)

    def _start(self, command: Sequence[str]) -> None:
        self._start_at = None
        try:
            self._coming = worker.start(command, self._connection)
        except OSError as error:
            self._last_trouble = f"{command[0]} cannot be started: {error}"
            _log.error("%s", self._last_trouble)
            if self._ready is not None:
                self._end(1)
                self._say_ready(f"error: {self._last_trouble}")
            elif self._serving is None:
                self._start_at = time.monotonic() + self._delay
                self._delay = min(2 * self._delay, _LONGEST_DELAY)
            self._answer_waiting(error=self._last_trouble)
            return
        self._watch(self._coming)

    # Who asks.

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection, _ = self._listener.accept()
            conversation = Conversation(connection)
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._asked(conversation))

    def _asked(self, conversation: Conversation) -> None:
        for request in conversation.receive():
            self._do(conversation, request)
        if conversation.closed:
            self._selector.unregister(conversation.socket)
            conversation.socket.close()

    def _do(self, conversation: Conversation, request: Request) -> None:
        match request.op:
            case "status":
                serving = self._serving
                conversation.answer(
                    ok=True,
                    pid=os.getpid(),
                    worker=serving.pid if serving is not None else 0,
                    command=list(self._command),
                    served=self._served,
                    resend=self._connection.resend,
                    code=self._settings.code,
                )
            case "replace":
                self._waiting.append(conversation)
                if self._coming is None:
                    self._start(request.command)
                elif self._coming.command != request.command:
                    self._wanted = request.command
                    self._coming.kill()
            case "share":
                conversation.answer(descriptor=self._connection.descriptor, ok=True)
            case "stop":
                self._ending.append(conversation)
                self._end(0)
            case "leave":
                # Another holder takes over: the data plane and the mount stay as they are.
                self._ending.append(conversation)
                self._status = 0
            case _:
                conversation.answer(ok=False, error=f"{request.op!r} is no request to a holder")

    # How it ends.

    def _end(self, status: int) -> None:
        """Unmount, and end whoever serves."""
        if self._status is not None:
            return
        self._status = status
        try:
            self._connection.end()
        except OSError as error:
            _log.error("%s cannot be unmounted: %s", self._connection.mountpoint, error)
        for who in (self._serving, self._coming):
            if who is not None:
                who.end(_GRACE)

    def _heed_signals(self) -> None:
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

        def heed() -> None:
            for number in os.read(read_end, 64):
                _log.info("%s: unmounting", signal.Signals(number).name)
            self._end(0)

        self._selector.register(read_end, selectors.EVENT_READ, heed)

    # Small things.

    def _watch(self, who: Worker) -> None:
        self._selector.register(who.channel, selectors.EVENT_READ, lambda: self._said(who))
        self._selector.register(who.handle, selectors.EVENT_READ, lambda: self._ended(who))

    def _unwatch(self, who: Worker) -> None:
        for file in (who.channel, who.handle):
            with contextlib.suppress(KeyError):
                self._selector.unregister(file)

    def _answer_waiting(self, error: str = "") -> None:
        for conversation in self._waiting:
            conversation.answer(ok=not error, error=error)
        self._waiting.clear()

    def _say_ready(self, word: str) -> None:
        if self._ready is not None:
            self._ready(word)
            self._ready = None

    def _timeout(self) -> float:
        if self._start_at is not None:
            return max(min(self._start_at - time.monotonic(), _TICK), 0.0)
        return _TICK
