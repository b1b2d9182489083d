"""The line between the snapshots service and whoever mounts layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ipfs_store.errors import IpfsStoreError


class MountFailed(IpfsStoreError):
    """A layer that cannot be mounted lazily; the message says why, for the log line of the fallback."""


@dataclass(frozen=True, slots=True)
class LayerSource:
    """Where a layer is and how it is verified. Plain values, since it is kept in SQLite and sent to the data plane."""

    cid: str
    """The blob's UnixFS file, as text."""
    digest: str
    """``sha256:...`` of the blob, empty if the client did not say."""
    toc_digest: str = ""
    """``sha256:...`` of the TOC; empty if the client did not say (the CID then vouches for it)."""
    namespace: str = ""
    """containerd's namespace that asked for it: contents may be shared within one only."""
    toc: str = ""
    """The TOC as an object of its own, a CID as text; empty if there is none, or the client did not say."""


class LayerMounter(Protocol):
    """Mounts layers read-only, each as a directory. Called from gRPC threads, so it is synchronous and thread-safe."""

    def mount(self, layer: int, source: LayerSource, instance: int = 0) -> Path:
        """The directory of the layer's root, mounted and with its TOC verified; at once if it is there already. Raises MountFailed.

        Layers that are the same may share a directory; another ``instance`` is one of its own, since no overlay can have a directory twice.
        """
        ...

    def chain(self, layers: Sequence[int]) -> Path | None:
        """One directory, mounted, that shows these layers laid over each other, the lowest first; None: they are to be stacked (for now)."""
        ...

    def unmount(self, layer: int) -> None:
        """Let go of the layer; nothing happens if it is not mounted."""
        ...

    def expire(self) -> None:
        """Whoever serves layers was replaced: each is to be asked for anew by `mount`."""
        ...

    def sweep(self) -> None:
        """Unmount what no layer of those that `mount` was asked for uses."""
        ...
