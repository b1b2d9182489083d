"""Tars as the layers of an image, in an archive as ``docker save`` writes it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path


def docker_archive(layers: Sequence[Path], target: Path, name: str) -> Path:
    """The image ``name`` of these layers, lowest first, in the new file ``target``."""
    diff_ids = [_digest(layer) for layer in layers]
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in diff_ids]}}
    ).encode()
    listed = {"Config": "config.json", "RepoTags": [name], "Layers": [f"{digest}/layer.tar" for digest in diff_ids]}
    with tarfile.open(target, "x") as archive:
        for path, data in (("config.json", config), ("manifest.json", json.dumps([listed]).encode())):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for layer, path in zip(layers, listed["Layers"], strict=True):
            archive.add(layer, path)
    return target


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
