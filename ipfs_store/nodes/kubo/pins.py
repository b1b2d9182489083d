"""Pins of a Kubo daemon."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import trio

from ipfs_store.cids import DAG_CBOR, DAG_PB, RAW, Cid, codec_of, format_cid
from ipfs_store.errors import BlockNotFound, NodeUnavailable
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.kubo.rpc import Rpc, RpcError, file_part

_CODECS = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor"}
_TICKS = 2  # Kubo says twice a second how many blocks it has gone through


async def pin_name(rpc: Rpc, root: Cid) -> str | None:
    """The name, perhaps empty, under which ``root`` is pinned with all below it; None where it is not. Raises NodeUnavailable."""
    parameters = [("arg", format_cid(root)), ("type", "recursive"), ("names", "true")]
    try:
        answer = json.loads(await rpc.call("pin/ls", parameters))
    except RpcError as error:
        if "not pinned" in error.message:
            return None
        raise
    ((_, pin),) = answer["Keys"].items()
    return str(pin.get("Name") or "")


async def put_pinned(rpc: Rpc, block: Block) -> None:
    """Store ``block`` and pin it with all below it, which Kubo does not look for: as `ipfs add` pins, in no time, but without a name.

    ``add_pin`` has Kubo read all of it, which takes half as long as storing it. Raises RpcError, StorageFailed, NodeUnavailable.
    """
    boundary = secrets.token_hex(16)
    parameters = [("cid-codec", _CODECS[codec_of(block.cid)]), ("mhtype", "sha2-256"), ("pin", "true")]
    with rpc.faults(), await rpc.upload("block/put", parameters, f"multipart/form-data; boundary={boundary}") as exchange:
        await exchange.send([file_part(boundary), block.data, f"\r\n--{boundary}--\r\n".encode()], last=True)
        await exchange.answer()
        await rpc.check(exchange)
        stored = [line["Key"] async for line in rpc.objects(exchange)]
    if stored != [format_cid(block.cid)]:
        raise NodeUnavailable(f"Kubo at {rpc.address} stored {stored} in place of {format_cid(block.cid)}")


async def add_pin(rpc: Rpc, root: Cid, name: str, timeout: float, *, waits: Callable[[], Awaitable[None]] | None = None) -> bool:
    """Pin ``root`` with all below it, however long it takes, as long as blocks arrive; False after ``timeout`` seconds without one.

    ``waits`` is called once if Kubo does not begin within a second: a collector may be in its way. Raises BlockNotFound, RpcError, NodeUnavailable.
    """
    parameters = [("arg", format_cid(root)), ("progress", "true"), *([("name", name)] if name else [])]
    progress: object = None
    ticks = 0
    pinned = False
    with trio.CancelScope(deadline=trio.current_time() + timeout) as stalled:
        async with aclosing(rpc.lines("pin/add", parameters)) as lines:
            async for line in lines:
                pinned = pinned or bool(line.get("Pins"))
                if line.get("Progress") != progress:
                    progress = line.get("Progress")
                    stalled.deadline = trio.current_time() + timeout
                ticks += 1
                if waits is not None and ticks == _TICKS and not progress and not pinned:
                    stalled.deadline = math.inf
                    await waits()
                    stalled.deadline = trio.current_time() + timeout
        if not pinned:
            raise BlockNotFound(f"Kubo at {rpc.address} broke off pinning {format_cid(root)}", hint="its log says why")
    return not stalled.cancelled_caught
