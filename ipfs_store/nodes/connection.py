"""HTTP/1.1 to one server over trio: h11 writes and reads the heads, bodies go past it in pieces as large as they come.

Kubo sends a DAG in chunks of a few KB and a listing in chunks of one line, and takes a CAR as fast as it can be written: per request httpx takes 1 ms of
a processor, and 57 ms to begin with; per chunk of an answer, h11 under httpx takes 60 µs. Here a request is 0.2 ms and a chunk 1 µs.
"""

from __future__ import annotations

import base64
import re
import select
from collections.abc import Sequence
from types import TracebackType
from urllib.parse import unquote, urlsplit

import h11
import trio

Headers = Sequence[tuple[str, str]]
_CONNECT_TIMEOUT = 3.0  # seconds; it is usually this machine
_CONNECTIONS = 64
_PIECE = 1 << 18
# Kubo flushes after every few KB. Who waits a moment after a small piece gets more of it at once: an export of 110 MB comes in 1,200 pieces instead
# of 20,000, each of which costs 40 µs, and the socket's buffer keeps Kubo going meanwhile.
_SMALL = 1 << 15
_MOMENT = 0.001  # seconds
_MOST_PARTS = 1024  # of one call of sendmsg (IOV_MAX)
_LONGEST_LINE = 8192
_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?")

Broken = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)
"""What a connection that failed raises, or a server that speaks something else."""


