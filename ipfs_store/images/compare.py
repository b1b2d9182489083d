"""What changes from one image to another: files, and blocks to be fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ipfs_store.cids import Cid
from ipfs_store.formats.toc import Entry
from ipfs_store.images.filesystem import ImageFiles
from ipfs_store.images.identity import identify
from ipfs_store.images.usage import block_sizes
from ipfs_store.nodes.interface import Blocks

Kind = Literal["added", "removed", "changed", "attributes"]


@dataclass(frozen=True, slots=True)
class Change:
    """A path that differs."""

    path: str
    kind: Kind
    """``attributes``: the same contents with another owner, mode or extended attributes. Times do not count."""
    before: Entry | None
    after: Entry | None

    @property
    def bytes(self) -> int:
        """Of contents that are new."""
        return self.after.size if self.after is not None and self.kind in ("added", "changed") else 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a machine with one image fetches to have all of another."""

    blocks: int
    bytes: int
    total_blocks: int
    total_bytes: int


def compare(before: ImageFiles, after: ImageFiles) -> list[Change]:
    """Every path that differs, sorted. CPU work."""
    found: list[Change] = []
    for path in sorted(before.files.keys() | after.files.keys()):
        one, other = before.files.get(path), after.files.get(path)
        if one is None or other is None:
            kind: Kind = "added" if one is None else "removed"
        elif _contents(one.entry) != _contents(other.entry):
            kind = "changed"
        elif _attributes(one.entry) != _attributes(other.entry):
            kind = "attributes"
        else:
            continue
        found.append(Change(path, kind, one.entry if one is not None else None, other.entry if other is not None else None))
    return found


async def transfer(blocks: Blocks, before: Cid, after: Cid, *, timeout: float | None = None) -> Transfer:
    """Blocks of ``after`` that ``before`` does not have; leaves are not read. Raises as ``identify`` and ``block_sizes`` do."""
    sizes: list[Mapping[Cid, int]] = []
    for cid in (before, after):
        image = await identify(blocks, cid, timeout=timeout)
        sizes.append(await block_sizes(blocks, image.roots, timeout=timeout))
    new = {cid: size for cid, size in sizes[1].items() if cid not in sizes[0]}
    return Transfer(len(new), sum(new.values()), len(sizes[1]), sum(sizes[1].values()))


def _contents(entry: Entry) -> tuple[object, ...]:
    # A file's digest where the TOC has it, else its chunks': cut alike, equal files have equal ones.
    digest = (entry.digest or tuple(chunk.digest for chunk in entry.chunks)) if entry.size else ""
    return entry.type, entry.size, digest, entry.link, entry.dev_major, entry.dev_minor


def _attributes(entry: Entry) -> tuple[object, ...]:
    return entry.mode, entry.uid, entry.gid, dict(entry.xattrs)
