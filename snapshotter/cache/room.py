"""How much room the cache may take, what goes when there is none, and what is gone but still takes some.

A content that an overlay has looked up keeps its bytes on the disk after its name is gone, until the overlay is unmounted. So what was
unlinked is remembered by its file handle (open_by_handle_at(2)), which opens for as long as somebody holds the file; it counts until then.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.errors import StorageFailed

_log = logging.getLogger(__name__)

_PAGE = 4096
_KEEP = 0.9
"""What is left of the limit after an eviction, so that the folder is listed seldom."""
_LOOK_AT_DISK = 32 << 20
"""Bytes between two looks at how full the disk is."""
_GIVE_UP = 5.0
"""Seconds for which nothing is taken after an eviction that freed too little: each lists every file."""
_YOUNG = 10.0
"""Seconds for which a content stays that was just put: the kernel is on its way to it, and would find it gone."""
_QUIET = 60.0
"""Seconds without trouble after which it is worth a line in the log again."""
_HANDLE_BYTES = 128  # MAX_HANDLE_SZ
_AT_FDCWD = -100
_FULL = "the cache is full of what is in use, or its disk is"
_MORE = "allow it more: cache.max_bytes, cache.reserve"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that may go."""

    wanted: bool
    """Whether a layer that is mounted has it; those go last."""
    used: float
    """When it was used last, as far as that is known, in seconds since 1970: older ones go first."""
    size: int
    """Bytes on disk."""
    path: str

    @property
    def order(self) -> tuple[bool, float]:
        """What goes first sorts first."""
        return self.wanted, self.used


