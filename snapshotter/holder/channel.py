"""What the holder and a data plane say to each other: one JSON object a packet, on a socket pair that the data plane inherits.

::

    holder      init      here is the handshake; get everything ready, but leave the connection alone
    data plane  prepared  all is ready; here is what libfuse replied to INIT
    holder      go        the connection is yours (and, where the kernel has it: have it send again what your predecessor had)
    data plane  serving
    data plane  alive     every few seconds, for the watchdog
    data plane  failed    it cannot serve, and why; it ends
    data plane  unmounted somebody ended the mount; it ends
"""

from __future__ import annotations

import json
import socket
from dataclasses import asdict, dataclass

LONGEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Message:
    """One packet."""

    say: str
    handshake: str = ""
    """`Handshake.encode`, of init and go."""
    reply: str = ""
    """libfuse's reply to INIT in hexadecimal, of prepared."""
    first: bool = False
    """Of go: nobody has served the connection before."""
    text: str = ""
    """Of failed: one line for people."""


def encode(message: Message) -> bytes:
    """The packet."""
    return json.dumps({key: value for key, value in asdict(message).items() if value}).encode()


def decode(packet: bytes) -> Message:
    """From the packet; raises ValueError for what is none."""
    try:
        return Message(**json.loads(packet))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{packet[:200]!r} is no message between holder and data plane") from error


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends; packets stay whole, and the end of one process is the end of the other's reading."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
