"""Layer blobs for tests: random access to bytes, and what a layer's files should be, from a tar by Python's tarfile."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from ipfs_store.formats.toc import Entry

VECTORS = Path(__file__).parent.parent / "vectors" / "estargz"
_KINDS = {b"0": "reg", b"\0": "reg", b"1": "hardlink", b"2": "symlink", b"3": "char", b"4": "block", b"5": "dir", b"6": "fifo"}


@dataclass
class BytesBlob:
    """A RangeReader over bytes, which notes what was read."""

    data: bytes
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    async def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.data)
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


Seen = tuple[object, ...]


def of_entry(entry: Entry) -> Seen:
    """Everything that a TOC says of an entry but how its contents are stored."""
    return (
        entry.type, entry.mode if entry.type != "hardlink" else 0, entry.uid, entry.gid, entry.mtime, entry.size, entry.link,
        entry.dev_major, entry.dev_minor, dict(entry.xattrs),
    )  # fmt: skip


def of_tar(path: Path) -> tuple[dict[str, Seen], dict[str, bytes]]:
    """The same by path for the entries of a tar, and the contents of its regular files."""
    seen: dict[str, Seen] = {}
    contents: dict[str, bytes] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = member.name.strip("/").removeprefix("./")
            kind = _KINDS[member.type]
            if name == ".":
                name = ""
            xattrs = {
                key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape")
                for key, value in member.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            seen[name] = (
                kind, member.mode if kind != "hardlink" else 0, member.uid, member.gid, int(member.mtime), member.size,
                member.linkname.removeprefix("./") if kind == "hardlink" else member.linkname, member.devmajor, member.devminor, xattrs,
            )  # fmt: skip
            if kind == "reg":
                file = tar.extractfile(member)
                assert file is not None
                contents[name] = file.read()
    return seen, contents
