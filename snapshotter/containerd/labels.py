"""Labels by which snapshotters learn what layer a snapshot is to be, and garbage collection what belongs together.

The keys are those of containerd's CRI plugin (``cri.``) and of stargz-snapshotter (``remote/``), so that either's snapshotter
understands an image that we pull. containerd gives a snapshotter only what begins with ``containerd.io/snapshot``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ipfs_store.oci import Descriptor, Digest

SNAPSHOT_REF = "containerd.io/snapshot.ref"
UNCOMPRESSED = "containerd.io/uncompressed"
"""On a layer's blob: its DiffID, so that nobody has to unpack it to know."""
_CRI = "containerd.io/snapshot/cri."
_REMOTE = "containerd.io/snapshot/remote/"
_INHERITED = "containerd.io/snapshot/"
"""Annotations that containerd's own unpacker hands on to a snapshotter, and so do we: the TOC's digest and its object among them."""
_GC_CONTENT = "containerd.io/gc.ref.content"
_MAX = 4096  # bytes of a key and its value together, containerd's limit


def layer_labels(image: str, manifest: Descriptor, layers: Sequence[Descriptor], number: int, chain_id: Digest) -> dict[str, str]:
    """What Prepare is told of layer ``number`` of the image that is called ``image``."""
    layer, above = layers[number], [str(item.digest) for item in layers[number:]]
    labels = {
        SNAPSHOT_REF: str(chain_id),
        f"{_CRI}image-ref": image,
        f"{_CRI}manifest-digest": str(manifest.digest),
        f"{_CRI}layer-digest": str(layer.digest),
        f"{_CRI}image-layers": _joined(f"{_CRI}image-layers", above),
        f"{_REMOTE}stargz.reference": image,
        f"{_REMOTE}stargz.digest": str(layer.digest),
        f"{_REMOTE}stargz.layers": _joined(f"{_REMOTE}stargz.layers", above),
        f"{_REMOTE}urls": _joined(f"{_REMOTE}urls", layer.urls),
    }
    labels.update({key: value for key, value in layer.annotations.items() if key.startswith(_INHERITED)})
    for key, value in layer.annotations.items():
        if key.startswith(("io.containers.", "io.github.containers.zstd-chunked.")):
            labels[f"{_REMOTE}{key}"] = value
    return {key: value for key, value in labels.items() if value and len(key.encode()) + len(value.encode()) <= _MAX}


def manifest_references(config: Descriptor, layers: Sequence[Descriptor]) -> dict[str, str]:
    """Labels of a manifest: its config and layers live as long as it does."""
    return {
        f"{_GC_CONTENT}.config": str(config.digest),
        **{f"{_GC_CONTENT}.l.{number}": str(layer.digest) for number, layer in enumerate(layers)},
    }


def index_references(manifests: Sequence[Descriptor]) -> dict[str, str]:
    """Labels of an index: those of its manifests that are there live as long as it does."""
    return {f"{_GC_CONTENT}.m.{number}": str(item.digest) for number, item in enumerate(manifests)}


def artifact_references(blobs: Iterable[Descriptor]) -> dict[str, str]:
    """Labels of a manifest that is no image's: what it carries lives as long as it does.

    Not as layers, whose labels ``ctr content prune references`` takes away.
    """
    return {f"{_GC_CONTENT}.blob.{number}": str(blob.digest) for number, blob in enumerate(blobs)}


def referrer_reference(number: int, referrer: Descriptor) -> dict[str, str]:
    """Label of a manifest or index: what refers to it lives as long as it does."""
    return {f"{_GC_CONTENT}.referrer.{number}": str(referrer.digest)}


def snapshot_reference(snapshotter: str, chain_id: Digest) -> dict[str, str]:
    """Label of a config: the snapshots of its layers live as long as it does."""
    return {f"containerd.io/gc.ref.snapshot.{snapshotter}": str(chain_id)}


def _joined(key: str, values: Iterable[str]) -> str:
    """As many as fit, with commas between; a snapshotter that misses some only prepares less ahead of time."""
    joined = ""
    for value in values:
        longer = f"{joined},{value}" if joined else value
        if len(key) + len(longer) > _MAX:
            break
        joined = longer
    return joined
