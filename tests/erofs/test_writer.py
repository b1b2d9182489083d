"""Images as the kernel and fsck.erofs see them."""

from __future__ import annotations

import os
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_store.erofs import Inode, InvalidTree, write_image
from tests.requirements import require_root, require_tool

# cap_net_bind_service, permitted and effective (linux/capability.h, struct vfs_cap_data); the kernel checks its form.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def directory(**children: Inode) -> Inode:
    return Inode(stat.S_IFDIR | 0o755, children={name.encode(): inode for name, inode in children.items()})


def regular(size: int = 0, **more: object) -> Inode:
    return Inode(stat.S_IFREG | 0o644, size=size, **more)  # type: ignore[arg-type]


def fsck(image: Path) -> None:
    done = subprocess.run([require_tool("fsck.erofs"), image], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def mounted(image: Path) -> Iterator[Path]:
    require_root()
    point = image.parent / "mnt"
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "ro,loop", image, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def test_every_entry_type_reads_back_as_it_was_written(tmp_path: Path) -> None:
    twice = regular(5, mtime=7, mtime_ns=999_999_999)
    shared = {b"user.same": b"value in common", b"security.capability": CAPABILITY}
    root = directory(
        empty=regular(),
        file=regular(70_000, uid=4_000_000_000, gid=3_999_999_999, mtime=-5, mtime_ns=123_456_789, xattrs={b"user.one": b"1"}),
        setuid=Inode(stat.S_IFREG | 0o6755, size=1, xattrs=shared),
        sticky=Inode(stat.S_IFDIR | 0o1777, children={}, xattrs=shared),
        huge=regular((1 << 43) + 12345),
        first=twice,
        second=twice,
        link=Inode(stat.S_IFLNK | 0o777, link=b"some/where"),
        longest=Inode(stat.S_IFLNK | 0o777, link=b"x" * 4095),
        char=Inode(stat.S_IFCHR | 0o600, rdev=(4095, 1_048_575)),
        whiteout=Inode(stat.S_IFCHR, rdev=(0, 0)),
        block=Inode(stat.S_IFBLK | 0o660, rdev=(8, 300)),
        fifo=Inode(stat.S_IFIFO | 0o622),
        opaque=Inode(stat.S_IFDIR | 0o700, children={}, xattrs={b"trusted.overlay.opaque": b"y"}),
        acl=Inode(stat.S_IFDIR | 0o755, children={}, xattrs={b"user.big": b"z" * 9000, b"com.apple.unknown": b"dropped"}),
        sub=directory(**{"n" * 255: regular(3)}),
    )
    image = tmp_path / "image"
    image.write_bytes(write_image(root))
    fsck(image)
    with mounted(image) as top:

        def at(name: str) -> os.stat_result:
            return (top / name).lstat()

        assert set(os.listdir(top)) == {name.decode() for name in root.children or {}}
        file = at("file")
        assert (file.st_size, file.st_uid, file.st_gid, file.st_mtime_ns) == (
            70_000,
            4_000_000_000,
            3_999_999_999,
            -5 * 10**9 + 123_456_789,
        )
        assert os.getxattr(top / "file", "user.one") == b"1"
        assert at("setuid").st_mode == stat.S_IFREG | 0o6755
        assert at("sticky").st_mode == stat.S_IFDIR | 0o1777
        for name in ("setuid", "sticky"):
            assert os.getxattr(top / name, "user.same") == b"value in common"
            assert os.getxattr(top / name, "security.capability") == CAPABILITY
        assert at("huge").st_size == (1 << 43) + 12345
        assert at("first").st_ino == at("second").st_ino
        assert at("first").st_nlink == 2
        assert at("first").st_mtime_ns == 7_999_999_999
        assert os.readlink(top / "link") == "some/where"
        assert os.readlink(top / "longest") == "x" * 4095
        assert at("char").st_rdev == os.makedev(4095, 1_048_575)
        assert (at("whiteout").st_mode, at("whiteout").st_rdev) == (stat.S_IFCHR, 0)
        assert at("block").st_rdev == os.makedev(8, 300)
        assert stat.S_ISFIFO(at("fifo").st_mode)
        assert os.getxattr(top / "opaque", "trusted.overlay.opaque") == b"y"
        assert os.listxattr(top / "acl") == ["user.big"]
        assert os.getxattr(top / "acl", "user.big") == b"z" * 9000
        assert at("sub/" + "n" * 255).st_size == 3
        assert at(".").st_nlink == 2 + 4
        assert (top / "file").read_bytes() == bytes(70_000)


def test_a_directory_of_100_000_entries_lists_them_all(tmp_path: Path) -> None:
    names = [f"{'long-' * (number % 40)}{number}".encode() for number in range(100_000)]
    image = tmp_path / "image"
    image.write_bytes(write_image(Inode(stat.S_IFDIR | 0o755, children={name: regular(number) for number, name in enumerate(names)})))
    fsck(image)
    with mounted(image) as top:
        assert set(os.listdir(os.fsencode(top))) == set(names)
        assert (top / os.fsdecode(names[77_777])).stat().st_size == 77_777


@pytest.mark.parametrize(
    "inode",
    [
        directory(**{"a" * 256: regular()}),
        Inode(stat.S_IFDIR, children={b"a/b": regular()}),
        Inode(stat.S_IFDIR, children={b"a\0": regular()}),
        Inode(stat.S_IFDIR, children={b"..": regular()}),
        directory(a=Inode(stat.S_IFLNK, link=b"x" * 4096)),
        directory(a=Inode(stat.S_IFLNK)),
        directory(a=regular(-1)),
        directory(a=regular(0, uid=1 << 32)),
        directory(a=Inode(stat.S_IFCHR, rdev=(1 << 12, 0))),
        directory(a=regular(0, xattrs={b"user." + b"n" * 256: b""})),
        directory(a=Inode(0o644)),
    ],
)
def test_what_no_file_system_can_hold_is_refused(inode: Inode) -> None:
    with pytest.raises(InvalidTree):
        write_image(inode)


def test_a_directory_inside_itself_is_refused() -> None:
    root = directory()
    assert root.children is not None
    root.children[b"loop"] = root
    with pytest.raises(InvalidTree):
        write_image(root)


names = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))
xattrs = st.dictionaries(st.sampled_from([b"user.a", b"user.b", b"trusted.c"]), st.binary(max_size=600), max_size=3)
leaves = st.builds(lambda size, x: regular(size, xattrs=x), st.integers(0, 1 << 50), xattrs) | st.builds(
    lambda link, x: Inode(stat.S_IFLNK | 0o777, link=link, xattrs=x), st.binary(min_size=1, max_size=4095), xattrs
)
trees = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda children, x: Inode(stat.S_IFDIR | 0o755, children=children, xattrs=x), st.dictionaries(names, inner, max_size=12), xattrs
    ),
    max_leaves=60,
)


@settings(max_examples=40)
@given(children=st.dictionaries(names, trees, max_size=8))
def test_fsck_accepts_any_tree(tmp_path_factory: pytest.TempPathFactory, children: dict[bytes, Inode]) -> None:
    root = Inode(stat.S_IFDIR | 0o755, children=children)
    image = tmp_path_factory.mktemp("any") / "image"
    image.write_bytes(write_image(root))
    assert write_image(root) == image.read_bytes()
    fsck(image)
