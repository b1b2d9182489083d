"""The snapshotter: ordinary snapshots in folders, remote ones mounted out of IPFS. What the gRPC service calls; knows no gRPC."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.errors import InvalidInput, IpfsStoreError, StorageFailed, Unavailable
from snapshotter.mounts import kernel
from snapshotter.mounts.idmap import IdMap
from snapshotter.mounts.interface import LayerMounter, LayerSource, MountFailed
from snapshotter.mounts.native import unmount_below
from snapshotter.mounts.stack import Xino
from snapshotter.service.folders import Folders, Mount
from snapshotter.service.labels import NAMESPACE, REMOTE, REMOTE_VALUE, TARGET, TOC, layer_source, namespace_of
from snapshotter.service.roots import Layer, Roots, mount_layers
from snapshotter.state import AlreadyExists, Filter, Kind, Missing, Remote, Snapshot, SnapshotState

_log = logging.getLogger(__name__)
_RESTORERS = 8  # layers mounted at a time after a restart: their TOCs come over the network


class NotOurs(IpfsStoreError):
    """Mounts that are not one of our snapshots and its parent: somebody else has to compare them."""


@dataclass(frozen=True, slots=True)
class Upper:
    """What a snapshot wrote."""

    folder: Path
    merged: Path
    """The whole tree with it, read-only, with owners as in the image."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one snapshot, without its parents."""

    size: int
    """Bytes."""
    inodes: int


