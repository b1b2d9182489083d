"""Images read back, and chains of them made one."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_store.erofs import Inode, InvalidTree, merge_trees, read_image, write_image
from tests.erofs.test_writer import directory, names, regular, trees

OPAQUE = {b"trusted.overlay.opaque": b"y"}


def whiteout() -> Inode:
    return Inode(stat.S_IFCHR, rdev=(0, 0))


def shown(tree: Inode, path: bytes = b"/") -> dict[bytes, tuple[object, ...]]:
    """Everything that an image says, by path."""
    found: dict[bytes, tuple[object, ...]] = {
        path: (tree.mode, tree.uid, tree.gid, tree.mtime, tree.mtime_ns, tree.size, tree.rdev, tree.link, tree.redirect, dict(tree.xattrs))
    }
    for name, child in (tree.children or {}).items():
        found |= shown(child, path + name + b"/")
    return found


@settings(max_examples=60)
@given(children=st.dictionaries(names, trees, max_size=8))
def test_an_image_reads_back_as_it_was_written(children: dict[bytes, Inode]) -> None:
    root = Inode(stat.S_IFDIR | 0o755, children=children)
    assert shown(read_image(write_image(root))) == shown(root)


def test_devices_times_links_and_redirects_read_back() -> None:
    twice = regular(3, redirect=b"/aa/" + b"a" * 64, xattrs={b"user.a": b"1"})
    root = directory(
        old=regular(1, mtime=-5, mtime_ns=7, uid=4_000_000_000),
        one=twice,
        two=twice,
        plain=regular(9, redirect=b"/bb/" + b"b" * 64),
        char=Inode(stat.S_IFCHR | 0o600, rdev=(4095, 1_048_575)),
        block=Inode(stat.S_IFBLK | 0o600, rdev=(8, 300)),
        many=Inode(stat.S_IFDIR | 0o755, children={b"n" * 200 + b"%d" % number: regular(number) for number in range(500)}),
    )
    back = read_image(write_image(root))
    assert shown(back) == shown(root)
    assert back.children is not None
    assert back.children[b"one"] is back.children[b"two"]
    assert write_image(back) == write_image(root)


@pytest.mark.parametrize("data", [b"", bytes(5000), write_image(directory(a=regular(1)))[:2060]])
def test_what_is_no_image_is_an_error(data: bytes) -> None:
    with pytest.raises(InvalidTree):
        read_image(data)


def test_layers_lie_over_each_other() -> None:
    lowest = directory(
        keep=regular(1),
        gone=regular(1),
        folder=directory(a=regular(1), b=regular(1), deep=directory(x=regular(1))),
        hidden=directory(old=regular(1)),
        file=regular(1),
        tree=directory(y=regular(1)),
    )
    middle = directory(
        gone=whiteout(),
        folder=Inode(stat.S_IFDIR | 0o700, uid=5, children={b"a": whiteout(), b"c": regular(2)}),
        hidden=Inode(stat.S_IFDIR | 0o755, xattrs=OPAQUE, children={b"new": regular(2)}),
        file=directory(now=regular(2)),
        tree=regular(2),
        never=whiteout(),
    )
    top = directory(gone=regular(3), folder=directory(deep=directory(z=regular(3))))
    before = shown(lowest)
    merged = merge_trees([lowest, middle, top])
    found = shown(merged)
    assert {path: fields[5] for path, fields in found.items() if fields[5]} == {
        b"/keep/": 1, b"/gone/": 3, b"/folder/b/": 1, b"/folder/c/": 2, b"/folder/deep/x/": 1, b"/folder/deep/z/": 3,
        b"/hidden/new/": 2, b"/file/now/": 2, b"/tree/": 2,
    }  # fmt: skip
    assert found[b"/folder/"][0] == stat.S_IFDIR | 0o755
    assert b"/never/" not in found
    assert found[b"/hidden/"][-1] == {}
    assert shown(lowest) == before
