"""The mount itself: clearing away a dead one, options, and what the kernel lets us set after."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ipfs_store.errors import StorageFailed

_log = logging.getLogger(__name__)

# dev and suid: what may be done with device and set-id files is decided where the layers are used (the overlay of a container, the bind
# mount of a view), as it is for unpacked layers; nobody but root comes here.
OPTIONS = frozenset({"fsname=ipfs", "subtype=ipfs-layers", "ro", "allow_other", "default_permissions", "dev", "suid"})
# As pyfuse3 leaves it, twelve stalled reads stop every other, and sequential reads take 2 to 4 times as long (MEASURED, "FUSE reads").
MAX_BACKGROUND = 64
# Tasks that may wait at a time: the background requests above and the same number of lookups and page faults.
MAX_TASKS = 4 * MAX_BACKGROUND


@dataclass(frozen=True, slots=True)
class MountLine:
    """One line of /proc/self/mountinfo (proc(5))."""

    device: str
    """``major:minor``"""
    path: str
    kind: str


def mounts_at(path: Path) -> list[MountLine]:
    """What is mounted on ``path``, the lowest first. Never asks the mount itself, which may hang."""
    return [line for line in _mount_lines() if line.path == str(path)]


def clear_stale(mountpoint: Path) -> None:
    """Detach what a dead predecessor left mounted on ``mountpoint``; raises StorageFailed if it stays."""
    for _ in mounts_at(mountpoint):
        _log.warning("detaching the mount that a dead data plane left on %s; containers that still use it have to be restarted", mountpoint)
        _run("umount", "--lazy", str(mountpoint))


def tune(mountpoint: Path, *, read_ahead_kib: int, scratch: Path) -> None:
    """Set what the FUSE handshake of pyfuse3 cannot: requests in the background, and read-ahead. What cannot be set is logged, no more."""
    lines = mounts_at(mountpoint)
    if not lines:
        return
    device = lines[-1].device
    with contextlib.suppress(_NotSet):
        _set(Path("/sys/class/bdi", device, "read_ahead_kb"), read_ahead_kib)
    try:
        with _connections(scratch) as folder:
            connection = folder / device.partition(":")[2]
            _set(connection / "max_background", MAX_BACKGROUND)
            _set(connection / "congestion_threshold", MAX_BACKGROUND * 3 // 4)
    except _NotSet:
        return
    except StorageFailed as error:
        _log.info("max_background stays as it is: %s", error)


class _NotSet(Exception):
    """Logged already."""


@contextlib.contextmanager
def _connections(scratch: Path) -> Iterator[Path]:
    """The control file system of FUSE, mounted for a moment where it is not mounted for all (containers, minimal systems)."""
    usual = Path("/sys/fs/fuse/connections")
    if any(line.path == str(usual) and line.kind == "fusectl" for line in _mount_lines()):
        yield usual
        return
    with tempfile.TemporaryDirectory(prefix="fusectl.", dir=scratch) as folder:
        _run("mount", "-t", "fusectl", "fusectl", folder)
        try:
            yield Path(folder)
        finally:
            _run("umount", folder)


def _set(path: Path, value: int) -> None:
    try:
        path.write_text(str(value))
    except OSError as error:
        _log.info("%s cannot be set to %d (%s): reads are slower", path, value, error.strerror)
        raise _NotSet from error


def _mount_lines() -> list[MountLine]:
    lines = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields = before.split()
        path = fields[4].decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")
        lines.append(MountLine(fields[2].decode(), path, after.split()[0].decode()))
    return lines


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StorageFailed(f"{' '.join(command)}: {done.stderr.strip()}")
