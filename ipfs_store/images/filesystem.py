"""The files of an image as a container sees them: its layers on top of each other, read by path, fetching only what is looked at."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import msgspec

from ipfs_store.errors import InvalidInput, InvalidLayer, NotFound
from ipfs_store.formats.reader import LayerReader
from ipfs_store.formats.toc import Entry

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_KINDS = {
    "dir": "directory", "symlink": "symbolic link", "hardlink": "hard link", "char": "character device", "block": "block device", "fifo": "FIFO",
}  # fmt: skip
_HOPS = 40  # symbolic links in a path, as Linux counts them


@dataclass(frozen=True, slots=True)
class LayerFiles:
    """One layer, opened."""

    entries: Sequence[Entry]
    """Parents before children."""
    reader: LayerReader


@dataclass(frozen=True, slots=True)
class File:
    """A path of the image."""

    entry: Entry
    """A hard link is given as what it is another name of, under its own path."""
    layer: int
    """From which layer it comes, 0 the lowest."""


class ImageFiles:
    """All paths of an image of one platform."""

    def __init__(self, layers: Sequence[LayerFiles]) -> None:
        """``layers``: lowest first. Raises InvalidLayer (a hard link to nothing). CPU work: 20 ms for 30,000 entries."""
        self._layers = layers
        self.files: Mapping[str, File] = _merged(layers)
        """By normalised path; the root is the empty one."""

    def find(self, path: str, *, follow: bool = True) -> File:
        """What is at ``path``; symbolic links in it are followed inside of the image, the last one only with ``follow``.

        Raises NotFound, naming the first part that is not there, and InvalidInput (links without end).
        """
        waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        at, hops = "", 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                at = at.rpartition("/")[0]
                continue
            below = f"{at}/{part}" if at else part
            found = self.files.get(below)
            if found is None:
                raise NotFound(f"the image has no /{below[:300]}")
            if found.entry.type == "symlink" and (waiting or follow):
                hops += 1
                if hops > _HOPS:
                    raise InvalidInput(f"/{path[:300]} leads through more than {_HOPS} symbolic links")
                target = found.entry.link
                waiting += [step for step in reversed(target.split("/")) if step not in ("", ".")]
                at = "" if target.startswith("/") else at
                continue
            if waiting and found.entry.type != "dir":
                raise NotFound(f"the image's /{below[:300]} is no directory")
            at = below
        return self.files[at]

    def children(self, folder: str) -> list[File]:
        """What lies directly in a directory, sorted by name."""
        return [file for path, file in sorted(self.files.items()) if path and path.rpartition("/")[0] == folder]

    def below(self, folder: str) -> Iterator[File]:
        """A directory's whole contents, sorted by path."""
        start = f"{folder}/" if folder else ""
        return (file for path, file in sorted(self.files.items()) if path and path.startswith(start))

    async def read(self, file: File, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """A regular file from ``offset``, ``length`` bytes at most: piece by piece, each verified before it is given.

        Only the chunks that hold the range are fetched. Raises InvalidInput (no regular file; an offset behind its end).
        """
        entry = file.entry
        if entry.type != "reg":
            raise InvalidInput(f"/{entry.path[:300]} is no regular file but a {_KINDS[entry.type]}")
        if offset > entry.size:
            raise InvalidInput(f"offset {offset} is behind the end of /{entry.path[:300]}, which has {entry.size} bytes")
        end = entry.size if length is None else min(offset + length, entry.size)
        if not end > offset:
            return
        async with aclosing(self._layers[file.layer].reader.read(entry.path, offset, end - offset)) as pieces:
            async for piece in pieces:
                yield piece


def _merged(layers: Sequence[LayerFiles]) -> dict[str, File]:
    """Layers applied in order (image-spec, layer.md, "Applying Changesets"): whiteouts hide what lower layers have."""
    found: dict[str, File] = {}
    for number, layer in enumerate(layers):
        gone, emptied = set[str](), set[str]()
        own: dict[str, Entry] = {}
        for entry in layer.entries:
            folder, _, name = entry.path.rpartition("/")
            if name == _OPAQUE:
                emptied.add(folder)
            elif name.startswith(_WHITEOUT):
                gone.add(f"{folder}/{name[len(_WHITEOUT) :]}" if folder else name[len(_WHITEOUT) :])
            else:
                own[entry.path] = entry
        # A file where a directory was hides it like a whiteout.
        gone |= {path for path, entry in own.items() if entry.type != "dir" and path in found and found[path].entry.type == "dir"}
        if gone or emptied:
            found = {path: file for path, file in found.items() if not _hidden(path, gone, emptied)}
        for path, entry in own.items():
            if not (_is_implied(entry) and path in found):
                found[path] = File(_target(entry, own), number)
    return found


def _is_implied(entry: Entry) -> bool:
    """Whether it looks like a directory that its layer only has files in: unpacked, that leaves a lower layer's directory as it is."""
    return (
        entry.type == "dir" and (entry.mode, entry.uid, entry.gid, entry.mtime, entry.mtime_ns) == (0o755, 0, 0, 0, 0) and not entry.xattrs
    )


def _hidden(path: str, gone: set[str], emptied: set[str]) -> bool:
    if path in gone:
        return True
    while path:
        path = path.rpartition("/")[0]
        if path in gone or path in emptied:
            return True
    return False


def _target(entry: Entry, own: Mapping[str, Entry]) -> Entry:
    if entry.type != "hardlink":
        return entry
    target = own.get(entry.link)
    for _ in range(_HOPS):
        if target is None or target.type != "hardlink":
            break
        target = own.get(target.link)
    if target is None or target.type == "hardlink":
        raise InvalidLayer(f"{entry.path!r} is a hard link to {entry.link!r}, which its layer does not have")
    return msgspec.structs.replace(target, path=entry.path)