class Snapshotter:
    """All operations; thread-safe. Raises StateError, Unavailable (a remote layer that cannot be mounted now), StorageFailed."""

    def __init__(
        self, root: Path, mounter: LayerMounter, *, data: Sequence[Path] = (), per_namespace: bool = False, xino: Xino = "on"
    ) -> None:
        """``data``: the data-only layers, where ``mounter`` mounts images of metadata; roots are then mounted by us (`Roots`).

        ``per_namespace``: no remote layer is shared by containerd's namespaces, whatever an image says of its chain.
        ``xino``: of roots that we mount.
        """
        self._state = SnapshotState(root / "state.db")
        self._folders = Folders(root)
        self._mounter = mounter
        self._data = tuple(data)
        self._per_namespace = per_namespace
        self._scratch = root / "scratch"
        self._scratch.mkdir(mode=0o700, exist_ok=True)
        unmount_below([self._scratch])  # of a daemon that was killed in the middle of a call
        for left in self._scratch.iterdir():
            left.rmdir() if left.is_dir() else left.unlink()
        self._roots = Roots(self._folders, data, self._scratch, xino=xino) if data else None
        self._targets: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._targets_lock = threading.Lock()
        self._folders.empty_trash([snapshot.id for snapshot in self._state.select()])

    def close(self) -> None:
        """Close the database; layers stay mounted."""
        self._state.close()

    def restore(self) -> None:
        """Mount every remote layer that is not. One that cannot be is logged, and tried again when somebody needs it."""
        self._mounter.expire()
        remote = [snapshot for snapshot in self._state.select() if snapshot.remote is not None]
        everything = True
        with ThreadPoolExecutor(_RESTORERS, thread_name_prefix="restore") as pool:
            for snapshot, failure in zip(remote, pool.map(self._try_mount, remote), strict=True):
                if failure is not None:
                    _log.warning("%s is not mounted again yet, and will be tried when it is needed: %s", snapshot.name, failure)
                    everything = False
        if everything:
            self._mounter.sweep()

    def prepare(self, key: str, parent: str, labels: Mapping[str, str], *, namespace: str = "") -> list[Mount]:
        """A new active snapshot. With a target in the labels, that is mounted instead where it can be, and AlreadyExists raised.

        ``namespace``: whose call it is, if containerd says so (`select` will then be told, too).
        """
        target = labels.get(TARGET, "")
        if target:
            self._mount_target(target, parent, {**labels, NAMESPACE: namespace_of(key)}, tells=bool(namespace))
        return self._create(key, parent, Kind.ACTIVE, labels)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """A new read-only snapshot."""
        return self._create(key, parent, Kind.VIEW, labels)

    def mounts(self, key: str) -> list[Mount]:
        """How an active snapshot or a view is mounted; raises Missing for a committed one."""
        chain = self._state.chain(key)
        if chain[0].kind is Kind.COMMITTED:
            raise Missing(f"snapshot {key!r} is committed: only active ones and views have mounts")
        return self._mounts(chain)

    def commit(self, key: str, name: str, labels: Mapping[str, str]) -> None:
        """Make an active snapshot a committed one."""
        snapshot = self._state.get(key)
        size, inodes = self._folders.usage(snapshot.id) if snapshot.kind is Kind.ACTIVE else (0, 0)
        self._state.commit(key, name, labels, size, inodes)
        self._folders.release(snapshot.id)
        if self._roots is not None:
            self._roots.forget(snapshot.id)

    def remove(self, key: str) -> None:
        """Delete a snapshot without children."""
        snapshot = self._state.remove(key)
        if snapshot.remote is None:
            self._discard(snapshot.id)
            return
        try:
            self._mounter.unmount(snapshot.id)
        except IpfsStoreError as error:
            _log.warning("%s is removed, but its layer stays mounted for now: %s", key, error.message)

    def stat(self, key: str) -> Snapshot:
        """The snapshot."""
        return self._state.get(key)

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        """Change labels."""
        return self._state.update(name, labels, paths)

    def select(self, wanted: Filter | None = None, *, namespace: str = "") -> list[Snapshot]:
        """Those that match; where namespaces share no layers, without those of others than ``namespace``, if there is one."""
        found = self._state.select(wanted)
        if not self._per_namespace or not namespace:
            return found
        return [snapshot for snapshot in found if _owner(snapshot) in ("", namespace)]

    def usage(self, key: str) -> Usage:
        """What it takes on disk: counted now for an active one, when it was committed for others; a remote layer takes nothing here."""
        snapshot = self._state.get(key)
        if snapshot.kind is Kind.ACTIVE:
            return Usage(*self._folders.usage(snapshot.id))
        return Usage(snapshot.size, snapshot.inodes)

    @contextlib.contextmanager
    def written(self, left: Sequence[Mount], right: Sequence[Mount]) -> Iterator[Upper]:
        """What the snapshot mounted as ``right`` has that its parent, mounted as ``left``, has not. Raises NotOurs, Unavailable, StorageFailed."""
        snapshot = self._shown(right)
        if snapshot is None or snapshot.remote is not None:
            raise NotOurs(f"{[mount.source for mount in right]} is not the mount of a snapshot that was written here")
        below = self._state.chain(snapshot.parent) if snapshot.parent else []
        if not self._shows(left, below):
            raise NotOurs(f"{[mount.source for mount in left]} is not the mount of {snapshot.name!r}'s parent")
        folder = self._folders.upper(snapshot.id)
        layers = [Layer(folder, self._folders.idmap(snapshot.id)), *self._lowers(below)]
        target = self._scratch / f"merged-{uuid.uuid4().hex}"
        try:
            target.mkdir(mode=0o700)
            if len(layers) == 1:  # no overlay has but one directory
                layers.append(Layer(target))
            mount_layers(layers, target, data=self._data, above=None, idmap=None, scratch=self._scratch)
        except OSError as error:
            raise StorageFailed(f"snapshot {snapshot.name!r} cannot be mounted for reading: {error}") from error
        try:
            yield Upper(folder, target)
        finally:
            kernel.unmount(target, lazy=True)
            target.rmdir()

    def cleanup(self) -> None:
        """Delete what removed snapshots left."""
        self._folders.empty_trash([snapshot.id for snapshot in self._state.select()])

    def _mount_target(self, wanted: str, parent: str, labels: Mapping[str, str], *, tells: bool) -> None:
        """Raises AlreadyExists when the target is there at the end; returns where an ordinary pull has to bring it.

        containerd then looks for it by its label, and takes the first that it is shown. ``tells``: it says for which namespace it looks.
        """
        with self._target(wanted):
            namespace = labels[NAMESPACE] if self._per_namespace else ""
            target = f"{namespace}/{wanted}" if namespace else wanted
            if namespace and not tells and any(_owner(one) not in ("", namespace) for one in self._named(wanted)):
                _log.info("%s is pulled the ordinary way: another namespace has it, and this containerd could not tell them apart", target)
                return
            if self._state.find(target) is not None:
                raise AlreadyExists(f"target snapshot {target!r} exists already")
            source = layer_source(labels)
            if isinstance(source, str):
                _log.info("%s is pulled the ordinary way: %s", target, source)
                return
            try:
                for below in self._state.chain(parent) if parent else ():
                    self._root(below)
                snapshot = self._state.create(
                    target, parent, Kind.COMMITTED, {**labels, REMOTE: REMOTE_VALUE}, Remote(source.cid, source.digest, source.toc_digest)
                )
                try:
                    path = self._mounter.mount(snapshot.id, source)
                except BaseException:
                    self._state.remove(target)
                    raise
                self._as_one(
                    [snapshot, *self._state.chain(parent)] if parent else [snapshot]
                )  # so that it is there for the first container
            except (MountFailed, Unavailable) as error:
                _log.warning(
                    "layer %s (ipfs://%s) is pulled the ordinary way, since it cannot be mounted: %s",
                    source.digest or target, source.cid, error.message,
                )  # fmt: skip
                return
            _log.info("%s: layer %s mounted from ipfs://%s at %s", target, source.digest, source.cid, path)
            raise AlreadyExists(f"target snapshot {target!r} is mounted")

    def _named(self, target: str) -> list[Snapshot]:
        """The committed snapshots that containerd may take for the target."""
        return [one for one in self._state.select() if one.kind is Kind.COMMITTED and one.labels.get(TARGET) == target]

    def _shown(self, mounts: Sequence[Mount]) -> Snapshot | None:
        """The snapshot whose contents these mounts show, a view's parent for a view; None if they are not ours."""
        if len(mounts) != 1:
            return None
        options = dict(option.partition("=")[::2] for option in mounts[0].options)
        above = (
            options.get("upperdir") or options.get("lowerdir", "").partition(":")[0] if mounts[0].type == "overlay" else mounts[0].source
        )
        number = self._folders.number_of(above)
        snapshot = self._state.numbered(number) if number is not None else None
        return self._state.get(snapshot.parent) if snapshot is not None and snapshot.kind is Kind.VIEW and snapshot.parent else snapshot

    def _shows(self, mounts: Sequence[Mount], chain: Sequence[Snapshot]) -> bool:
        """Whether these are the mounts of a view of ``chain``, which may be empty."""
        shown = self._shown(mounts)
        if not chain:
            return not mounts or (shown is not None and shown.kind is Kind.VIEW)
        if shown is not None:
            return shown.id == chain[0].id
        # A view of a single layer has no folder of its own.
        return list(mounts) == self._folders.mounts(0, [layer.path for layer in self._lowers(chain)], active=False)

    def _create(self, key: str, parent: str, kind: Kind, labels: Mapping[str, str]) -> list[Mount]:
        below = self._state.chain(parent) if parent else []
        like, shifted = (self._root(below[0]), self._shift(below[0])) if below else (None, None)
        idmap = IdMap.from_labels(labels)
        if idmap is not None and self._roots is None:
            raise InvalidInput(
                "portable mounts cannot shift owners for a user namespace",
                hint='take "remap-ids" out of the capabilities in containerd\'s configuration: it then changes owners itself',
            )
        snapshot = self._state.create(key, parent, kind, labels)
        try:
            self._folders.make(snapshot.id, active=kind is Kind.ACTIVE, like=like, idmap=idmap, shifted=shifted)
            return self._mounts([snapshot, *below])
        except BaseException as error:
            self._state.remove(key)
            self._discard(snapshot.id)
            if isinstance(error, OSError):
                raise StorageFailed(f"the folder of snapshot {key!r} cannot be made: {error}") from error
            raise

    def _discard(self, number: int) -> None:
        self._folders.discard(number)
        if self._roots is not None:
            self._roots.forget(number)

    def _mounts(self, chain: Sequence[Snapshot]) -> list[Mount]:
        number, active = chain[0].id, chain[0].kind is Kind.ACTIVE
        if self._roots is not None and (mounts := self._roots.alive(number, active=active)):
            return mounts
        lowers = self._lowers(chain[1:])
        idmap = IdMap.from_labels(chain[0].labels)
        if self._roots is not None and (any(below.remote for below in chain[1:]) or any(layer.idmap != idmap for layer in lowers)):
            return self._roots.mounts(number, lowers, active=active, idmap=idmap)
        return self._folders.mounts(number, [layer.path for layer in lowers], active=active)

    def _lowers(self, chain: Sequence[Snapshot]) -> list[Layer]:
        layers: list[Layer] = []
        seen: Counter[Path] = Counter()
        written = False
        stacked, bottom = self._as_one(chain)
        for snapshot in stacked:
            path = self._root(snapshot)
            seen[path] += 1
            if seen[path] > 1:
                # An image may have a layer twice, an empty one for instance. All of it is seen above already, so the lower one can be left out,
                # unless a layer between them was written here: what was renamed in that is looked up below it.
                if not written:
                    continue
                path = self._root(snapshot, seen[path] - 1)
            layers.append(Layer(path, self._shift(snapshot)))
            written = written or snapshot.remote is None
        return layers if bottom is None else [*layers, Layer(bottom)]

    def _as_one(self, chain: Sequence[Snapshot]) -> tuple[Sequence[Snapshot], Path | None]:
        """The chain but for the remote layers at its bottom, and one directory for those; or all of it, and none."""
        above = max((number for number, snapshot in enumerate(chain, 1) if snapshot.remote is None), default=0)
        one = self._mounter.chain([snapshot.id for snapshot in reversed(chain[above:])])
        return (chain, None) if one is None else (chain[:above], one)

    def _root(self, snapshot: Snapshot, instance: int = 0) -> Path:
        """Where the contents of a committed snapshot are; mounts a remote layer again if need be."""
        if snapshot.remote is None:
            return self._folders.upper(snapshot.id)
        try:
            return self._mounter.mount(snapshot.id, _source(snapshot), instance)
        except MountFailed as error:
            raise Unavailable(f"layer {snapshot.name!r} is not mounted: {error.message}", hint=error.hint) from error

    def _shift(self, snapshot: Snapshot) -> IdMap | None:
        return None if snapshot.remote is not None else self._folders.idmap(snapshot.id)

    def _try_mount(self, snapshot: Snapshot) -> str | None:
        try:
            self._root(snapshot)
        except IpfsStoreError as error:
            return error.message
        return None

    @contextlib.contextmanager
    def _target(self, name: str) -> Iterator[None]:
        """One at a time for each target: the second finds what the first mounted."""
        with self._targets_lock:
            lock = self._targets[name]
        with lock:
            yield


def _owner(snapshot: Snapshot) -> str:
    """containerd's namespace that it was made for; empty if that is not known."""
    return snapshot.labels.get(NAMESPACE, "") if snapshot.remote is not None else namespace_of(snapshot.name)


def _source(snapshot: Snapshot) -> LayerSource:
    remote = snapshot.remote
    assert remote is not None
    return LayerSource(remote.cid, remote.digest, remote.toc_digest, snapshot.labels.get(NAMESPACE, ""), snapshot.labels.get(TOC, ""))
