"""A container from an image that containerd has: made, run with our streams and signals, and cleaned up."""

from __future__ import annotations

import os
import queue
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from ipfs_store.errors import InvalidInput, IpfsStoreError
from snapshotter.containerd.connection import Connection, end, leased
from snapshotter.containerd.errors import ContainerdNotFound, ContainerdRefused
from snapshotter.containerd.image_files import mounted, read_in_root
from snapshotter.containerd.local import LocalImage
from snapshotter.containerd.protos.mount_pb2 import Mount
from snapshotter.containerd.records import Containers
from snapshotter.containerd.snapshots import Snapshots
from snapshotter.containerd.spec import Options, User, image_settings, parse_user, spec
from snapshotter.containerd.stdio import Stdio
from snapshotter.containerd.tasks import Task

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FORCE_AFTER = 3
_ID = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")

_Event = int | signal.Signals | BaseException
"""What a run waits for: the exit status, a signal to us, or what went wrong while waiting."""


def run(
    connection: Connection,
    image: LocalImage,
    name: str,
    *,
    snapshotter: str,
    options: Options,
    interactive: bool = False,
    remove: bool = False,
) -> int:
    """Run a container ``name`` from ``image`` to its end; its exit status (128 and more for a signal).

    Signals to us are passed on; the third SIGINT or SIGTERM kills it. ``remove``: nothing of it is left afterwards; without, its snapshot and
    record stay, as those of ``ctr run``. A container that never started leaves nothing in any case.

    Raises InvalidInput (a name that is taken or none, nothing to run, an unknown user), ContainerdRefused (no such program), ...
    """
    if not _ID.fullmatch(name) or len(name) > 76:
        raise InvalidInput(f"{name[:100]!r} is no name for a container", hint="letters and digits, with single . _ - between; at most 76")
    containers, snapshots = Containers(connection), Snapshots(connection, snapshotter)
    if containers.exists(name):
        raise InvalidInput(f"there is a container {name!r} already", hint=f"choose another --name, or remove it: ctr container rm {name}")
    started = False
    try:
        with leased(connection) as under_lease:
            mounts = Snapshots(under_lease, snapshotter).prepare(name, str(image.chain_id or ""))
            user = _user(image, mounts)
            document = spec(name, connection.namespace, image.config, user, options)
            Containers(under_lease).create(name, image=image.name, spec=document, snapshotter=snapshotter, labels={})
        task, events = Task(connection, name), queue.SimpleQueue[_Event]()
        with _signals(events), _stdio(task, interactive, options.terminal) as stdio:
            task.create(mounts, stdio.streams)
            try:
                stdio.attach()
                waiting = threading.Thread(target=_wait, args=(task, events), daemon=True)
                waiting.start()
                task.start()
                started = True
                return _until_end(task, events, terminal=options.terminal)
            finally:
                _delete(connection, task)
    finally:
        if remove or not started:
            end(connection, lambda: containers.delete(name), quietly=True)
            end(connection, lambda: snapshots.remove(name), quietly=True)


# Seconds. A signal that comes between Python's last look and the wait wakes nobody, so its handler would run at the next event, which may be never.
_LOOK = 0.25


def _until_end(task: Task, events: queue.SimpleQueue[_Event], *, terminal: bool) -> int:
    if terminal:
        _resize(task)
    asked_to_end = 0
    while True:
        try:
            event = events.get(timeout=_LOOK)
        except queue.Empty:
            continue
        if isinstance(event, BaseException):
            raise event
        if not isinstance(event, signal.Signals):
            return event
        if event == signal.SIGWINCH:
            if terminal:
                _resize(task)
            continue
        asked_to_end += event in (signal.SIGINT, signal.SIGTERM)
        with suppress(ContainerdNotFound):  # it has ended; its status comes next
            task.kill(signal.SIGKILL if asked_to_end >= _FORCE_AFTER else event)


def _wait(task: Task, events: queue.SimpleQueue[_Event]) -> None:
    try:
        events.put(task.wait())
    except IpfsStoreError as error:
        events.put(error)


def _delete(connection: Connection, task: Task) -> None:
    def kill_and_delete() -> None:
        with suppress(ContainerdNotFound):
            task.kill(signal.SIGKILL, all_processes=True)
            task.wait()
        task.delete()

    try:
        task.delete()
    except ContainerdNotFound:
        pass
    except ContainerdRefused:  # it runs still: something went wrong on our side
        end(connection, kill_and_delete, quietly=True)


def _resize(task: Task) -> None:
    size = os.get_terminal_size(0)
    with suppress(ContainerdNotFound):
        task.resize(size.columns, size.lines)


def _stdio(task: Task, interactive: bool, terminal: bool) -> Stdio:
    def close_stdin() -> None:
        with suppress(ContainerdNotFound):
            task.close_stdin()

    def kill() -> None:
        with suppress(ContainerdNotFound):
            task.kill(signal.SIGKILL, all_processes=True)

    return Stdio(interactive=interactive or terminal, terminal=terminal, on_input_end=close_stdin, on_broken_output=kill)


@contextmanager
def _signals(events: queue.SimpleQueue[_Event]) -> Iterator[None]:
    def received(number: int, _: FrameType | None) -> None:
        events.put(signal.Signals(number))  # a SimpleQueue may be used in a handler

    before = {number: signal.signal(number, received) for number in (*_FORWARDED, signal.SIGWINCH)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _user(image: LocalImage, mounts: Sequence[Mount]) -> User:
    wanted = image_settings(image.config).get("User") or ""
    if not isinstance(wanted, str) or not wanted:
        return User(0, 0, (0,))
    if re.fullmatch(r"[0-9]+:[0-9]+", wanted):
        return parse_user(wanted, "", "")
    # Only a name, or a number whose group is not said, costs a look into the image, which a lazy one has to fetch.
    with mounted(mounts) as path:
        return parse_user(wanted, read_in_root(path, "etc/passwd"), read_in_root(path, "etc/group"))
