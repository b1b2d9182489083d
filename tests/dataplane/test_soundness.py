"""Bits that flip on the disk: found by hashing, or by the kernel where files are sealed; what was damaged is fetched again."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from snapshotter.cache import verity
from snapshotter.dataplane.soundness import Soundness
from tests.dataplane.test_candidates import MIB, Cache
from tests.patience import PATIENCE

CORRUPTED = b"3,1,2,-;fs-verity (vda, inode %d): FILE CORRUPTED! pos=0, level=-1, want_hash=sha256:00, real_hash=sha256:11\n"


class Disk:
    """A file system with fs-verity, as far as ioctls go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sealed: set[int] = set()
        self.busy: set[int] = set()
        monkeypatch.setattr(fcntl, "ioctl", self.ioctl)

    def ioctl(self, file: int, request: int, argument: bytes) -> bytes:
        inode = os.fstat(file).st_ino
        if request == 0x80086601:
            return ((1 << 20) * (inode in self.sealed)).to_bytes(8, "little")
        assert request == 0x40806685 and len(argument) == 128 and argument[:12] == bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 16, 0, 0])
        assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        if inode in self.busy:
            raise OSError(errno.ETXTBSY, "Text file busy")
        if inode in self.sealed:
            raise FileExistsError
        self.sealed.add(inode)
        return argument


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path, 1 << 40)
    made.add("layer", b"one" * 1000, b"two" * 1000, b"3" * MIB)
    return made


def files(cache: Cache) -> list[Path]:
    return [Path(file.path) for file in cache.store.files()]


def flip(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))


def test_without_fs_verity_the_reason_is_said(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, request: int, argument: bytes) -> bytes:
        raise OSError(errno.ENOTTY, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    assert "tune2fs -O verity" in Soundness(cache.store, cache.kept).no_verity
    assert cache.store.fresh is None
    assert not list((cache.store.folder / "tmp").iterdir())


async def test_a_flipped_bit_is_found_by_hashing(cache: Cache) -> None:
    sound = Soundness(cache.store, cache.kept, no_verity="none here")
    assert await sound.check_all(everything=True) == (3, 0)
    damaged, *others = files(cache)
    flip(damaged)
    assert await sound.check_all(everything=True) == (3, 1)
    assert files(cache) == others


async def test_a_file_that_grew_or_that_nothing_tells_of_is_dropped(cache: Cache) -> None:
    grown, *others = files(cache)
    grown.chmod(0o644)
    with grown.open("ab") as file:
        file.write(b"x")
    cache.store.put(bytes(32), [b"of no layer"])
    assert await Soundness(cache.store, cache.kept, no_verity="none here").check_all(everything=True) == (4, 2)
    assert files(cache) == others


async def test_what_is_put_is_sealed_behind_the_next_sync(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    sound = Soundness(cache.store, cache.kept)
    assert sound.no_verity == ""
    disk.sealed.clear()  # of the probe
    cache.add("next", b"new" * 100)
    (new,) = set(files(cache)) - {path for path in files(cache) if b"new" not in path.read_bytes()}
    assert not disk.sealed
    disk.busy = {new.stat().st_ino}
    sound.seal_fresh()  # somebody has it open
    assert not disk.sealed
    disk.busy = set()
    sound.seal_fresh()
    assert disk.sealed == {new.stat().st_ino}


async def test_what_an_earlier_process_left_unsealed_is_hashed_once_and_sealed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    sound = Soundness(cache.store, cache.kept)
    damaged, *others = files(cache)
    flip(damaged)
    assert await sound.check_all(everything=False) == (3, 1)
    assert disk.sealed >= {path.stat().st_ino for path in others}
    assert await sound.check_all(everything=False) == (0, 0)
    assert await sound.check_all(everything=True) == (2, 0)


async def test_what_the_kernel_finds_corrupted_is_dropped(cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Disk(monkeypatch)
    sound = Soundness(cache.store, cache.kept)
    damaged, whole, *others = files(cache)
    flip(damaged)  # with fs-verity it cannot be read; without, it is wrong
    os.mkfifo(tmp_path / "kmsg")
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sound.watch, tmp_path / "kmsg")
            await trio.testing.wait_all_tasks_blocked()
            with (tmp_path / "kmsg").open("wb", buffering=0) as log:
                for inode in (damaged.stat().st_ino, whole.stat().st_ino, 999_999_999):
                    log.write(CORRUPTED % inode)
                    await trio.testing.wait_all_tasks_blocked()
    assert files(cache) == [whole, *others]


def test_a_chunk_of_a_file_that_cannot_be_read_is_fetched_again(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    index = cache.native["layer"]
    chunk = index.first[0]

    def broken(file: int, size: int, offset: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        assert cache.store.read_chunk(index.id(0), 1, 0, 0, index.chunk_size[chunk], index.digest(chunk)) is None
    assert not cache.store.has(index.id(0))


@pytest.mark.parametrize(
    ("records", "inodes"),
    [
        (CORRUPTED % 77 + CORRUPTED % 78, [77, 78]),
        (b"6,9,9,-;fs-verity (dm-0, inode 1): Using implementation", []),
        (b"3,1,2,-;EXT4-fs error (device vda): inode 77", []),
    ],
)
def test_the_kernels_log_is_understood(records: bytes, inodes: list[int]) -> None:
    assert verity.corrupted_inodes(records) == inodes
