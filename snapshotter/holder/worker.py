"""One data plane as its holder sees it: a process, and the channel to it."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from snapshotter.holder import channel
from snapshotter.holder.channel import Message
from snapshotter.holder.connection import Connection

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Worker:
    """A data plane. ``child`` is None for one that was started by another holder."""

    pid: int
    handle: int
    """A pidfd, readable when the process has ended."""
    channel: socket.socket
    command: tuple[str, ...]
    child: subprocess.Popen[bytes] | None = None
    state: Literal["starting", "prepared", "going", "serving"] = "starting"
    heard: float = field(default_factory=time.monotonic)
    """When it last said something."""
    since: float = field(default_factory=time.monotonic)
    reply: bytes = b""
    """libfuse's to INIT."""
    trouble: str = ""
    """Why it cannot serve, in its own words."""
    drain_until: float | None = None

    def send(self, message: Message) -> None:
        """Tell it; that it has ended is noticed elsewhere."""
        with contextlib.suppress(ConnectionError, BlockingIOError):
            self.channel.send(channel.encode(message))

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal exactly this process, never another that got its number."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, number)

    def end(self, grace: float) -> None:
        """Wait for its end, kill it after ``grace`` seconds, and let go of it."""
        if not select.select([self.handle], [], [], grace)[0]:
            self.kill()
            select.select([self.handle], [], [])
        self.close()

    def close(self) -> int | None:
        """After its end: let go of it; its exit status, where it was ours to wait for."""
        self.channel.close()
        os.close(self.handle)
        return self.child.wait() if self.child is not None else None


def start(command: Sequence[str], connection: Connection) -> Worker:
    """Start a data plane and give it the handshake; raises OSError."""
    ours, theirs = channel.pair()
    try:
        lent = connection.lend()
        try:
            child = subprocess.Popen(
                [*command, f"--holder-fd={theirs.fileno()}", f"--fuse-fd={lent}"],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), lent),
                start_new_session=True,
            )
        finally:
            os.close(lent)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    worker = Worker(child.pid, os.pidfd_open(child.pid), ours, tuple(command), child)
    worker.send(Message("init", handshake=connection.handshake.encode()))
    return worker


def attach(pid: int, end: socket.socket, command: Sequence[str]) -> Worker:
    """A data plane that serves already and has lost its holder; raises ProcessLookupError."""
    end.setblocking(False)
    return Worker(pid, os.pidfd_open(pid), end, tuple(command), state="serving")


def exit_reason(status: int | None) -> str:
    """What an exit status means, for people."""
    if status is None:
        return "nothing is known of why"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
