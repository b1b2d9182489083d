"""The files of an image on this machine: in a folder, or in a tar, which is never unpacked as a whole."""

from __future__ import annotations

import bz2
import errno
import lzma
import os
import posixpath
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import trio
import zstandard
from isal import igzip

from ipfs_store.errors import InvalidInput
from ipfs_store.images.sources.scratch import PIECE, Scratch, scratch

_MAX_MEMBERS = 200_000
_MAX_HOPS = 8
_ZSTD_WINDOW = 1 << 27  # 128 MiB, what `zstd --long` uses; a frame may not make us take more


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of a file without reading it."""

    size: int
    head: bytes
    """Its first 8 bytes."""


class Files(Protocol):
    """Named files; names are relative and as the image writes them. Synchronous."""

    where: str
    """For messages: the path of the folder or archive."""

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; None where there is none. Raises InvalidInput where it is over ``limit`` bytes or no plain file."""
        ...

    def stat(self, name: str) -> Stat | None:
        """Size and first bytes of a file; None where there is none."""
        ...

    def open(self, name: str) -> AbstractContextManager[Path] | None:
        """A file, whole, at a path that holds until the context ends; None where there is none. Its contents are not checked."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class Folder:
    """A folder, out of which no symbolic link leads."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path

    def read(self, name: str, limit: int) -> bytes | None:
        """See ``Files.read``."""
        handle = self._open(name)
        if handle is None:
            return None
        with os.fdopen(handle, "rb") as file:
            return _limited(file.read(limit + 1), limit, f"{self.where}/{name}")

    def stat(self, name: str) -> Stat | None:
        """See ``Files.stat``."""
        handle = self._open(name)
        if handle is None:
            return None
        with os.fdopen(handle, "rb") as file:
            return Stat(os.fstat(handle).st_size, file.read(8))

    def open(self, name: str) -> AbstractContextManager[Path] | None:
        """See ``Files.open``: the file itself."""
        handle = self._open(name)
        return None if handle is None else _held(handle, self._path / name)

    def close(self) -> None:
        """Nothing is open."""

    def _open(self, name: str) -> int | None:
        """Open component by component, so that a link in the middle is refused like one at the end."""
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise InvalidInput(f"{self.where}: {name[:200]!r} is no path inside of it")
        handle = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for number, part in enumerate(parts):
            # O_NONBLOCK: a FIFO would otherwise be waited for.
            kind = os.O_NONBLOCK if number == len(parts) - 1 else os.O_DIRECTORY
            try:
                below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=handle)
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    at = "/".join(parts[: number + 1])
                    what = "a symbolic link" if (self._path / at).is_symlink() else "no folder"
                    raise InvalidInput(
                        f"{self.where}/{at} is {what}; links in an image layout are not followed", hint="copy the layout with cp -rL"
                    ) from error
                raise
            finally:
                os.close(handle)
            handle = below
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise InvalidInput(f"{self.where}/{name} is no plain file")
        return handle


