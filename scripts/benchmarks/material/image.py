"""An image of one layer that lies in a file, as a source of a push."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ipfs_store.cids import Cid
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.chunker import Chunker
from ipfs_store.formats.options import WriteOptions, Written
from ipfs_store.formats.writer import write_layer
from ipfs_store.oci import Descriptor, Digest, Manifest
from ipfs_store.oci.media_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST


@dataclass(frozen=True)
class OneLayer:
    """See ``ipfs_store.images.model.Image``."""

    name: str
    path: Path
    root: Descriptor
    documents: dict[Digest, bytes] = field(repr=False)

    @classmethod
    def of(cls, name: str, path: Path, written: Written) -> OneLayer:
        """The image of the layer that was written to ``path``."""
        layer = Descriptor(OCI_LAYER_GZIP, Digest.parse(written.digest), written.size, (), dict(written.annotations))
        config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [written.diff_id]}}).encode()
        described = Descriptor(OCI_CONFIG, Digest.of(config), len(config))
        manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described.to_json(), "layers": [layer.to_json()]}
        ).encode()
        root = Descriptor(OCI_MANIFEST, Digest.of(manifest), len(manifest))
        return cls(name, path, root, {described.digest: config, root.digest: manifest})

    async def fetch(self, descriptor: Descriptor) -> bytes:
        return self.documents[descriptor.digest]

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        yield self.path

    async def aclose(self) -> None:
        pass


def converted(tar: Path, folder: Path) -> OneLayer:
    """The layer ``tar`` as eStargz in ``folder``, in an image."""
    path = folder / f"{tar.stem}.esgz"
    return OneLayer.of(f"docker.io/bench/{tar.stem}:1", path, write_layer(tar, path, WriteOptions()))


def kept(tar: Path, folder: Path) -> OneLayer:
    """As ``converted``, and the layer stays in ``folder`` for the next time."""
    path, notes = folder / f"{tar.stem}.esgz", folder / f"{tar.stem}.esgz.json"
    if not notes.exists() or not path.exists():
        made = converted(tar, folder)
        described = {"root": made.root.to_json(), "documents": [data.decode() for data in made.documents.values()]}
        notes.write_text(json.dumps(described))
        return made
    described = json.loads(notes.read_text())
    documents = {Digest.of(data): data for data in (text.encode() for text in described["documents"])}
    return OneLayer(f"docker.io/bench/{tar.stem}:1", path, Descriptor.from_json(described["root"]), documents)


def last_layer(archive: Path, folder: Path) -> Path:
    """The tar of the topmost layer of a Docker archive, in ``folder``."""
    path = folder / f"{archive.stem}.tar"
    with tarfile.open(archive) as tar, path.open("wb") as file:
        listed = tar.extractfile("manifest.json")
        assert listed is not None
        layer = tar.extractfile(json.load(listed)[0]["Layers"][-1])
        assert layer is not None
        shutil.copyfileobj(layer, file, 1 << 20)
    return path


def made_blocks(path: Path, rule: Chunker) -> tuple[list[tuple[Cid, bytes]], Cid]:
    """The blocks of a blob as a push makes them, and their root."""
    builder = FileBuilder(inline=rule.inline)
    blocks = [block for leaf in rule.leaves(memoryview(path.read_bytes())) for block in builder.add(bytes(leaf))]
    blocks += builder.finish()
    assert builder.root is not None
    return blocks, builder.root


def write_layout(image: OneLayer, folder: Path) -> Path:
    """The image as an OCI layout in ``folder``."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    for digest, data in image.documents.items():
        (blobs / digest.hex).write_bytes(data)
    layer = Manifest.parse(image.documents[image.root.digest]).layers[0]
    (blobs / layer.digest.hex).hardlink_to(image.path)
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [image.root.to_json()]}))
    return folder
