"""Killed at any moment, or cut off from power with whatever of the last writes on the disk: never a wrong byte, and nothing lost needlessly."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.cache import ContentStore, contents
from tests.cache.busy import NUMBERS, content_of, open_store
from tests.requirements import require_root, require_tool

EXPECTED = dict(content_of(number) for number in range(NUMBERS))


def kill_in_the_middle(folder: Path, seed: int) -> None:
    """A store in use, killed after a random number of operations."""
    chance = random.Random(seed)
    with subprocess.Popen([sys.executable, "-m", "tests.cache.busy", folder, str(seed)], stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        assert busy.stdout.read(chance.randrange(1, 900))
        busy.kill()


def is_whole(content: bytes, path: Path) -> bool:
    return path.read_bytes() == EXPECTED[content]


def assert_all_right(store: ContentStore) -> None:
    for file in store.files():
        assert is_whole(file.content, Path(file.path)), file


def damage(path: Path, chance: random.Random, aside: Path) -> None:
    """What a file system may make of a file that was not synced."""
    data = path.read_bytes()
    path.chmod(0o644)
    times = path.stat().st_mtime_ns
    match chance.randrange(7):
        case 0:
            return
        case 1:
            path.write_bytes(b"")
        case 2:
            path.write_bytes(data[: chance.randrange(len(data) + 1)])
        case 3:  # blocks that were never written
            at = chance.randrange(len(data) + 1) & ~511
            path.write_bytes(data[:at] + bytes(len(data) - at))
        case 4:  # the name did not get there
            path.unlink()
            return
        case 5:  # the rename did not
            path.rename(aside / f"1.{path.name[:8]}")
            return
        case _:  # somebody else's blocks, and the time at which it was made in place of ours
            path.write_bytes(chance.randbytes(len(data)))
            return
    os.utime(path, ns=(times, times))


def cut_power(folder: Path, chance: random.Random) -> tuple[int, set[bytes]]:
    """(the epoch that was synced, what is on the disk for certain): everything else is damaged, and the next boot has another id."""
    contents = folder / "contents"
    marker = contents / "synced"
    epoch = int(marker.read_text().split()[1]) if marker.exists() else 0
    if marker.exists():
        # It is fsynced before it is renamed: what is there is it, or the one before; or the disk lost it altogether.
        kept = chance.choice([f"another-boot {epoch}\n", f"another-boot {max(epoch - 1, 0)}\n", "", None])
        marker.unlink() if kept is None else marker.write_text(kept)
    certain = set()
    for path in contents.glob("data/??/*"):
        if 0 < int(path.stat().st_mtime) <= epoch:
            certain.add(bytes.fromhex(path.name))
        else:
            damage(path, chance, contents / "tmp")
    for path in [*contents.glob("partial/*"), *contents.glob("tmp/*"), *folder.glob("held*")]:
        damage(path, chance, contents / "tmp")
    return epoch, certain


@pytest.mark.parametrize("seed", range(6))
def test_after_a_kill_at_any_moment_everything_is_whole(tmp_path: Path, seed: int) -> None:
    for again in range(2):
        kill_in_the_middle(tmp_path, 100 * seed + again)
        store = open_store(tmp_path)
        assert_all_right(store)
        store.count()
        assert not list((tmp_path / "contents/tmp").iterdir())


@pytest.mark.parametrize("seed", range(8))
def test_after_a_power_cut_what_is_served_is_whole(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    for again in range(2):  # the second time, on what the first left
        kill_in_the_middle(tmp_path, 1000 + 100 * seed + again)
        _, certain = cut_power(tmp_path, chance)
        store = open_store(tmp_path)
        assert not store.sound
        checked, dropped = store.unproven(is_whole)
        assert_all_right(store)
        assert certain <= {file.content for file in store.files()}
        assert not [path for name in ("partial", "tmp") for path in (tmp_path / "contents" / name).iterdir()]
        assert checked >= dropped
        assert ContentStore(tmp_path / "contents").unproven(is_whole) == (0, 0)


_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, struct.pack("I", 2)  # EXT4_IOC_SHUTDOWN, what is in memory is lost


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, mounted."""
    require_root()
    require_tool("mkfs.ext4")
    image, point = tmp_path / "image", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


@pytest.mark.root
@pytest.mark.parametrize("seed", range(3))
def test_after_a_file_system_lost_what_was_in_memory_what_is_served_is_whole(
    disk: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for boot in range(3):
        monkeypatch.setattr(contents, "_boot_id", lambda boot=boot: f"boot-{boot}")
        store = open_store(disk)
        believed = {file.content for file in store.files() if 0 < file.epoch <= store._synced}
        store.unproven(is_whole)
        assert_all_right(store)
        assert believed <= {file.content for file in store.files()}
        kill_in_the_middle(disk, 5000 + 100 * seed + boot)
        folder = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(folder, _SHUTDOWN, _WITHOUT_LOG)
        os.close(folder)
        subprocess.run(["umount", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk.parent / "image", disk], check=True)
        for file in store.files():
            if 0 < file.epoch <= int((disk / "contents/synced").read_text().split()[1]):
                assert is_whole(file.content, Path(file.path)), "it was said to be on the disk"
