"""How the layers of a snapshot become directories that overlayfs can stack."""

from snapshotter.mounts.interface import LayerMounter, LayerSource, MountFailed

__all__ = ["LayerMounter", "LayerSource", "MountFailed"]
