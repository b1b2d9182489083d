"""OCI values: digests, descriptors, manifests, media types, platforms, references. Pure: bytes and text to values and back."""

from ipfs_store.oci.descriptor import Descriptor, Platform
from ipfs_store.oci.digest import Digest
from ipfs_store.oci.manifest import Config, Index, Manifest
from ipfs_store.oci.reference import Reference

__all__ = ["Config", "Descriptor", "Digest", "Index", "Manifest", "Platform", "Reference"]
