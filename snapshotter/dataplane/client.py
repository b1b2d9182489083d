"""The data plane as the daemon sees it: started where it does not run, asked over its socket, replaced where it should be another.

Synchronous and thread-safe: gRPC threads call it. Every call opens a connection of its own (20 µs on a unix socket), so calls do not wait
for each other. The data plane and the holder of its FUSE connection are in sessions of their own and go on when the daemon ends; the next
daemon finds them by their sockets.

**Who keeps whom**: the holder always starts another data plane when one dies; readers wait meanwhile, and that is all. When the holder is
lost the data plane goes on, and `start` brings another holder, which takes the connection from it. When both are lost at once, `start` goes
on with a descriptor that somebody kept (systemd), if there is one; else the mount is dead, and a new one takes its place: running containers
have lost their files then, new ones have not. `wait_gone` blocks until the holder ends, for a thread that watches.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ipfs_store.errors import IpfsStoreError, Unavailable
from snapshotter.dataplane.control import (
    Answer,
    Ask,
    Chain,
    Check,
    Done,
    Failed,
    Lines,
    Mount,
    Pin,
    Request,
    Status,
    Unmount,
    decode_answer,
    encode,
)
from snapshotter.dataplane.registry import Registry
from snapshotter.holder import locks, requests
from snapshotter.holder.mounts import end_mount
from snapshotter.holder.requests import NoHolder, Refused
from snapshotter.holder.table import mounts_at

_log = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds for a new process to serve: imports and the mount take half a second, a busy machine much longer."""
ANSWER_TIMEOUT = 10.0
"""Seconds for everything that is answered from memory."""
PIN_TIMEOUT = 60.0
"""Seconds for looking which files of an image are on the disk: a second for 100,000, more where the disk is slow."""
LOOK_AGAIN = 0.05
"""Seconds between two looks at whether the next data plane serves: it takes half a second."""
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

    @property
    def toc(self) -> str:
        """The TOC as an object of its own, a CID as text; empty if not known."""
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
    cache_reserve: int | None = None
    cache_scope: str | None = None
    verify_cache: bool = False
    read_ahead_kib: int | None = None
    abandon: float | None = None
    """Without a data plane that can be started for so long, the holder ends the connection."""
    log_level: str = "info"
    log: Path | None = None
    """Appended to by the processes; None: they write where we do."""
    resend: bool = True
    """False: as if the kernel could not send requests again."""
    code: str = ""
    """Names the code that would run: a data plane that runs other code is replaced."""
    holder_code: str = ""
    """The same for the holder."""
    program: tuple[str, ...] = (sys.executable, "-m", "snapshotter.dataplane")

    @property
    def holder(self) -> Path:
        """The holder's socket."""
        return self.control.with_name("holder.sock")

    @property
    def record(self) -> Path:
        """What the holder notes of the connection."""
        return self.control.with_name("fuse.json")

    def command(self) -> tuple[str, ...]:
        """What the holder starts."""
        return (*self.program, *self.arguments())

    @property
    def data_layers(self) -> tuple[Path, ...]:
        """The data-only layers of native mounts, as `NativeMount.data` has them."""
        return (self.cache / "contents" / "data", self.mountpoint / "content")

    def arguments(self) -> list[str]:
        """The command line behind ``program``."""
        line = [f"--mountpoint={self.mountpoint}", f"--control={self.control}", f"--cache={self.cache}", f"--node={self.node}"]
        line += [f"--peer={peer}" for peer in self.peers]
        options = {
            "node-path": self.node_path,
            "node-timeout": self.node_timeout,
            "give-up": self.give_up,
            "cache-max-bytes": self.cache_max_bytes,
            "cache-reserve": self.cache_reserve,
            "cache-scope": self.cache_scope,
            "read-ahead-kib": self.read_ahead_kib,
            "code": self.code or None,
        }
        line += [f"--{name}={value}" for name, value in options.items() if value is not None]
        line += ["--verify-cache"] if self.verify_cache else []
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

    def __init__(self, launch: Launch, *, kept: int | None = None) -> None:
        """``kept``: the descriptor of a FUSE connection that was kept for us, to go on with if nobody has it any more."""
        self.launch = launch
        self._kept = kept
        self._starting = threading.Lock()

    def start(self) -> bool:
        """Attach to what runs, or start what is missing of it; True if the mount is a new one.

        A data plane that runs with other settings, or other code, is replaced by one that runs with ours; who reads does not notice.
        Raises DataPlaneGone if none comes up.
        """
        with self._starting:
            new = False
            try:
                holder = self._ask_holder("status")
            except NoHolder:
                new = self._start_holder()
                holder = self._ask_holder("status")
            if holder.get("code") != self.launch.holder_code:
                self._replace_holder()
                holder = self._ask_holder("status")
            if tuple(holder["command"]) != self.launch.command():
                self._replace()
            if self._kept is not None:  # the holder has it
                os.close(self._kept)
                self._kept = None
        return new

    def share(self) -> int:
        """The FUSE descriptor, for somebody who keeps it too; the caller closes it. Raises DataPlaneGone."""
        try:
            return int(self._ask_holder("share")["descriptor"])
        except (NoHolder, KeyError) as error:
            raise DataPlaneGone(f"nobody holds the FUSE connection: {error}") from error

    def mount(self, layer: int, source: Source, *, namespace: str = "", timeout: float = 60.0) -> Path:
        """The directory of the layer's root; at once if it is mounted already. Starts the process if need be.

        Raises DataPlaneFailed (why the layer cannot be mounted), DataPlaneGone.
        """
        request = Mount(layer, source.cid, source.digest, source.toc_digest, timeout, namespace=namespace, toc=source.toc)
        return Path(self._patiently(request, timeout + ANSWER_TIMEOUT).path)

    def mount_native(self, layer: int, source: Source, *, namespace: str = "", timeout: float = 60.0) -> NativeMount:
        """The layer's metadata image, ready to be mounted, and the data layers that belong below; from then on its contents are served.

        At once, without the network, if the metadata were built before. Starts the process if need be. Raises as `mount`.
        """
        request = Mount(layer, source.cid, source.digest, source.toc_digest, timeout, mode="native", namespace=namespace, toc=source.toc)
        done = self._patiently(request, timeout + ANSWER_TIMEOUT)
        return NativeMount(Path(done.path), tuple(Path(path) for path in done.data))

    def mount_chain(self, layers: Sequence[int]) -> NativeMount | None:
        """One metadata image for native layers that are mounted, the lowest first; None while there is none: it is being made then.

        Raises DataPlaneFailed, DataPlaneGone.
        """
        done = self._done(Chain(tuple(layers)), ANSWER_TIMEOUT)
        return NativeMount(Path(done.path), tuple(Path(path) for path in done.data)) if done.path else None

    def pin(self, name: str, layers: Sequence[int], *, pinned: bool = True) -> None:
        """Have layers that are mounted kept whole for ``name``, or no longer; they are fetched in the background (`status`).

        Raises DataPlaneFailed (they cannot fit), DataPlaneGone.
        """
        self._done(Pin(name, tuple(layers), pinned), PIN_TIMEOUT)

    def unmount(self, layer: int) -> None:
        """Let go of the layer; nothing happens if it is not mounted, or nobody is there who could have mounted it."""
        if self.holder_pid():
            self._patiently(Unmount(layer), ANSWER_TIMEOUT)

    def registered(self) -> list[int]:
        """The layers that are noted as mounted, whether they can be opened or not."""
        return [request.layer for request in Registry(self.launch.control.with_suffix(".layers")).requests()]

    def check(self, layer: int) -> bool:
        """Whether the layer is mounted and its process answers."""
        try:
            return self._done(Check(layer), ANSWER_TIMEOUT).yes
        except DataPlaneGone:
            return False

    def status(self, *, cached: bool = False) -> Status:
        """What the process says of itself and its layers; ``cached``: also how much of each is on disk. Raises DataPlaneGone."""
        answer = self._ask(Ask(cached), ANSWER_TIMEOUT)
        if not isinstance(answer, Status):
            raise DataPlaneFailed(f"asked for its status, the data plane said {answer}")
        return answer

    def stop(self) -> None:
        """End the data plane, its mount and its holder, and wait for them."""
        try:
            self._ask_holder("stop", timeout=STOP_TIMEOUT)
        except NoHolder:
            self._clear()
        self._remove_traces()

    def wait_gone(self, timeout: float | None = None) -> bool:
        """Block until the holder ends (True) or ``timeout`` seconds have passed (False)."""
        try:
            connection = self._connect(timeout, self.launch.holder)
        except DataPlaneGone:
            return True
        with connection:
            readable, _, _ = select.select([connection], [], [], timeout)
            return bool(readable)

    def holder_pid(self) -> int:
        """The process that holds the connection; 0 if there is none."""
        return locks.owner(self.launch.holder.with_suffix(".lock"))

    def _patiently(self, request: Request, timeout: float) -> Done:
        """Ask; whoever serves may just be replaced, and what is missing is started."""
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                return self._done(request, timeout)
            except DataPlaneGone:
                if time.monotonic() > deadline:
                    raise
                self.start()
                time.sleep(LOOK_AGAIN)

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

    def _connect(self, timeout: float | None, path: Path | None = None) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.settimeout(timeout)
            connection.connect(str(path or self.launch.control))
        except OSError as error:
            connection.close()
            raise DataPlaneGone(f"no data plane on {self.launch.control}: {error.strerror or error}") from error
        return connection

    # The holder.

    def status_of_holder(self) -> dict[str, Any]:
        """What it says: ``pid``, ``worker`` (the data plane that serves, 0 for none), ``command``, ``served``, ``resend``; raises DataPlaneGone."""
        try:
            return self._ask_holder("status")
        except NoHolder as error:
            raise DataPlaneGone(str(error)) from error

    def _ask_holder(self, op: str, command: tuple[str, ...] = (), timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
        """Raises NoHolder, Refused, DataPlaneFailed (it does not answer)."""
        try:
            return requests.ask(self.launch.holder, requests.Request(op, command), timeout=timeout)
        except TimeoutError:
            pid = self.holder_pid()
            raise DataPlaneFailed(
                f"the holder of the FUSE connection (process {pid}) did not answer {op!r} within {timeout:g} s",
                hint=f"its log may say why; kill -9 {pid}, and the daemon brings another",
            ) from None

    def _replace(self) -> None:
        _log.info("the data plane runs with other settings or other code than it should, and is replaced")
        try:
            self._ask_holder("replace", self.launch.command(), timeout=START_TIMEOUT)
        except (Refused, NoHolder, DataPlaneFailed) as error:
            # The one before serves on.
            _log.error("the data plane cannot be replaced by one with the present settings and code: %s", error)

    def _replace_holder(self) -> None:
        """By one with the present code, which takes the connection from the data plane. Should that die just now: we have it, too."""
        _log.info("the holder of the FUSE connection runs other code than it should, and is replaced")
        if self._kept is None:
            self._kept = self.share()
        self._ask_holder("leave")
        deadline = time.monotonic() + STOP_TIMEOUT
        while pid := self.holder_pid():
            if time.monotonic() > deadline:
                raise DataPlaneFailed(f"the holder of the FUSE connection (process {pid}) does not end", hint=f"kill -9 {pid}")
            time.sleep(LOOK_AGAIN)
        self._start_holder()

    def _start_holder(self) -> bool:
        """One for the data plane that lost its own, for the connection that was kept, or for a new connection; True for a new one."""
        if locks.owner(self._lock):
            try:
                self._spawn(f"--adopt={self.launch.control}")
                return False
            except DataPlaneGone as error:
                _log.error("the data plane has lost its holder and cannot be taken over, so it is ended: %s", error)
                self._kill_data_plane()
        if self._kept is not None:
            try:
                self._spawn(f"--fuse-fd={self._kept}", descriptor=self._kept)
                return False
            except DataPlaneGone as error:
                _log.error("%s; a new mount takes its place", error)
        self._spawn()
        return True

    @property
    def _lock(self) -> Path:
        return self.launch.control.with_suffix(".lock")

    def _spawn(self, *options: str, descriptor: int | None = None) -> None:
        read_end, write_end = os.pipe()
        launch = self.launch
        command = [sys.executable, "-m", "snapshotter.holder", f"--mountpoint={launch.mountpoint}", f"--socket={launch.holder}"]
        command += [f"--record={launch.record}", f"--code={launch.holder_code}", f"--ready-fd={write_end}", *options]
        command += [] if launch.resend else ["--no-resend"]
        command += [f"--abandon={launch.abandon}"] if launch.abandon is not None else []
        try:
            with contextlib.ExitStack() as stack:
                output = None
                if launch.log is not None:
                    launch.log.parent.mkdir(parents=True, exist_ok=True)
                    output = stack.enter_context(launch.log.open("ab"))
                process = subprocess.Popen(
                    [*command, "--", *launch.command()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(write_end,) if descriptor is None else (write_end, descriptor),
                    start_new_session=True,
                )
        finally:
            os.close(write_end)
        # Reaped here when it ends while we live; in a thread, since nobody else waits for it.
        threading.Thread(target=process.wait, name="holder-reaper", daemon=True).start()
        with os.fdopen(read_end, "rb") as pipe:
            readable, _, _ = select.select([pipe], [], [], START_TIMEOUT)
            word = pipe.readline().decode(errors="replace").strip() if readable else f"error: nothing heard within {START_TIMEOUT:g} s"
        if word != "ready":
            process.kill()
            raise DataPlaneGone(f"the data plane does not start: {word.removeprefix('error: ') or 'it ended without a word; see its log'}")

    def _clear(self) -> None:
        """There is no holder: end what is left of a data plane and its mount."""
        self._kill_data_plane()
        for _ in mounts_at(self.launch.mountpoint):
            end_mount(self.launch.mountpoint)

    def _kill_data_plane(self) -> None:
        pid = locks.owner(self._lock)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                try:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    if not select.select([handle], [], [], STOP_TIMEOUT)[0]:
                        raise DataPlaneFailed(
                            f"the data plane (process {pid}) does not end", hint=f"what does it wait for? cat /proc/{pid}/stack"
                        )
                finally:
                    os.close(handle)

    def _remove_traces(self) -> None:
        launch = self.launch
        notes = (launch.control.with_suffix(suffix) for suffix in (".openers", ".told"))
        for path in (launch.holder, launch.control, launch.record, *notes):
            path.unlink(missing_ok=True)
        shutil.rmtree(launch.control.with_suffix(".layers"), ignore_errors=True)
