"""Layers that are written: whatever tar goes in, what comes out reads back as that tar, and says of itself what it is."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.options import WriteOptions, Written
from ipfs_store.formats.reader import open_reader
from ipfs_store.formats.writer import write_layer_to
from tests.fuzz.choices import Choices
from tests.fuzz.layers import tar_seeds

_OPTIONS = (
    WriteOptions(chunk_size=700),
    WriteOptions(chunk_size=512, min_chunk_size=3000, prioritized=("a/b", "b", "none")),
    WriteOptions(external_toc=True),
    WriteOptions(external_toc=True, keep_diff_id=True, chunk_size=1000),
    WriteOptions("zstd:chunked", chunk_size=700),
    WriteOptions("zstd:chunked", keep_diff_id=True, audience="containers-storage"),
    WriteOptions("tar"),
    WriteOptions("gzip"),
    WriteOptions("zstd"),
)
_PLAIN = len(_OPTIONS) - 3
_RAW = 0x80


@dataclass(frozen=True)
class _Bytes:
    """A RangeReader, and a Readable."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def open(self) -> io.RawIOBase:
        return _Raw(self.data)


class _Raw(io.RawIOBase):
    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        return self._data.readinto(buffer)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._data.seek(offset, whence)


def layer(data: bytes) -> None:
    """The first byte chooses the options, and whether the rest is a tar or what one is made of."""
    given = Choices(data)
    first = given.byte()
    options = _OPTIONS[(first & ~_RAW) % len(_OPTIONS)]
    made = given.rest() if first & _RAW else _tar(given)
    written, blob = _written(made, options)
    assert (written.digest, written.size) == (_sha256(blob), len(blob))
    trio.run(_read_back, blob, written, made, options)


def _written(tar: bytes, options: WriteOptions) -> tuple[Written, bytes]:
    target = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:  # where nothing is unpacked, nothing is made
        written = write_layer_to(_Bytes(tar), target, Path(folder), options, threads=1)
    return written, target.getvalue()


async def _read_back(blob: bytes, written: Written, tar: bytes, options: WriteOptions) -> None:
    external = _Bytes(written.toc) if written.toc else None
    try:
        before = await open_reader(_Bytes(tar))
        expected = {entry.path: entry for entry in await before.entries()}
    except InvalidLayer:
        return  # written as it is, or with what no reader takes: names twice the length, links to nothing
    after = await open_reader(_Bytes(blob), written.annotations, toc_digest=written.toc_digest, external_toc=external)
    verified = await after.verify(digest=written.digest, diff_id=written.diff_id)
    assert verified.uncompressed_size == written.uncompressed_size
    if options.keep_diff_id or options in _OPTIONS[_PLAIN:]:
        assert (await before.verify()).diff_id == written.diff_id, "another tar than before"
    assert not verified.differences, verified.differences
    found = {entry.path: entry for entry in await after.entries()}
    assert found.keys() == expected.keys()
    for path, entry in expected.items():
        assert (found[path].type, found[path].size, found[path].link) == (entry.type, entry.size, entry.link)
        if entry.type == "reg":
            contents = [b"".join([piece async for piece in reader.read(path)]) for reader in (before, after)]
            assert contents[0] == contents[1]


def _tar(given: Choices) -> bytes:
    out = io.BytesIO()
    form = given.one((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        while given:
            info = tarfile.TarInfo(given.name() or "x")
            info.type = given.one((tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE))
            info.mode, info.uid = given.below(1 << 12), given.below(1 << 16)
            info.linkname = given.name() if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            contents = b""
            if info.type == tarfile.REGTYPE:
                contents = given.take(given.byte() % 32) * (given.byte() % 64)
                info.size = len(contents)
            if form == tarfile.PAX_FORMAT and given.byte() & 1:
                info.pax_headers = {"SCHILY.xattr.user.a": "v", "mtime": f"{given.below(1 << 16)}.5"}
            try:
                archive.addfile(info, io.BytesIO(contents))
            except (ValueError, UnicodeEncodeError):
                continue  # what tarfile cannot say in this form
    return out.getvalue()


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer_seeds() -> Iterator[bytes]:
    for number in range(len(_OPTIONS)):
        for seed in tar_seeds():
            yield bytes([number | _RAW]) + seed
        # Files, folders and links under each other's names, contents of some hundred bytes.
        yield bytes([number]) + bytes((7 * at + at // 3 + number) % 256 for at in range(600))
        yield bytes([number, 0]) + b"".join(
            bytes([0, 0, name, kind, 1, 1, 1, 1, 20]) + bytes(range(20)) + b"\x30" for name in range(4) for kind in (0, 2)
        )
