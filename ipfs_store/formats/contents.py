"""A layer's table of contents as it is written: from tar headers and places of chunks to the TOC's JSON, entry by entry."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec.structs import replace

from ipfs_store.errors import InvalidLayer
from ipfs_store.formats.document import Item, encode_item, join_document
from ipfs_store.formats.entries import normalise
from ipfs_store.formats.headers import Header

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EMPTY_DIGEST = "sha256:" + hashlib.sha256().hexdigest()


class Placed(msgspec.Struct, gc=False):
    """A chunk, and where in the blob it is."""

    offset: int
    """Of its member or frame."""
    inner_offset: int
    """In what that decompresses to."""
    file_offset: int
    size: int
    digest: str
    end: int
    """Of its member or frame."""


class File(msgspec.Struct, gc=False, eq=False):
    """A regular file with contents on its way into the blob."""

    path: str
    header: Header
    digest: str = ""
    """Of all of it; set before its last chunk is placed, empty if the only chunk's is the same."""
    chunks: list[Placed] = msgspec.field(default_factory=list)


class Contents:
    """Takes entries in order. ``verbatim``: names and links stay as the tar has them, and times of access and change are told, since
    containers/storage compares every field with the tar-split; else they are normalised."""

    def __init__(self, *, verbatim: bool) -> None:
        self._verbatim = verbatim
        self._items: list[bytes] = []
        self._times: dict[int, str] = {}
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}

    def add(self, path: str, header: Header) -> None:
        """An entry without contents."""
        self._items.append(encode_item(self._item(path, header, EMPTY_DIGEST if header.type == "reg" and not self._verbatim else "")))

    def add_file(self, file: File) -> None:
        """A file whose chunks are all placed."""
        first, *more = file.chunks
        item = self._item(
            file.path, file.header, file.digest or first.digest, first, length=first.size if more else 0, end=file.chunks[-1].end
        )
        self._items.append(encode_item(item))
        for chunk in more:
            length = 0 if chunk is file.chunks[-1] else chunk.size  # zero: to the end of the file
            place = Item(name=item.name, type="chunk", offset=chunk.offset, inner_offset=chunk.inner_offset, chunk_offset=chunk.file_offset)
            self._items.append(encode_item(replace(place, chunk_size=length, chunk_digest=chunk.digest)))

    def document(self, tar_split_digest: str = "") -> bytes:
        """The whole TOC."""
        return join_document(self._items, tar_split_digest)

    def _item(self, path: str, header: Header, digest: str, chunk: Placed | None = None, *, length: int = 0, end: int = 0) -> Item:
        verbatim, device = self._verbatim, header.type in ("char", "block")
        if verbatim:
            name, link = header.name, header.link
        else:
            name = f"{path}/" if header.type == "dir" and path else path
            link = normalise(header.link) if header.type == "hardlink" else header.link if header.type == "symlink" else ""
        return Item(
            name=name,
            type=header.type,
            size=header.size,
            mod_time=self._time(header.mtime, header.mtime_ns, path),
            link_name=link,
            mode=header.mode,
            uid=header.uid,
            gid=header.gid,
            user_name=_changed(self._users, header.uid, header.uname),
            group_name=_changed(self._groups, header.gid, header.gname),
            offset=chunk.offset if chunk else 0,
            end_offset=end if verbatim else 0,
            inner_offset=chunk.inner_offset if chunk else 0,
            dev_major=header.dev_major if device or verbatim else 0,
            dev_minor=header.dev_minor if device or verbatim else 0,
            xattrs=(header.xattrs or None) if header.pax else None,
            digest=digest,
            chunk_size=length,
            chunk_digest=chunk.digest if chunk else "",
            access_time=self._time(*header.access_time, path) if verbatim and header.access_time else "",
            change_time=self._time(*header.change_time, path) if verbatim and header.change_time else "",
        )

    def _time(self, seconds: int, nanoseconds: int, path: str) -> str:
        if not seconds and not nanoseconds:
            return ""  # as the reference
        text = self._times.get(seconds)
        if text is None:
            try:
                text = (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
            except OverflowError as error:
                raise InvalidLayer(f"{path!r} has a time {seconds} s from 1970, which no TOC can say") from error
            self._times[seconds] = text
        return f"{text}.{nanoseconds:09d}Z" if nanoseconds else f"{text}Z"


def _changed(known: dict[int, str], number: int, name: str) -> str:
    """``name``, unless it was the last of this number: the TOC says it once (estargz, "TOCEntry", ``userName``)."""
    if not name or known.get(number) == name:
        return ""
    known[number] = name
    return name
