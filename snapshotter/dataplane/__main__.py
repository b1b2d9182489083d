"""``python -m snapshotter.dataplane``: the data plane's process. The holder of the FUSE connection starts it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from ipfs_store.errors import IpfsStoreError
from snapshotter.dataplane.memory import keep_freed
from snapshotter.dataplane.server import LayerSource, Settings, serve
from snapshotter.holder import channel
from snapshotter.holder.channel import Message

_log = logging.getLogger(__name__)

OpenSource = Callable[[], AbstractAsyncContextManager[LayerSource]]

# A chunk of 256 KiB comes with its next three, in one request; four times that doubles the bytes of a cold start (a page fault reads around
# itself as far as this goes), a quarter halves sequential throughput.
READ_AHEAD_KIB = 1024
GIVE_UP = 60.0
CACHE_MAX_BYTES = 10 << 30
CACHE_RESERVE = 1 << 30
# Threads build trees of portable layers, in Python. Where three do, a step of the event loop that lets go of the interpreter waits a third to
# two thirds as long with this as with Python's 5 ms, and the threads get as much done.
SWITCH_INTERVAL = 0.001


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = argparse.ArgumentParser(prog="python -m snapshotter.dataplane", description="Serve layers out of IPFS as one FUSE mount.")
    arguments.add_argument("--mountpoint", type=Path, required=True, metavar="DIR", help="where the layers appear, each under its number")
    arguments.add_argument("--control", type=Path, required=True, metavar="SOCKET", help="unix socket by which layers come and go")
    arguments.add_argument("--cache", type=Path, required=True, metavar="DIR", help="verified chunks are kept here")
    arguments.add_argument("--cache-max-bytes", type=int, default=CACHE_MAX_BYTES, metavar="N", help="(default %(default)s)")
    arguments.add_argument(
        "--cache-reserve", type=int, default=CACHE_RESERVE, metavar="N", help="bytes that stay free (default %(default)s)"
    )
    arguments.add_argument(
        "--cache-scope", default="machine", choices=["machine", "namespace"], help="who shares files (default %(default)s)"
    )
    arguments.add_argument(
        "--verify-cache", action="store_true", help="hash every cached file at the start and once a week, in the background"
    )
    arguments.add_argument("--node", default="auto", help="auto, embedded or kubo[:ADDRESS] (default %(default)s)")
    arguments.add_argument("--node-path", type=Path, metavar="DIR", help="the block store of the embedded node")
    arguments.add_argument("--peer", action="append", default=[], metavar="URL", help="a peer to get blocks from; may be repeated")
    arguments.add_argument("--node-timeout", type=float, default=None, metavar="SECONDS", help="for one block")
    arguments.add_argument("--give-up", type=float, default=GIVE_UP, metavar="SECONDS", help="then a read fails (default %(default)s)")
    arguments.add_argument("--read-ahead-kib", type=int, default=READ_AHEAD_KIB, metavar="N", help="of the mount (default %(default)s)")
    arguments.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    arguments.add_argument("--code", default="", help=argparse.SUPPRESS)  # tells the daemon that we run what it would start
    arguments.add_argument("--holder-fd", type=int, required=True, help=argparse.SUPPRESS)
    arguments.add_argument("--fuse-fd", type=int, required=True, help=argparse.SUPPRESS)
    return arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until stopped; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)

    def source() -> AbstractAsyncContextManager[LayerSource]:
        from snapshotter.dataplane.source import open_source  # brings HTTP along

        return open_source(options.node, path=options.node_path, peers=tuple(options.peer), timeout=options.node_timeout)

    return run(options, source)


def run(options: argparse.Namespace, source: OpenSource) -> int:
    """`main`, with layers from ``source``."""
    keep_freed()
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    for talkative in ("httpx", "httpcore"):  # a line for every block
        logging.getLogger(talkative).setLevel(logging.WARNING)
    sys.setswitchinterval(SWITCH_INTERVAL)
    settings = Settings(
        mountpoint=options.mountpoint.absolute(),
        control=options.control.absolute(),
        cache=options.cache.absolute(),
        cache_max_bytes=options.cache_max_bytes,
        cache_reserve=options.cache_reserve,
        cache_scope=options.cache_scope,
        verify_cache=options.verify_cache,
        give_up=options.give_up,
        read_ahead_kib=options.read_ahead_kib,
        command=tuple(word for word in sys.orig_argv if not word.startswith(("--holder-fd=", "--fuse-fd="))),
    )
    end = socket.socket(fileno=options.holder_fd)
    for descriptor in (options.holder_fd, options.fuse_fd):
        os.set_inheritable(descriptor, False)
    failure: BaseExceptionGroup[IpfsStoreError | OSError] | None = None
    try:
        serve(settings, source, end, options.fuse_fd)
    except* (IpfsStoreError, OSError) as group:
        failure = group
    if failure is not None:
        error = _first(failure)
        text = error.message if isinstance(error, IpfsStoreError) else str(error)
        hint = f" ({error.hint})" if isinstance(error, IpfsStoreError) and error.hint else ""
        _log.error("%s%s", text, hint)
        with contextlib.suppress(OSError):  # the log has it, if nobody is there to hear it
            end.send(channel.encode(Message("failed", text=f"{text}{hint}")))
        return 1
    return 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
