"""Which block lies where: an SQLite database beside the packs, which can be made again from them.

Read and written by many processes and threads at a time (WAL). A connection is used by one thread at a time and checked out for one statement
or transaction. The file may be replaced by another process that found it damaged: each use looks whether it is still the same.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ipfs_store.cids import Cid
from ipfs_store.errors import StorageFailed
from ipfs_store.nodes.locks import storage_failed
from ipfs_store.nodes.packs import Place, first_location

_VERSION = 2
_SCHEMA = (
    # By location first: what a push brings is one behind the other there, and so is what is swept. The CIDs are spread evenly over the other.
    "CREATE TABLE blocks (location INTEGER PRIMARY KEY, size INTEGER NOT NULL, cid BLOB NOT NULL)",
    "CREATE UNIQUE INDEX by_cid ON blocks (cid)",
    f"PRAGMA user_version = {_VERSION}",
)
_REPLACE = "UPDATE SET location = excluded.location, size = excluded.size"
_BUSY = 60.0
"""Seconds to wait for other writers, who take milliseconds."""
_CACHE = 8192  # KiB a connection; with SQLite's own 2 MiB, 2,700 new rows beside 200,000 take twice the time
_FEW = 4  # CIDs up to which a statement for each is quicker
_AT_ONCE = 256  # CIDs in one statement


class IndexDamaged(StorageFailed):
    """The file is gone, or is no index of ours: to be made again."""

    def __init__(self, path: Path, inode: int, why: str) -> None:
        super().__init__(f"{path}: the index of the blocks {why}")
        self.inode = inode
        """Of the file that it is about, 0 for none."""
        self.why = why


class Row(NamedTuple):
    """A block in the index."""

    location: int
    size: int
    cid: Cid

    @property
    def place(self) -> Place:
        """Where it lies."""
        return Place(self.location, self.size)


class _Connection(NamedTuple):
    database: sqlite3.Connection
    inode: int


class Index:
    """Every method raises StorageFailed, and IndexDamaged where ``rebuild`` is to be called."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet."""
        self.path = path
        self._name = str(path)  # looked at for every use: a Path is twice as slow
        self._idle: list[_Connection] = []
        self._mutex = threading.Lock()
        self._closed = False

    def find(self, cids: Sequence[Cid]) -> dict[Cid, Place]:
        """Where those of the blocks are that are here."""
        found: dict[Cid, Place] = {}
        with self._connection() as database:
            for cid in cids if len(cids) <= _FEW else ():
                row = database.execute("SELECT location, size FROM blocks WHERE cid = ?", (cid,)).fetchone()
                if row is not None:
                    found[cid] = Place(*row)
            for first in range(0, len(cids) if len(cids) > _FEW else 0, _AT_ONCE):
                some = cids[first : first + _AT_ONCE]
                # One row, whatever it holds: for each row Python lets go of its lock, and where another thread is busy it has it back 5 ms later.
                keys, locations, sizes = database.execute(
                    "SELECT json_group_array(hex(cid)), json_group_array(location), json_group_array(size) FROM blocks"
                    f" WHERE cid IN ({','.join('?' * len(some))})",
                    some,
                ).fetchone()
                places = map(Place, json.loads(locations), json.loads(sizes))
                found.update(zip(map(_cid, json.loads(keys)), places, strict=True))
        return found

    def insert(self, rows: Iterable[Row], *, durable: bool) -> None:
        """Add rows, all or none. ``durable``: they and all older ones are on the disk at the return, and take the place of older rows of the same
        CIDs, whose blocks may not be; otherwise the older rows stay.
        """
        # In the order of the index that they are spread over: its pages are then touched once each.
        ordered = sorted(rows, key=lambda row: row.cid)
        with self._transaction(durable=durable) as database:
            database.executemany(f"INSERT INTO blocks VALUES (?, ?, ?) ON CONFLICT (cid) DO {_REPLACE if durable else 'NOTHING'}", ordered)
            if durable and not ordered:
                database.execute(f"PRAGMA user_version = {_VERSION}")  # something has to be written for the older ones to be synced

    def delete(self, locations: Iterable[int]) -> None:
        """Remove rows, all or none."""
        with self._transaction(durable=False) as database:
            database.executemany("DELETE FROM blocks WHERE location = ?", ((location,) for location in locations))

    def delete_behind(self, pack: int, end: int) -> int:
        """Remove the rows of a pack whose blocks end behind the offset ``end``; how many."""
        first = first_location(pack)
        with self._transaction(durable=False) as database:
            return database.execute(
                "DELETE FROM blocks WHERE location >= ? AND location < ? AND location + size > ?",
                (first, first_location(pack + 1), first + end),
            ).rowcount

    def move(self, moved: Iterable[tuple[int, int]]) -> None:
        """Rows from one location to another, all or none, on the disk when it returns; those that are gone stay so."""
        with self._transaction(durable=True) as database:
            database.executemany("UPDATE blocks SET location = ? WHERE location = ?", ((new, old) for old, new in moved))

    def after(self, location: int, limit: int, *, before: int = 1 << 62) -> list[Row]:
        """Some rows in the order of their locations, from ``location`` on."""
        with self._connection() as database:
            found = database.execute(
                "SELECT location, size, cid FROM blocks WHERE location >= ? AND location < ? ORDER BY location LIMIT ?",
                (location, before, limit),
            ).fetchall()
        return [Row(*row) for row in found]

    def cids_after(self, last: bytes, limit: int) -> list[Cid]:
        """Some CIDs in their order, behind ``last``."""
        with self._connection() as database:
            found = database.execute("SELECT cid FROM blocks WHERE cid > ? ORDER BY cid LIMIT ?", (last, limit)).fetchall()
        return [Cid(cid) for (cid,) in found]

    def totals(self, pack: int | None = None) -> tuple[int, int]:
        """How many blocks there are, in one pack or all, and their bytes."""
        first, end = (first_location(pack), first_location(pack + 1)) if pack is not None else (0, 1 << 62)
        with self._connection() as database:
            count, size = database.execute(
                "SELECT count(*), coalesce(sum(size), 0) FROM blocks WHERE location >= ? AND location < ?", (first, end)
            ).fetchone()
        return count, size

    def end_of(self, pack: int) -> int:
        """Where the last block of a pack ends, 0 if there is none."""
        with self._connection() as database:
            row = database.execute(
                "SELECT location, size FROM blocks WHERE location >= ? AND location < ? ORDER BY location DESC LIMIT 1",
                (first_location(pack), first_location(pack + 1)),
            ).fetchone()
        return Place(*row).offset + row[1] if row else 0

    def inode(self) -> int:
        """Which file it is; 0 for none."""
        try:
            return os.stat(self._name).st_ino  # noqa: PTH116
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise storage_failed(error, self.path, "open the index of the blocks") from error

    def replace(self, rows: Iterable[Row]) -> None:
        """Make it anew. The caller sees to it that nobody else does; those who have the old one open notice at their next use."""
        fresh = self.path.with_suffix(".new")
        try:
            for path in (fresh, *map(self._beside, ("-wal", "-shm"))):
                path.unlink(missing_ok=True)  # the log of the old one would be played onto the new one
            database = sqlite3.connect(fresh, isolation_level=None)
            try:
                database.execute("PRAGMA synchronous = OFF")
                for statement in _SCHEMA:
                    database.execute(statement)
                database.execute("BEGIN")
                database.executemany("INSERT OR IGNORE INTO blocks VALUES (?, ?, ?)", rows)
                database.execute("COMMIT")
                database.execute("PRAGMA journal_mode = WAL")
            finally:
                database.close()
            _sync(fresh)
            fresh.rename(self.path)
            _sync(self.path.parent)
        except OSError as error:
            raise storage_failed(error, self.path, "write the index of the blocks") from error
        except sqlite3.Error as error:
            raise _failed(error, self.path, 0) from error

    def close(self) -> None:
        """Close the connections. One that a thread still uses is closed when it is done."""
        with self._mutex:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.database.close()

    @contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        with self._connection() as database:
            database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        connection = self._take()
        try:
            yield connection.database
        except sqlite3.Error as error:
            connection.database.close()
            raise _failed(error, self.path, connection.inode) from error
        except BaseException:
            connection.database.close()
            raise
        with self._mutex:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.database.close()

    def _take(self) -> _Connection:
        inode = self.inode()
        while True:
            with self._mutex:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if connection.inode == inode:
                return connection
            connection.database.close()
        if not inode:
            raise IndexDamaged(self.path, 0, "is gone")
        try:
            database = sqlite3.connect(
                f"file:{_quoted(self.path)}?mode=rw", uri=True, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )
            try:
                if database.execute("PRAGMA user_version").fetchone() != (_VERSION,):
                    raise IndexDamaged(self.path, inode, "is no index of this format")
                database.execute(f"PRAGMA cache_size = -{_CACHE}")
            except BaseException:
                database.close()
                raise
        except sqlite3.Error as error:
            raise _failed(error, self.path, inode) from error
        if self.inode() != inode:  # replaced between the two looks: which one did we open?
            database.close()
            return self._take()
        return _Connection(database, inode)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def _failed(error: sqlite3.Error, path: Path, inode: int) -> StorageFailed:
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return IndexDamaged(path, inode, f"is damaged ({error})")
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return storage_failed(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), path, "write the index of the blocks")
    if code & 0xFF == sqlite3.SQLITE_BUSY:
        return StorageFailed(
            f"{path}: another process has been writing for {_BUSY:g} s",
            hint="a stopped or hanging ipfs-store process has it: `fuser` on that file names it",
        )
    return StorageFailed(f"{path}: the index of the blocks cannot be used: {error}", hint="is the file system full, or mounted read-only?")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))


def _cid(text: str) -> Cid:
    return Cid(bytes.fromhex(text))
