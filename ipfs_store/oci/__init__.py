"""OCI values: digests, descriptors, manifests, media types, references, annotations. Pure: bytes and text to values and back."""

from ipfs_store.oci.descriptor import Descriptor, Platform
from ipfs_store.oci.digest import Digest

__all__ = ["Descriptor", "Digest", "Platform"]
