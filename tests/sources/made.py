"""Images made from nothing: layouts and archives as tools write them, and as nobody should."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def tar(files: Mapping[str, bytes]) -> bytes:
    """A tar of plain files."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


@dataclass
class MadeImage:
    """One image of one platform."""

    layers: Sequence[bytes]
    """Uncompressed tars."""
    architecture: str = "amd64"
    compressed: list[bytes] = field(init=False)
    config: bytes = field(init=False)
    manifest: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.compressed = [gzip.compress(layer, 1, mtime=0) for layer in self.layers]
        diff_ids = [f"sha256:{sha256(layer)}" for layer in self.layers]
        self.config = encode(
            {
                "architecture": self.architecture,
                "os": "linux",
                "config": {"Cmd": ["/hello"]},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }
        )
        self.manifest = encode(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": described(CONFIG, self.config),
                "layers": [described(LAYER, layer) for layer in self.compressed],
            }
        )

    @property
    def blobs(self) -> list[bytes]:
        return [self.manifest, self.config, *self.compressed]

    def descriptor(self, **more: Any) -> dict[str, Any]:
        """Of the manifest."""
        return described(MANIFEST, self.manifest, **more)


def image(*contents: str, architecture: str = "amd64") -> MadeImage:
    """An image with one file in each layer."""
    return MadeImage([tar({f"file{number}": text.encode() * 1000}) for number, text in enumerate(contents)], architecture)


def described(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data), **more}


def named(tag: str = "", name: str = "") -> dict[str, Any]:
    """Annotations as containerd and skopeo write them."""
    annotations = {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": name}
    return {"annotations": {key: value for key, value in annotations.items() if value}}


def layout_files(entries: Sequence[dict[str, Any]], blobs: Sequence[bytes]) -> dict[str, bytes]:
    """The files of an OCI layout with these descriptors in its index.json."""
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}),
        **{f"blobs/sha256/{sha256(blob)}": blob for blob in blobs},
    }


def docker_files(*images: tuple[MadeImage, Sequence[str]]) -> dict[str, bytes]:
    """The files of a Docker archive of images and their names."""
    files: dict[str, bytes] = {}
    listed = []
    for made, names in images:
        config = f"{sha256(made.config)}.json"
        layers = [f"{sha256(layer)}/layer.tar" for layer in made.layers]
        files |= {config: made.config, **dict(zip(layers, made.layers, strict=True))}
        listed.append({"Config": config, "RepoTags": list(names) or None, "Layers": layers})
    return {**files, "manifest.json": encode(listed)}


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    path.write_bytes(tar(files))
    return path
