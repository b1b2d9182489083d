"""Registries on this machine: Debian's docker-registry, and one that misbehaves on command."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.patience import PATIENCE
from tests.requirements import require_tool
from tests.sources.made import INDEX, MadeImage, sha256

# alice:secret, as `htpasswd -nbBC 4` writes it.
HTPASSWD = "alice:$2y$04$jDXczvT41/VBHuMvqlA5ueHX7IwLauTdW6iUxbTgDgyWl06IVCaS2\n"


@contextmanager
def docker_registry(folder: Path, *, password: bool = False) -> Iterator[str]:
    """A real registry with storage in ``folder``; gives its ``HOST:PORT``. ``password``: only alice, whose password is secret, may use it."""
    binary = require_tool("docker-registry")
    folder.mkdir()
    (folder / "htpasswd").write_text(HTPASSWD)
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0"},
        **({"auth": {"htpasswd": {"realm": "here", "path": str(folder / "htpasswd")}}} if password else {}),
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    process = subprocess.Popen([binary, "serve", folder / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    drain = None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError("docker-registry did not start:\n" + "".join(lines))
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        yield found[1]
    finally:
        process.terminate()
        process.wait(PATIENCE)
        if drain is not None:
            drain.join()
        process.stderr.close()


@dataclass
class Misbehaving:
    """What a ``FakeRegistry`` does apart from serving."""

    cut_after: int | None = None
    """Bytes of a layer after which connections end."""
    ranges: bool = True
    """Whether it continues a blob in the middle."""
    statuses: list[int] = field(default_factory=list)
    """Answered to the next requests instead of what they want."""
    forged: dict[str, bytes] = field(default_factory=dict)
    """What is sent for a digest instead."""
    tokens: bool = False
    """Whether it wants a bearer token."""
    token_uses: int | None = None
    """Requests that a token is good for."""
    media_type: str = "application/vnd.oci.image.manifest.v1+json"
    redirect_to: str = ""
    """Another server's URL, to which blob requests are sent."""
    referrers: dict[str, list[bytes]] = field(default_factory=dict)
    """By digest: pages (indexes) of the referrers API; without any, there is no such API."""
    tags: dict[str, bytes] = field(default_factory=dict)
    """Manifests by further tags."""


class FakeRegistry:
    """Serves one image as ``thing:1`` of the repository ``made/thing``."""

    def __init__(self, image: MadeImage, behaviour: Misbehaving | None = None) -> None:
        self.behaviour = behaviour or Misbehaving()
        self.blobs = {f"sha256:{sha256(blob)}": blob for blob in image.blobs}
        self.manifest = image.manifest
        self.requests: list[tuple[str, str, str]] = []
        """(path, Range, Authorization) of every request."""
        self.token_requests: list[tuple[dict[str, list[str]], str]] = []
        """(parameters, Authorization) of every request for a token."""
        self.token_left = 0
        self.tokens_given = 0
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.answer(self)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                registry.give_token(self, parse_qs(body))

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.name = f"{self.host}/made/thing:1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        if url.path == "/token":
            return self.give_token(request, parse_qs(url.query))
        authorization = request.headers.get("Authorization", "")
        self.requests.append((url.path, request.headers.get("Range", ""), authorization))
        if self.behaviour.statuses:
            return _send(request, self.behaviour.statuses.pop(0), b"{}")
        if self.behaviour.tokens and not self._is_good(authorization):
            challenge = f'Bearer realm="http://{self.host}/token",service="fake",scope="repository:made/thing:pull"'
            return _send(request, 401, b"{}", {"WWW-Authenticate": challenge})
        _, _, kind, target = url.path.rsplit("/", 3)
        if kind == "referrers":
            return self._send_referrers(request, target, int(parse_qs(url.query).get("page", ["0"])[0]))
        if kind == "manifests" and target in self.behaviour.tags:
            body = self.behaviour.tags[target]
            media_type = json.loads(body)["mediaType"]
            return _send(request, 200, body, {"Content-Type": media_type})
        if kind == "manifests":
            body = self.manifest if target == "1" else self.blobs.get(target)
            return self._send_or_404(request, body, {"Content-Type": self.behaviour.media_type})
        if self.behaviour.redirect_to:
            return _send(request, 307, b"", {"Location": f"{self.behaviour.redirect_to}{url.path}"})
        body = self.behaviour.forged.get(target, self.blobs.get(target))
        if body is None:
            return self._send_or_404(request, body, {})
        start = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if start is not None and self.behaviour.ranges:
            offset = int(start[1])
            headers = {"Content-Range": f"bytes {offset}-{len(body) - 1}/{len(body)}"}
            return _send(request, 206, body[offset:], headers, self.behaviour.cut_after)
        return _send(request, 200, body, {}, self.behaviour.cut_after)

    def _send_referrers(self, request: BaseHTTPRequestHandler, digest: str, page: int) -> None:
        pages = self.behaviour.referrers.get(digest, [])
        if not self.behaviour.referrers:
            return _send(request, 404, b"{}")
        following = {"Link": f'</v2/made/thing/referrers/{digest}?page={page + 1}>; rel="next"'} if page + 1 < len(pages) else {}
        empty = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
        _send(request, 200, pages[page] if pages else empty, {"Content-Type": INDEX, **following})

    def give_token(self, request: BaseHTTPRequestHandler, parameters: dict[str, list[str]]) -> None:
        self.token_requests.append((parameters, request.headers.get("Authorization", "")))
        self.token_left = -1 if self.behaviour.token_uses is None else self.behaviour.token_uses
        self.tokens_given += 1
        _send(request, 200, json.dumps({"token": f"token-{self.tokens_given}"}).encode())

    def _is_good(self, authorization: str) -> bool:
        if authorization != f"Bearer token-{self.tokens_given}" or self.token_left == 0:
            return False
        self.token_left -= 1
        return True

    @staticmethod
    def _send_or_404(request: BaseHTTPRequestHandler, body: bytes | None, headers: dict[str, str]) -> None:
        _send(request, 404 if body is None else 200, body or b"{}", headers)


def _send(
    request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None, cut_after: int | None = None
) -> None:
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if cut_after is not None and len(body) > cut_after:
        request.wfile.write(body[:cut_after])
        request.close_connection = True
    else:
        request.wfile.write(body)
