"""What the snapshotter says about itself: processes, images, containers, layers, and reads that wait."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from snapshotter.daemon.config import Config
from snapshotter.daemon.process import data_plane, running_pid
from snapshotter.dataplane.client import DataPlane, DataPlaneGone
from snapshotter.dataplane.control import LayerStatus, Status
from snapshotter.holder.table import mount_table
from snapshotter.state import Kind

_IMAGE = "containerd.io/snapshot/cri.image-ref"


@dataclass(frozen=True, slots=True)
class Row:
    """A snapshot, as far as it is told of."""

    id: int
    name: str
    parent: int | None
    kind: Kind
    labels: dict[str, str]
    cid: str | None


def containerd_config(socket: str) -> str:
    """What containerd's configuration needs to know the snapshotter."""
    return f'[proxy_plugins.ipfs]\n  type = "snapshot"\n  address = "{socket}"\n'


def status(config: Config) -> dict[str, Any]:
    """Everything; plain values, sizes in bytes, times in seconds. Asks whoever runs, and works where nobody does."""
    root = Path(config.root)
    plane = data_plane(config)
    rows = snapshots(root)
    said: Status | None = None
    with contextlib.suppress(DataPlaneGone):
        said = plane.status(cached=True)
    layers = {layer.layer: layer for layer in said.layers} if said is not None else {}
    return {
        "pid": running_pid(root),
        "root": config.root,
        "socket": config.socket,
        "containerd_config": containerd_config(config.socket),
        "snapshots": len(rows),
        "holder": _holder(plane),
        "dataplane": None
        if said is None
        else {
            "pid": said.pid,
            "mountpoint": said.mountpoint,
            "cache_bytes": said.cache_bytes,
            "verity": said.no_verity or "on",
            "rss_bytes": said.rss_bytes,
        },
        "images": list(_images(rows, layers)),
        "containers": list(_containers(root, rows, layers)),
        "layers": [_layer(layer) for layer in layers.values()],
        "reads": [
            {
                "cid": layer.cid,
                "layer": layer.digest,
                "offset": wait.offset,
                "seconds": wait.age,
                "readers": wait.readers,
                "attempts": wait.attempts,
                "reason": wait.reason,
            }
            for layer in layers.values()
            for wait in layer.waiting
        ],
    }


def _holder(plane: DataPlane) -> dict[str, Any] | None:
    try:
        said = plane.status_of_holder()
    except DataPlaneGone:
        return None
    # "served": how many data planes have served one after the other; "resend": whether the kernel sends again what a dead one had not answered.
    return {key: said[key] for key in ("pid", "served", "resend")}


def _layer(layer: LayerStatus) -> dict[str, Any]:
    return {
        "layer": layer.layer,
        "mode": layer.mode,
        "cid": layer.cid,
        "digest": layer.digest,
        "entries": layer.entries,
        "bytes": layer.content,
        "bytes_cached": layer.cached,
        "bytes_fetched": layer.fetched,
        "bytes_read": layer.read,
        "files_touched": layer.files_opened,
        "cache_hits": layer.hits,
        "cache_misses": layer.misses,
        "pinned": layer.pinned,
        "pin_left": layer.pin_left,
        "pin_error": layer.pin_error,
        "waiting": [
            {"offset": wait.offset, "seconds": wait.age, "readers": wait.readers, "attempts": wait.attempts, "reason": wait.reason}
            for wait in layer.waiting
        ],
    }


def _images(rows: dict[int, Row], layers: dict[int, LayerStatus]) -> Iterator[dict[str, Any]]:
    """Chains of committed snapshots that nothing committed stands on and that have a layer out of IPFS."""
    below = {row.parent for row in rows.values() if row.kind is Kind.COMMITTED}
    for row in rows.values():
        if row.kind is not Kind.COMMITTED or row.id in below:
            continue
        chain = chain_of(rows, row)
        if any(one.cid for one in chain):
            yield {"image": image_of(chain), "snapshot": row.name, **_sums(chain, layers)}


def _containers(root: Path, rows: dict[int, Row], layers: dict[int, LayerStatus]) -> Iterator[dict[str, Any]]:
    """Active snapshots and views on layers out of IPFS."""
    mounted = {str(mounted.point): mounted.kind for mounted in mount_table()}
    for row in rows.values():
        chain = chain_of(rows, row)
        if row.kind is Kind.COMMITTED or not any(one.cid for one in chain):
            continue
        namespace, _, rest = row.name.partition("/")  # containerd: NAMESPACE/NUMBER/KEY
        ours = str(root / "snapshots" / str(row.id) / "root")
        yield {
            "container": rest.partition("/")[2] or row.name,
            "namespace": namespace if rest else "",
            "kind": row.kind.name.lower(),
            "image": image_of(chain),
            # Native roots are mounted by us; portable ones by containerd, out of folders of the FUSE mount.
            "mount": f"{mounted[ours]} at {ours}" if ours in mounted else "by containerd",
            **_sums(chain, layers),
        }


def _sums(chain: list[Row], layers: dict[int, LayerStatus]) -> dict[str, Any]:
    found = [layers[one.id] for one in chain if one.id in layers]
    return {
        "layers": len(chain),
        "layers_lazy": sum(one.cid is not None for one in chain),
        "layers_mounted": len(found),
        "modes": sorted({layer.mode for layer in found}),
        "bytes": sum(layer.content for layer in found),
        "bytes_cached": sum(layer.cached or 0 for layer in found),
        "bytes_fetched": sum(layer.fetched for layer in found),
        "reads_waiting": sum(len(layer.waiting) for layer in found),
        "pinned": bool(found) and all(layer.pinned for layer in found),
        "pin_left": sum(layer.pin_left or 0 for layer in found),
        "pin_error": next((layer.pin_error for layer in found if layer.pin_error), ""),
    }


def chain_of(rows: dict[int, Row], row: Row) -> list[Row]:
    """The snapshot's layers, the uppermost first; an active one's own folder is no layer."""
    chain = [row] if row.kind is Kind.COMMITTED else []
    parent = row.parent
    while parent is not None and parent in rows:
        chain.append(rows[parent])
        parent = rows[parent].parent
    return chain


def image_of(chain: list[Row]) -> str:
    """What the image was called when it was pulled; empty if nobody said."""
    return next((one.labels[_IMAGE] for one in chain if one.labels.get(_IMAGE)), "")


def snapshots(root: Path) -> dict[int, Row]:
    """All that the daemon has noted, by number."""
    path = root / "state.db"
    if not path.exists():
        return {}
    decode = msgspec.json.Decoder(dict[str, str]).decode
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        found = db.execute("SELECT id, name, parent, kind, labels, cid FROM snapshots ORDER BY id").fetchall()
    return {one[0]: Row(one[0], one[1], one[2], Kind(one[3]), decode(one[4]), one[5]) for one in found}
