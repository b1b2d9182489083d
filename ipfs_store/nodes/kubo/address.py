"""Where a Kubo daemon listens: found in its repository as its own commands find it, or given by a person."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.errors import InvalidInput

_HINT = "a Kubo address looks like /ip4/127.0.0.1/tcp/5001, http://127.0.0.1:5001 or 127.0.0.1:5001"
_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+):(?P<port>\d{1,5})")


@dataclass(frozen=True, slots=True)
class ApiAddress:
    """An RPC address: ``url`` without ``/api/v0``; ``socket`` is the path of a unix socket, empty for TCP."""

    text: str
    """As it was written, for messages."""
    url: str
    socket: str = ""

    def __str__(self) -> str:
        return self.text


def repository() -> Path:
    """``$IPFS_PATH``, else ``~/.ipfs``."""
    return Path(os.environ.get("IPFS_PATH") or "~/.ipfs").expanduser()


def find_api() -> ApiAddress | None:
    """The address that a running daemon writes into ``$IPFS_PATH/api``; None if there is none. Raises InvalidInput."""
    text = _read(repository() / "api")
    return parse_api(text) if text else None


def find_gateway() -> str:
    """The URL that a running daemon writes into ``$IPFS_PATH/gateway``, empty if there is none."""
    text = _read(repository() / "gateway")
    return text.rstrip("/") if text.startswith(("http://", "https://")) else ""


def parse_api(text: str) -> ApiAddress:
    """A multiaddr, an http(s) URL, or ``HOST:PORT``; raises InvalidInput."""
    address = text.strip()
    if address.startswith("/"):
        return _parse_multiaddr(address)
    scheme, separator, rest = address.rpartition("://")
    scheme = scheme.lower() if separator else "http"
    match = _HOST_PORT.fullmatch(rest.removesuffix("/").removesuffix("/api/v0"))
    if scheme not in ("http", "https") or match is None or not 0 < int(match["port"]) < 65536:
        raise InvalidInput(f"{text[:200]!r} is not the address of a Kubo RPC", hint=_HINT)
    return ApiAddress(address, f"{scheme}://{match['host']}:{match['port']}")


def authorization(secret: str) -> str:
    """The Authorization header for a secret as Kubo's ``--api-auth`` takes it: ``basic:user:pass``, ``bearer:token`` or a token."""
    kind, separator, value = secret.partition(":")
    if not separator:
        return f"Bearer {secret}"
    if kind == "basic":
        return "Basic " + (base64.b64encode(value.encode()).decode() if ":" in value else value)
    if kind == "bearer":
        return f"Bearer {value}"
    raise InvalidInput("the Kubo API secret has an unknown type", hint="write basic:USER:PASSWORD or bearer:TOKEN")


def _parse_multiaddr(text: str) -> ApiAddress:
    parts = text.strip("/").split("/")
    if parts[0] == "unix" and len(parts) > 1:
        return ApiAddress(text, "http://kubo", "/" + "/".join(parts[1:]))
    if len(parts) < 4 or parts[0] not in ("ip4", "ip6", "dns", "dns4", "dns6") or parts[2] != "tcp" or not parts[3].isdigit():
        raise InvalidInput(f"{text[:200]!r} is not the address of a Kubo RPC", hint=_HINT)
    secure = parts[4:] in (["https"], ["tls", "http"])
    if parts[4:] and not secure and parts[4:] != ["http"]:
        raise InvalidInput(f"{text[:200]!r}: cannot speak {'/'.join(parts[4:])} to a Kubo RPC", hint=_HINT)
    # A daemon told to listen everywhere writes 0.0.0.0 or ::, which is reached at the loopback.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(parts[1], parts[1])
    return ApiAddress(text, f"{'https' if secure else 'http'}://{f'[{host}]' if parts[0] == 'ip6' else host}:{int(parts[3])}")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""
