"""Snapshots and their rules, as containerd's own snapshotters keep them (containerd, ``core/snapshots/snapshotter.go``)."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from ipfs_store.errors import IpfsStoreError, StorageFailed
from snapshotter.state.filters import Filter, lookup_in

_VERSION = 1
_SCHEMA = """
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: it names folders and layers
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshots(id),
    kind INTEGER NOT NULL,
    created INTEGER NOT NULL,              -- nanoseconds since the epoch
    updated INTEGER NOT NULL,
    labels TEXT NOT NULL,                  -- JSON
    size INTEGER NOT NULL DEFAULT 0,       -- bytes
    inodes INTEGER NOT NULL DEFAULT 0,
    cid TEXT,                              -- of a remote snapshot: where its layer comes from
    digest TEXT,
    toc_digest TEXT
);
CREATE INDEX children ON snapshots(parent);
"""
_COLUMNS = "s.id, s.name, p.name, s.kind, s.created, s.updated, s.labels, s.size, s.inodes, s.cid, s.digest, s.toc_digest"
_FROM = "FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent"


class StateError(IpfsStoreError):
    """A request that the rules of snapshots forbid."""


class Missing(StateError):
    """No snapshot of that name."""


class AlreadyExists(StateError):
    """A snapshot of that name is there."""


class FailedPrecondition(StateError):
    """It is not in the state that the request needs."""


class InvalidArgument(StateError):
    """The request itself is wrong."""


class Kind(IntEnum):
    """As on the wire (snapshots.proto)."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Remote:
    """Where the layer of a remote snapshot comes from."""

    cid: str
    digest: str
    toc_digest: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot."""

    id: int
    name: str
    """The key of an active one or a view, the name of a committed one."""
    parent: str
    """Empty: none."""
    kind: Kind
    created: int
    """Nanoseconds since the epoch."""
    updated: int
    labels: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    """Bytes on disk, of a committed one."""
    inodes: int = 0
    remote: Remote | None = None

    def matches(self, wanted: Filter) -> bool:
        """By the fields ``name``, ``parent``, ``kind`` (``active``, ``view``, ``committed``) and ``labels``."""
        fields = {"name": self.name, "parent": self.parent, "kind": self.kind.name.lower()}
        return wanted.matches(lookup_in(fields, self.labels))


class SnapshotState:
    """The table. Thread-safe; every change is one transaction and on the disk when the call returns."""

    def __init__(self, path: Path) -> None:
        """Open or make the database; raises StorageFailed."""
        self._path = path
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            # A commit waits for the disk (some 2 ms with WAL): a snapshot that containerd was told of must outlive a power cut.
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
                self._db.execute(f"PRAGMA {pragma}")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
            elif version != _VERSION:
                raise StorageFailed(f"{path} was written by a newer version (schema {version}, known: {_VERSION})", hint="upgrade this one")
        except sqlite3.Error as error:
            raise StorageFailed(f"{path} cannot be opened: {error}", hint="is the disk full, or the file damaged?") from error

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    def get(self, name: str) -> Snapshot:
        """Raises Missing."""
        found = self.find(name)
        if found is None:
            raise Missing(f"snapshot {name!r} does not exist")
        return found

    def find(self, name: str) -> Snapshot | None:
        """The snapshot, or None."""
        return next(iter(self._select("WHERE s.name = ?", name)), None)

    def numbered(self, number: int) -> Snapshot | None:
        """The snapshot with that id, or None."""
        return next(iter(self._select("WHERE s.id = ?", number)), None)

    def select(self, wanted: Filter | None = None) -> list[Snapshot]:
        """All that match, in order of creation."""
        return [snapshot for snapshot in self._select("ORDER BY s.id") if wanted is None or snapshot.matches(wanted)]

    def chain(self, name: str) -> list[Snapshot]:
        """The snapshot and its ancestors, itself first; raises Missing."""
        with self._lock:
            found = [self.get(name)]
            while found[-1].parent:
                found.append(self.get(found[-1].parent))
            return found

    def create(self, name: str, parent: str, kind: Kind, labels: Mapping[str, str], remote: Remote | None = None) -> Snapshot:
        """Add one; raises AlreadyExists, Missing (parent), InvalidArgument (parent not committed, no name)."""
        if not name:
            raise InvalidArgument("a snapshot needs a key")
        with self._changing():
            if self.find(name) is not None:
                raise AlreadyExists(f"snapshot {name!r} exists already")
            parent_id = None
            if parent:
                below = self.find(parent)
                if below is None:
                    raise Missing(f"parent snapshot {parent!r} does not exist")
                if below.kind is not Kind.COMMITTED:
                    raise InvalidArgument(f"parent {parent!r} is {below.kind.name.lower()}, not committed")
                parent_id = below.id
            now = time.time_ns()
            self._db.execute(
                "INSERT INTO snapshots (name, parent, kind, created, updated, labels, cid, digest, toc_digest) VALUES (?,?,?,?,?,?,?,?,?)",
                (
                    name, parent_id, int(kind), now, now, _dump(labels),
                    remote and remote.cid, remote and remote.digest, remote and remote.toc_digest,
                ),
            )  # fmt: skip
            return self.get(name)

    def commit(self, key: str, name: str, labels: Mapping[str, str], size: int, inodes: int) -> None:
        """Make the active snapshot ``key`` the committed ``name``; raises Missing, AlreadyExists, FailedPrecondition (not active)."""
        if not name:
            raise InvalidArgument("a committed snapshot needs a name")
        with self._changing():
            if self.find(name) is not None:
                raise AlreadyExists(f"snapshot {name!r} exists already")
            active = self.get(key)
            if active.kind is not Kind.ACTIVE:
                raise FailedPrecondition(f"snapshot {key!r} is {active.kind.name.lower()}, not active")
            now = time.time_ns()
            self._db.execute(
                "UPDATE snapshots SET name=?, kind=?, created=?, updated=?, labels=?, size=?, inodes=? WHERE id=?",
                (name, int(Kind.COMMITTED), now, now, _dump(labels), size, inodes, active.id),
            )

    def remove(self, name: str) -> Snapshot:
        """Delete and return it; raises Missing, FailedPrecondition (it has children)."""
        with self._changing():
            snapshot = self.get(name)
            children = self._select("WHERE s.parent = ? LIMIT 1", snapshot.id)
            if children:
                raise FailedPrecondition(f"snapshot {name!r} has children, {children[0].name!r} for one")
            self._db.execute("DELETE FROM snapshots WHERE id=?", (snapshot.id,))
            return snapshot

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        """Change labels: all of them without ``paths`` or for ``labels``, one for ``labels.KEY`` (an empty value removes it).

        Raises Missing, InvalidArgument (a path that cannot change).
        """
        with self._changing():
            snapshot = self.get(name)
            kept = dict(snapshot.labels)
            for path in paths or ("labels",):
                head, _, key = path.partition(".")
                if head != "labels":
                    raise InvalidArgument(f"the field {path!r} of snapshot {name!r} cannot be changed")
                if key:
                    kept[key] = labels.get(key, "")
                else:
                    kept = dict(labels)
            self._db.execute("UPDATE snapshots SET labels=?, updated=? WHERE id=?", (_dump(kept), time.time_ns(), snapshot.id))
            return self.get(name)

    def _select(self, where: str, *values: object) -> list[Snapshot]:
        with self._lock:
            try:
                return [_snapshot(row) for row in self._db.execute(f"SELECT {_COLUMNS} {_FROM} {where}", values)]
            except sqlite3.Error as error:
                raise StorageFailed(f"{self._path} cannot be read: {error}") from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise StorageFailed(f"{self._path} cannot be changed: {error}", hint="is the disk full?") from error


def _dump(labels: Mapping[str, str]) -> str:
    return json.dumps({key: value for key, value in labels.items() if value})


def _snapshot(row: tuple[object, ...]) -> Snapshot:
    number, name, parent, kind, created, updated, labels, size, inodes, cid, digest, toc_digest = row
    remote = Remote(str(cid), str(digest), str(toc_digest)) if cid is not None else None
    assert isinstance(number, int) and isinstance(kind, int) and isinstance(size, int) and isinstance(inodes, int)
    assert isinstance(created, int) and isinstance(updated, int)
    return Snapshot(number, str(name), str(parent or ""), Kind(kind), created, updated, json.loads(str(labels)), size, inodes, remote)
