"""``python -m snapshotter.holder ... -- COMMAND``: hold a FUSE connection, and keep COMMAND, a data plane, on it. The daemon starts it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from snapshotter.holder.connection import Connection, Lost, establish, resume
from snapshotter.holder.handshake import Handshake, NotInit
from snapshotter.holder.locks import Occupied, locked
from snapshotter.holder.requests import receive_line
from snapshotter.holder.supervisor import Settings, Supervisor
from snapshotter.holder.worker import Worker, attach

_log = logging.getLogger(__name__)
_ADOPT_TIMEOUT = 10.0  # an orphaned data plane answers from memory; one that does not answer is no use


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = argparse.ArgumentParser(
        prog="python -m snapshotter.holder", description="Hold a FUSE connection, and keep a data plane on it."
    )
    arguments.add_argument("--mountpoint", type=Path, required=True, metavar="DIR")
    arguments.add_argument("--socket", type=Path, required=True, metavar="SOCKET", help="where the daemon asks")
    arguments.add_argument("--record", type=Path, required=True, metavar="FILE", help="the handshake is kept here")
    arguments.add_argument("--abandon", type=float, default=60.0, metavar="SECONDS", help="without a data plane, end the connection")
    arguments.add_argument("--watchdog", type=float, default=60.0, metavar="SECONDS", help="kill a data plane that says nothing")
    arguments.add_argument("--drain", type=float, default=5.0, metavar="SECONDS", help="for the last answers of one that is replaced")
    arguments.add_argument("--adopt", type=Path, metavar="SOCKET", help="go on with the data plane that serves there and has no holder")
    arguments.add_argument("--fuse-fd", type=int, metavar="N", help="go on with this connection, as the record has it")
    arguments.add_argument("--no-resend", action="store_true", help="as on kernels before 6.9, which cannot send requests again")
    arguments.add_argument("--code", default="", help=argparse.SUPPRESS)  # tells the daemon that we run what it would start
    arguments.add_argument("--ready-fd", type=int, metavar="N", help=argparse.SUPPRESS)
    arguments.add_argument("command", nargs="+", metavar="COMMAND")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Hold until told to stop; the exit status: 0, 1 (could not begin, or the connection ended), 3 (no data plane could be kept)."""
    options = parser().parse_args(given)
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    def ready(word: str) -> None:
        if options.ready_fd is not None:
            os.write(options.ready_fd, f"{word}\n".encode())
            os.close(options.ready_fd)
            options.ready_fd = None

    try:
        with locked(options.socket.with_suffix(".lock")):
            return _hold(options, ready)
    except Occupied as error:
        ready(f"error: a holder runs already ({error})")
    except (Lost, NotInit, ConnectionError) as error:
        ready(f"error: {error}")
    except OSError as error:
        ready(f"error: cannot mount FUSE on {options.mountpoint}: {error.strerror or error} (it needs root and /dev/fuse)")
    return 1


def _hold(options: argparse.Namespace, ready: object) -> int:
    assert callable(ready)
    serving: Worker | None = None
    if options.adopt is not None:
        connection, serving = _adopt(options.adopt, options.mountpoint, resend=not options.no_resend)
        connection.note(options.record)
        _log.info("holding the connection of the data plane that runs (process %d)", serving.pid)
    elif options.fuse_fd is not None:
        os.set_inheritable(options.fuse_fd, False)
        connection = resume(options.fuse_fd, options.mountpoint, options.record)
        _log.info("going on with the FUSE connection that was kept for us")
    else:
        connection = establish(options.mountpoint)
    connection.resend &= not options.no_resend
    listener = _listen(options.socket)
    try:
        settings = Settings(options.record, options.abandon, options.watchdog, options.drain, options.code)
        return Supervisor(settings, connection, listener, options.command, serving).run(ready)
    finally:
        options.socket.unlink(missing_ok=True)


def _adopt(control: Path, mountpoint: Path, *, resend: bool) -> tuple[Connection, Worker]:
    """Ask the data plane on ``control`` for its connection and for a channel."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.settimeout(_ADOPT_TIMEOUT)
        asking.connect(str(control))
        asking.sendall(b'{"op":"adopt"}\n')
        line, descriptors = receive_line(asking, 2)
    answer = json.loads(line)
    if len(descriptors) != 2 or answer.get("answer") != "adopted":
        raise Lost(f"the data plane does not let go of its connection: {answer.get('message', answer)}")
    fuse, end = descriptors
    handshake = Handshake.decode(answer["handshake"])
    connection = Connection(fuse, mountpoint, handshake, resend=handshake.resend and resend)
    if not connection.resend:
        # It is the clone that was lent; ours has to be another, so that this one ends with the data plane.
        connection.descriptor = connection.lend()
        os.close(fuse)
    return connection, attach(answer["pid"], socket.socket(fileno=end), answer["command"])


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)  # 0600 from the first moment
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(16)
    return listener


if __name__ == "__main__":
    sys.exit(main())
