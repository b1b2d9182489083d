"""One peer: its address, how it has behaved, and how one block is asked of it (specs.ipfs.tech, http-gateways/trustless-gateway)."""

from __future__ import annotations

import enum
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx
import trio

from ipfs_store.cids import Cid, format_cid, verify_block
from ipfs_store.dag.car import CarReader
from ipfs_store.errors import BlockMismatch, InvalidDag
from ipfs_store.nodes.connection import Broken, Client, Exchange
from ipfs_store.nodes.exchange.url import normalize_url
from ipfs_store.nodes.interface import Block

_log = logging.getLogger(__name__)

MAX_BLOCK = 2 << 20
"""Bytes. Bitswap and Kubo take no larger block, so nothing honest is."""

_CONNECT_TIMEOUT = 2.0  # seconds; a LAN answers in milliseconds, another continent in 0.3
_SILENCE_TIMEOUT = 10.0  # seconds without a byte
_CONNECTIONS = 16
_KEEP_ALIVE = 30.0  # seconds; our own server closes an idle connection after 75, Kubo's never does
_UNKNOWN_LATENCY = 0.1  # seconds taken for a peer that was never asked: below a far one, above a near one
_WEIGHT = 0.2  # of the newest latency in the mean
_BACK_OFF = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds, by failures in a row
_LIAR_BACK_OFF = 300.0  # seconds
_PIECE = 512 << 10  # bytes of a CAR that change threads together
_RUN_STALL = 3.0  # seconds without a byte of a run: its blocks are then asked for one by one, of others as well
_AS_CAR = (("Accept", "application/vnd.ipld.car; version=1; order=dfs; dups=n"), ("Accept-Encoding", "identity"))
_SAYS_NOTHING = (404, 410, 412, 429, 500, 502, 503, 504)  # of whether it could send runs
_MORE_THAN_ASKED = 1 << 20  # bytes of a CAR beyond twice those asked for: whoever sends them knows no ranges


