"""Every target by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ipfs_store.errors import IpfsStoreError
from tests.fuzz import dags, documents, images, layers, written


@dataclass(frozen=True)
class Target:
    """A decoder under attack."""

    check: Callable[[bytes], None]
    """Raises nothing but IpfsStoreError for any bytes; AssertionError where a property does not hold."""
    seeds: Callable[[], Iterator[bytes]]
    longest: int = 4096
    """Bytes of an input: what the structure needs, since long ones only make it slow."""

    def __call__(self, data: bytes) -> None:
        """Run the check; what a user may see is no finding."""
        try:
            self.check(data)
        except IpfsStoreError as error:
            assert error.message and len(error.message.splitlines()) == 1, "not one line that says what is wrong"


TARGETS: dict[str, Target] = {
    "footer": Target(layers.footer, layers.footer_seeds, 400),
    "toc": Target(layers.toc, layers.toc_seeds, 8192),
    "toc-entries": Target(layers.toc_entries, layers.toc_entries_seeds, 1024),
    "gzip": Target(layers.gzip_stream, layers.gzip_seeds, 8192),
    "zstd": Target(layers.zstd_stream, layers.zstd_seeds, 8192),
    "blob": Target(layers.blob, layers.blob_seeds),
    "detached": Target(layers.detached, layers.detached_seeds),
    "tar": Target(layers.tar, layers.tar_seeds, 16384),
    "layer": Target(written.layer, written.layer_seeds, 16384),
    "cid": Target(dags.cid, dags.cid_seeds, 200),
    "cid-text": Target(dags.cid_text, dags.cid_text_seeds, 200),
    "dag-pb": Target(dags.dag_pb, dags.dag_pb_seeds, 1000),
    "dag-cbor": Target(dags.dag_cbor, dags.dag_cbor_seeds, 1000),
    "car": Target(dags.car, dags.car_seeds, 1000),
    "root": Target(dags.root, dags.root_seeds),
    "manifest": Target(documents.manifest, documents.manifest_seeds),
    "reference": Target(documents.reference, documents.reference_seeds, 300),
    "erofs": Target(images.erofs, images.erofs_seeds, 1024),
}
