"""A real data plane on layers of the test."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from ipfs_store.formats.toc import Toc
from snapshotter.dataplane.client import DataPlane, Launch
from snapshotter.dataplane.control import LayerStatus
from tests.dataplane.faults import Faults
from tests.patience import until
from tests.requirements import require_fuse

GIVE_UP = 600.0
"""Longer than any test: what is fetched or held on a slow machine is no error."""
SOON = 1.5


@dataclass(frozen=True)
class Source:
    cid: str
    digest: str = "sha256:" + "d" * 64
    toc_digest: str = ""
    toc: str = ""


def impatient(dataplane: DataPlane) -> DataPlane:
    """In its place one that gives its source up `SOON`."""
    made = DataPlane(replace(dataplane.launch, give_up=SOON))
    made.start()
    return made


@dataclass
class Plane:
    """The data plane, its layers, and what the next reads of a blob do (see `tests.dataplane.faults`)."""

    folder: Path
    dataplane: DataPlane
    _mounted: dict[str, int] = field(default_factory=dict)

    def mount(self, name: str, layer: tuple[bytes, Toc]) -> Path:
        """Show the layer; its folder."""
        blob, toc = layer
        (self.folder / f"{name}.blob").write_bytes(blob)
        (self.folder / f"{name}.toc").write_bytes(msgspec.msgpack.encode(toc))
        self._mounted[name] = number = len(self._mounted) + 1
        return self.dataplane.mount(number, Source(name))

    def faults(self, *words: str) -> None:
        Faults(self.folder).set(*words)

    def let_go(self) -> None:
        """Reads that hold go on."""
        Faults(self.folder).let_go()

    def reads(self, name: str) -> list[tuple[int, int]]:
        """(offset, length) of each read of the blob that began."""
        path = self.folder / "reads"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [(int(offset), int(length)) for blob, offset, length in map(str.split, lines) if blob == name]

    def status(self, name: str) -> LayerStatus:
        return next(layer for layer in self.dataplane.status().layers if layer.layer == self._mounted[name])

    def until_waiting(self, name: str, count: int = 1, readers: int = 1) -> None:
        """Return when ``count`` fetches of the layer have ``readers`` readers each."""
        until(lambda: sum(wait.readers >= readers for wait in self.status(name).waiting) == count, lambda: self.status(name).waiting)

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def plane() -> Iterator[Plane]:
    require_fuse()
    import os

    folder = Path(tempfile.mkdtemp(prefix="plane-", dir="/var/tmp"))
    launch = Launch(
        mountpoint=folder / "mount",
        control=folder / "control.sock",
        cache=folder / "cache",
        give_up=GIVE_UP,
        log=folder / "log",
        program=(sys.executable, "-m", "tests.dataplane.served", str(folder)),
    )
    dataplane = DataPlane(launch)
    try:
        dataplane.start()
        yield Plane(folder, dataplane)
    finally:
        dataplane.stop()
        assert not os.path.ismount(folder / "mount")
        shutil.rmtree(folder)
