"""``dag/import`` requests whose body is written while they run: one that carries blocks, and one that only keeps Kubo's pin lock."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

import trio

from ipfs_store.cids import Cid
from ipfs_store.dag.car import car_frame, car_header
from ipfs_store.errors import IpfsStoreError, NodeUnavailable
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.kubo.rpc import RequestBody, Rpc, error_of, one_line

# Announcing what was imported is Kubo's affair, and is done by its own schedule: in line with an import it costs a DHT walk.
_QUIET = [("fast-provide-root", "false"), ("fast-provide-dag", "false")]


class Import:
    """One request. ``run`` makes it and has to run in a nursery; ``send`` feeds it, ``finish`` ends it and says how it went."""

    def __init__(self, rpc: Rpc, *, pin_roots: bool) -> None:
        """With ``pin_roots`` Kubo holds its pin lock, which keeps its garbage collector out, from the start of the request to its end."""
        self._rpc = rpc
        self._pin_roots = pin_roots
        self._boundary = secrets.token_hex(16)
        # No buffer: ``send`` returns when the connection takes the block, so that memory stays bounded however slow Kubo is.
        self._feed, self._body = trio.open_memory_channel[bytes](0)
        self._done = trio.Event()
        self._failure: IpfsStoreError | None = None
        self._answer: list[dict[str, object]] = []
        self.blocks = 0

    async def run(self) -> None:
        """Make the request, until ``finish`` or failure."""
        parameters = [("pin-roots", "true" if self._pin_roots else "false"), ("stats", "true"), *_QUIET]
        content_type = f"multipart/form-data; boundary={self._boundary}"
        try:
            async with self._rpc.stream("dag/import", parameters, content=self._content(), content_type=content_type) as response:
                async for line in response.aiter_lines():
                    if line:
                        self._answer.append(json.loads(line))
        except IpfsStoreError as error:
            self._failure = error
        finally:
            self._body.close()
            self._done.set()

    async def send(self, blocks: Sequence[Block]) -> None:
        """Add blocks, in one piece: each piece costs 70 µs. Raises StorageFailed, NodeUnavailable, RpcError where Kubo ended the request."""
        if not blocks:
            return
        try:
            await self._feed.send(b"".join(car_frame(block.cid, block.data) for block in blocks))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._done.wait()
            raise self._failure or NodeUnavailable(f"Kubo at {self._rpc.address} broke off an import") from None
        self.blocks += len(blocks)

    async def finish(self, roots: Sequence[Cid] = (), blocks: Sequence[Block] = ()) -> None:
        """End the request and wait for Kubo to have stored all; raises as ``send`` does, also where a root could not be pinned.

        ``roots`` are pinned under the lock that the request holds; ``blocks`` go with them.
        """
        try:
            if roots:
                await self._feed.send(self._part(car_header(roots)))
            await self.send(blocks)
            await self._feed.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._feed.aclose()
        await self._done.wait()
        if self._failure is not None:
            raise self._failure
        # Kubo's errors after the first byte of its answer come in a trailer that httpx does not show: the statistics are then missing.
        stored = next((line["Stats"] for line in self._answer if line.get("Stats")), None)
        if not isinstance(stored, dict) or stored.get("BlockCount") != self.blocks:
            raise NodeUnavailable(f"Kubo at {self._rpc.address} broke off an import of {self.blocks} blocks")
        for line in self._answer:
            root = line.get("Root")
            if isinstance(root, dict) and root.get("PinErrorMsg"):
                raise error_of(f"pin: {one_line(str(root['PinErrorMsg']))}", self._rpc.address)

    def _part(self, body: bytes) -> bytes:
        return (
            f'\r\n--{self._boundary}\r\nContent-Disposition: form-data; name="file"; filename="blocks.car"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n"
        ).encode() + body

    def _content(self) -> RequestBody:
        return RequestBody(self._part(car_header([])).lstrip(), self._body, f"\r\n--{self._boundary}--\r\n".encode())
