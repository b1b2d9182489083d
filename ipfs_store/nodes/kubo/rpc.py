"""Kubo's RPC over httpx: calls, streams, and its errors as ours.

``ipfshttpclient`` 0.7 speaks the same protocol, but blocks a thread that cannot be cancelled for as long as Kubo searches the
network, knows no pin names, and warns with every request that urllib3 3 will refuse it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import httpx
import trio

from ipfs_store.errors import IpfsStoreError, NodeUnavailable, StorageFailed
from ipfs_store.nodes.kubo.address import ApiAddress, authorization

Parameters = Sequence[tuple[str, str]]
_CONNECT_TIMEOUT = 3.0  # seconds; it is usually this machine
_CONNECTIONS = 64
_START_HINT = "start it with `ipfs daemon`, name another address with --node kubo:ADDRESS, or use --node embedded"


class RequestBody(httpx.AsyncByteStream):
    """A request's body that is written while the request runs: what a channel gives, between a beginning and an end.

    No async generator, as httpx would make of one that it is given: left in the middle, by a request that was broken off, those complain.
    """

    def __init__(self, beginning: bytes, pieces: trio.MemoryReceiveChannel[bytes], end: bytes) -> None:
        self._beginning: bytes | None = beginning
        self._pieces = pieces
        self._end: bytes | None = end

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Once."""
        return self

    async def __anext__(self) -> bytes:
        """The next piece."""
        piece, self._beginning = self._beginning, None
        if piece is None:
            try:
                piece = await self._pieces.receive()
            except trio.EndOfChannel:
                piece, self._end = self._end, None
        if piece is None:
            raise StopAsyncIteration
        return piece


class RpcError(IpfsStoreError):
    """Kubo answered, and said no; ``message`` is Kubo's own, in one line."""


class Rpc:
    """The RPC of one daemon."""

    def __init__(self, address: ApiAddress, secret: str = "") -> None:
        """``secret`` as ``--api-auth`` of Kubo's own commands takes it; raises InvalidInput."""
        self.address = address
        self._headers = {"Authorization": authorization(secret)} if secret else {}
        self._client: httpx.AsyncClient | None = None

    async def call(self, command: str, parameters: Parameters = ()) -> bytes:
        """The whole answer; raises RpcError, NodeUnavailable, StorageFailed."""
        with self._faults():
            response = await self._open().post(f"/api/v0/{command}", params=list(parameters))
            self._check(response)
            return response.content

    @asynccontextmanager
    async def stream(
        self, command: str, parameters: Parameters = (), *, content: RequestBody | None = None, content_type: str = ""
    ) -> AsyncIterator[httpx.Response]:
        """An answer to be read piece by piece; ``content`` is sent as it comes. Raises as ``call`` does."""
        headers = {"Content-Type": content_type} if content_type else {}
        client = self._open()
        request = client.build_request("POST", f"/api/v0/{command}", params=list(parameters), headers=headers)
        if content is not None:
            del request.headers["Content-Length"]
            request.headers["Transfer-Encoding"] = "chunked"
            request.stream = content
        with self._faults():
            response = await client.send(request, stream=True)
            try:
                if response.status_code != 200:
                    await response.aread()
                self._check(response)
                yield response
            finally:
                await response.aclose()

    async def lines(self, command: str, parameters: Parameters = ()) -> AsyncGenerator[dict[str, object], None]:
        """The objects of an answer that has one a line."""
        async with self.stream(command, parameters) as response:
            async for line in response.aiter_lines():
                if line:
                    yield json.loads(line)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=60)
            self._client = httpx.AsyncClient(
                base_url=self.address.url,
                headers=self._headers,
                # Kubo is silent while it searches the network or collects garbage: how long is the caller's to say.
                timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT),
                transport=httpx.AsyncHTTPTransport(uds=self.address.socket or None, limits=limits, retries=0),
                trust_env=False,
            )
        return self._client

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise NodeUnavailable(f"Kubo at {self.address} does not answer: {one_line(str(error))}", hint=_START_HINT) from error

    def _check(self, response: httpx.Response) -> None:
        if response.status_code == 200:
            return
        message = ""
        if response.headers.get("Content-Type", "").startswith("application/json"):
            body = response.json()
            message = body.get("Message", "") if isinstance(body, dict) else ""
        if message:
            raise error_of(message, self.address)
        if response.status_code == 403:
            raise NodeUnavailable(
                f"Kubo at {self.address} refuses us: {one_line(response.text)}",
                hint="give the secret of API.Authorizations in IPFS_API_AUTH, as `ipfs --api-auth` takes it",
            )
        raise NodeUnavailable(
            f"{self.address} answered {response.status_code} and does not look like a Kubo RPC",
            hint="is that the gateway's port? " + _START_HINT,
        )


def error_of(message: str, address: ApiAddress) -> IpfsStoreError:
    """Kubo's message as an error of ours."""
    text = one_line(message)
    if "no space left" in text or "quota exceeded" in text or "read-only file system" in text:
        return StorageFailed(f"Kubo at {address} cannot store: {text}", hint="free some space on its disk, or run `ipfs repo gc`")
    return RpcError(text)


def one_line(text: str) -> str:
    """The first line, cut where a person would stop reading."""
    lines = text.strip().splitlines()
    return lines[0][:300] if lines else "no reason given"
