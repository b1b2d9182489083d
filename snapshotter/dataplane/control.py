"""What the daemon and the data plane say to each other: one JSON object a line, on a unix socket.

A connection carries requests and answers in turn, each answer to the request before it. Text in, values out, no I/O here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ipfs_store.errors import InvalidInput

# A status of 1,000 layers has 300 KB; whoever sends a longer line without an end is not one of us.
LONGEST_LINE = 8 << 20


class Mount(msgspec.Struct, frozen=True, tag="mount", tag_field="op"):
    """Show a layer as the directory ``layer`` of the mount; natively: have its metadata image made and serve its contents by id."""

    layer: int
    cid: str
    digest: str
    toc_digest: str
    timeout: float
    """Seconds until the attempt is given up."""
    mode: Literal["portable", "native"] = "portable"
    namespace: str = ""
    """containerd's: who shares contents, where the configuration has a cache for each namespace."""
    toc: str = ""
    """The TOC as an object of its own, a CID as text; empty if there is none."""


class Unmount(msgspec.Struct, frozen=True, tag="unmount", tag_field="op"):
    """Take a layer away; nothing happens if it is not there."""

    layer: int


class Chain(msgspec.Struct, frozen=True, tag="chain", tag_field="op"):
    """One metadata image for a chain of native layers, which stay mounted for their contents; Done without a path: it is being made."""

    layers: tuple[int, ...]
    """The lowest first."""


class Pin(msgspec.Struct, frozen=True, tag="pin", tag_field="op"):
    """Keep layers whole, or (``pinned`` false) let go of them."""

    name: str
    """For whom: they stay until the last has let go."""
    layers: tuple[int, ...]
    pinned: bool = True


class Check(msgspec.Struct, frozen=True, tag="check", tag_field="op"):
    """Is this layer mounted?"""

    layer: int


class Ask(msgspec.Struct, frozen=True, tag="status", tag_field="op"):
    """Say everything about yourself."""

    cached: bool = False
    """Count, too, how much of each layer is on disk."""


class Adopt(msgspec.Struct, frozen=True, tag="adopt", tag_field="op"):
    """From a new holder, after the one before was lost: hand over the FUSE connection, and a channel."""


Request = Mount | Unmount | Chain | Pin | Check | Ask | Adopt


class Done(msgspec.Struct, frozen=True, tag="done", tag_field="answer"):
    """It was done; to Check: whether."""

    path: str = ""
    """To Mount: the layer's folder; natively its metadata image."""
    data: tuple[str, ...] = ()
    """To a native Mount: the data-only layers that belong below it, in this order."""
    yes: bool = True


class Failed(msgspec.Struct, frozen=True, tag="failed", tag_field="answer"):
    """It was not done, and why."""

    message: str
    hint: str | None = None


class Wait(msgspec.Struct, frozen=True):
    """A fetch that readers wait for."""

    offset: int
    """Of the compressed stream, in the blob."""
    age: float
    """Seconds."""
    readers: int
    attempts: int
    reason: str
    """Why the last attempt failed."""


class LayerStatus(msgspec.Struct, frozen=True):
    """One mounted layer; sizes in bytes."""

    layer: int
    digest: str
    cid: str
    entries: int
    content: int
    """Bytes of all its regular files."""
    fetched: int
    """Bytes got from the node: blocks of the blob, its DAG and its TOC."""
    read: int
    """Bytes given to readers (what the page cache gives is not seen here)."""
    files_opened: int
    """Distinct files that were asked for here. Natively, one that came along with a neighbour's leaf is on disk by then, and not asked for."""
    hits: int
    """Chunks found in memory or in the cache on disk."""
    misses: int
    """Chunks that had to be fetched."""
    waiting: list[Wait]
    mode: str = "portable"
    cached: int | None = None
    """Bytes of its files that are on disk, where that was asked for."""
    pinned: bool = False
    pin_left: int | None = None
    """Bytes on disk that are missing of a pinned layer; None: not known yet."""
    pin_error: str = ""
    """Why they are missing, if not because it takes its time."""


class Status(msgspec.Struct, frozen=True, tag="status", tag_field="answer"):
    """The data plane and its layers."""

    pid: int
    instance: str
    """Different for each process that ever served: layers have to be mounted again in a new one."""
    mountpoint: str
    command: list[str]
    """What it was started with."""
    cache_bytes: int
    rss_bytes: int
    layers: list[LayerStatus]
    no_verity: str = ""
    """Why cached files are not sealed by fs-verity; empty: they are."""


class Adopted(msgspec.Struct, frozen=True, tag="adopted", tag_field="answer"):
    """Two descriptors come with it: the connection, and the holder's end of the channel."""

    pid: int
    command: list[str]
    """What the data plane was started with."""
    handshake: str
    """`snapshotter.holder.handshake.Handshake.encode`."""


Answer = Done | Failed | Status | Adopted

_encoder = msgspec.json.Encoder()
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_answers: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)


def encode(message: Request | Answer) -> bytes:
    """The line, with its end."""
    return _encoder.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises InvalidInput."""
    try:
        return _requests.decode(line)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the control socket got a line that is no request: {error}") from error


def decode_answer(line: bytes) -> Answer:
    """Raises InvalidInput."""
    try:
        return _answers.decode(line)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the control socket gave a line that is no answer: {error}") from error


class Lines:
    """Bytes in as they come, whole lines out."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; raises InvalidInput for one that is too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            raise InvalidInput(f"a line of more than {LONGEST_LINE} bytes on the control socket")
        return lines
