"""What layers became when they were pushed, so that the same layer is not fetched, converted, hashed and cut again.

One small JSON file a layer, under the user's cache folder. It says what was made of which layer and how; whether that is still there is
for the node to say (`nodes.interface.Push.holds`). Losing it costs time only, so nothing is synced, and what cannot be read is not there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ipfs_store import __version__
from ipfs_store.cids import cid_of_name, format_cid
from ipfs_store.errors import IpfsStoreError
from ipfs_store.images.model import PushedLayer
from ipfs_store.images.root import RootToc
from ipfs_store.oci import Descriptor, Digest

_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """``$IPFS_STORE_MEMORY``; else ``/var/cache/ipfs-store/layers`` for root, ``$XDG_CACHE_HOME/ipfs-store/layers`` for everybody else."""
    if given := os.environ.get("IPFS_STORE_MEMORY"):
        return Path(given).expanduser()
    if os.geteuid() == 0:
        return Path("/var/cache/ipfs-store/layers")
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ipfs-store" / "layers"


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """Layers by what they were and how they were pushed."""

    folder: Path
    recipe: str
    """Everything that decides what becomes of a layer: conversion, chunker, annotations."""

    def find(self, layer: Descriptor) -> PushedLayer | None:
        """What ``layer`` became; None where that is not known."""
        path = self._path(layer)
        try:
            return _decode(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, IpfsStoreError) as error:
            _log.info("%s: not understood, the layer is pushed anew: %s", path, error)
            return None

    def keep(self, layer: Descriptor, pushed: PushedLayer) -> None:
        """Remember what ``layer`` became; where that cannot be written it will be found out again."""
        path = self._path(layer)
        temporary = path.with_name(f".{secrets.token_hex(8)}")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                temporary.write_bytes(_encode(pushed))
                temporary.rename(path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            _log.info("%s: what became of layer %s is not remembered: %s", path, layer.digest, error)

    def _path(self, layer: Descriptor) -> Path:
        key = json.dumps([__version__, self.recipe, {**layer.to_json(), "urls": None}], sort_keys=True)
        return self.folder / hashlib.sha256(key.encode()).hexdigest()


def _encode(pushed: PushedLayer) -> bytes:
    toc = pushed.toc
    value = {
        "descriptor": pushed.descriptor.to_json(),
        "cid": format_cid(pushed.cid),
        "converted": pushed.converted,
        "diffId": str(pushed.diff_id) if pushed.diff_id else None,
        "toc": [str(toc.digest), toc.size, toc.raw_size, format_cid(toc.cid)] if toc else None,
    }
    return json.dumps(value).encode()


def _decode(data: bytes) -> PushedLayer:
    value = json.loads(data)
    toc = None
    if value["toc"]:
        digest, size, raw_size, cid = value["toc"]
        toc = RootToc(Digest.parse(digest), int(size), int(raw_size), cid_of_name(cid))
    diff_id = Digest.parse(value["diffId"]) if value["diffId"] else None
    return PushedLayer(Descriptor.from_json(value["descriptor"]), cid_of_name(value["cid"]), bool(value["converted"]), toc, diff_id)
