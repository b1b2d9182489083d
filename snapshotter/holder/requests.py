"""What a holder can be asked, on its unix socket: one JSON object a line, each answered by one; and both ends of that.

========  ==================================================================================================================
status    which data plane serves (``worker``, 0 for none), started with which ``command``
replace   start ``command`` and let it take over; answered when it serves, or failed (then the one before goes on)
share     the FUSE descriptor itself, for whoever is to keep it as well
stop      end the connection, the data plane and the holder
leave     end the holder alone: another one takes over
========  ==================================================================================================================
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_LONGEST = 1 << 20


class NoHolder(Exception):
    """Nobody answers on the socket."""


class Refused(Exception):
    """The holder said that it could not."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line to the holder."""

    op: str
    command: tuple[str, ...] = ()


class Conversation:
    """The holder's end of a connection; never waits."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.closed = False
        self._rest = b""

    def receive(self) -> Iterator[Request]:
        """The requests that have come; sets ``closed`` at their end, and for whoever sends something else."""
        try:
            data = self.socket.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.closed = not data or len(self._rest) > _LONGEST
        for line in lines:
            try:
                document = json.loads(line)
                yield Request(document["op"], tuple(document.get("command", ())))
            except (ValueError, KeyError, TypeError):
                self.closed = True
                return

    def answer(self, *, ok: bool, descriptor: int | None = None, **fields: object) -> None:
        """One line, of less than a socket's buffer; one who has gone does not hear it."""
        line = json.dumps({"ok": ok, **fields}).encode() + b"\n"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))] if descriptor is not None else []
        with contextlib.suppress(OSError):
            self.socket.sendmsg([line], rights)


def ask(path: Path, request: Request, *, timeout: float) -> dict[str, Any]:
    """The answer; with a ``descriptor`` where one came along, which is the caller's to close. Raises NoHolder, Refused, TimeoutError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(asdict(request)).encode() + b"\n")
            data, descriptors = receive_line(connection)
        except TimeoutError:
            raise
        except OSError as error:
            raise NoHolder(f"no holder on {path}: {error.strerror or error}") from error
    answer: dict[str, Any] = json.loads(data)
    if descriptors:
        answer["descriptor"] = descriptors[0]
    if not answer.pop("ok"):
        raise Refused(answer.get("error", "no reason given"))
    return answer


def receive_line(connection: socket.socket, most: int = 1) -> tuple[bytes, Sequence[int]]:
    """One line and the descriptors that come with it, at most ``most``; raises ConnectionError at an end before that."""
    data, descriptors = b"", array.array("i")
    while not data.endswith(b"\n"):
        piece, ancillary, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(most * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) // descriptors.itemsize * descriptors.itemsize])
        if not piece:
            for descriptor in descriptors:
                os.close(descriptor)
            raise ConnectionError("the other side ended the connection in the middle")
        data += piece
    return data, descriptors.tolist()
