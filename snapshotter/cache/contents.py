"""Complete, verified files by content id: the first data-only layer of every native mount.

Files are read by the kernel without asking anybody, so what has a name here is complete and right: it is written elsewhere and renamed in,
and never changed, cut or punched after. They belong to root, below a folder that only root can enter; whoever reads them does so through an
overlay, which takes owner and mode from the metadata.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from ipfs_store.errors import StorageFailed

_MODE = 0o444


class ContentStore:
    """Contents in ``folder``. Synchronous and thread-safe: callers are worker threads."""

    def __init__(self, folder: Path) -> None:
        """Make the folders; raises StorageFailed."""
        self.data = folder / "data"
        """The data layer: ``aa/<64 digits>``."""
        self._data = str(self.data)
        self._tmp = str(folder / "tmp")
        self._serial = itertools.count()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            Path(self._tmp).mkdir(exist_ok=True)
            for number in range(256):
                (self.data / f"{number:02x}").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageFailed(f"the cache in {folder} cannot be used: {error}") from error

    def has(self, content: bytes) -> bool:
        """Whether the content is here."""
        return os.path.exists(self._path(content))  # noqa: PTH110 - a string, once for every lookup

    def put(self, content: bytes, pieces: Iterable[bytes]) -> None:
        """Keep a content whose bytes the caller has verified; raises StorageFailed."""
        path = self._path(content)
        tmp = f"{self._tmp}/{os.getpid()}.{next(self._serial)}"
        try:
            file = os.open(tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
            try:
                for piece in pieces:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[os.write(file, rest) :]
            finally:
                os.close(file)
            os.rename(tmp, path)  # noqa: PTH104
        except OSError as error:
            Path(tmp).unlink(missing_ok=True)
            raise StorageFailed(f"the cache in {self.data} takes nothing more: {error.strerror}") from error

    def _path(self, content: bytes) -> str:
        name = content.hex()
        return f"{self._data}/{name[:2]}/{name}"
