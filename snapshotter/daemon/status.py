"""What the snapshotter says about itself."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from snapshotter.daemon.config import Config
from snapshotter.daemon.process import data_plane, running_pid
from snapshotter.dataplane.client import DataPlaneGone


def containerd_config(socket: str) -> str:
    """What containerd's configuration needs to know the snapshotter."""
    return f'[proxy_plugins.ipfs]\n  type = "snapshot"\n  address = "{socket}"\n'


def status(config: Config) -> dict[str, Any]:
    """Daemon, data plane, and each mounted layer; plain values, sizes in bytes."""
    root = Path(config.root)
    result: dict[str, Any] = {
        "pid": running_pid(root),
        "root": config.root,
        "socket": config.socket,
        "containerd_config": containerd_config(config.socket),
        "snapshots": _snapshots(root),
        "dataplane": None,
        "layers": [],
    }
    with contextlib.suppress(DataPlaneGone):
        plane = data_plane(config).status()
        result["dataplane"] = {
            "pid": plane.pid,
            "mountpoint": plane.mountpoint,
            "cache_bytes": plane.cache_bytes,
            "rss_bytes": plane.rss_bytes,
        }
        result["layers"] = [
            {
                "layer": layer.layer,
                "cid": layer.cid,
                "digest": layer.digest,
                "entries": layer.entries,
                "bytes": layer.content,
                "bytes_fetched": layer.fetched,
                "bytes_read": layer.read,
                "files_touched": layer.files_opened,
                "cache_hits": layer.hits,
                "cache_misses": layer.misses,
                "waiting": [
                    {"offset": wait.offset, "seconds": wait.age, "readers": wait.readers, "attempts": wait.attempts, "reason": wait.reason}
                    for wait in layer.waiting
                ],
            }
            for layer in plane.layers
        ]
    return result


def _snapshots(root: Path) -> int:
    path = root / "state.db"
    if not path.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM snapshots").fetchone()[0])
