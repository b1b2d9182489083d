"""The data plane as the daemon sees it: started where it does not run, asked over its socket, noticed when it is gone.

Synchronous and thread-safe: gRPC threads call it. Every call opens a connection of its own (20 µs on a unix socket), so calls do not wait
for each other. The process is in a session of its own and goes on when the daemon ends; the next daemon attaches to it.

**A data plane that died**: its mount is dead with it, and so are the overlays on top (nobody else holds the connection). The next `mount`
or `start` brings up a new process, which knows no layer. The caller learns of it in two ways, and mounts its layers again: `check` says no
for each of them, and ``on_respawn``, if given, is called (in the calling thread, before `mount` goes on). `wait_gone` blocks until the
process ends, for a thread that watches.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ipfs_store.errors import IpfsStoreError, Unavailable
from snapshotter.dataplane.control import (
    Answer,
    Ask,
    Check,
    Done,
    Failed,
    Lines,
    Mount,
    Request,
    Status,
    Stop,
    Unmount,
    decode_answer,
    encode,
)

_log = logging.getLogger(__name__)

START_TIMEOUT = 20.0
"""Seconds for a new process to serve: imports and the mount take half a second, a busy machine much longer."""
ANSWER_TIMEOUT = 10.0
"""Seconds for everything that is answered from memory."""
STOP_TIMEOUT = 10.0
"""Seconds for the process to end after it said that it will."""


class DataPlaneFailed(IpfsStoreError):
    """The data plane answered that it could not."""


class DataPlaneGone(Unavailable):
    """No data plane answers on the socket."""


class Source(Protocol):
    """Where a layer is and how it is verified (`snapshotter.mounts.LayerSource` is one)."""

    @property
    def cid(self) -> str:
        """The blob's UnixFS file, as text."""
        ...

    @property
    def digest(self) -> str:
        """Of the blob; empty if not known."""
        ...

    @property
    def toc_digest(self) -> str:
        """Of the TOC; empty if not known."""
        ...


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start the process. Sizes in bytes, times in seconds; see ``python -m snapshotter.dataplane --help``."""

    mountpoint: Path
    control: Path
    cache: Path
    node: str = "auto"
    node_path: Path | None = None
    peers: tuple[str, ...] = ()
    node_timeout: float | None = None
    give_up: float | None = None
    cache_max_bytes: int | None = None
    read_ahead_kib: int | None = None
    log_level: str = "info"
    log: Path | None = None
    """Appended to by the process; None: it writes where we do."""
    program: tuple[str, ...] = (sys.executable, "-m", "snapshotter.dataplane")

    def arguments(self) -> list[str]:
        """The command line behind ``program``."""
        line = [f"--mountpoint={self.mountpoint}", f"--control={self.control}", f"--cache={self.cache}", f"--node={self.node}"]
        line += [f"--peer={peer}" for peer in self.peers]
        options = {
            "node-path": self.node_path,
            "node-timeout": self.node_timeout,
            "give-up": self.give_up,
            "cache-max-bytes": self.cache_max_bytes,
            "read-ahead-kib": self.read_ahead_kib,
        }
        line += [f"--{name}={value}" for name, value in options.items() if value is not None]
        return [*line, f"--log-level={self.log_level}"]


@dataclass(frozen=True, slots=True)
class NativeMount:
    """What a native mount of a layer is made of."""

    image: Path
    """``metadata.erofs``"""
    data: tuple[Path, ...]
    """Data-only layers, the first first: what is complete, then what is fetched."""


class DataPlane:
    """A data plane that runs when it is needed."""

    def __init__(self, launch: Launch, *, on_respawn: Callable[[], None] | None = None) -> None:
        self.launch = launch
        self._on_respawn = on_respawn
        self._starting = threading.Lock()
        self._instance = ""

    def start(self) -> bool:
        """Attach to the process that runs, or start one; True if it was started. Raises DataPlaneGone if none comes up."""
        with self._starting:
            try:
                status = self.status()
                started = False
            except DataPlaneGone:
                self._spawn()
                status = self.status()
                started = True
            replaced, self._instance = bool(self._instance) and status.instance != self._instance, status.instance
        if not started and status.arguments != self.launch.arguments():
            _log.warning(
                "the data plane (process %d) runs with other settings than it would be started with; they take effect when it is stopped",
                status.pid,
            )
        if replaced:
            _log.error("the data plane died and was replaced by process %d; layers are mounted again", status.pid)
            if self._on_respawn is not None:
                self._on_respawn()
        return started

    def mount(self, layer: int, source: Source, *, timeout: float = 60.0) -> Path:
        """The directory of the layer's root; at once if it is mounted already. Starts the process if need be.

        Raises DataPlaneFailed (why the layer cannot be mounted), DataPlaneGone.
        """
        request = Mount(layer, source.cid, source.digest, source.toc_digest, timeout)
        try:
            done = self._done(request, timeout + ANSWER_TIMEOUT)
        except DataPlaneGone:
            self.start()
            done = self._done(request, timeout + ANSWER_TIMEOUT)
        return Path(done.path)

    def mount_native(self, layer: int, source: Source, *, namespace: str = "", timeout: float = 60.0) -> NativeMount:
        """The layer's metadata image, ready to be mounted, and the data layers that belong below; from then on its contents are served.

        At once, without the network, if the metadata were built before. Starts the process if need be. Raises as `mount`.
        """
        request = Mount(layer, source.cid, source.digest, source.toc_digest, timeout, mode="native", namespace=namespace)
        try:
            done = self._done(request, timeout + ANSWER_TIMEOUT)
        except DataPlaneGone:
            self.start()
            done = self._done(request, timeout + ANSWER_TIMEOUT)
        return NativeMount(Path(done.path), tuple(Path(path) for path in done.data))

    def unmount(self, layer: int) -> None:
        """Let go of the layer; nothing happens if it is not mounted, or nobody is there who could have mounted it."""
        with contextlib.suppress(DataPlaneGone):
            self._done(Unmount(layer), ANSWER_TIMEOUT)

    def check(self, layer: int) -> bool:
        """Whether the layer is mounted and its process answers."""
        try:
            return self._done(Check(layer), ANSWER_TIMEOUT).yes
        except DataPlaneGone:
            return False

    def status(self) -> Status:
        """What the process says of itself and its layers; raises DataPlaneGone."""
        answer = self._ask(Ask(), ANSWER_TIMEOUT)
        if not isinstance(answer, Status):
            raise DataPlaneFailed(f"asked for its status, the data plane said {answer}")
        return answer

    def stop(self, *, unmount: bool) -> None:
        """With ``unmount``, end the process and its mount, and wait for it; without, leave it running for the next daemon."""
        if not unmount:
            return
        try:
            pid = self.status().pid
            self._done(Stop(), ANSWER_TIMEOUT)
        except DataPlaneGone:
            return
        if not self._ended(pid, STOP_TIMEOUT):
            raise DataPlaneFailed(
                f"the data plane (process {pid}) does not end", hint=f"kill -9 {pid}; umount --lazy {self.launch.mountpoint}"
            )

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Block until the process ends (True) or ``timeout`` seconds have passed (False)."""
        try:
            connection = self._connect(timeout)
        except DataPlaneGone:
            return True
        with connection:
            readable, _, _ = select.select([connection], [], [], timeout)
            return bool(readable)

    def _done(self, request: Request, timeout: float) -> Done:
        answer = self._ask(request, timeout)
        if isinstance(answer, Failed):
            raise DataPlaneFailed(answer.message, hint=answer.hint)
        if not isinstance(answer, Done):
            raise DataPlaneFailed(f"the data plane answered {request} with {answer}")
        return answer

    def _ask(self, request: Request, timeout: float) -> Answer:
        deadline = time.monotonic() + timeout
        lines = Lines()
        with self._connect(timeout) as connection:
            try:
                connection.sendall(encode(request))
                while True:
                    connection.settimeout(max(deadline - time.monotonic(), 0.001))
                    data = connection.recv(1 << 16)
                    if not data:
                        raise DataPlaneGone(f"the data plane on {self.launch.control} ended while it was asked")
                    for line in lines.feed(data):
                        return decode_answer(line)
            except TimeoutError:
                raise DataPlaneFailed(f"the data plane on {self.launch.control} did not answer within {timeout:g} s") from None
            except (ConnectionError, BrokenPipeError) as error:
                raise DataPlaneGone(f"the data plane on {self.launch.control} ended while it was asked") from error

    def _connect(self, timeout: float | None) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(timeout)
            connection.connect(str(self.launch.control))
        except OSError as error:
            connection.close()
            raise DataPlaneGone(f"no data plane on {self.launch.control}: {error.strerror or error}") from error
        return connection

    def _spawn(self) -> None:
        read_end, write_end = os.pipe()
        try:
            with contextlib.ExitStack() as stack:
                output = None
                if self.launch.log is not None:
                    self.launch.log.parent.mkdir(parents=True, exist_ok=True)
                    output = stack.enter_context(self.launch.log.open("ab"))
                process = subprocess.Popen(
                    [*self.launch.program, *self.launch.arguments(), f"--ready-fd={write_end}"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(write_end,),
                    start_new_session=True,
                )
        finally:
            os.close(write_end)
        # Reaped here when it ends while we live; in a thread, since nobody else waits for it.
        threading.Thread(target=process.wait, name="data-plane-reaper", daemon=True).start()
        with os.fdopen(read_end, "rb") as pipe:
            readable, _, _ = select.select([pipe], [], [], START_TIMEOUT)
            word = pipe.readline().decode(errors="replace").strip() if readable else f"error: nothing heard within {START_TIMEOUT:g} s"
        if word != "ready":
            process.kill()
            raise DataPlaneGone(f"the data plane does not start: {word.removeprefix('error: ') or 'it ended without a word; see its log'}")

    def _ended(self, pid: int, timeout: float) -> bool:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return bool(select.select([handle], [], [], timeout)[0])
        finally:
            os.close(handle)
