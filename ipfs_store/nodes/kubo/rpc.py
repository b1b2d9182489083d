"""Kubo's RPC: calls, streams, and its errors as ours."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlencode

import trio

from ipfs_store.errors import IpfsStoreError, NodeUnavailable, StorageFailed
from ipfs_store.nodes.connection import Broken, Client, Exchange
from ipfs_store.nodes.kubo.address import ApiAddress, authorization

Parameters = Sequence[tuple[str, str]]
_START_HINT = "start it with `ipfs daemon`, name another address with --node kubo:ADDRESS, or use --node embedded"


class RpcError(IpfsStoreError):
    """Kubo answered, and said no; ``message`` is Kubo's own, in one line."""


class Rpc:
    """The RPC of one daemon."""

    def __init__(self, address: ApiAddress, secret: str = "") -> None:
        """``secret`` as ``--api-auth`` of Kubo's own commands takes it; raises InvalidInput."""
        self.address = address
        headers = [("Authorization", authorization(secret))] if secret else []
        self._client = Client(address.url, address.socket, headers=headers)

    async def call(self, command: str, parameters: Parameters = ()) -> bytes:
        """The whole answer; raises RpcError, NodeUnavailable, StorageFailed."""
        async with self.stream(command, parameters) as answer:
            pieces = []
            while piece := await self.piece(answer):
                pieces.append(piece)
            return b"".join(pieces)

    @asynccontextmanager
    async def stream(self, command: str, parameters: Parameters = ()) -> AsyncIterator[Exchange]:
        """An answer to be read by ``piece``; raises as ``call`` does."""
        with self.faults():
            exchange = await self._client.ask("POST", _target(command, parameters))
            with exchange:
                await self.check(exchange)
                yield exchange

    async def upload(self, command: str, parameters: Parameters, content_type: str) -> Exchange:
        """A request whose body is still to be sent, and whose answer to be checked, both under ``faults``."""
        with self.faults():
            return await self._client.request("POST", _target(command, parameters), [("Content-Type", content_type)], body=True)

    async def piece(self, answer: Exchange) -> bytes:
        """The next bytes of an answer, empty at its end; raises RpcError where Kubo says there that something went wrong."""
        piece = await answer.piece()
        if not piece and (failure := answer.headers.get("x-stream-error")):
            raise error_of(failure, self.address)
        return piece

    async def lines(self, command: str, parameters: Parameters = ()) -> AsyncGenerator[dict[str, object], None]:
        """The objects of an answer that has one a line."""
        async with self.stream(command, parameters) as answer:
            async for line in self.objects(answer):
                yield line

    def objects(self, answer: Exchange) -> AsyncIterator[dict[str, object]]:
        """Those of an answer that was begun."""
        return _Objects(self, answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Raises NodeUnavailable for what a connection raises."""
        try:
            yield
        except (*Broken, trio.TooSlowError) as error:
            reason = one_line(str(error)) if not isinstance(error, trio.TooSlowError) else "it took no connection"
            raise NodeUnavailable(f"Kubo at {self.address} does not answer: {reason}", hint=_START_HINT) from error

    async def check(self, answer: Exchange) -> None:
        """Raises what an answer with another status than 200 says."""
        if answer.status == 200:
            return
        body = await answer.body()
        message = ""
        if answer.headers.get("content-type", "").startswith("application/json"):
            said = json.loads(body)
            message = said.get("Message", "") if isinstance(said, dict) else ""
        if message:
            raise error_of(message, self.address)
        if answer.status == 403:
            raise NodeUnavailable(
                f"Kubo at {self.address} refuses us: {one_line(body.decode(errors='replace'))}",
                hint="give the secret of API.Authorizations in IPFS_API_AUTH, as `ipfs --api-auth` takes it",
            )
        raise NodeUnavailable(
            f"{self.address} answered {answer.status} and does not look like a Kubo RPC",
            hint="is that the gateway's port? " + _START_HINT,
        )


class _Objects:
    """No generator: left in the middle, inside of another, those complain."""

    def __init__(self, rpc: Rpc, answer: Exchange) -> None:
        self._rpc = rpc
        self._answer = answer
        self._lines: deque[bytes] = deque()
        self._rest = b""

    def __aiter__(self) -> _Objects:
        return self

    async def __anext__(self) -> dict[str, object]:
        while not self._lines:
            piece = await self._rpc.piece(self._answer)
            *lines, self._rest = (self._rest + piece).split(b"\n")
            if not piece:
                if not self._rest:
                    raise StopAsyncIteration
                lines, self._rest = [self._rest], b""
            self._lines.extend(filter(None, lines))
        found: dict[str, object] = json.loads(self._lines.popleft())
        return found


def _target(command: str, parameters: Parameters) -> str:
    return f"/api/v0/{command}" + (f"?{urlencode(parameters)}" if parameters else "")


def file_part(boundary: str) -> bytes:
    """What stands before a file in the body of an upload."""
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\nContent-Type: application/octet-stream\r\n\r\n'
    ).encode()


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
