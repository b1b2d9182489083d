"""Layers whose table of contents says what its maker wants."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipfs_store.formats.footer import locate_toc
from ipfs_store.formats.names import TOC_NAME, estargz_footer

Items = list[dict[str, Any]]


def rewrite(blob: Path, edit: Callable[[Items], None]) -> None:
    """Let ``edit`` change the entries of the TOC of an eStargz blob."""
    data = blob.read_bytes()
    location = locate_toc(data[-100:], len(data), {})
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data[location.offset : location.offset + location.length]))) as tar:
        file = tar.extractfile(TOC_NAME)
        assert file is not None
        toc = json.load(file)
    edit(toc["entries"])
    raw = json.dumps(toc).encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        info = tarfile.TarInfo(TOC_NAME)
        info.size = len(raw)
        tar.addfile(info, io.BytesIO(raw))
    blob.write_bytes(data[: location.offset] + gzip.compress(packed.getvalue()) + estargz_footer(location.offset))


def entry(items: Items, path: str) -> dict[str, Any]:
    """The first entry of that name."""
    return next(item for item in items if item["name"].strip("/") == path)
