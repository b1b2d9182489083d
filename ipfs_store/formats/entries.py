"""From a TOC's document to checked entries: paths normalised, parents present, chunks without gaps and inside the blob."""

from __future__ import annotations

import bisect
import calendar
import re
from collections.abc import Sequence

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.document import Document, Item
from ipfs_store.formats.limits import MAX_CHUNK, MAX_ENTRIES, MAX_IMPLIED_PATHS, MAX_NAME, MAX_PATH, ZERO_PIECE
from ipfs_store.formats.names import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, Kind
from ipfs_store.formats.toc import Chunk, Entry, EntryType, Toc

_TYPES: dict[str, EntryType] = {
    "dir": "dir", "reg": "reg", "symlink": "symlink", "hardlink": "hardlink", "char": "char", "block": "block", "fifo": "fifo",
}  # fmt: skip
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_ID_LIMIT = 1 << 32


def decode_toc(document: Document, *, kind: Kind, digest: str, payload_end: int) -> Toc:
    """Every entry, checked. ``payload_end``: blob bytes that may belong to chunks. CPU work: 0.25 s for 30,000 entries.

    A path that is there twice counts as the last one says (as unpacking a tar does). Raises InvalidLayer.
    """
    if len(document.entries) > MAX_ENTRIES:
        raise InvalidLayer(f"the TOC has {len(document.entries)} entries, over the limit of {MAX_ENTRIES}")
    return _Decoder(document.entries, kind, digest, payload_end).decode()