class Room:
    """``max_bytes`` in all, and ``reserve`` bytes of the file system of ``folder`` that stay free; one for all that is kept there.

    Nothing is evicted but what ``candidates`` names.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = 1 << 62, reserve: int = 0) -> None:
        self.max_bytes = max_bytes
        self.reserve = reserve
        self.candidates: Callable[[], list[Candidate]] = list
        self._folder = folder
        self._lock = threading.Lock()
        self._evicting = threading.Lock()
        self._used = 0
        self._since_look = _LOOK_AT_DISK
        self._refuse_until = 0.0
        self._quiet_until = 0.0
        self._young: dict[str, float] = {}
        self._held = _Held(folder)

    @property
    def used(self) -> int:
        """Bytes on disk under a name."""
        return self._used

    @property
    def held(self) -> int:
        """Bytes that are unlinked and still taken."""
        return self._held.bytes

    @property
    def full(self) -> bool:
        """Whether nothing is taken for the moment, since nothing can go."""
        return bool(self._refuse_until) and time.monotonic() < self._refuse_until

    def retry(self) -> None:
        """Something may go now that could not before."""
        self._refuse_until = 0.0

    def could_take(self) -> int:
        """Bytes that there would be room for if all went that is here under a name."""
        self._held.look()
        most = self.max_bytes - self._held.bytes
        if self._folder is not None:
            status = os.statvfs(self._folder)
            most = min(most, self._used + status.f_bavail * status.f_frsize - self.reserve)
        return max(most, 0)

    def counted(self, size: int) -> None:
        """``size`` bytes were found at the start."""
        with self._lock:
            self._used += size

    def take(self, size: int) -> None:
        """Have room for a file of ``size`` bytes; raises StorageFailed if there is none, whatever is evicted."""
        size = on_disk(size)
        if self.full:
            raise StorageFailed(_FULL, hint=_MORE)
        with self._lock:
            self._used += size
            self._since_look += size
            look = self._since_look >= _LOOK_AT_DISK
            if look:
                self._since_look = 0
            over = self._used + self._held.bytes - self.max_bytes
        if over <= 0 and not (look and self._lacking() > 0):
            return
        try:
            self._make_room()
        except StorageFailed:
            self.give_back(size)
            raise

    def trim(self) -> None:
        """Evict what is over the limits, which may have been changed since; what cannot be had is said in the log."""
        try:
            self._make_room()
        except StorageFailed as error:
            self.say_once(error.message)

    def give_back(self, size: int) -> None:
        """What was taken is not needed."""
        with self._lock:
            self._used -= on_disk(size)

    def say_once(self, reason: str) -> None:
        """To the log, the first of many times that something cannot be kept."""
        now = time.monotonic()
        if now >= self._quiet_until:
            _log.warning("%s; reads go on without it", reason)
        self._quiet_until = now + _QUIET

    def keep_young(self, path: str) -> None:
        """The file is about to be looked up."""
        with self._lock:
            self._young[path] = time.monotonic() + _YOUNG

    def unlink(self, path: str) -> None:
        """Delete a file that was found to be wrong; nothing happens if it is not there."""
        try:
            self._unlink(path, on_disk(os.stat(path).st_size))  # noqa: PTH116
        except FileNotFoundError:
            return
        self._held.save()

    def _unlink(self, path: str, size: int) -> int:
        """The bytes that are free by that, 0 where somebody holds the file; raises FileNotFoundError."""
        held = self._held.unlink(path, size)
        with self._lock:
            self._used -= size
        return 0 if held else size

    def _lacking(self) -> int:
        """Bytes that the disk has too few of free."""
        if self._folder is None or not self.reserve:
            return 0
        status = os.statvfs(self._folder)
        return self.reserve - status.f_bavail * status.f_frsize

    def _make_room(self) -> None:
        if not self._evicting.acquire(blocking=False):
            return  # somebody does; what a few threads put meanwhile is not much
        try:
            self._held.look()
            over = self._used + self._held.bytes - self.max_bytes
            lacking = self._lacking()
            if over <= 0 and lacking <= 0:
                return
            need = max(over + int(self.max_bytes * (1 - _KEEP)) if over > 0 else 0, lacking)
            freed = self._evict(need)
            _log.info("the cache had %d bytes to free, and freed %d", need, freed)
            if freed < max(over, lacking):
                self._refuse_until = time.monotonic() + _GIVE_UP
                self._since_look = _LOOK_AT_DISK
                raise StorageFailed(f"{_FULL}: {self._used} bytes, and {self._held.bytes} held by containers", hint=_MORE)
        finally:
            self._evicting.release()

    def _evict(self, need: int) -> int:
        now = time.monotonic()
        with self._lock:
            self._young = {path: until for path, until in self._young.items() if until > now}
            young = set(self._young)
        freed = 0
        for candidate in sorted(self.candidates(), key=lambda candidate: candidate.order):
            if freed >= need:
                break
            if candidate.path not in young:
                with contextlib.suppress(FileNotFoundError):
                    freed += self._unlink(candidate.path, candidate.size)
        self._held.save()
        return freed


class _Handle(ctypes.Structure):
    _fields_ = (("handle_bytes", ctypes.c_uint), ("handle_type", ctypes.c_int), ("f_handle", ctypes.c_ubyte * _HANDLE_BYTES))


class _Held:
    """Files without a name that somebody holds. Where file systems know no handles, or we may not use them, nothing counts as held."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._lock = threading.Lock()
        self._files: list[tuple[bytes, int]] = []
        self.bytes = 0
        if folder is not None and (folder / "held").exists():
            try:
                for line in (folder / "held").read_text().splitlines():
                    handle, _, size = line.partition(" ")
                    self._files.append((bytes(_Handle.from_buffer_copy(bytes.fromhex(handle))), int(size)))
            except (OSError, ValueError) as error:  # it is not synced: a power failure may have torn it, and nothing is held after one
                _log.warning("what was unlinked and still held is not known any more: %s/held cannot be read (%s)", folder, error)
            self.look()

    def unlink(self, path: str, size: int) -> bool:
        """Delete the file; whether it is held."""
        handle = _Handle(_HANDLE_BYTES)
        mount = ctypes.c_int()
        known = self._folder is not None and not self._libc.name_to_handle_at(
            _AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0
        )
        os.unlink(path)  # noqa: PTH108
        if not known or not self._is_held(bytes(handle)):
            return False
        with self._lock:
            self._files.append((bytes(handle), size))
            self.bytes += size
        return True

    def look(self) -> None:
        """Forget those that nobody holds any more."""
        with self._lock:
            self._files = [(handle, size) for handle, size in self._files if self._is_held(handle)]
            self.bytes = sum(size for _, size in self._files)

    def save(self) -> None:
        """For the next process."""
        if self._folder is None:
            return
        part = self._folder / "held.part"
        with self._lock:
            part.write_text("".join(f"{handle.hex()} {size}\n" for handle, size in self._files))
        part.rename(self._folder / "held")

    def _is_held(self, handle: bytes) -> bool:
        if self._folder is None:
            return False
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = self._libc.open_by_handle_at(folder, ctypes.byref(_Handle.from_buffer_copy(handle)), os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(folder)
        if file < 0:
            return False
        try:
            return os.fstat(file).st_nlink == 0
        finally:
            os.close(file)


def on_disk(size: int) -> int:
    """Bytes that a file of this size takes, in whole pages."""
    return -(-size // _PAGE) * _PAGE
