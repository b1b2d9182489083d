"""Where images come from: archives, layouts, registries, containerd; each becomes an ``images.model.Image``.

``open_image`` finds out what it is given. Every byte that leaves this room was checked against digest and size.
"""

from ipfs_store.images.sources.detect import KINDS, open_image
from ipfs_store.images.sources.options import SourceOptions

__all__ = ["KINDS", "SourceOptions", "open_image"]
