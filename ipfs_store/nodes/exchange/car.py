"""CAR answers of a trustless gateway: which blocks a request means, and their stream (specs.ipfs.tech, "CAR Responses")."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from typing import Protocol, runtime_checkable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ipfs_store.cids import DAG_PB, RAW, Cid, codec_of, format_cid
from ipfs_store.dag import dagpb
from ipfs_store.dag.car import car_frame, car_header
from ipfs_store.dag.links import links_of
from ipfs_store.dag.unixfs import decode_file_node
from ipfs_store.errors import BlockNotFound, InvalidInput, IpfsStoreError

_log = logging.getLogger(__name__)
_AHEAD = 31  # leaves that are read with one that is sent next: a megabyte, 32 at most
_PIECE = 256 << 10  # bytes that are handed to the server at a time, which costs as much as reading them
_RANGE = re.compile(r"(-?\d{1,18}):(-?\d{1,18}|\*)")
_DIRECTORY, _SYMLINK, _HAMT = 1, 4, 5  # UnixFS data types


class LocalBlocks(Protocol):
    """See ``server.LocalBlocks``."""

    async def local(self, cid: Cid) -> bytes | None:
        """The block, verified, if the store itself has it."""
        ...


@runtime_checkable
class ManyLocalBlocks(Protocol):
    """Blocks that are read faster together."""

    async def local_many(self, cids: Sequence[Cid]) -> list[bytes | None]:
        """Those of the blocks that the store itself has, verified."""
        ...


@dataclass(frozen=True, slots=True)
class CarRequest:
    """What of a DAG is wanted: ``scope`` is block, entity or all; ``duplicates`` sends a block each time the walk meets it."""

    scope: str = "all"
    duplicates: bool = False
    byte_range: tuple[int, int | None] | None = None
    """``entity-bytes``: first and last byte; negative counts from the end, None is the end."""

    @classmethod
    def parse(cls, query: Mapping[str, str], accept: Mapping[str, str]) -> CarRequest:
        """The request in a URL's query and the parameters of its Accept header (the query goes first); raises InvalidInput."""
        scope = query.get("dag-scope", "all")
        if scope not in ("block", "entity", "all"):
            raise InvalidInput(f"dag-scope={scope[:20]}: it is block, entity or all")
        version = query.get("car-version", accept.get("version", "1"))
        if version != "1":
            raise InvalidInput(f"CAR version {version[:20]} is not offered; version 1 is")
        order = query.get("car-order", accept.get("order", "dfs"))
        if order not in ("dfs", "unk"):
            raise InvalidInput(f"CAR order {order[:20]} is not offered; dfs is")
        duplicates = query.get("car-dups", accept.get("dups", "n"))
        if duplicates not in ("y", "n"):
            raise InvalidInput(f"car-dups={duplicates[:20]}: it is y or n")
        byte_range = _byte_range(query["entity-bytes"]) if "entity-bytes" in query else None
        if byte_range is not None:
            scope = "entity"
        return cls(scope, duplicates == "y", byte_range)

    @property
    def media_type(self) -> str:
        """The Content-Type of the answer."""
        return f"application/vnd.ipld.car; version=1; order=dfs; dups={'y' if self.duplicates else 'n'}"

    def etag(self, cid: Cid) -> str:
        """Weak, since another node may send the blocks in another order; starts with the scope, as the specification asks."""
        shape = hashlib.sha256(repr((self.duplicates, self.byte_range)).encode()).hexdigest()[:12]
        return f'W/"{self.scope}-{format_cid(cid)}.car.{shape}"'


