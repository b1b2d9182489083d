"""Images whose digests were kept, in containerd: the registry's digest, a signature that holds, what refers to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipfs_store.images.push import PushOptions, push_image
from ipfs_store.images.sources import open_image
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.oci import Digest
from ipfs_store.oci.platform import default_platform
from snapshotter.containerd.connection import Connection
from snapshotter.containerd.rpull import rpull
from tests.containerd import PrivateContainerd
from tests.containerd_client.images import BusyboxImage
from tests.sources.made import CONFIG, INDEX, MANIFEST, described, encode, layout_files, sha256, write_tar
from tests.sources.signed import Attached, listing

pytestmark = [pytest.mark.root, pytest.mark.containerd]


async def test_digest_and_bytes_are_the_registrys_and_referrers_stay_with_them(
    containerd: PrivateContainerd, connection: Connection, tmp_path: Path
) -> None:
    image = BusyboxImage(tmp_path, index=True)
    index = await image.fetch(image.root)
    signature = Attached(
        index, b"signature of the index", "application/vnd.dev.sigstore.bundle.v0.3+json", subject_type=image.root.media_type
    )
    blobs = [index, image.manifest, image.config, *(path.read_bytes() for path in image._blobs.values())]
    sbom = Attached(index, b"SBOM of one platform", "application/spdx+json", with_subject=False)
    several = encode({**json.loads(listing([sbom])), "subject": image.root.to_json()})
    entries = [image.root.to_json(), signature.descriptor(), described(INDEX, several, artifactType="application/spdx+json")]
    layout = write_tar(tmp_path / "i.tar", layout_files(entries, [*blobs, *signature.blobs, several, *sbom.blobs]))
    node = EmbeddedNode(tmp_path / "node", peers=[], timeout=2)
    async with open_image(str(layout)) as source:
        result = await push_image(node, source, PushOptions(preserve_digests=True, referrers=True, name="docker.io/test/busybox:1"))
    namespace = connection.namespace
    done = await rpull(node, connection, result.cid, snapshotter="overlayfs", referrers=True)
    assert done.digest == image.root.digest == Digest.of(index)
    assert done.referrers == (Digest.of(signature.manifest), Digest.of(several))
    assert str(image.root.digest) in containerd.ctr("images", "ls", namespace=namespace)

    def content(digest: Digest) -> bytes:
        return containerd.ctr("content", "get", str(digest), namespace=namespace).encode()

    assert content(image.root.digest) == index
    assert content(Digest.of(image.manifest)) == image.manifest
    # containerd's collection takes what nothing refers to.
    containerd.ctr("content", "prune", "references", namespace=namespace)
    assert content(Digest.of(signature.manifest)) == signature.manifest
    assert content(Digest.of(signature.payload)) == signature.payload
    assert content(Digest.of(several)) == several
    assert content(Digest.of(sbom.manifest)) == sbom.manifest
    assert content(Digest.of(sbom.payload)) == sbom.payload
    assert json.loads(content(Digest.of(signature.manifest)))["subject"]["digest"] == str(done.digest)
    assert containerd.ctr("run", "--rm", done.name, "kept", "cat", "/hello", namespace=namespace) == "hello from the image\n"
    await node.aclose()


async def test_attestations_of_an_index_are_fetched_and_not_unpacked(
    containerd: PrivateContainerd, connection: Connection, tmp_path: Path
) -> None:
    image, statement = BusyboxImage(tmp_path), b'{"_type":"https://in-toto.io/Statement/v1"}'
    config = encode({"architecture": "unknown", "os": "unknown", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(statement)}"]}})
    layers = [described("application/vnd.in-toto+json", statement)]
    attestation = encode({"schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, config), "layers": layers})
    about = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": str(image.root.digest)}
    entries = [image.root.to_json() | {"platform": default_platform().to_json()}, described(MANIFEST, attestation, annotations=about)]
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
    blobs = [index, image.manifest, image.config, attestation, config, statement, *(path.read_bytes() for path in image._blobs.values())]
    layout = write_tar(tmp_path / "i.tar", layout_files([described(INDEX, index)], blobs))
    node = EmbeddedNode(tmp_path / "node", peers=[], timeout=2)
    async with open_image(str(layout)) as source:
        result = await push_image(node, source, PushOptions(platforms=None, preserve_digests=True, name="docker.io/test/busybox:1"))
    done = await rpull(node, connection, result.cid, snapshotter="overlayfs", platforms=None)
    assert len(done.layers) == 2
    assert containerd.ctr("content", "get", str(Digest.of(statement)), namespace=connection.namespace).encode() == statement
    await node.aclose()
