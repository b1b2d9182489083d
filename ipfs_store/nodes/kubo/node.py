"""The node that is a Kubo daemon."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial

import trio

from ipfs_store.cids import DAG_PB, Cid, cid_of_name, codec_of, format_cid, format_cid_v0, parse_cid, verify_block
from ipfs_store.cids.cid import identity_block
from ipfs_store.dag.car import CarReader
from ipfs_store.errors import BlockMismatch, BlockNotFound, InvalidCid, InvalidInput, IpfsStoreError, NodeUnavailable, NotFound
from ipfs_store.nodes.connection import Broken, Client
from ipfs_store.nodes.exchange.url import normalize_url
from ipfs_store.nodes.flights import Flights
from ipfs_store.nodes.interface import GcResult, Push
from ipfs_store.nodes.kubo.address import ApiAddress, find_api, find_gateway, parse_api, repository
from ipfs_store.nodes.kubo.health import KuboHealth, look
from ipfs_store.nodes.kubo.pins import add_pin, pin_name
from ipfs_store.nodes.kubo.presence import is_local, is_missing, local_blocks
from ipfs_store.nodes.kubo.push import KuboPush
from ipfs_store.nodes.kubo.rpc import Rpc, RpcError

_log = logging.getLogger(__name__)
DEFAULT_TIMEOUT = 60.0
"""Seconds that Kubo may search the network for a block."""
_MAX_BLOCK = 2 << 20
_EXPORT_PIECE = 1 << 20  # handed to a thread at a time: a switch for each piece that comes would cost more than the hashing
_GATEWAY_FOUND = 2.0  # seconds
_GATEWAY_TIMEOUT = 30.0
# Only what it has: for the rest the RPC is asked, which says why there is nothing, and heeds no Gateway.NoFetch.
_AS_BLOCK = (("Accept", "application/vnd.ipld.raw"), ("Accept-Encoding", "identity"), ("Cache-Control", "only-if-cached"))
_PROBE = "bafkqaaa"  # the empty block inside of its CID: every trustless gateway serves it


class KuboNode:
    """A ``Node`` on the repository of a daemon.

    Kubo keeps blocks by multihash, so ``blocks`` gives every CID as a raw one, and ``has`` is true for a block under any codec.
    """

    name = "kubo"

    def __init__(
        self, rpc_address: str | ApiAddress | None = None, gateway: str | None = None, *, secret: str = "", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """``rpc_address``: multiaddr, URL or ``HOST:PORT``; None takes ``$IPFS_PATH/api``, as Kubo's own commands do.

        ``gateway``: its URL, empty for none; None takes the one that belongs to the RPC address. ``secret``: see ``Rpc``.
        Raises InvalidInput, and NodeUnavailable where no daemon is to be found.
        """
        found = parse_api(rpc_address) if isinstance(rpc_address, str) else rpc_address or find_api()
        if found is None:
            raise NodeUnavailable(
                f"no Kubo daemon runs on {repository()} (there is no file {repository() / 'api'})",
                hint="start it with `ipfs daemon`, name its address with --node kubo:ADDRESS, or use --node embedded",
            )
        self.address = found
        self._secret = secret
        self._rpc = Rpc(found, secret)
        self._timeout = timeout
        self._gateway_given = gateway
        self._gateway: Client | None = None
        self._gateway_found = trio.Lock()
        self._gateway_known = False
        self._flights = Flights[Cid, bytes]()
        self._pushes: set[KuboPush] = set()

    async def get(self, cid: Cid, *, timeout: float | None = None) -> bytes:
        """The block, from the repository or the network; see ``Node.get``."""
        if (inside := identity_block(cid)) is not None:
            return inside
        seconds = self._timeout if timeout is None else timeout
        return await self._flights.run(cid, partial(self._get, cid, seconds), seconds, partial(self._not_found, cid, seconds))

    async def local(self, cid: Cid) -> bytes | None:
        """The block, if the repository has it; the network is not asked."""
        if (inside := identity_block(cid)) is not None:
            return inside
        gateway = await self._open_gateway()
        if gateway is not None:
            try:
                return await self._from_gateway(gateway, cid)
            except NodeUnavailable as error:
                _log.info("%s; the RPC is asked instead", error)
        return await self._from_rpc(cid, offline=True)

    async def has(self, cid: Cid) -> bool:
        """Whether the repository has the block."""
        return identity_block(cid) is not None or await is_local(self._rpc, cid)

    async def delete(self, cid: Cid) -> None:
        """Forget a block; raises InvalidInput where a pin keeps it, which Kubo does not allow."""
        answer = json.loads(await self._rpc.call("block/rm", [("arg", format_cid(cid)), ("force", "true")]) or b"{}")
        if error := answer.get("Error"):
            raise InvalidInput(f"Kubo does not delete {format_cid(cid)}: {error}", hint="unpin what holds it first")

    async def blocks(self) -> AsyncIterator[Cid]:
        """The CID of every block in the repository, as a raw one."""
        async for cid in local_blocks(self._rpc):
            yield cid

    @asynccontextmanager
    async def push(self) -> AsyncIterator[Push]:
        """Open a push. Pin before leaving it: from then on Kubo's collector may have what no pin reaches."""
        failure: BaseException | None = None
        push = KuboPush(self._rpc)
        async with trio.open_nursery() as nursery:
            try:
                nursery.start_soon(push.run)
                self._pushes.add(push)
                yield push
                await push.flush()
                await push.close()
            except BaseException as error:  # noqa: BLE001 (raised below, outside the nursery, which would wrap it in a group)
                failure = error
            finally:
                self._pushes.discard(push)
            nursery.cancel_scope.cancel()
        await push.abandon()
        if failure is not None:
            raise failure

    async def pin(self, root: Cid, *, name: str = "") -> None:
        """Keep ``root`` and all below it, fetching what is missing; see ``Node.pin``."""
        if self._pushes:
            for push in list(self._pushes):
                await push.flush()
            pinned = await pin_name(self._rpc, root)
            if pinned is not None and name in ("", pinned):
                return  # Kubo would go through all of it once more, with the pin taken away meanwhile
            if not name and pinned is None:
                for push in list(self._pushes):
                    if await push.pin(root):
                        return
        try:
            # Kubo lets no pin pass a collector, which may wait for our pushes: then these step aside.
            done = await add_pin(self._rpc, root, name, self._timeout, waits=self._let_the_collector_run)
        except RpcError as error:
            raise BlockNotFound(f"cannot pin {format_cid(root)}: {error}", hint="is a node that has it connected to this Kubo?") from error
        if not done:
            raise self._not_found(root, self._timeout)

    async def unpin(self, root: Cid) -> None:
        """Stop keeping; raises NotFound."""
        try:
            await self._rpc.call("pin/rm", [("arg", format_cid(root))])
        except RpcError as error:
            if codec_of(root) == DAG_PB and await self._unpin_version_0(root):
                return
            raise NotFound(f"{format_cid(root)} is not pinned: {error}", hint="`ipfs pin ls --type=recursive` lists what is") from error

    async def _unpin_version_0(self, root: Cid) -> bool:
        # Kubo keeps pins by CID, not by multihash: what `ipfs add` pinned as Qm... is not found under the same block's CIDv1.
        try:
            await self._rpc.call("pin/rm", [("arg", format_cid_v0(root))])
        except RpcError:
            return False
        return True

    async def pins(self) -> dict[Cid, str]:
        """Roots pinned with all below them, whoever pinned them, and their names."""
        found = {}
        async with aclosing(self._rpc.lines("pin/ls", [("type", "recursive"), ("names", "true"), ("stream", "true")])) as lines:
            async for line in lines:
                text = str(line.get("Cid", ""))
                try:
                    found[_parse(text)] = str(line.get("Name") or "")
                except InvalidCid as error:
                    _log.info("a pin of Kubo is left out: %s", error)  # of a hash that we cannot check
        return found

    async def gc(self) -> GcResult:
        """Run Kubo's collector; what open pushes of this object brought is kept. ``bytes`` is Kubo's estimate."""
        before = await self._repository_size()
        async with self._pushes_aside():
            blocks = 0
            async with aclosing(self._rpc.lines("repo/gc")) as lines:
                async for line in lines:
                    if line.get("Error"):
                        _log.warning("Kubo at %s: %s", self.address, line["Error"])
                    else:
                        blocks += 1
        return GcResult(blocks, max(before - await self._repository_size(), 0))

    async def stream_dag(self, root: Cid, visit: Callable[[Cid, bytes], Awaitable[None]], *, timeout: float | None = None) -> None:
        """One ``dag/export``; see ``interface.WholeDags``. A block by itself costs 1.4 ms, as much as 150 KB of this."""
        seconds = self._timeout if timeout is None else timeout
        reader, held = CarReader(), bytearray()

        async def hand_on() -> None:
            piece = bytes(held)
            held.clear()
            for cid, block in await trio.to_thread.run_sync(lambda: list(reader.feed(piece))):
                await visit(cid, block)

        with trio.CancelScope(deadline=trio.current_time() + seconds) as stalled:
            try:
                async with self._rpc.stream("dag/export", [("arg", format_cid(root)), ("progress", "false")]) as answer:
                    while piece := await self._rpc.piece(answer):
                        held += piece
                        if len(held) >= _EXPORT_PIECE:
                            stalled.deadline = math.inf  # what the receiver takes its time for is no fault of Kubo's
                            await hand_on()
                        stalled.deadline = trio.current_time() + seconds
                    stalled.deadline = math.inf
                    await hand_on()
            except RpcError as error:
                _log.info("Kubo at %s breaks off the export of %s: %s", self.address, format_cid(root), error)

    async def health(self) -> KuboHealth:
        """What the daemon says of itself; raises NodeUnavailable."""
        return await trio.to_thread.run_sync(look, self.address, self._secret)

    async def version(self) -> str:
        """Kubo's version, such as ``0.42.0``; raises NodeUnavailable where none answers."""
        answer = json.loads(await self._rpc.call("version"))
        return str(answer.get("Version", "")) if isinstance(answer, dict) else ""

    async def aclose(self) -> None:
        """Close connections."""
        if self._gateway is not None:
            await self._gateway.aclose()
        await self._rpc.aclose()

    async def _get(self, cid: Cid, seconds: float) -> bytes:
        with trio.move_on_after(seconds):
            data = None
            gateway = await self._open_gateway()
            if gateway is not None:
                try:
                    data = await self._from_gateway(gateway, cid)
                except NodeUnavailable as error:
                    _log.info("%s; the RPC is asked instead", error)
            if data is None:
                data = await self._from_rpc(cid, offline=False)
            if data is not None:
                return data
            raise BlockNotFound(
                f"Kubo at {self.address} does not have {format_cid(cid)} and finds nobody who has",
                hint="is its daemon online, and a node that has it connected?",
            )
        raise self._not_found(cid, seconds)

    def _not_found(self, cid: Cid, seconds: float) -> IpfsStoreError:
        return BlockNotFound(
            f"{format_cid(cid)} was not found within {seconds:g} s through Kubo at {self.address}",
            hint="is a node that has it connected (`ipfs swarm peers`)? allow more time with --timeout",
        )

    async def _from_gateway(self, gateway: Client, cid: Cid) -> bytes | None:
        """The block if the repository has it."""
        try:
            with trio.fail_after(_GATEWAY_TIMEOUT), await gateway.ask("GET", f"/ipfs/{format_cid(cid)}?format=raw", _AS_BLOCK) as answer:
                if answer.status in (404, 412):
                    return None
                if answer.status != 200:
                    raise NodeUnavailable(f"the gateway {gateway.url} answered {answer.status}")
                return await _verified(cid, answer.piece, gateway.url)
        except (*Broken, trio.TooSlowError) as error:
            raise NodeUnavailable(f"the gateway {gateway.url} does not answer: {error}") from error

    async def _from_rpc(self, cid: Cid, *, offline: bool) -> bytes | None:
        parameters = [("arg", format_cid(cid)), *([("offline", "true")] if offline else [])]
        try:
            async with self._rpc.stream("block/get", parameters) as answer:
                return await _verified(cid, lambda: self._rpc.piece(answer), str(self.address))
        except RpcError as error:
            if is_missing(error):
                return None
            raise NodeUnavailable(f"Kubo at {self.address} cannot read {format_cid(cid)}: {error}") from error

    async def _open_gateway(self) -> Client | None:
        """A client of the gateway, if there is one that answers; found out once."""
        if self._gateway_known:
            return self._gateway
        async with self._gateway_found:
            if not self._gateway_known:
                self._gateway = await self._find_gateway()
                self._gateway_known = True
        return self._gateway

    async def _find_gateway(self) -> Client | None:
        url = self._gateway_given
        if url is None:
            ours = find_api()
            url = find_gateway() if ours is not None and ours.url == self.address.url else ""
        if not url:
            return None
        client = Client(normalize_url(url))
        try:
            with trio.fail_after(_GATEWAY_FOUND), await client.ask("GET", f"/ipfs/{_PROBE}?format=raw", _AS_BLOCK) as answer:
                if answer.status == 200 and not await answer.body():
                    return client
                reason = f"it answered {answer.status}"
        except (*Broken, trio.TooSlowError) as error:
            reason = str(error)
        _log.info("the gateway %s of Kubo at %s is of no use (%s); blocks are read through the RPC", url, self.address, reason)
        await client.aclose()
        return None

    @asynccontextmanager
    async def _pushes_aside(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for push in list(self._pushes):
                await stack.enter_async_context(push.suspended())
            yield

    async def _let_the_collector_run(self) -> None:
        async with self._pushes_aside():
            pass  # it waits already, so it is next; and the pushes go on when it has ended

    async def _repository_size(self) -> int:
        answer = json.loads(await self._rpc.call("repo/stat", [("size-only", "true")]))
        return int(answer.get("RepoSize", 0)) if isinstance(answer, dict) else 0


async def _verified(cid: Cid, read: Callable[[], Awaitable[bytes]], source: str) -> bytes:
    data = await read()
    while piece := await read():
        data += piece
        if len(data) > _MAX_BLOCK:
            raise BlockMismatch(f"{source} sent more than {_MAX_BLOCK} bytes for the block {format_cid(cid)}")
    verify_block(cid, data)
    return data


def _parse(text: str) -> Cid:
    try:
        return cid_of_name(text)
    except InvalidCid:
        return parse_cid(text)  # version 0, which Kubo prints for what it made itself
