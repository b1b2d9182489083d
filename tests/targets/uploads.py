"""A registry that takes images, and misbehaves on command."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.sources.made import sha256


@dataclass
class Behaviour:
    """What an ``UploadRegistry`` does apart from taking what it is given."""

    cut_after: list[int] = field(default_factory=list)
    """Bytes of the next bodies after which connections end."""
    statuses: list[int] = field(default_factory=list)
    """Answered to the next writes instead of doing them."""
    forgets: bool = False
    """Whether uploads are gone after a connection broke."""
    tokens: bool = False
    """Whether it wants a bearer token, with the right scope."""
    mounts: bool = True
    """Whether it takes blobs from other repositories."""
    refusal: str = ""
    """What it says of a manifest instead of taking it."""


class UploadRegistry:
    """Blobs and manifests by repository."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        """(method, path and query) of every request."""
        self.scopes: list[str] = []
        """Of every token that was given."""
        self._uploads: dict[str, bytearray] = {}
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                registry.answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> UploadRegistry:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def writes(self, method: str) -> int:
        """How many requests of that kind there were for blobs."""
        return sum(1 for kind, path in self.requests if kind == method and "/manifests/" not in path)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == "/token":
            self.scopes += parse_qs(url.query)["scope"]
            return self._send(request, 200, json.dumps({"token": query["scope"].rpartition(":")[2]}).encode())
        self.requests.append((request.command, request.path))
        match = re.fullmatch(r"/v2/(.+?)/(manifests|blobs)/(.*)", url.path)
        assert match is not None, request.path
        repository, kind, target = match.groups()
        writing = request.command in ("POST", "PUT", "PATCH")
        scope = "pull,push" if writing else "pull"
        if self.behaviour.tokens and scope not in request.headers.get("Authorization", ""):
            challenge = f'Bearer realm="http://{self.host}/token",service="fake",scope="repository:{repository}:{scope}"'
            request.close_connection = True
            return self._send(request, 401, b"", {"WWW-Authenticate": challenge})
        if writing and self.behaviour.statuses:
            request.close_connection = True
            return self._send(request, self.behaviour.statuses.pop(0), b"")
        if kind == "manifests":
            return self._manifest(request, repository, target)
        if target == "uploads/":
            return self._begin(request, repository, query)
        if target.startswith("uploads/"):
            return self._upload(request, repository, target.removeprefix("uploads/"), query)
        found = self.blobs.get(repository, {}).get(target)
        return self._send(request, 404 if found is None else 200, found or b"")

    def _manifest(self, request: BaseHTTPRequestHandler, repository: str, target: str) -> None:
        if request.command != "PUT":
            found = self.manifests.get(repository, {}).get(target)
            return self._send(request, 404 if found is None else 200, found or b"", {"Content-Type": "application/json"})
        body = request.rfile.read(int(request.headers["Content-Length"]))
        if self.behaviour.refusal:
            error = {"code": "MANIFEST_INVALID", "message": self.behaviour.refusal}
            return self._send(request, 400, json.dumps({"errors": [error]}).encode())
        self.manifests.setdefault(repository, {})[target] = body
        return self._send(request, 201, b"", {"Docker-Content-Digest": f"sha256:{sha256(body)}"})

    def _begin(self, request: BaseHTTPRequestHandler, repository: str, query: dict[str, str]) -> None:
        blob = self.blobs.get(query.get("from", ""), {}).get(query.get("mount", ""))
        if blob is not None and self.behaviour.mounts:
            self.blobs.setdefault(repository, {})[query["mount"]] = blob
            return self._send(request, 201, b"")
        name = f"u{len(self._uploads)}"
        self._uploads[name] = bytearray()
        return self._send(request, 202, b"", {"Location": f"/v2/{repository}/blobs/uploads/{name}?state=1", "Range": "0-0"})

    def _upload(self, request: BaseHTTPRequestHandler, repository: str, name: str, query: dict[str, str]) -> None:
        kept = self._uploads.get(name)
        if kept is None:
            request.close_connection = True
            return self._send(request, 404, b"")
        where = {"Location": f"/v2/{repository}/blobs/uploads/{name}?state={len(kept)}"}
        if request.command == "GET":
            return self._send(request, 204, b"", {**where, "Range": f"0-{max(len(kept) - 1, 0)}"})
        length = int(request.headers["Content-Length"])
        if self.behaviour.cut_after and length > self.behaviour.cut_after[0]:
            part = request.rfile.read(self.behaviour.cut_after.pop(0))
            if request.command == "PATCH":  # a PUT that breaks leaves nothing
                kept += part
            if self.behaviour.forgets:
                del self._uploads[name]
            request.close_connection = True
            return None
        if request.command == "PATCH" and not request.headers["Content-Range"].startswith(f"{len(kept)}-"):
            request.close_connection = True
            return self._send(request, 416, b"")
        kept += request.rfile.read(length)
        if request.command == "PATCH":
            return self._send(request, 202, b"", where)
        if f"sha256:{sha256(bytes(kept))}" != query["digest"]:
            error = {"code": "DIGEST_INVALID", "message": "provided digest did not match uploaded content"}
            return self._send(request, 400, json.dumps({"errors": [error]}).encode())
        self.blobs.setdefault(repository, {})[query["digest"]] = bytes(kept)
        return self._send(request, 201, b"")

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        if status != 204:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
