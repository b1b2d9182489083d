"""A node's own blocks for its peers: a trustless gateway (specs.ipfs.tech, http-gateways) that never fetches for others."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Mapping
from typing import Any, Protocol, cast

import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ipfs_store.cids import Cid, cid_of_name, format_cid, parse_cid
from ipfs_store.errors import InvalidCid, InvalidInput, IpfsStoreError, StorageFailed
from ipfs_store.nodes.exchange.car import CarRequest, CarResponse

_log = logging.getLogger(__name__)
_RAW = "application/vnd.ipld.raw"
_CAR = "application/vnd.ipld.car"
_KEEP_ALIVE = 75  # seconds an idle connection stays open: longer than our client keeps it, so that it is not closed under a request
_STALL = 30  # seconds that a client may leave sent bytes unread
_LISTEN = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^\[\]:/]*)):(?P<port>\d{1,5})")


class LocalBlocks(Protocol):
    """What is served: the part of a node that asks nobody else."""

    async def local(self, cid: Cid) -> bytes | None:
        """The block, verified, if the store itself has it."""
        ...


class TaskStatus(Protocol):
    """What ``nursery.start`` passes (trio's own type has no name that all versions of its stubs know)."""

    def started(self, value: list[str], /) -> None:
        """Say that it listens, and where."""
        ...


async def serve(
    node: LocalBlocks,
    listen: str = "127.0.0.1:0",
    *,
    task_status: TaskStatus = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``node`` on ``HOST:PORT`` until cancelled; port 0 takes a free one. ``nursery.start`` returns the URLs it listens on.

    Raises InvalidInput for an address that is none or cannot be used.
    """
    from hypercorn.config import Config
    from hypercorn.trio import serve as serve_app

    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger(f"{__name__}.http")
    config.errorlog.setLevel(logging.WARNING)
    config.keep_alive_timeout = _KEEP_ALIVE
    config.keep_alive_max_requests = 1_000_000
    config.include_server_header = False
    listener = _listen(listen)
    config.bind = [f"fd://{listener.detach()}"]  # hypercorn owns it from here
    await serve_app(cast(Any, make_app(node)), config, task_status=task_status)  # two typings of ASGI, one of them looser


def make_app(node: LocalBlocks) -> Starlette:
    """The ASGI application: ``/ipfs/CID`` and ``/healthz``."""
    gateway = _Gateway(node)
    return Starlette(
        routes=[
            Route("/ipfs/{path:path}", gateway.answer, methods=["GET", "HEAD"]),
            Route("/healthz", _healthz, methods=["GET", "HEAD"]),
        ]
    )


class _Gateway:
    def __init__(self, node: LocalBlocks) -> None:
        self._node = node

    async def answer(self, request: Request) -> Response:
        """One request for a block or a CAR."""
        text, _, below = request.path_params["path"].partition("/")
        try:
            cid = _parse(text)
            if below.strip("/"):
                raise InvalidInput("paths below a CID are not resolved here; ask for the blocks by their CIDs")
            wanted = _wanted(request)
            if wanted is None:
                return _refuse(406, "say format=raw or format=car, or Accept: application/vnd.ipld.raw or application/vnd.ipld.car")
            car = CarRequest.parse(request.query_params, wanted[1]) if wanted[0] == _CAR else None
        except InvalidInput as error:
            return _refuse(400, error.message)
        etag = car.etag(cid) if car else f'"{format_cid(cid)}.raw"'
        if _matches(request.headers.get("If-None-Match", ""), etag):
            return Response(status_code=304, headers={"ETag": etag, "Cache-Control": _FOREVER})
        try:
            block = await self._node.local(cid)
        except StorageFailed as error:
            _log.error("%s", error)
            return _refuse(500, "the store cannot be read")
        except IpfsStoreError as error:
            _log.warning("%s", error)
            return _refuse(502, error.message)
        if block is None:
            cached_only = "only-if-cached" in request.headers.get("Cache-Control", "")
            return _refuse(412 if cached_only else 404, f"{format_cid(cid)} is not here")
        headers = _headers(cid, etag, "car" if car else "bin")
        if "format" not in request.query_params:
            headers["Content-Location"] = f"/ipfs/{format_cid(cid)}?format={'car' if car else 'raw'}"
            headers["Vary"] = "Accept"
        if car:
            return CarResponse(self._node, cid, block, car, headers)
        return Response(block, media_type=_RAW, headers=headers)


_FOREVER = "public, max-age=29030400, immutable"


def _headers(cid: Cid, etag: str, suffix: str) -> dict[str, str]:
    text = format_cid(cid)
    return {
        "ETag": etag,
        "Cache-Control": _FOREVER,
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": f'attachment; filename="{text}.{suffix}"',
        "X-Ipfs-Path": f"/ipfs/{text}",
        "X-Ipfs-Roots": text,
        "Accept-Ranges": "none",
    }


async def _healthz(request: Request) -> Response:
    return PlainTextResponse("ok\n", headers={"Cache-Control": "no-store"})


def _refuse(status: int, why: str) -> Response:
    return PlainTextResponse(why + "\n", status, headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})


def _parse(text: str) -> Cid:
    try:
        return cid_of_name(text)  # as we and Kubo write it; multiformats takes 0.3 ms, a third of the whole request
    except InvalidCid:
        return parse_cid(text)


def _wanted(request: Request) -> tuple[str, Mapping[str, str]] | None:
    """The media type to answer with and its parameters: ``format`` goes before ``Accept``."""
    accepted = [_media_type(part) for part in request.headers.get("Accept", "").split(",")]
    given = request.query_params.get("format")
    if given is not None:
        wanted = {"raw": _RAW, "car": _CAR}.get(given)
        return None if wanted is None else next((one for one in accepted if one[0] == wanted), (wanted, {}))
    return next((one for one in accepted if one[0] in (_RAW, _CAR)), None)


def _media_type(text: str) -> tuple[str, Mapping[str, str]]:
    name, *parameters = text.split(";")
    pairs = (parameter.strip().partition("=") for parameter in parameters)
    return name.strip().lower(), {key.strip().lower(): value.strip().strip('"').lower() for key, _, value in pairs}


def _matches(header: str, etag: str) -> bool:
    bare = etag.removeprefix("W/")
    return any(candidate.strip().removeprefix("W/") == bare for candidate in header.split(","))


def _listen(address: str) -> socket.socket:
    match = _LISTEN.fullmatch(address.strip())
    if match is None or int(match["port"]) > 65535:
        raise InvalidInput(f"{address!r} is not an address to listen on", hint="such as 127.0.0.1:8088, [::1]:8088 or :8088")
    host = match["v6"] or match["host"] or "0.0.0.0"
    hint = "is another one running? choose another address with --listen"
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, int(match["port"]), type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidInput(f"cannot listen on {address}: {error.strerror or error}", hint=hint) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A client that stops reading would otherwise keep its connection, and a shutdown, waiting for ever.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STALL * 1000)
        listener.bind(target)
    except OSError as error:
        listener.close()
        raise InvalidInput(f"cannot listen on {address}: {error.strerror or error}", hint=hint) from error
    return listener
