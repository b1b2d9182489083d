"""``dag/import`` requests whose body is written while they run: one that carries blocks, and one that only keeps Kubo's pin lock."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress

from ipfs_store.cids import Cid
from ipfs_store.dag.car import car_frame_start, car_header
from ipfs_store.errors import NodeUnavailable
from ipfs_store.nodes.connection import Broken, Exchange
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.kubo.rpc import Rpc, error_of, file_part, one_line

# Announcing what was imported is Kubo's affair, and is done by its own schedule: in line with an import it costs a DHT walk.
_QUIET = [("fast-provide-root", "false"), ("fast-provide-dag", "false")]


class Import:
    """One request: ``begin`` makes it, ``send`` feeds it, ``finish`` ends it and says how it went; else ``close`` breaks it off."""

    def __init__(self, rpc: Rpc, exchange: Exchange, boundary: str) -> None:
        """See ``begin``."""
        self._rpc = rpc
        self._exchange = exchange
        self._boundary = boundary
        self._blocks = 0

    @classmethod
    async def begin(cls, rpc: Rpc, *, pin_roots: bool) -> Import:
        """Open the request. With ``pin_roots`` Kubo holds its pin lock, which keeps its garbage collector out, from now to its end."""
        boundary = secrets.token_hex(16)
        parameters = [("pin-roots", "true" if pin_roots else "false"), ("stats", "true"), *_QUIET]
        request = cls(rpc, await rpc.upload("dag/import", parameters, f"multipart/form-data; boundary={boundary}"), boundary)
        try:
            await request._send([file_part(boundary), car_header([])])
        except BaseException:
            request.close()
            raise
        return request

    async def send(self, blocks: Sequence[Block]) -> None:
        """Add blocks, in one piece. Returns when the connection took it, so that memory stays bounded however slow Kubo is.

        Raises StorageFailed, NodeUnavailable, RpcError where Kubo ended the request.
        """
        parts: list[bytes] = []
        for block in blocks:
            parts += (car_frame_start(block.cid, len(block.data)), block.data)
        await self._send(parts)
        self._blocks += len(blocks)

    async def finish(self, roots: Sequence[Cid] = (), blocks: Sequence[Block] = ()) -> None:
        """End the request and wait for Kubo to have stored all; raises as ``send`` does, also where a root could not be pinned.

        ``roots`` are pinned under the lock that the request holds; ``blocks`` go with them.
        """
        try:
            if roots:
                await self._send([b"\r\n", file_part(self._boundary), car_header(roots)])
            await self.send(blocks)
            await self._send([f"\r\n--{self._boundary}--\r\n".encode()], last=True)
            with self._rpc.faults():
                await self._check_answer()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the connection; what was not finished is broken off."""
        self._exchange.close()

    async def _send(self, parts: Sequence[bytes], *, last: bool = False) -> None:
        try:
            await self._exchange.send(parts, last=last)
        except Broken as error:
            with suppress(*Broken):  # it may have said why
                await self._exchange.answer()
                await self._rpc.check(self._exchange)
            raise NodeUnavailable(f"Kubo at {self._rpc.address} broke off an import") from error

    async def _check_answer(self) -> None:
        await self._exchange.answer()
        await self._rpc.check(self._exchange)
        said = [line async for line in self._rpc.objects(self._exchange)]
        stored = next((line["Stats"] for line in said if line.get("Stats")), None)
        if not isinstance(stored, dict) or stored.get("BlockCount") != self._blocks:
            raise NodeUnavailable(f"Kubo at {self._rpc.address} broke off an import of {self._blocks} blocks")
        for line in said:
            root = line.get("Root")
            if isinstance(root, dict) and root.get("PinErrorMsg"):
                raise error_of(f"pin: {one_line(str(root['PinErrorMsg']))}", self._rpc.address)
