"""Which layers are mounted, on disk: what a data plane that takes over has to know before it answers the first request."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from ipfs_store.errors import InvalidInput, StorageFailed
from snapshotter.dataplane.control import Mount, decode_request, encode

_log = logging.getLogger(__name__)


class Registry:
    """``FOLDER/NUMBER``, one file for each layer, holding the request that mounted it.

    Nothing is synced: after a power failure nothing is mounted, and the daemon mounts again what its own database says.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, request: Mount) -> None:
        """The layer is mounted; raises StorageFailed."""
        path = self._folder / str(request.layer)
        aside = path.with_name(f".{path.name}")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside.write_bytes(encode(request))
            aside.rename(path)
        except OSError as error:
            raise StorageFailed(f"it cannot be noted in {self._folder} that a layer is mounted: {error.strerror}") from error

    def forget(self, layer: int) -> None:
        """The layer is mounted no more; raises StorageFailed."""
        try:
            (self._folder / str(layer)).unlink(missing_ok=True)
        except OSError as error:
            raise StorageFailed(f"it cannot be noted in {self._folder} that a layer is gone: {error.strerror}") from error

    def requests(self) -> list[Mount]:
        """How each was mounted, by number. What cannot be read is logged: the daemon mounts that layer again."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if not path.name.isdigit():
                    continue  # half-written when a process was killed
                try:
                    request = decode_request(path.read_bytes())
                except (OSError, InvalidInput) as error:
                    _log.error("%s cannot be read: %s", path, error)
                    continue
                if isinstance(request, Mount) and str(request.layer) == path.name:
                    found.append(request)
        return sorted(found, key=lambda request: request.layer)
