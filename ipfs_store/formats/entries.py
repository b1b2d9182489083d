"""From a TOC's document to checked entries: paths normalised, parents present, hard links resolved, chunks without gaps and inside the blob."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import repeat

import msgspec

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.document import Document, Item
from ipfs_store.formats.limits import MAX_CHUNK, MAX_ENTRIES, MAX_HOLES, MAX_IMPLIED_PATHS, MAX_NAME, MAX_PATH, MAX_STREAM, ZERO_PIECE
from ipfs_store.formats.names import NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME, Kind
from ipfs_store.formats.toc import NO_XATTRS, Chunk, Entry, EntryType, Toc
from ipfs_store.formats.xattrs import Xattrs

LEFT_OUT = frozenset({PREFETCH_LANDMARK, NO_PREFETCH_LANDMARK, TOC_NAME})
"""Paths that are part of the format and not of what the layer holds (estargz, "Prioritized Files and Landmark Files")."""

_TYPES: dict[str, EntryType] = {
    "dir": "dir", "reg": "reg", "symlink": "symlink", "hardlink": "hardlink", "char": "char", "block": "block", "fifo": "fifo",
}  # fmt: skip
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_DIGEST_SIZE = 71
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_ID_LIMIT = 1 << 32
_SIZE_LIMIT = 1 << 62
_LEAST_STREAM = 64 << 10


def decode_toc(document: Document, *, kind: Kind, digest: str, payload_end: int) -> Toc:
    """Every entry, checked. ``payload_end``: blob bytes that may belong to chunks. CPU work: 0.15 s for 30,000 entries.

    A path that is there twice counts as the last one says (as unpacking a tar does). Raises InvalidLayer.
    """
    return _Decoder(document, kind, digest, payload_end).decode()


class _Decoder:
    def __init__(self, document: Document, kind: Kind, digest: str, payload_end: int) -> None:
        self._document = document
        self._kind = kind
        self._digest = digest
        self._payload_end = payload_end
        starts = [*document.streams, payload_end]
        self._ends = {
            # Nearly all are so short that they can be needed whole.
            offset: following
            if following <= payload_end and following - offset <= _LEAST_STREAM
            else min(following, payload_end, offset + longest_stream(needed if needed < MAX_STREAM else MAX_STREAM))
            for (offset, needed), following in zip(document.streams.items(), starts[1:], strict=True)
        }
        """Up to where a stream is read: the next one, or what its chunks can need. The same for all of its chunks."""
        self._found: dict[str, Entry] = {}
        self._imply = implied_directories(self._found)
        self._folders = {""}
        """Paths of directories, as far as they need not be looked at again."""
        self._unsettled = False
        """Whether something is not below a directory yet, or was replaced: parents are to be checked at the end."""
        self._holes = 0
        self._prefetch_end = 0
        self._linked = False
        self._digests_checked = True
        """Whether those of all files so far are SHA-256s or empty."""
        self._times: dict[str, int] = {}
        self._xattrs = Xattrs()

    def decode(self) -> Toc:
        first: Item | None = None
        first_path: str | None = None
        more: list[Item] = []
        for batch in self._document.batches():
            paths = _usual_paths([item.name for item in batch])
            self._digests_checked = self._digests_checked and _are_digests([item.digest for item in batch])
            for item, path in zip(batch, paths, strict=True):
                if item.type == "chunk":
                    if first is None:
                        raise InvalidLayer(f"the TOC begins with a chunk of {item.name[:300]!r}, which belongs to no file")
                    more.append(item)
                    continue
                if first is not None:
                    self._take(first, first_path, more)
                    if more:
                        more = []
                first, first_path = item, path
        if first is not None:
            self._take(first, first_path, more)
        entries = self._by_depth()
        if self._unsettled:
            self._check_parents(entries)
        if self._linked:
            entries = resolve_links(entries, self._found)
        return Toc(entries=entries, digest=self._digest, prefetch_end=self._prefetch_end)

    def _by_depth(self) -> list[Entry]:
        """So that parents come first whatever the order in the TOC; siblings keep theirs."""
        root = self._found.pop("")
        depths = list(map(str.count, self._found, repeat("/")))
        entries = list(self._found.values())
        self._found[""] = root
        return [root, *map(entries.__getitem__, sorted(range(len(entries)), key=depths.__getitem__))]

    def _take(self, item: Item, path: str | None, more: Sequence[Item]) -> None:
        """``path``: the normalised name, None for one that is not usual."""
        found = self._found
        if path is None:
            path = normalise(item.name)
        if path in LEFT_OUT:
            if path == PREFETCH_LANDMARK:
                self._prefetch_end = self._inside(item.offset, path)
            return
        kind = _TYPES.get(item.type)
        if kind is None:
            raise InvalidLayer(f"{path!r} is of type {item.type[:100]!r} in the TOC, which is none")
        if not path and kind != "dir":
            raise InvalidLayer(f"the root of the layer is a {kind} in the TOC")
        if more and kind != "reg":
            raise InvalidLayer(f"{path!r} has chunks in the TOC, but is a {kind}")
        uid, gid = item.uid, item.gid
        if not (0 <= uid < _ID_LIMIT and 0 <= gid < _ID_LIMIT):
            raise InvalidLayer(f"{path!r} belongs to {uid}:{gid} in the TOC, which no file can")
        text = item.mod_time
        nanoseconds = 0
        seconds = self._times.get(text)
        if seconds is None:
            seconds, nanoseconds = self._time(text, path)
        if path.rpartition("/")[0] not in self._folders:
            self._imply(path)
            self._unsettled = True
        if path in found:
            del found[path]
            self._unsettled = True
        size = major = minor = 0
        link = digest = ""
        chunks: tuple[Chunk, ...] = ()
        if kind == "reg":
            size, digest = item.size, item.digest
            if not self._digests_checked:
                check_digest(digest, path)
            if 0 < size < _SIZE_LIMIT and not more and item.chunk_size in (0, size) and not item.chunk_offset and not item.chunk_type:
                end, inner = self._ends.get(item.offset, 0), item.inner_offset
                if (
                    digest
                    and (item.chunk_digest == digest or not item.chunk_digest)
                    and 0 <= item.offset < end
                    and 0 <= inner <= MAX_STREAM - size
                    and size <= MAX_CHUNK
                    and not item.end_offset
                ):  # nearly all
                    chunks = (Chunk(0, size, item.offset, end, inner, digest),)
                else:
                    chunks = (self._chunk(item, 0, size, path, single=True),)
            elif size:
                chunks = self._chunks(item, more, path)
        elif kind == "dir":
            self._folders.add(path)
        elif kind == "symlink":
            link = check_target(item.link_name, path)
        elif kind == "hardlink":
            link = normalise(item.link_name)
            self._linked = True
        elif kind != "fifo":
            major, minor = item.dev_major, item.dev_minor
            if not (0 <= major < _ID_LIMIT and 0 <= minor < _ID_LIMIT):
                raise InvalidLayer(f"{path!r} is the device {major}:{minor} in the TOC, which cannot be")
        xattrs = self._xattrs.decode(item.xattrs, path) if item.xattrs else NO_XATTRS
        found[path] = Entry(
            path, kind, item.mode & 0o7777, uid, gid, seconds, nanoseconds, size, link, major, minor, xattrs, digest, chunks
        )

    def _chunks(self, item: Item, more: Sequence[Item], path: str) -> tuple[Chunk, ...]:
        size = item.size
        if not 0 <= size < _SIZE_LIMIT:
            raise InvalidLayer(f"{path!r} has a size of {size} in the TOC")
        pieces = [item, *more]
        chunks: list[Chunk] = []
        at = 0
        for number, piece in enumerate(pieces):
            if piece is not item and piece.name != item.name and normalise(piece.name) != path:
                raise InvalidLayer(f"the TOC has a chunk of {piece.name[:300]!r} among those of {path!r}")
            if piece.chunk_offset != at:
                raise InvalidLayer(f"{path!r}: the TOC has a chunk at {piece.chunk_offset} of the file, where one at {at} is due")
            last = number == len(pieces) - 1
            length = piece.chunk_size or (size - at if last else pieces[number + 1].chunk_offset - at)
            if length <= 0 or at + length > size:
                raise InvalidLayer(f"{path!r}: the TOC has a chunk of {length} bytes at {at} of a file of {size}")
            if piece.chunk_type == "zeros":
                self._hole(chunks, at, length, path)
            else:
                chunks.append(self._chunk(piece, at, length, path, single=len(pieces) == 1))
            at += length
        if at != size:
            raise InvalidLayer(f"{path!r} has {size} bytes, and chunks in the TOC for {at}")
        return tuple(chunks)

    def _hole(self, chunks: list[Chunk], at: int, length: int, path: str) -> None:
        self._holes += length
        if self._holes > MAX_HOLES:
            raise InvalidLayer(f"{path!r} has a hole of {length} bytes in the TOC, and all holes may have {MAX_HOLES} together")
        for start in range(at, at + length, ZERO_PIECE):
            part = min(ZERO_PIECE, at + length - start)
            chunks.append(Chunk(file_offset=start, size=part, offset=0, end=0, inner_offset=0, digest=""))

    def _chunk(self, piece: Item, at: int, length: int, path: str, *, single: bool) -> Chunk:
        needed = piece.inner_offset + length
        if length > MAX_CHUNK or not length <= needed <= MAX_STREAM:
            raise InvalidLayer(
                f"{path!r} has a chunk of {length} bytes at {piece.inner_offset} of its stream: the limits are {MAX_CHUNK} and {MAX_STREAM}"
            )
        offset = piece.offset
        end = self._ends[offset if 0 <= offset < self._payload_end else self._inside(offset, path)]
        if piece.end_offset and single:
            end = min(end, piece.end_offset)
            if end <= piece.offset:
                raise InvalidLayer(f"{path!r}: the TOC has a chunk at {piece.offset} of the blob that ends at {piece.end_offset}")
        digest = piece.chunk_digest
        if not digest and single:
            digest = piece.digest
        if single and digest == piece.digest:
            digest = piece.digest  # one object in memory for both, and checked already
        else:
            check_digest(digest, path)
        if not digest and self._kind != "stargz":
            raise InvalidLayer(f"{path!r}: the chunk at {at} has no digest in the TOC, and could not be verified")
        return Chunk(at, length, offset, end, piece.inner_offset, digest)

    def _inside(self, offset: int, path: str) -> int:
        if not 0 <= offset < self._payload_end:
            raise InvalidLayer(f"{path!r}: the TOC puts a chunk at {offset}, outside the blob's contents of {self._payload_end} bytes")
        return offset

    def _check_parents(self, entries: Sequence[Entry]) -> None:
        for entry in entries:  # one path at a time: all of them may take more than the TOC
            folder = entry.path.rpartition("/")[0]
            if folder and self._found[folder].type != "dir":
                raise InvalidLayer(f"{entry.path!r} lies below {folder!r}, which is a {self._found[folder].type} in the TOC")

    def _time(self, text: str, path: str) -> tuple[int, int]:
        if not text:
            return 0, 0
        match = _TIME.fullmatch(text)
        if match is None:
            raise InvalidLayer(f"{path!r} has the time {text[:100]!r} in the TOC, which is none (RFC 3339)")
        year, month, day, hour, minute, second, fraction, zone = match.groups()
        try:
            moment = datetime(int(year), int(month), int(day), int(hour), int(minute), int(second))
            seconds = calendar.timegm(moment.timetuple())
        except ValueError as error:
            raise InvalidLayer(f"{path!r} has the time {text[:100]!r} in the TOC, which is none: {error}") from error
        if zone != "Z":
            away = int(zone[1:3]) * 3600 + int(zone[4:]) * 60
            seconds -= away if zone[0] == "+" else -away
        if fraction:
            return seconds, int(fraction.ljust(9, "0"))
        self._times[text] = seconds
        return seconds, 0


def _usual_paths(names: Sequence[str]) -> Sequence[str | None]:
    """What `normalise` makes of each name, or None for each where one of them is not usual (or might not be): all are looked at in one text."""
    text = "\n" + "\n".join(names) + "\n"
    # Nothing empty, no component that is empty or begins with a dot (but for a name that ends with a slash, as a directory's may).
    odd = ("\0", "//", "/.", "\n.", "\n/", "\n\n")
    if not text.isascii() or any(part in text for part in odd) or max(map(len, names)) > MAX_NAME:
        return [None] * len(names)
    return [name[:-1] if name[-1] == "/" else name for name in names] if "/\n" in text else names


def _are_digests(texts: Sequence[str]) -> bool:
    """Whether each is a SHA-256 or empty: all are looked at in one text."""
    text = "".join(texts)
    count = len(text) // _DIGEST_SIZE
    return (
        {0, _DIGEST_SIZE}.issuperset(map(len, texts))
        and all(text[place::_DIGEST_SIZE] == character * count for place, character in enumerate("sha256:"))
        and text.isascii()
        # The digits of "sha256:" are gone too, and no other s, h and colon are left: those counted above are all.
        and text.encode().translate(None, b"0123456789abcdef") == b"sh:" * count
    )


def normalise(name: str) -> str:
    """The path that a tar's or TOC's name stands for: relative, without empty or ``.`` components; raises InvalidLayer for ``..``."""
    short = name.removeprefix("./")
    if short.isascii() and "\0" not in short and "//" not in short and "/." not in short and short[:1] not in ("", "/", "."):
        bare = short[:-1] if short[-1] == "/" else short
        if len(bare) <= MAX_NAME or (len(bare) <= MAX_PATH and max(map(len, bare.split("/"))) <= MAX_NAME):
            return bare
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidLayer(f"the name {name[:300]!r} in a layer leads out of it or is none")
    try:
        raw = [part.encode("utf-8", "surrogateescape") for part in parts]
    except UnicodeEncodeError as error:
        raise InvalidLayer(f"the name {name[:300]!r} in a layer is half of a character, which no file can be called") from error
    if any(len(part) > MAX_NAME for part in raw) or sum(map(len, raw)) + len(raw) - 1 > MAX_PATH:
        raise InvalidLayer(f"the name {name[:100]!r}... in a layer is longer than Linux allows")
    path = "/".join(parts)
    return name if path == name else path  # one object instead of two: a name of 4,095 bytes may take 16 KiB


def implied_directories(found: dict[str, Entry]) -> Callable[[str], None]:
    """A function that puts the directories above a path into ``found`` where they are not there yet; the root is at once.

    It raises InvalidLayer once they are more than a layer can have.
    """
    found[""] = _directory("")
    size = 0

    def imply(path: str) -> None:
        nonlocal size
        folder = path.rpartition("/")[0]
        if folder in found:
            return
        missing: list[str] = []
        while folder and folder not in found:
            missing.append(folder)
            size += len(folder)
            folder = folder.rpartition("/")[0]
        if size > MAX_IMPLIED_PATHS or len(found) + len(missing) > MAX_ENTRIES:
            raise InvalidLayer("the layer implies more directories than a layer can have")
        for folder in reversed(missing):
            found[folder] = _directory(folder)

    return imply


def resolve_links(entries: Iterable[Entry], by_path: Mapping[str, Entry]) -> list[Entry]:
    """``entries`` with every hard link naming a file itself and not another link; raises InvalidLayer for loops and for what is not there.

    Linear whatever the chains: a million links that each name the next are a million steps.
    """
    resolved: dict[str, str] = {}
    out: list[Entry] = []
    for entry in entries:
        if entry.type != "hardlink":
            out.append(entry)
            continue
        passed: dict[str, None] = {}
        target = entry.path
        while (known := resolved.get(target)) is None and (there := by_path.get(target)) is not None and there.type == "hardlink":
            if target in passed:
                raise InvalidLayer(f"{entry.path!r} is a hard link to {entry.link!r}, which leads back to itself")
            passed[target] = None
            target = there.link
        target = known or target
        there = by_path.get(target)
        if there is None or there.type == "dir":
            what = "which the layer does not have" if there is None else "which is a directory"
            raise InvalidLayer(f"{entry.path!r} is a hard link to {entry.link!r}, {what}")
        resolved.update(dict.fromkeys(passed, target))
        out.append(entry if entry.link == target else msgspec.structs.replace(entry, link=target))
    return out


def check_target(target: str, path: str) -> str:
    """``target``, if the symbolic link ``path`` can have it; raises InvalidLayer."""
    length = len(target) if target.isascii() else _encoded_length(target)
    if not 0 < length <= MAX_PATH or "\0" in target:
        raise InvalidLayer(f"{path!r} is a symbolic link to a target that no link can have: {target[:100]!r}")
    return target


def check_digest(text: str, path: str) -> str:
    """``text``, if it is empty or a SHA-256; raises InvalidLayer."""
    if text and not _DIGEST.fullmatch(text):
        raise InvalidLayer(f"{path!r} has the digest {text[:100]!r} in the TOC, which is no SHA-256")
    return text


def longest_stream(needed: int) -> int:
    """Compressed bytes that can be necessary for ``needed`` uncompressed ones: what deflate and zstd add to data that they cannot compress
    is under 1 % (RFC 1951, section 3.2.4; RFC 8878, section 3.1.1.2), headers and a writer's flushes come on top."""
    return needed + needed // 4 + _LEAST_STREAM


def _encoded_length(text: str) -> int:
    try:
        return len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        return 0


def _directory(path: str) -> Entry:
    return Entry(path=path, type="dir", mode=0o755, uid=0, gid=0, mtime=0)
