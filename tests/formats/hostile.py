"""Small layer blobs made by hand, so that a test can say what is wrong with one."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

import zstandard

from ipfs_store.formats.names import EXTERNAL_TOC_FOOTER, Kind, estargz_footer, stargz_footer

CONTENT = b"what the file holds\n" * 20
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
OTHER = "sha256:" + "0" * 64
Item = dict[str, Any]


def file(name: str = "file", **fields: Any) -> Item:
    """A regular file whose contents are the blob's only ones."""
    return {"name": name, "type": "reg", "size": len(CONTENT), "digest": DIGEST, "chunkDigest": DIGEST, "offset": 0, **fields}


def toc(entries: Sequence[Mapping[str, Any]], version: Any = 1) -> bytes:
    """The JSON."""
    return json.dumps({"version": version, "entries": list(entries)}).encode()


def estargz(
    toc_json: bytes, payload: bytes | None = None, *, name: str = "stargz.index.json", size: int | None = None, footer: bytes | None = None
) -> bytes:
    """An eStargz blob; ``size`` is what the TOC's tar header says."""
    payload = gzip.compress(CONTENT, mtime=0) if payload is None else payload
    return payload + tar_gz(toc_json, name, size) + (estargz_footer(len(payload)) if footer is None else footer)


def tar_gz(toc_json: bytes, name: str = "stargz.index.json", size: int | None = None) -> bytes:
    """The TOC as the gzip formats have it."""
    info = tarfile.TarInfo(name)
    info.size = len(toc_json) if size is None else size
    return gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + toc_json + bytes(-len(toc_json) % 512 + 1024), mtime=0)


def zstd_chunked(
    toc_json: bytes,
    payload: bytes | None = None,
    *,
    packed: bytes | None = None,
    position: tuple[int, int, int, int] | None = None,
    extra: bytes = b"",
) -> bytes:
    """A zstd:chunked blob; ``packed`` is its TOC compressed, ``position`` what its footer says, ``extra`` 24 bytes for the newer footer."""
    payload = zstandard.compress(CONTENT) if payload is None else payload
    packed = zstandard.compress(toc_json) if packed is None else packed
    offset, length, raw, kind = position or (len(payload) + 8, len(packed), len(toc_json), 1)
    end = b"".join(number.to_bytes(8, "little") for number in (offset, length, raw, kind)) + extra + b"GNUlInUx"
    return payload + skippable(packed) + skippable(end)


def skippable(data: bytes) -> bytes:
    """A frame that zstd passes over."""
    return b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def whole(kind: Kind, entries: Sequence[Mapping[str, Any]] | None = None) -> bytes:
    """A sound blob of each kind."""
    toc_json = toc([file()] if entries is None else entries)
    if kind == "zstd:chunked":
        return zstd_chunked(toc_json)
    payload = gzip.compress(CONTENT, mtime=0)
    return estargz(toc_json, payload, footer=stargz_footer(len(payload)) if kind == "stargz" else None)


def external() -> tuple[bytes, bytes]:
    """A sound blob and its TOC."""
    return gzip.compress(CONTENT, mtime=0) + EXTERNAL_TOC_FOOTER, tar_gz(toc([file()]))
