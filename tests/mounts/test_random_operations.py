"""Random operations on a native root and on plain overlayfs side by side: every one ends alike, and both trees are the same at the end.

What fsx and fsstress do, with overlayfs itself for a model: whatever it does with copying up, whiteouts, renamed folders and hard links is right.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapshotter.mounts.native import unmount_below
from snapshotter.mounts.stack import Lower, Stack, mount_image, mount_stack
from tests.mounts.made import image_of
from tests.requirements import require_root

pytestmark = pytest.mark.root
STEPS = 1500
NAMES = ("a", "b", "c", "d")


def grow(folder: Path, dice: random.Random, depth: int = 0) -> None:
    """A tree of everything that a layer can have, with names that operations will meet."""
    for name in NAMES:
        path = folder / name
        kind = dice.choice(("file", "file", "folder", "folder", "link", "device", "none") if depth < 3 else ("file", "link", "none"))
        if kind == "file":
            path.write_bytes(dice.randbytes(dice.choice((0, 10, 5000, 70_000))))
            path.chmod(dice.choice((0o644, 0o600, 0o755, 0o4755)))
            os.chown(path, dice.choice((0, 1000)), 0)
            if dice.random() < 0.3:
                os.setxattr(path, "user.note", b"lower")
            if dice.random() < 0.2:
                os.link(path, folder / f"{name}-twin")
        elif kind == "folder":
            path.mkdir(mode=0o755)
            grow(path, dice, depth + 1)
        elif kind == "link":
            path.symlink_to(dice.choice(("../a", "b", "nowhere")))
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


@pytest.fixture
def roots(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Path, random.Random]]:
    """(native, plain overlayfs): two layers each, the same."""
    require_root()
    dice = random.Random(request.param)
    for name in ("data", "native/upper", "native/work", "native/root", "plain/upper", "plain/work", "plain/root", "scratch"):
        (tmp_path / name).mkdir(parents=True)
    lowers = []
    for number in range(2):
        tree = tmp_path / f"tree{number}"
        tree.mkdir()
        grow(tree, dice)
        (tmp_path / f"image{number}").write_bytes(image_of(tree, tmp_path / "data"))
        (tmp_path / f"meta{number}").mkdir()
        mount_image(tmp_path / f"image{number}", tmp_path / f"meta{number}", "file")
        lowers.insert(0, Lower(tmp_path / f"meta{number}"))
    native, plain = tmp_path / "native", tmp_path / "plain"
    mount_stack(Stack(lowers, [tmp_path / "data"], native / "upper", native / "work"), native / "root", scratch=tmp_path / "scratch")
    options = f"redirect_dir=on,index=off,xino=on,lowerdir={tmp_path}/tree1:{tmp_path}/tree0,upperdir={plain}/upper,workdir={plain}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", plain / "root"], check=True)
    yield native / "root", plain / "root", dice
    unmount_below([tmp_path])


def write(path: Path, at: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
    try:
        os.pwrite(descriptor, data, at)
    finally:
        os.close(descriptor)


def operation(dice: random.Random) -> tuple[str, Callable[[Path], object]]:
    """One at random, to be done below either root."""

    def somewhere() -> str:
        return "/".join(dice.choice((*NAMES, "a-twin", "new")) for _ in range(dice.choice((1, 1, 2, 2, 3))))

    one, other, at, size = somewhere(), somewhere(), dice.randrange(80_000), dice.randrange(1, 20_000)
    data, mode, owner = dice.randbytes(size), dice.choice((0o600, 0o755, 0o2755)), dice.choice((0, 7, 1000))
    choices: dict[str, Callable[[Path], object]] = {
        f"read {one}": lambda root: hashlib.sha256((root / one).read_bytes()).hexdigest(),
        f"list {one}": lambda root: sorted(os.listdir(root / one)),
        f"create {one}": lambda root: os.close(os.open(root / one, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)),
        f"write {one} {at}+{size}": lambda root: write(root / one, at, data),
        f"truncate {one} {at}": lambda root: os.truncate(root / one, at),
        f"chmod {one} {mode:o}": lambda root: (root / one).chmod(mode),
        f"chown {one} {owner}": lambda root: os.lchown(root / one, owner, owner),
        f"utime {one}": lambda root: os.utime(root / one, ns=(10**18, 10**18 + at), follow_symlinks=False),
        f"setxattr {one}": lambda root: os.setxattr(root / one, "user.note", data[:20], follow_symlinks=False),
        f"removexattr {one}": lambda root: os.removexattr(root / one, "user.note", follow_symlinks=False),
        f"rename {one} {other}": lambda root: os.rename(root / one, root / other),
        f"link {one} {other}": lambda root: os.link(root / one, root / other, follow_symlinks=False),
        f"symlink {one}": lambda root: os.symlink(other, root / one),
        f"unlink {one}": lambda root: (root / one).unlink(),
        f"rmdir {one}": lambda root: (root / one).rmdir(),
        f"mkdir {one}": lambda root: (root / one).mkdir(),
        f"remove {one} whole": lambda root: shutil.rmtree(root / one),
        f"copy {one} {other}": lambda root: bool(shutil.copyfile(root / one, root / other, follow_symlinks=False)),
    }
    # What destroys is rarer than what changes, or there would soon be nothing left.
    weights = [0.2 if name.startswith(("remove ", "rmdir")) else 0.5 if name.startswith("unlink") else 1.0 for name in choices]
    return dice.choices(list(choices.items()), weights)[0]


def outcome(what: Callable[[Path], object], root: Path) -> str:
    try:
        return f"done: {what(root)}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def everything(root: Path) -> dict[str, tuple[object, ...]]:
    """What a program can see of each entry, but for times that the machine's clock set."""
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, list[str]] = {}
    for path in sorted(root.rglob("*")):
        at, name = path.lstat(), str(path.relative_to(root))
        kind = stat.S_IFMT(at.st_mode)
        content = path.read_bytes() if kind == stat.S_IFREG else os.readlink(path) if kind == stat.S_IFLNK else b""
        time = at.st_mtime_ns if at.st_mtime_ns // 10**18 == 1 and at.st_mtime_ns < 10**18 + 80_000 else 0
        xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
        size = at.st_size if kind == stat.S_IFREG else 0
        found[name] = (at.st_mode, at.st_uid, at.st_gid, at.st_rdev, size, time, xattrs, content)
        if kind != stat.S_IFDIR:
            names.setdefault(at.st_ino, []).append(name)
    return found | {f"names of {same[0]}": tuple(same) for same in names.values()}


@pytest.mark.parametrize("roots", range(4), indirect=True)
def test_both_do_the_same(roots: tuple[Path, Path, random.Random]) -> None:
    native, plain, dice = roots
    done = []
    for step in range(STEPS):
        name, what = operation(dice)
        ours, theirs = outcome(what, native), outcome(what, plain)
        done.append(f"{step}: {name}: {theirs[:60]}")
        assert ours == theirs, "\n".join(done[-20:])
        if step % 300 == 299:
            assert everything(native) == everything(plain), "\n".join(done[-40:])
    assert sum(": done" in line for line in done) > STEPS // 10
