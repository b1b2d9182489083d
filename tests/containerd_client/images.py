"""A small image that runs, made of busybox: two layers, the second with a whiteout."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ipfs_store.oci import Descriptor, Digest
from ipfs_store.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST
from ipfs_store.oci.platform import default_platform
from tests.requirements import require_tool

APPLETS = ("sh", "cat", "echo", "env", "id", "ls", "sleep", "stat", "true", "false", "kill", "wc", "head")


def tar(entries: Mapping[str, bytes | str | None], *, programs: Mapping[str, bytes] | None = None) -> bytes:
    """A tar: name -> contents, a link's target as text, or None for a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, value in [*entries.items(), *(programs or {}).items()]:
            info = tarfile.TarInfo(name)
            info.mtime = 1_700_000_000
            if value is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            elif isinstance(value, str):
                info.type, info.linkname = tarfile.SYMTYPE, value
                archive.addfile(info)
            else:
                info.size, info.mode = len(value), 0o755 if name in (programs or {}) else 0o644
                archive.addfile(info, io.BytesIO(value))
    return buffer.getvalue()


class BusyboxImage:
    """An image as ``push_image`` takes it; each is a new one, since containerd shares equal blobs among namespaces."""

    def __init__(
        self, folder: Path, *, name: str = "docker.io/test/busybox:1", config: dict[str, Any] | None = None, index: bool = False
    ) -> None:
        self.name = name
        busybox = require_tool("busybox").read_bytes()
        folders: dict[str, bytes | str | None] = dict.fromkeys(("bin", "etc", "proc", "sys", "dev", "tmp", "run"))
        files: dict[str, bytes | str | None] = {
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nworker:x:1234:1235:worker:/home:/bin/sh\n",
            "etc/group": b"root:x:0:\nworkers:x:1235:\nextra:x:1300:worker\n",
            "etc/gone": b"hidden by the second layer\n",
            **{f"bin/{applet}": "busybox" for applet in APPLETS},
        }
        self.tars = [
            tar({**folders, **files}, programs={"bin/busybox": busybox}),
            tar(
                {
                    "etc/.wh.gone": b"",
                    "hello": b"hello from the image\n",
                    "data": None,
                    "data/numbers": b"0123456789" * 50_000,
                    "salt": os.urandom(8),
                }
            ),
        ]
        blobs = [gzip.compress(data, mtime=0) for data in self.tars]
        platform = default_platform()
        document = {
            "architecture": platform.architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/bin", "GREETING=hello"], "Cmd": ["cat", "/hello"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(data)) for data in self.tars]},
        }
        self._blobs: dict[Digest, Path] = {}
        self._index = index
        self.layers = [self._layer(folder, data) for data in blobs]
        self.reconfigure(document)

    def reconfigure(self, document: dict[str, Any]) -> None:
        """Make the same layers an image of another config."""
        self.config = json.dumps(document).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": Descriptor(OCI_CONFIG, Digest.of(self.config), len(self.config)).to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        self.manifest = json.dumps(manifest).encode()
        self.root = Descriptor(OCI_MANIFEST, Digest.of(self.manifest), len(self.manifest))
        self._small = {Digest.of(self.config): self.config, self.root.digest: self.manifest}
        if self._index:
            listed = {**self.root.to_json(), "platform": default_platform().to_json()}
            data = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed]}).encode()
            self.root = Descriptor(OCI_INDEX, Digest.of(data), len(data))
            self._small[self.root.digest] = data

    async def fetch(self, descriptor: Descriptor) -> bytes:
        return self._small[descriptor.digest]

    @asynccontextmanager
    async def open_blob(self, descriptor: Descriptor) -> AsyncIterator[Path]:
        yield self._blobs[descriptor.digest]

    async def aclose(self) -> None:
        pass

    def _layer(self, folder: Path, data: bytes) -> Descriptor:
        digest = Digest.of(data)
        path = folder / digest.hex
        path.write_bytes(data)
        self._blobs[digest] = path
        return Descriptor(OCI_LAYER_GZIP, digest, len(data))
