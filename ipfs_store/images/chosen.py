"""Which manifests of an index are meant, for whoever converts, pushes or pulls."""

from __future__ import annotations

from collections.abc import Sequence

from ipfs_store.errors import ImageNotFound
from ipfs_store.oci import Descriptor, Platform
from ipfs_store.oci.platform import default_platform, select


def chosen_manifests(manifests: Sequence[Descriptor], platforms: Sequence[Platform] | None, name: str) -> list[Descriptor]:
    """Those for ``platforms`` (empty: this machine's; None: all); raises ImageNotFound, which says of the image ``name`` what there is."""
    if platforms is None:
        return list(manifests)
    wanted = tuple(platforms) or (default_platform(),)
    offered = [item.platform for item in manifests]
    if len(offered) == 1 and offered[0] is None:
        return list(manifests)  # an archive's index says where its only image is, not what it runs on
    found = select(wanted, offered)
    if not found:
        has = ", ".join(sorted({str(platform) for platform in offered if platform})) or "none that are named"
        raise ImageNotFound(
            f"{name or 'the image'} has nothing for {', '.join(map(str, wanted))}; its platforms: {has}",
            hint="choose with --platform, or take --all-platforms",
        )
    return [manifests[position] for position in found]
