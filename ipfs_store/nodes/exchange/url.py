"""Where a trustless gateway is, as people write it."""

from __future__ import annotations

from urllib.parse import urlsplit

from ipfs_store.errors import InvalidInput


def normalize_url(text: str) -> str:
    """A peer's base URL without a trailing slash or ``/ipfs``; ``HOST:PORT`` is taken as HTTP. Raises InvalidInput."""
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    hint = "a peer looks like http://10.0.0.2:8080"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(f"{text[:200]!r} is not the address of a peer: {error}", hint=hint) from error
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise InvalidInput(f"{text[:200]!r} is not the address of a peer", hint=hint)
    if host == "localhost":
        host = "127.0.0.1"  # Kubo answers `localhost` with a redirect to CID.ipfs.localhost, which not every resolver knows
    elif ":" in host:
        host = f"[{host}]"
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    path = parts.path.rstrip("/").removesuffix("/ipfs")
    return f"{parts.scheme}://{user}{host}{f':{port}' if port else ''}{path}"