class CarResponse(Response):
    """A CAR as a stream. Where a block turns out to be missing the connection is cut, so that nobody takes the rest for the whole."""

    def __init__(self, node: LocalBlocks, root: Cid, block: bytes, wanted: CarRequest, headers: Mapping[str, str]) -> None:
        """``block`` is the root's."""
        self.status_code = 200
        self.background = None
        self.body = b""
        self.media_type = wanted.media_type
        self.init_headers({**headers, "Content-Type": wanted.media_type})
        del self.headers["Content-Length"]
        self._node, self._root, self._block, self._wanted = node, root, block, wanted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if scope["method"] != "HEAD":
            pieces, held = [car_header([self._root])], 0

            async def hand_on() -> None:
                nonlocal held
                await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": True})
                pieces.clear()
                held = 0

            try:
                async for cid, block in self._blocks():
                    pieces.append(car_frame(cid, block))
                    held += len(block)
                    if held >= _PIECE:
                        await hand_on()
            except IpfsStoreError as error:
                _log.warning("the CAR of %s is broken off: %s", format_cid(self._root), error)
                await hand_on()
                return  # without the end of the body, which makes the server close the connection
            await hand_on()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _blocks(self) -> AsyncIterator[tuple[Cid, bytes]]:
        """The blocks that are meant, depth first (``order=dfs``); raises BlockNotFound, InvalidDag."""
        sent = {self._root}
        start, end = 0, math.inf
        if self._wanted.byte_range is not None:
            start, end = _resolve(self._wanted.byte_range, _entity_size(self._root, self._block))
        yield self._root, self._block
        waiting = list(reversed(self._parts(self._root, self._block, 0, start, end)))
        ahead: dict[Cid, bytes | None] = {}
        while waiting:
            cid, offset = waiting.pop()
            known = cid in sent and not self._wanted.duplicates
            if known and (self._wanted.byte_range is None or codec_of(cid) == RAW):
                continue  # with a range, a subtree that comes twice may have been cut the first time: walk it again
            if cid not in ahead:
                run = [cid]
                if codec_of(cid) == RAW:  # read together with the leaves behind it, as they lie in the store
                    behind = takewhile(lambda link: codec_of(link) == RAW, (link for link, _ in waiting[: -_AHEAD - 1 : -1]))
                    run += [link for link in dict.fromkeys(behind) if link != cid and link not in sent]
                ahead = dict(zip(run, await self._local(run), strict=True))
            block = ahead.pop(cid)
            if block is None:
                raise BlockNotFound(f"the block {format_cid(cid)} of it is not here")
            if not known:
                sent.add(cid)
                yield cid, block
            waiting += reversed(self._parts(cid, block, offset, start, end))

    async def _local(self, cids: list[Cid]) -> list[bytes | None]:
        if isinstance(self._node, ManyLocalBlocks):
            return await self._node.local_many(cids)
        return [await self._node.local(cid) for cid in cids]

    def _parts(self, cid: Cid, block: bytes, offset: int, start: float, end: float) -> list[tuple[Cid, int]]:
        """The blocks below ``block`` that are meant, each with its offset in the file; ``offset`` is the block's own."""
        if self._wanted.scope == "block":
            return []
        if self._wanted.scope == "all":
            return [(link, 0) for link in links_of(cid, block)]
        if codec_of(cid) != DAG_PB:
            return []
        shards = _shards(block)
        if shards is not None:
            return [(link, 0) for link in shards]
        node = _file_node(cid, block)
        parts = []
        offset += len(node.data)
        for child in node.children:
            if offset < end and offset + child.size > start:
                parts.append((child.cid, offset))
            offset += child.size
        return parts


# A file comes in many requests for parts of the same few nodes, each of which takes 2 ms to decode.
_file_node = lru_cache(maxsize=64)(decode_file_node)


@lru_cache(maxsize=64)
def _shards(block: bytes) -> list[Cid] | None:
    """For a directory, the blocks needed to list it: the shards below a HAMT node, none for a plain one. None for anything else."""
    node = dagpb.decode_node(block)
    kind = next((value for number, value in dagpb.fields(node.data or b"") if number == 1), None)
    if kind == _HAMT:
        # A shard's link has a bare prefix of two hex digits for a name (fanout 256), an entry's the prefix and the entry's name.
        return [link.cid for link in node.links if len(link.name) == 2]
    return [] if kind in (_DIRECTORY, _SYMLINK) else None


def _entity_size(cid: Cid, block: bytes) -> int:
    """Bytes of the file, 0 for what is no file."""
    if codec_of(cid) == DAG_PB and _shards(block) is not None:
        return 0
    return _file_node(cid, block).size if codec_of(cid) in (DAG_PB, RAW) else 0


def _byte_range(text: str) -> tuple[int, int | None]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InvalidInput(f"entity-bytes={text[:40]}: it is FROM:TO, numbers of bytes, where TO may be *")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _resolve(byte_range: tuple[int, int | None], size: int) -> tuple[int, int]:
    """First byte, and the one after the last; an empty range where nothing of the file is meant."""
    first, last = byte_range
    start = max(first + size if first < 0 else first, 0)
    end = size if last is None else min((last + size if last < 0 else last) + 1, size)
    return (start, end) if start < end else (0, 0)