class _Decoder:
    def __init__(self, items: Sequence[Item], kind: Kind, digest: str, payload_end: int) -> None:
        self._items = items
        self._kind = kind
        self._digest = digest
        self._payload_end = payload_end
        self._starts = sorted({item.offset for item in items if item.offset > 0})
        self._found: dict[str, Entry] = {}
        self._implied = 0
        self._prefetch_end = 0
        self._times: dict[str, int] = {}

    def decode(self) -> Toc:
        self._found[""] = _directory("")
        position, items = 0, self._items
        while position < len(items):
            item = items[position]
            following = position + 1
            while following < len(items) and items[following].type == "chunk":
                following += 1
            if item.type == "chunk":
                raise InvalidLayer(f"the TOC begins with a chunk of {item.name[:300]!r}, which belongs to no file")
            self._take(item, items[position + 1 : following])
            position = following
        # By depth, so that parents come first whatever the order in the TOC; stable, so that siblings keep theirs.
        entries = sorted(self._found.values(), key=lambda entry: (entry.path.count("/") + 1) if entry.path else 0)
        self._check_parents(entries)
        return Toc(entries=entries, digest=self._digest, prefetch_end=self._prefetch_end)

    def _take(self, item: Item, more: Sequence[Item]) -> None:
        path = normalise(item.name)
        if path in (PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK, TOC_NAME):
            if path == PREFETCH_LANDMARK:
                self._prefetch_end = item.offset
            return
        kind = _TYPES.get(item.type)
        if kind is None:
            raise InvalidLayer(f"{path!r} is of type {item.type[:100]!r} in the TOC, which is none")
        if not path and kind != "dir":
            raise InvalidLayer(f"the root of the layer is a {kind} in the TOC")
        if more and kind != "reg":
            raise InvalidLayer(f"{path!r} has chunks in the TOC, but is a {kind}")
        if not (0 <= item.uid < _ID_LIMIT and 0 <= item.gid < _ID_LIMIT):
            raise InvalidLayer(f"{path!r} belongs to {item.uid}:{item.gid} in the TOC, which no file can")
        seconds, nanoseconds = self._time(item.mod_time, path)
        self._imply(path)
        self._found.pop(path, None)
        self._found[path] = Entry(
            path=path,
            type=kind,
            mode=item.mode & 0o7777,
            uid=item.uid,
            gid=item.gid,
            mtime=seconds,
            mtime_ns=nanoseconds,
            size=item.size if kind == "reg" else 0,
            link=self._link(item, kind, path),
            dev_major=item.dev_major if kind in ("char", "block") else 0,
            dev_minor=item.dev_minor if kind in ("char", "block") else 0,
            xattrs=_xattrs(item, path),
            digest=_digest(item.digest, path),
            chunks=self._chunks(item, more, path) if kind == "reg" else (),
        )

    def _link(self, item: Item, kind: EntryType, path: str) -> str:
        if kind == "symlink":
            if not 0 < len(item.link_name.encode("utf-8", "surrogateescape")) <= MAX_PATH or "\0" in item.link_name:
                raise InvalidLayer(f"{path!r} is a symbolic link to a target that no link can have: {item.link_name[:100]!r}")
            return item.link_name
        return normalise(item.link_name) if kind == "hardlink" else ""

    def _chunks(self, item: Item, more: Sequence[Item], path: str) -> tuple[Chunk, ...]:
        size = item.size
        if not 0 <= size < 1 << 62:
            raise InvalidLayer(f"{path!r} has a size of {size} in the TOC")
        if size == 0:
            return ()
        pieces = [item, *more]
        chunks: list[Chunk] = []
        at = 0
        for number, piece in enumerate(pieces):
            if piece is not item and normalise(piece.name) != path:
                raise InvalidLayer(f"the TOC has a chunk of {piece.name[:300]!r} among those of {path!r}")
            if piece.chunk_offset != at:
                raise InvalidLayer(f"{path!r}: the TOC has a chunk at {piece.chunk_offset} of the file, where one at {at} is due")
            last = number == len(pieces) - 1
            length = piece.chunk_size or (size - at if last else pieces[number + 1].chunk_offset - at)
            if length <= 0 or at + length > size:
                raise InvalidLayer(f"{path!r}: the TOC has a chunk of {length} bytes at {at} of a file of {size}")
            self._chunk(chunks, piece, at, length, path, single=len(pieces) == 1)
            at += length
        if at != size:
            raise InvalidLayer(f"{path!r} has {size} bytes, and chunks in the TOC for {at}")
        return tuple(chunks)

    def _chunk(self, chunks: list[Chunk], piece: Item, at: int, length: int, path: str, *, single: bool) -> None:
        if piece.chunk_type == "zeros":
            for start in range(at, at + length, ZERO_PIECE):
                part = min(ZERO_PIECE, at + length - start)
                chunks.append(Chunk(file_offset=start, size=part, offset=0, end=0, inner_offset=0, digest=""))
            return
        if length > MAX_CHUNK:
            raise InvalidLayer(f"{path!r} has a chunk of {length} bytes, over the limit of {MAX_CHUNK}")
        if not 0 <= piece.offset < self._payload_end or piece.inner_offset < 0:
            raise InvalidLayer(
                f"{path!r}: the TOC puts a chunk at {piece.offset}, outside the blob's contents of {self._payload_end} bytes"
            )
        following = bisect.bisect_right(self._starts, piece.offset)
        end = self._starts[following] if following < len(self._starts) else self._payload_end
        if piece.end_offset and single:
            end = min(max(piece.end_offset, piece.offset), self._payload_end)
        digest = _digest(piece.chunk_digest, path) or (_digest(piece.digest, path) if single else "")
        if not digest and self._kind != "stargz":
            raise InvalidLayer(f"{path!r}: the chunk at {at} has no digest in the TOC, and could not be verified")
        end = min(end, self._payload_end)
        chunks.append(Chunk(file_offset=at, size=length, offset=piece.offset, end=end, inner_offset=piece.inner_offset, digest=digest))

    def _imply(self, path: str) -> None:
        """The directories above ``path`` that the TOC does not name."""
        folder = path.rpartition("/")[0]
        missing: list[str] = []
        while folder and folder not in self._found:
            missing.append(folder)
            self._implied += len(folder)
            folder = folder.rpartition("/")[0]
        if self._implied > MAX_IMPLIED_PATHS or len(self._found) + len(missing) > MAX_ENTRIES:
            raise InvalidLayer("the TOC implies more directories than a layer can have")
        for folder in reversed(missing):
            self._found[folder] = _directory(folder)

    def _check_parents(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            folder = entry.path.rpartition("/")[0]
            if entry.path and self._found[folder].type != "dir":
                raise InvalidLayer(f"{entry.path!r} lies below {folder!r}, which is a {self._found[folder].type} in the TOC")

    def _time(self, text: str, path: str) -> tuple[int, int]:
        if not text:
            return 0, 0
        if text.endswith("Z") and len(text) == 20:
            known = self._times.get(text)
            if known is not None:
                return known, 0
        match = _TIME.fullmatch(text)
        if match is None:
            raise InvalidLayer(f"{path!r} has the time {text[:100]!r} in the TOC, which is none (RFC 3339)")
        year, month, day, hour, minute, second, fraction, zone = match.groups()
        try:
            seconds = calendar.timegm((int(year), int(month), int(day), int(hour), int(minute), int(second)))
        except ValueError as error:
            raise InvalidLayer(f"{path!r} has the time {text[:100]!r} in the TOC, which is none: {error}") from error
        if zone != "Z":
            away = int(zone[1:3]) * 3600 + int(zone[4:]) * 60
            seconds -= away if zone[0] == "+" else -away
        self._times[text] = seconds
        return seconds, int((fraction or "").ljust(9, "0")) if fraction else 0


def normalise(name: str) -> str:
    """The path that a tar's or TOC's name stands for: relative, without empty or ``.`` components; raises InvalidLayer for ``..``."""
    if name and "//" not in name and name[0] not in "/." and name[-1] != "/" and "/." not in name and "\0" not in name and len(name) < 64:
        return name
    parts = [part for part in name.split("/") if part not in ("", ".")]
    raw = [part.encode("utf-8", "surrogatepass") for part in parts]
    if ".." in parts or "\0" in name:
        raise InvalidLayer(f"the name {name[:300]!r} in a layer leads out of it or is none")
    if any(len(part) > MAX_NAME for part in raw) or sum(map(len, raw)) + len(raw) - 1 > MAX_PATH:
        raise InvalidLayer(f"the name {name[:100]!r}... in a layer is longer than Linux allows")
    return "/".join(parts)


def _directory(path: str) -> Entry:
    return Entry(path=path, type="dir", mode=0o755, uid=0, gid=0, mtime=0)


def _digest(text: str, path: str) -> str:
    if text and not _DIGEST.fullmatch(text):
        raise InvalidLayer(f"{path!r} has the digest {text[:100]!r} in the TOC, which is no SHA-256")
    return text


def _xattrs(item: Item, path: str) -> dict[str, bytes]:
    for name in item.xattrs or ():
        if not 0 < len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME or "\0" in name:
            raise InvalidLayer(f"{path!r} has an extended attribute with a name that none can have: {name[:100]!r}")
    return item.xattrs or {}
