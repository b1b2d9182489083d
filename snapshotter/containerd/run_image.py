"""The image that ``run`` is to start: one that containerd has by that name, or one of a CID, pulled where needed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from ipfs_store.cids import Cid, format_cid, parse_cid
from ipfs_store.cli.settings import Settings
from ipfs_store.errors import ImageNotFound, InvalidCid
from ipfs_store.oci import Platform, Reference
from snapshotter.containerd.connection import Connection, require_snapshotter
from snapshotter.containerd.local import LocalImage, local_image
from snapshotter.containerd.records import Images
from snapshotter.containerd.rpull import PulledLayer, rpull
from snapshotter.containerd.snapshots import Snapshots


def find_image(
    settings: Settings, connection: Connection, text: str, *, snapshotter: str, platform: Platform | None = None,
    timeout: float | None = None, report: Callable[[PulledLayer], None] = lambda _: None,
) -> LocalImage:  # fmt: skip
    """The image called ``text``, its layers snapshots of ``snapshotter``.

    A name is looked for as it is, then in full (``debian:12`` as ``docker.io/library/debian:12``), then as a CID, which is pulled unless an
    image that was pulled by it is there. Raises ImageNotFound, SnapshotterMissing, and what ``rpull`` raises.
    """
    require_snapshotter(connection, snapshotter)
    found = _named(connection, text, platform)
    if found is not None and _unpacked(connection, found, snapshotter):
        return found
    cid = _cid(text)
    if cid is None:
        if found is not None:
            raise ImageNotFound(
                f"image {found.name!r} is there, but not unpacked for snapshotter {snapshotter!r}",
                hint="rpull its CID for this snapshotter, or choose the other with --snapshotter",
            )
        raise ImageNotFound(
            f"containerd has no image {text!r} in namespace {connection.namespace!r}, and it is not a CID",
            hint="`ctr image ls` lists those it has; ipfs-push prints the CID of what it pushed",
        )
    for name in Images(connection).named_by(format_cid(cid)):
        with suppress(ImageNotFound):  # it is there for other platforms only
            found = local_image(connection, name, platform)
            if _unpacked(connection, found, snapshotter):
                return found
    wanted = () if platform is None else (platform,)
    pulled = settings.run(
        lambda node: rpull(node, connection, cid, snapshotter=snapshotter, platforms=wanted, timeout=timeout, report=report)
    )
    return local_image(connection, pulled.name, platform)


def _named(connection: Connection, text: str, platform: Platform | None) -> LocalImage | None:
    names = [text]
    if _cid(text) is None and "://" not in text:
        names.append(str(Reference.parse(text)))
    for name in names:
        try:
            Images(connection).get(name)
        except ImageNotFound:
            continue
        return local_image(connection, name, platform)
    return None


def _unpacked(connection: Connection, image: LocalImage, snapshotter: str) -> bool:
    return image.chain_id is None or Snapshots(connection, snapshotter).exists(str(image.chain_id))


def _cid(text: str) -> Cid | None:
    try:
        return parse_cid(text)
    except InvalidCid:
        return None