class Kind(enum.Enum):
    """How a peer answered."""

    FOUND = "found"
    ABSENT = "absent"
    WRONG = "wrong"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer said: the block, or why not, in words that follow its address."""

    kind: Kind
    data: bytes = b""
    reason: str = ""


class Peer:
    """A trustless gateway: ``ipfs-store serve``, a Kubo, or a public one."""

    def __init__(self, url: str) -> None:
        """``url``: where ``/ipfs/`` is, such as ``http://10.0.0.2:8080``; raises InvalidInput."""
        self.url = normalize_url(url)
        self.latency = _UNKNOWN_LATENCY
        """Seconds a block takes, an exponentially weighted mean."""
        self.failures = 0
        """In a row."""
        self.retry_at = 0.0
        """``trio.current_time()`` until which it is left alone."""
        self.sends_runs = True
        """Whether it has not yet shown that it sends no parts of files as CARs."""
        self.blocks = 0
        self.bytes = 0
        self._streams: Client | None = None
        self._client: httpx.AsyncClient | None = None

    @property
    def resting(self) -> bool:
        """Whether it failed lately and is left alone."""
        return trio.current_time() < self.retry_at

    async def ask(self, cid: Cid) -> Answer:
        """Ask for one block and remember how it went."""
        started = trio.current_time()
        try:
            answer = await self._request(cid)
        except trio.Cancelled:
            # Another peer was faster, or the time is up: it took at least this long.
            self._remember_latency(max(self.latency, trio.current_time() - started))
            raise
        if answer.kind is Kind.FAILED:
            self._rest(_BACK_OFF[min(self.failures, len(_BACK_OFF) - 1)])
        elif answer.kind is Kind.WRONG:
            self._rest(_LIAR_BACK_OFF)
        else:
            self.failures, self.retry_at = 0, 0.0
            if answer.kind is Kind.FOUND:
                self._remember_latency(trio.current_time() - started)
                self.blocks += 1
                self.bytes += len(answer.data)
        return answer

    async def run(self, root: Cid, start: int, end: int, take: Callable[[list[Block]], Awaitable[None]]) -> None:
        """Give ``take`` the blocks that hold the bytes from ``start`` to ``end`` below ``root``, as they come, verified.

        What goes wrong ends it early: it is found out, and told, by whoever then asks for single blocks.
        """
        target = f"/ipfs/{format_cid(root)}?format=car&dag-scope=entity&entity-bytes={start}:{end - 1}&car-dups=n"
        left = 2 * (end - start) + _MORE_THAN_ASKED
        reader, held = CarReader(), bytearray()

        async def hand_on() -> None:
            blocks = await trio.to_thread.run_sync(lambda: [Block(cid, data) for cid, data in reader.feed(bytes(held))])
            held.clear()
            self.blocks += len(blocks)
            self.bytes += sum(len(block.data) for block in blocks)
            await take(blocks)

        if self._streams is None:
            self._streams = Client(self.url)
        try:
            with trio.fail_after(_RUN_STALL):
                exchange = await self._streams.ask("GET", target, _AS_CAR)
            with exchange:
                if exchange.status != 200 or "application/vnd.ipld.car" not in exchange.headers.get("content-type", ""):
                    self.sends_runs = exchange.status in _SAYS_NOTHING
                    return
                while piece := await _next(exchange):
                    held += piece
                    left -= len(piece)
                    if left < 0:
                        self.sends_runs = False
                        return
                    if len(held) >= _PIECE:
                        await hand_on()
                await hand_on()
        except BlockMismatch as error:
            _log.warning("peer %s: %s; it is not asked for a while", self.url, error.message)
            self._rest(_LIAR_BACK_OFF)
        except InvalidDag:
            self.sends_runs = False
        except (*Broken, trio.TooSlowError) as error:
            _log.info("peer %s breaks off a run of blocks: %s", self.url, str(error) or type(error).__name__)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._streams is not None:
            await self._streams.aclose()
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _request(self, cid: Cid) -> Answer:
        text = format_cid(cid)
        fresh = False
        while True:
            try:
                async with self._connections().stream(
                    "GET",
                    f"{self.url}/ipfs/{text}?format=raw",
                    headers={"Accept": "application/vnd.ipld.raw", "Accept-Encoding": "identity"},
                ) as response:
                    return await _read(cid, response)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                # An idle connection that the peer closed as we took it looks like this. Once more, then it is the peer.
                if fresh:
                    return Answer(Kind.FAILED, reason=_words(error))
                fresh = True
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                return Answer(Kind.FAILED, reason=_words(error))

    def _connections(self) -> httpx.AsyncClient:
        if self._client is None:
            # Loading the CA certificates takes 20 ms, which a plain HTTP peer need not pay.
            verify: ssl.SSLContext | bool = True if self.url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            self._client = httpx.AsyncClient(
                verify=verify,
                trust_env=False,  # a proxy for web pages is no way to a peer
                timeout=httpx.Timeout(_SILENCE_TIMEOUT, connect=_CONNECT_TIMEOUT, pool=None),
                limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=_KEEP_ALIVE),
                follow_redirects=True,
                max_redirects=3,
            )
        return self._client

    def _rest(self, seconds: float) -> None:
        self.failures += 1
        self.retry_at = trio.current_time() + seconds

    def _remember_latency(self, seconds: float) -> None:
        first = self.latency == _UNKNOWN_LATENCY
        self.latency = seconds if first else self.latency + _WEIGHT * (seconds - self.latency)


async def _next(exchange: Exchange) -> bytes:
    with trio.fail_after(_RUN_STALL):
        return await exchange.piece()


async def _read(cid: Cid, response: httpx.Response) -> Answer:
    if response.status_code in (404, 410, 412):
        return Answer(Kind.ABSENT, reason="does not have it")
    if response.status_code != 200:
        return Answer(Kind.FAILED, reason=f"answered {response.status_code} {response.reason_phrase}".rstrip())
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) > MAX_BLOCK:
        return Answer(Kind.WRONG, reason=f"offered {int(declared)} bytes for one block")
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > MAX_BLOCK:
            return Answer(Kind.WRONG, reason=f"sent more than {MAX_BLOCK} bytes for one block")
    block = bytes(data)
    try:
        verify_block(cid, block)
    except BlockMismatch:
        return Answer(Kind.WRONG, reason=f"sent {len(block)} bytes that do not match the CID")
    return Answer(Kind.FOUND, block)


def _words(error: Exception) -> str:
    kinds: dict[type[Exception], str] = {
        httpx.ConnectTimeout: "does not accept connections",
        httpx.ReadTimeout: f"sent nothing for {_SILENCE_TIMEOUT:g} s",
        httpx.RemoteProtocolError: "broke off its answer",
    }
    if type(error) in kinds:
        return kinds[type(error)]
    cause: BaseException | None = error
    while cause is not None:  # httpx and httpcore each wrap the OSError, and trio one per address that it tried
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__ or cause.__context__
    return str(error).splitlines()[0].lower() if str(error) else type(error).__name__