class Archive:
    """A tar, plain or compressed; names are looked up in it and never on the disk."""

    def __init__(self, path: Path, folder: Path) -> None:
        """Read its headers; one that is compressed is unpacked into a file of ``folder`` first. Raises InvalidInput, StorageFailed, OSError."""
        self.where = str(path)
        self._folder = folder
        self._unpacked: Scratch | None = None
        self._file: BinaryIO = path.open("rb")
        try:
            if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
                self._decompress()
            else:
                raise InvalidInput(f"{self.where} is neither a file nor a folder")
            self._members = self._index()
        except BaseException:
            self.close()
            raise

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str, limit: int) -> bytes | None:
        """See ``Files.read``."""
        member = self._find(name)
        if member is None:
            return None
        if member.size > limit:
            raise InvalidInput(f"{self.where}: {name} has {member.size} bytes, over the limit of {limit}")
        return os.pread(self._file.fileno(), member.size, member.offset_data)

    def stat(self, name: str) -> Stat | None:
        """See ``Files.stat``."""
        member = self._find(name)
        if member is None:
            return None
        return Stat(member.size, os.pread(self._file.fileno(), min(8, member.size), member.offset_data))

    def open(self, name: str) -> AbstractContextManager[Path] | None:
        """See ``Files.open``: a copy without a name."""
        member = self._find(name)
        return None if member is None else self._copy(member)

    def close(self) -> None:
        """Close the archive."""
        self._file.close()
        if self._unpacked is not None:
            self._unpacked.close()

    @contextmanager
    def _copy(self, member: tarfile.TarInfo) -> Iterator[Path]:
        with scratch(self._folder) as target:
            target.copy(self._file.fileno(), member.offset_data, member.size)
            yield target.path

    def _find(self, name: str) -> tarfile.TarInfo | None:
        """The plain file of that name; links (Podman's and old Docker's archives have them) are followed inside of the archive."""
        at = name
        for _ in range(_MAX_HOPS):
            member = self._members.get(at)
            if member is None or member.isreg():
                break
            if member.issym():
                at = posixpath.normpath(posixpath.join(posixpath.dirname(at), member.linkname))
            elif member.islnk():
                at = posixpath.normpath(member.linkname)
            else:
                raise InvalidInput(f"{self.where}: {name} is no plain file")
        else:
            raise InvalidInput(f"{self.where}: {name} is a link that leads to more than {_MAX_HOPS} others")
        if member is not None and member.sparse is not None:
            raise InvalidInput(f"{self.where}: {name} is stored as a sparse file", hint="make the archive without tar's --sparse")
        return member

    def _index(self) -> dict[str, tarfile.TarInfo]:
        found: dict[str, tarfile.TarInfo] = {}
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    trio.from_thread.check_cancelled()
                    found[posixpath.normpath(member.name)] = member
                    if len(found) > _MAX_MEMBERS:
                        raise InvalidInput(
                            f"{self.where} has more than {_MAX_MEMBERS} entries; an image's archive has a few for each layer"
                        )
        except (tarfile.TarError, ValueError, EOFError) as error:
            raise InvalidInput(f"{self.where} is no whole tar archive: {error}") from error
        if not found:
            raise InvalidInput(f"{self.where} is an empty tar archive")
        return found

    def _decompress(self) -> None:
        magic = self._file.read(6)
        self._file.seek(0)
        stream = _decompressor(magic, self._file)
        if stream is None:
            return
        self._unpacked = Scratch(self._folder)
        while True:
            trio.from_thread.check_cancelled()
            try:
                piece = stream.read(PIECE)
            except (igzip.BadGzipFile, zstandard.ZstdError, lzma.LZMAError, zlib.error, EOFError, ValueError) as error:
                raise InvalidInput(f"{self.where} is damaged: {error}") from error
            except OSError as error:
                if error.errno is not None:
                    raise
                raise InvalidInput(f"{self.where} is damaged: {error}") from error  # what bz2 raises
            if not piece:
                break
            self._unpacked.write(piece)
        self._unpacked.flush()
        self._file.close()
        self._file = self._unpacked.file


def _decompressor(magic: bytes, file: BinaryIO) -> BinaryIO | None:
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, igzip.open(file, "rb"))  # type: ignore[no-untyped-call]
    if magic[:4] == b"\x28\xb5\x2f\xfd" or (b"\x50" <= magic[:1] <= b"\x5f" and magic[1:4] == b"\x2a\x4d\x18"):
        return cast(BinaryIO, zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(file, read_across_frames=True))
    if magic == b"\xfd7zXZ\x00":
        return cast(BinaryIO, lzma.open(file, "rb"))
    if magic[:3] == b"BZh":
        return cast(BinaryIO, bz2.open(file, "rb"))
    return None


@contextmanager
def _held(handle: int, path: Path) -> Iterator[Path]:
    try:
        yield path
    finally:
        os.close(handle)


def _limited(data: bytes, limit: int, where: str) -> bytes:
    if len(data) > limit:
        raise InvalidInput(f"{where} is over the limit of {limit} bytes")
    return data