class Client:
    """Connections to the server of one URL, kept for the next request."""

    def __init__(self, url: str, socket: str = "", *, headers: Headers = ()) -> None:
        """``url`` up to where the targets begin; ``socket``: path of a unix socket to use instead of the host; ``headers`` go with every request."""
        self.url = url
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._secure = parts.scheme == "https"
        self._port = parts.port or (443 if self._secure else 80)
        self._base = parts.path.rstrip("/")
        self._socket = socket
        self._headers = [("Host", parts.netloc.rpartition("@")[2]), ("User-Agent", "ipfs-store"), *headers]
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers.append(("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}"))
        self._places = trio.Semaphore(_CONNECTIONS)
        self._idle: list[trio.abc.Stream] = []

    async def request(self, method: str, target: str, headers: Headers = (), *, body: bool = False) -> Exchange:
        """Begin a request; with ``body``, its body is ``Exchange.send``'s to write. Raises ``Broken``, trio.TooSlowError (nobody listens)."""
        framing = ("Transfer-Encoding", "chunked") if body else ("Content-Length", "0")
        request = h11.Request(method=method, target=self._base + target, headers=[*self._headers, *headers, framing])
        protocol = h11.Connection(h11.CLIENT)
        head = protocol.send(request)
        assert head is not None
        await self._places.acquire()
        stream: trio.abc.Stream | None = None
        try:
            stream = self._kept() or await self._connected()
            await stream.send_all(head)
        except BaseException:
            self._give_back(stream, reusable=False)
            raise
        return Exchange(self, stream, protocol, bodyless=method == "HEAD")

    async def ask(self, method: str, target: str, headers: Headers = ()) -> Exchange:
        """A request without a body, and the head of its answer; raises as ``request`` does."""
        exchange = await self.request(method, target, headers)
        try:
            await exchange.answer()
        except BaseException:
            exchange.close()
            raise
        return exchange

    async def aclose(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            await trio.aclose_forcefully(self._idle.pop())

    def _kept(self) -> trio.abc.Stream | None:
        while self._idle:
            stream = self._idle.pop()
            poll = select.poll()
            poll.register(_socket_of(stream), select.POLLIN)
            if not poll.poll(0):
                return stream
            _close(stream)  # the server closed it, or said what nobody asked
        return None

    async def _connected(self) -> trio.abc.Stream:
        with trio.fail_after(_CONNECT_TIMEOUT):
            if self._socket:
                return await trio.open_unix_socket(self._socket)
            stream = await trio.open_tcp_stream(self._host, self._port)
            if not self._secure:
                return stream
            from httpx import create_ssl_context  # 60 ms, and another 60 to read the certificates

            secure = trio.SSLStream(stream, create_ssl_context(), server_hostname=self._host, https_compatible=True)
            await secure.do_handshake()
            return secure

    def _give_back(self, stream: trio.abc.Stream | None, *, reusable: bool) -> None:
        self._places.release()
        if stream is not None and reusable:
            self._idle.append(stream)
        elif stream is not None:
            _close(stream)


class Exchange:
    """A request and its answer. A context manager: closed at its end, and its connection kept if all of the answer was read."""

    def __init__(self, client: Client, stream: trio.abc.Stream, protocol: h11.Connection, *, bodyless: bool) -> None:
        """Made by ``Client.request``."""
        self._client = client
        self._stream: trio.abc.Stream | None = stream
        self._protocol = protocol
        self._bodyless = bodyless
        self._body: _Body | None = None
        self._reusable = True
        self.status = 0
        self.headers: dict[str, str] = {}
        """By names in lower case; those of a trailer too, once the body was read."""

    async def send(self, parts: Sequence[bytes], *, last: bool = False) -> None:
        """More of the request's body, without copying it; raises ``Broken`` where the server hung up, whose answer may still be there."""
        size = sum(map(len, parts))
        framed = [b"%x\r\n" % size, *parts, b"\r\n"] if size else []  # a chunk of nothing would be the end
        await self._write(framed + [b"0\r\n\r\n"] * last)

    async def answer(self) -> None:
        """Read the head of the answer: ``status`` and ``headers``."""
        stream = self._open()
        while True:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(_PIECE)
                self._protocol.receive_data(data)
            elif isinstance(event, h11.Response):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("the server hung up without an answer")
        self.status = event.status_code
        self.headers = _texts(event.headers)
        empty = self._bodyless or self.status in (204, 304)
        length = 0 if empty else int(self.headers["content-length"]) if "content-length" in self.headers else None
        chunked = not empty and "chunked" in self.headers.get("transfer-encoding", "").lower()
        self._body = _Body(self._protocol.trailing_data[0], None if chunked else length, chunked=chunked)
        if self.headers.get("connection", "").lower() == "close" or event.http_version != b"1.1":
            self._reusable = False

    async def piece(self) -> bytes:
        """The next bytes of the answer, empty at its end; raises ``Broken`` where it ends too early."""
        body, stream = self._body, self._open()
        assert body is not None  # `answer` was called
        while not (piece := body.take()) and not body.ended:
            data = await stream.receive_some(_PIECE)
            body.feed(data)
            if len(data) < _SMALL and not body.ended:
                await trio.sleep(_MOMENT)
        if body.ended:
            self.headers.update(body.trailers)
        return piece

    async def body(self) -> bytes:
        """All of the answer."""
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Give the connection back, or close it if the answer was not read to its end."""
        stream, self._stream = self._stream, None
        if stream is not None:
            ended = self._body is not None and self._body.ended
            self._client._give_back(stream, reusable=self._reusable and ended)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _open(self) -> trio.abc.Stream:
        if self._stream is None:
            raise trio.ClosedResourceError("this request was closed")
        return self._stream

    async def _write(self, parts: list[bytes]) -> None:
        stream = self._open()
        self._reusable = False  # until all of it is written
        if isinstance(stream, trio.SocketStream):
            left: list[bytes | memoryview] = [*parts]
            while left:
                sent = await stream.socket.sendmsg(left[:_MOST_PARTS])
                done = 0
                while done < len(left) and sent >= len(left[done]):
                    sent -= len(left[done])
                    done += 1
                del left[:done]
                if sent:
                    left[0] = memoryview(left[0])[sent:]
        else:
            await stream.send_all(b"".join(parts))
        self._reusable = True


class _Body:
    """The body of an answer out of what is received, without I/O."""

    def __init__(self, start: bytes, length: int | None, *, chunked: bool) -> None:
        """``start``: what came with the head; ``length``: bytes of a body that is not in chunks, None if the connection's end is its own."""
        self._raw = start
        self._chunked = chunked
        self._left = length or 0  # of the chunk, or of all
        self._to_the_end = length is None and not chunked
        self._behind = False  # a chunk's bytes are over, the end of its line comes next
        self._last = False  # the chunk of no bytes was read: what follows is a trailer
        self.trailers: dict[str, str] = {}
        self.ended = length == 0

    def feed(self, data: bytes) -> None:
        """What was received; nothing, when the server hung up."""
        if data:
            self._raw += data
        elif self._to_the_end:
            self.ended = True
        else:
            raise h11.RemoteProtocolError("the server hung up in the middle of an answer")

    def take(self) -> bytes:
        """The bytes of the body that are here."""
        raw, self._raw = self._raw, b""
        if self._to_the_end:
            return raw
        if not self._chunked:
            self._left -= len(raw)
            self.ended = self._left <= 0
            return raw[: len(raw) + min(self._left, 0)]
        pieces: list[bytes] = []
        at = 0
        while True:
            if self._left:
                piece = raw[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    return b"".join(pieces)
                self._behind = True
            end = raw.find(b"\r\n", at)
            if end < 0 or self.ended:
                if len(raw) - at > _LONGEST_LINE:
                    raise h11.RemoteProtocolError("the server sent a chunk whose size has no end")
                self._raw = raw[at:]
                return b"".join(pieces)
            line, at = raw[at:end], end + 2
            self._line(line)

    def _line(self, line: bytes) -> None:
        if self._behind:
            if line:
                raise h11.RemoteProtocolError("the server sent more of a chunk than it said")
            self._behind = False
        elif not self._last:
            size = _SIZE.fullmatch(line)
            if size is None:
                raise h11.RemoteProtocolError("the server sent a chunk without a size")
            self._left = int(size[1], 16)
            self._last = not self._left
        elif line:
            name, _, value = line.decode("latin-1").partition(":")
            self.trailers[name.strip().lower()] = value.strip()
        else:
            self.ended = True


def _texts(headers: h11._headers.Headers) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


def _socket_of(stream: trio.abc.Stream) -> trio.socket.SocketType:
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    assert isinstance(stream, trio.SocketStream)
    return stream.socket


def _close(stream: trio.abc.Stream) -> None:
    """At once: TLS' farewell is not waited for."""
    _socket_of(stream).close()
