"""How a source is opened, whatever its kind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ipfs_store.images.model import NoProgress, Progress

if TYPE_CHECKING:
    from ipfs_store.nodes.interface import Node


def scratch_folder() -> Path:
    """``$TMPDIR``, else ``/var/tmp``: layers are large, and ``/tmp`` is memory on many machines."""
    given = os.environ.get("TMPDIR")
    return Path(given) if given else Path("/var/tmp") if os.access("/var/tmp", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source may need; each takes what concerns it."""

    credentials: tuple[str, str] | None = field(default=None, repr=False)
    """User and password for the registry; None: those of Docker's and Podman's configuration."""
    plain_http: bool = False
    """Talk to the registry without TLS; to this machine (localhost, 127.0.0.0/8, ::1) that is always so."""
    address: str | None = None
    """containerd's socket, where it is the source; None: $CONTAINERD_ADDRESS or what it is built with."""
    namespace: str | None = None
    """containerd's namespace; None: $CONTAINERD_NAMESPACE or ``default``."""
    node: Callable[[], AbstractAsyncContextManager[Node]] | None = None
    """Opens the node that images in IPFS come from."""
    folder: Path = field(default_factory=scratch_folder)
    """Where layers and unpacked archives lie for a while, in files that have no name and so are gone with the process."""
    progress: Progress = field(default_factory=NoProgress)
