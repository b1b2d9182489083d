"""A root over a metadata image behaves as one of plain overlayfs: each statement here holds for both."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import random
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.mounts.native import unmount_below
from snapshotter.mounts.stack import Lower, Stack, mount_image, mount_stack
from tests.mounts.made import image_of
from tests.requirements import require_root

pytestmark = pytest.mark.root
DATA = bytes(random.Random(1).randbytes(300_000))
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


@pytest.fixture(params=["native", "overlayfs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    require_root()
    for name in ("tree/bin", "tree/dir/sub", "data", "rest", "meta", "upper", "work", "root", "scratch"):
        (tmp_path / name).mkdir(parents=True)
    tree = tmp_path / "tree"
    (tree / "data").write_bytes(DATA)
    (tree / "data").chmod(0o644)
    shutil.copy("/bin/cat", tree / "bin/cat")
    shutil.copy("/usr/bin/id", tree / "bin/id")
    (tree / "bin/id").chmod(0o4755)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    tmp_path.chmod(0o755)  # others come in
    os.link(tree / "data", tree / "dir/twin")
    (tree / "dir/sub/file").write_text("file")
    (tree / "link").symlink_to("dir/sub/file")
    (tree / "empty").touch()
    os.setxattr(tree / "data", "user.note", b"note")
    os.setxattr(tree / "bin/cat", "security.capability", CAPABILITY)
    with (tree / "sparse").open("wb") as sparse:
        sparse.truncate(10 << 20)
    if request.param == "native":
        (tmp_path / "image").write_bytes(image_of(tree, tmp_path / "data"))
        mount_image(tmp_path / "image", tmp_path / "meta", "file")
        stack = Stack([Lower(tmp_path / "meta")], [tmp_path / "rest", tmp_path / "data"], tmp_path / "upper", tmp_path / "work")
        mount_stack(stack, tmp_path / "root", scratch=tmp_path / "scratch")
    else:
        options = f"index=off,lowerdir={tree},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", tmp_path / "root"], check=True)
    yield tmp_path / "root"
    unmount_below([tmp_path])


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_programs_run_and_cannot_be_written_meanwhile(root: Path) -> None:
    running = subprocess.Popen([root / "bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None and running.stdout is not None
    running.stdin.write(b"x\n")
    running.stdin.flush()
    assert running.stdout.readline() == b"x\n"
    (root / "bin/cat").chmod(0o755)
    assert os.getxattr(root / "bin/cat", "security.capability") == CAPABILITY
    running.stdin.close()
    assert running.wait() == 0
    running.stdout.close()
    with (root / "bin/cat").open("ab") as file:
        file.write(b"\0")
    assert output(root / "bin/cat", root / "dir/sub/file") == "file"


def test_maps_are_read_shared_and_private(root: Path) -> None:
    with (root / "data").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as map_:
        assert map_[:] == DATA
    with (root / "data").open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as private:
            private[0:3] = b"own"
        with mmap.mmap(file.fileno(), 0) as shared:
            shared[100_000:100_003] = b"new"
            shared.flush()
    expected = DATA[:100_000] + b"new" + DATA[100_003:]
    assert (root / "data").read_bytes() == expected


def test_copies_clones_truncations_and_appends(root: Path) -> None:
    subprocess.run(["cp", "--reflink=auto", root / "data", root / "copy"], check=True)
    assert (root / "copy").read_bytes() == DATA
    with (root / "data").open("ab") as file:
        file.write(b"more")
    assert (root / "data").read_bytes() == DATA + b"more"
    os.truncate(root / "data", 10)
    assert (root / "data").read_bytes() == DATA[:10]
    (root / "dir/sub/file").write_text("")
    assert (root / "dir/sub/file").stat().st_size == 0
    with (root / "copy").open("rb") as source, (root / "range").open("wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 5000, 1000) == 5000
    assert (root / "range").read_bytes() == DATA[1000:6000]


def test_attributes_are_read_set_listed_and_survive_copying_up(root: Path) -> None:
    assert os.getxattr(root / "data", "user.note") == b"note"
    (root / "data").chmod(0o600)
    os.setxattr(root / "data", "user.other", b"x")
    assert sorted(os.listxattr(root / "data")) == ["user.note", "user.other"]
    os.removexattr(root / "data", "user.note")
    assert os.listxattr(root / "data") == ["user.other"]
    os.setxattr(root / "dir", "trusted.mine", b"y")
    assert os.listxattr(root / "dir") == ["trusted.mine"]
    assert (root / "data").read_bytes() == DATA


def test_locks_hold_between_openers(root: Path) -> None:
    for how in (fcntl.flock, fcntl.lockf):
        with (root / "data").open("r+b") as one:
            how(one, fcntl.LOCK_EX)
            script = f"import fcntl; f=open({str(root / 'data')!r},'r+b'); fcntl.{how.__name__}(f, fcntl.LOCK_EX|fcntl.LOCK_NB)"
            other = subprocess.run(["python3", "-c", script], capture_output=True, text=True)
            assert other.returncode == 1 and "BlockingIOError" in other.stderr


def test_changes_are_noticed_by_inotify(root: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    events = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        everything = 0xFFF
        assert libc.inotify_add_watch(events, os.fsencode(root / "dir"), everything) >= 0
        (root / "dir/new").write_text("x")
        (root / "dir/new").rename(root / "dir/newer")
        (root / "dir/sub/file").read_text()
        (root / "dir/newer").unlink()
        seen, data = set(), os.read(events, 1 << 16)
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            seen.add((mask & everything, data[16 : 16 + length].rstrip(b"\0").decode()))
            data = data[16 + length :]
        create, moved_from, moved_to, delete = 0x100, 0x40, 0x80, 0x200
        assert {(create, "new"), (moved_from, "new"), (moved_to, "newer"), (delete, "newer")} <= seen
    finally:
        os.close(events)


def test_one_file_system_for_all_tools_that_ask(root: Path) -> None:
    (root / "written").write_bytes(b"w" * 10_000)
    (root / "dir/sub/file").chmod(0o600)
    devices = {path.lstat().st_dev for path in root.rglob("*")} | {root.stat().st_dev}
    assert len(devices) == 1
    assert output("find", root, "-xdev", "-type", "f").count("\n") == 8
    plain, limited = (int(output("du", *options, "--apparent-size", "-B1", root).split()[-2]) for options in ((), ("-x",)))
    assert plain == limited > 300_000
    listed = output("sh", "-c", f"tar c --one-file-system -C {root} . 2>/dev/null | tar t")
    assert "./data\n" in listed and "./dir/sub/file\n" in listed
    used = int(output("du", "-s", "-B1", root / "data").split()[0])
    assert 300_000 <= used <= 310_000, "the space of the data, whichever layer has it"


def test_set_id_and_device_files_are_what_the_mount_allows(root: Path) -> None:
    def somebody() -> str:
        # By descriptor: nobody else comes through pytest's folders.
        with (root / "bin/id").open("rb") as program:
            command = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", f"/proc/self/fd/{program.fileno()}", "-u"]
            return subprocess.run(command, pass_fds=[program.fileno()], capture_output=True, text=True, check=True).stdout.strip()

    assert somebody() == "0"
    assert (root / "null").read_bytes() == b""
    subprocess.run(["mount", "-o", "remount,bind,nosuid,nodev", root], check=True)
    assert somebody() == "1000"
    with pytest.raises(PermissionError):
        (root / "null").open("rb")
    assert stat.S_IMODE((root / "bin/id").stat().st_mode) == 0o4755


def test_links_renames_and_removals(root: Path) -> None:
    assert (root / "data").stat().st_ino == (root / "dir/twin").stat().st_ino
    assert (root / "data").stat().st_nlink == 2
    os.link(root / "dir/sub/file", root / "hard")
    assert (root / "hard").read_text() == "file"
    (root / "hard").write_text("both")
    assert (root / "dir/sub/file").read_text() == "both"
    os.rename(root / "data", root / "empty")
    assert (root / "empty").read_bytes() == DATA
    assert not (root / "data").exists()
    shutil.rmtree(root / "dir")
    (root / "dir").mkdir()
    assert list((root / "dir").iterdir()) == []
    assert os.readlink(root / "link") == "dir/sub/file"


def test_a_file_that_was_written_keeps_its_inode_number(root: Path) -> None:
    names = ("dir/sub/file", "bin/cat", "link")
    before = [(root / name).lstat().st_ino for name in names]
    for name in names[:2]:
        with (root / name).open("ab") as file:
            file.write(b"more")
    os.chown(root / "link", 7, 7, follow_symlinks=False)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert [(root / name).lstat().st_ino for name in names] == before


def test_a_file_with_holes_reads_as_zeroes(root: Path) -> None:
    assert (root / "sparse").stat().st_size == 10 << 20
    with (root / "sparse").open("r+b") as file:
        file.seek(5 << 20)
        file.write(b"x")
    data = (root / "sparse").read_bytes()
    assert len(data) == 10 << 20 and data.strip(b"\0") == b"x"


def test_random_operations_on_a_file_of_a_lower_layer(root: Path) -> None:
    """What fsx does: writes, maps, truncations and reads anywhere, next to the same on bytes in memory."""
    chance = random.Random(7)
    model = bytearray(DATA)
    path = root / "dir/twin"
    for step in range(600):
        size = len(model)
        at = chance.randrange(size + 5000)
        length = chance.randrange(1, 20_000)
        match chance.choice(("read", "read", "write", "truncate", "mapread", "mapwrite", "punch", "reopen")):
            case "read":
                with path.open("rb", buffering=0) as file:
                    assert os.pread(file.fileno(), length, at) == bytes(model[at : at + length]), step
            case "write":
                data = chance.randbytes(length)
                with path.open("r+b", buffering=0) as file:
                    assert os.pwrite(file.fileno(), data, at) == length
                model.extend(bytes(max(at + length - size, 0)))
                model[at : at + length] = data
            case "truncate":
                os.truncate(path, at)
                del model[at:]
                model.extend(bytes(at - len(model)))
            case "mapread" if size:
                with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as map_:
                    assert map_[at : at + length] == bytes(model[at : at + length]), step
            case "mapwrite" if size > length:
                start = chance.randrange(size - length)
                data = chance.randbytes(length)
                with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as map_:
                    map_[start : start + length] = data
                model[start : start + length] = data
            case "punch":
                subprocess.run(["fallocate", "--punch-hole", "--offset", str(at), "--length", str(length), path], check=True)
                end = min(at + length, size)
                model[at:end] = bytes(max(end - at, 0))
        assert path.stat().st_size == len(model), step
    assert path.read_bytes() == bytes(model)
    assert (root / "data").read_bytes() == DATA, "the other name, which overlayfs parts from it when it is written"


@pytest.mark.posix_suite
def test_a_posix_suite_passes(root: Path, request: pytest.FixtureRequest) -> None:
    """pjdfstest, where ``--posix-suite`` says that there is a checkout of it, built (autoreconf -ifs && ./configure && make pjdfstest)."""
    suite = request.config.getoption("--posix-suite")
    done = subprocess.run(["prove", "-rQ", f"{Path(suite).absolute()}/tests"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and "Result: PASS" in done.stdout, done.stdout[-3000:]
