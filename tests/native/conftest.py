"""Native mounts as the snapshotter makes them: a metadata image, the content store and the FUSE mount under one overlay."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from ipfs_store.formats.options import WriteOptions
from ipfs_store.formats.writer import write_layer
from snapshotter.dataplane.client import DataPlane, Launch, NativeMount
from snapshotter.dataplane.control import LayerStatus
from tests.dataplane.conftest import GIVE_UP, Source
from tests.dataplane.faults import Faults
from tests.dataplane.synthetic import of_files
from tests.patience import until
from tests.requirements import require_fuse


def tar_of(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar of regular files, and the folders above them."""
    with tarfile.open(path, "w") as tar:
        folders: set[str] = set()
        for name, data in files.items():
            for depth in range(1, name.count("/") + 1):
                folder = "/".join(name.split("/")[:depth])
                if folder not in folders:
                    folders.add(folder)
                    info = tarfile.TarInfo(folder)
                    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_600_000_000
                    tar.addfile(info)
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o644, 1_600_000_000
            tar.addfile(info, io.BytesIO(data))
    return path


@dataclass
class Native:
    """The data plane, and overlays of native layers."""

    folder: Path
    dataplane: DataPlane
    stack: contextlib.ExitStack
    numbers: dict[str, int] = field(default_factory=dict)
    data: tuple[Path, ...] = ()
    overlays: int = 0

    def write(self, name: str, tar: Path, **options: int) -> str:
        """Make the tar a layer that the data plane can find; its TOC's digest."""
        target = self.folder / f"{name}.blob"
        return write_layer(tar, target, WriteOptions(**options)).toc_digest

    def image(self, name: str, toc_digest: str = "", *, namespace: str = "") -> Path:
        """The layer's metadata, mounted."""
        number = self.numbers.setdefault(name, len(self.numbers) + 1)
        return self.mounted(self.dataplane.mount_native(number, Source(name, toc_digest=toc_digest), namespace=namespace))

    def chain(self, *names: str) -> Path:
        """The metadata of layers that were mounted, the lowest first, as one image, mounted."""
        made = until(lambda: self.dataplane.mount_chain([self.numbers[name] for name in names]), "the chain's image is not made")
        assert made is not None
        return self.mounted(made)

    def mounted(self, native: NativeMount) -> Path:
        """The image, mounted."""
        self.data = native.data
        point = Path(tempfile.mkdtemp(prefix="meta-", dir=self.folder))
        subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", native.image, point], check=True)
        self.stack.callback(subprocess.run, ["umount", point], check=True)
        return point

    def overlay(self, *images: Path) -> Path:
        """A container's root on these metadata, the uppermost first."""
        top = Path(tempfile.mkdtemp(prefix="root-", dir=self.folder))
        for name in ("upper", "work", "root"):
            (top / name).mkdir()
        lower = ":".join(map(str, images)) + "".join(f"::{path}" for path in self.data)
        options = f"lowerdir={lower},upperdir={top}/upper,workdir={top}/work,metacopy=on,redirect_dir=on,index=off,xino=on"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, top / "root"], check=True)
        self.stack.callback(subprocess.run, ["umount", top / "root"], check=True)
        return top / "root"

    def root(self, name: str, files: Mapping[str, bytes], **options: int) -> Path:
        """A container's root of one layer of these files."""
        digest = self.write(name, tar_of(self.folder / f"{name}.tar", files), **options)
        return self.overlay(self.image(name, digest))

    def portable_root(self, name: str, files: Mapping[str, bytes], **options: int) -> Path:
        """The same on a folder of the FUSE mount."""
        blob, toc = of_files(files, **options)
        (self.folder / f"{name}.blob").write_bytes(blob)
        (self.folder / f"{name}.toc").write_bytes(msgspec.msgpack.encode(toc))
        number = self.numbers.setdefault(name, len(self.numbers) + 1)
        return self.overlay(self.dataplane.mount(number, Source(name)))

    def faults(self, *words: str) -> None:
        """What the next reads of a blob do (see `tests.dataplane.faults`)."""
        Faults(self.folder).set(*words)

    def let_go(self) -> None:
        """Reads that hold go on."""
        Faults(self.folder).let_go()

    def reads(self) -> int:
        """How many reads of any blob began."""
        path = self.folder / "reads"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def stored(self) -> set[str]:
        """Ids of the contents in the store."""
        return {path.name for path in self.data[0].glob("??/*")}

    def status(self, name: str) -> LayerStatus:
        return next(layer for layer in self.dataplane.status().layers if layer.layer == self.numbers[name])

    def unmount_all(self) -> None:
        """Every image and overlay."""
        self.stack.pop_all().close()

    def log(self) -> str:
        return (self.folder / "log").read_text()


@contextlib.contextmanager
def a_plane(**options: object) -> Iterator[Native]:
    """A data plane with these options of `Launch`."""
    require_fuse()
    folder = Path(tempfile.mkdtemp(prefix="native-", dir="/var/tmp"))
    launch = Launch(
        mountpoint=folder / "mount",
        control=folder / "control.sock",
        cache=folder / "cache",
        give_up=GIVE_UP,
        log=folder / "log",
        program=(sys.executable, "-m", "tests.dataplane.served", str(folder)),
        **options,  # type: ignore[arg-type]
    )
    dataplane = DataPlane(launch)
    try:
        with contextlib.ExitStack() as stack:
            dataplane.start()
            yield Native(folder, dataplane, stack)
    finally:
        dataplane.stop()
        shutil.rmtree(folder)


@pytest.fixture
def native() -> Iterator[Native]:
    with a_plane() as plane:
        yield plane


def noise(seed: str, size: int) -> bytes:
    """Bytes that do not compress."""
    return hashlib.shake_128(seed.encode()).digest(size)
