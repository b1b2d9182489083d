"""How a Kubo daemon is, for people: version, whom it is connected to, how full its repository is.

Asked by ``ipfshttpclient``, in short calls to a daemon nearby. What carries blocks has a connection of its own (``rpc``): this client blocks its
thread for as long as Kubo searches the network, and knows no names of pins.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from urllib.parse import urlsplit

from ipfs_store.errors import NodeUnavailable
from ipfs_store.nodes.kubo.address import ApiAddress, authorization

_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class KuboHealth:
    """What a daemon says of itself."""

    version: str
    """Such as ``0.42.0``."""
    connected: int
    """Peers of its swarm."""
    bytes: int
    """Of its repository, on the disk."""
    limit: int
    """``Datastore.StorageMax`` in bytes, above which its collector runs, where it does."""


def look(address: ApiAddress, secret: str = "") -> KuboHealth:
    """Ask the daemon, in a few milliseconds; blocks. Raises NodeUnavailable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its version of Kubo, which is newer than it knows, and of urllib3 3
        import ipfshttpclient
        from ipfshttpclient.exceptions import Error

        headers = {"Authorization": authorization(secret)} if secret else {}
        try:
            # Not connect(), which refuses every Kubo of today for its version.
            with ipfshttpclient.Client(_multiaddr(address), headers=headers, timeout=_TIMEOUT) as client:
                version = client.version()["Version"]
                peers = client.swarm.peers()["Peers"] or []
                repository = client.repo.stat()
        except (Error, KeyError, TypeError) as error:
            raise NodeUnavailable(f"Kubo at {address} does not say how it is: {error or type(error).__name__}") from error
    return KuboHealth(version, len(peers), repository["RepoSize"], repository["StorageMax"])


def _multiaddr(address: ApiAddress) -> str:
    if address.socket:
        return f"/unix{address.socket}"
    parts = urlsplit(address.url)
    host = parts.hostname or ""
    kind = "ip6" if ":" in host else "ip4" if host.replace(".", "").isdigit() else "dns"
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"/{kind}/{host}/tcp/{port}/{parts.scheme}"
