"""What containerd answers instead of what was asked for, as exceptions of ``ipfs_store.errors``.

::

    ContainerdUnavailable (Unavailable)     nothing answers at the address, or not to us
    SnapshotterUnavailable (Unavailable)    containerd answers, the snapshotter behind it does not
    SnapshotterMissing (NotFound)           containerd knows no snapshotter of that name
    ContainerdNotFound (NotFound)           no such image, snapshot, blob, lease or container
    AlreadyExists (IpfsStoreError)          there is one of that name; for a Prepare that names its target, the good answer
    ContainerdRefused (IpfsStoreError)      anything else
"""

from __future__ import annotations

import grpc

from ipfs_store.errors import IpfsStoreError, NotFound, StorageFailed, Unavailable


class ContainerdUnavailable(Unavailable):
    """Nothing answers at containerd's address, or we may not connect to it."""


class SnapshotterUnavailable(Unavailable):
    """containerd answers, but the snapshotter behind it does not."""


class SnapshotterMissing(NotFound):
    """containerd has no snapshotter of that name."""


class ContainerdNotFound(NotFound):
    """containerd has no image, snapshot, blob, lease or container of that name."""


class AlreadyExists(IpfsStoreError):
    """There is one of that name."""


class ContainerdRefused(IpfsStoreError):
    """containerd does not do what it was asked for."""


# What grpc's own library says when it has no connection; anything else that is "unavailable" was said by containerd.
_NO_CONNECTION = ("failed to connect", "Socket closed", "connections to all backends", "Connection reset", "recvmsg", "sendmsg", "GOAWAY")


def from_grpc(error: grpc.RpcError, address: str) -> IpfsStoreError:
    """The exception for a call that containerd at ``address`` did not answer as asked."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else None) or code.name.lower()
    if "no space left on device" in details or "disk quota exceeded" in details:
        return StorageFailed(f"containerd: {details}", hint="free some space where containerd keeps its data")
    match code:
        case grpc.StatusCode.NOT_FOUND:
            return ContainerdNotFound(f"containerd: {details}")
        case grpc.StatusCode.ALREADY_EXISTS:
            return AlreadyExists(f"containerd: {details}")
        case grpc.StatusCode.UNAVAILABLE if any(text in details for text in _NO_CONNECTION):
            return ContainerdUnavailable(f"containerd at {address} does not answer: {details}")
        case grpc.StatusCode.UNAVAILABLE:
            return SnapshotterUnavailable(f"containerd: {details}")
        case grpc.StatusCode.UNIMPLEMENTED:
            return ContainerdRefused(f"what answers at {address} does not have what is needed: {details}", hint="is it containerd?")
        case _:
            return ContainerdRefused(f"containerd: {details}")


def snapshotter_missing(name: str, known: list[str], why: str = "") -> SnapshotterMissing:
    """containerd has no working snapshotter ``name``; ``why``: what it says about it."""
    if why:
        return SnapshotterMissing(f"containerd could not load its snapshotter {name!r}: {why}")
    has = f"; it has {', '.join(known)}" if known else ""
    if name != "ipfs":
        return SnapshotterMissing(f"containerd has no snapshotter {name!r}{has}")
    return SnapshotterMissing(
        f"containerd has no snapshotter {name!r}{has}",
        hint="start ipfs-snapshotter, and add to /etc/containerd/config.toml, then restart containerd:"
        ' [proxy_plugins.ipfs] type="snapshot" address="/run/ipfs-snapshotter/ipfs-snapshotter.sock"',
    )
