"""Where images are written to: archives, layouts, registries, containerd; each is a ``Target``.

``open_target`` finds out what is meant. Whatever ends a conversion, an image is there as a whole afterwards or not at all.
"""

from ipfs_store.images.targets.detect import KINDS, open_target
from ipfs_store.images.targets.interface import Published, Target, TargetOptions

__all__ = ["KINDS", "Published", "Target", "TargetOptions", "open_target"]
