"""One tree for a chain of layers, as overlayfs would show them (filesystems/overlayfs.rst, "whiteouts and opaque directories")."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from msgspec.structs import replace

from ipfs_store.erofs.tree import Inode

_OPAQUE = b"trusted.overlay.opaque"


def merge_trees(trees: Sequence[Inode]) -> Inode:
    """The trees laid over each other, the lowest first: whiteouts take away what is below and are not there after. The trees stay as they are.

    What is the same inode in one layer stays one; a hard link whose other names are hidden keeps those that are left.
    """
    merged = _without_marks(trees[0])
    for tree in trees[1:]:
        merged = _over(merged, tree)
    return merged


def _over(below: Inode, above: Inode) -> Inode:
    """``above`` on ``below``, which is ours to change; both are directories."""
    if below.children is None or above.children is None:
        raise ValueError("only directories are merged")
    folder = replace(above, xattrs=_shown(above), children=below.children)
    waiting = [(folder, above)]
    while waiting:
        target, upper = waiting.pop()
        assert target.children is not None and upper.children is not None
        for name, child in upper.children.items():
            lower = target.children.get(name)
            if _is_whiteout(child):
                target.children.pop(name, None)
            elif child.children is None:
                target.children[name] = child
            elif lower is None or lower.children is None or _OPAQUE in child.xattrs:
                target.children[name] = _without_marks(child)
            else:
                merged = replace(child, xattrs=_shown(child), children=lower.children)
                target.children[name] = merged
                waiting.append((merged, child))
    return folder


def _without_marks(tree: Inode) -> Inode:
    """A copy of the directories, without whiteouts, which nothing is below of."""
    top = replace(tree, xattrs=_shown(tree), children={})
    waiting = [(top, tree)]
    while waiting:
        copy, folder = waiting.pop()
        assert copy.children is not None and folder.children is not None
        for name, child in folder.children.items():
            if _is_whiteout(child):
                continue
            if child.children is None:
                copy.children[name] = child
            else:
                copy.children[name] = below = replace(child, xattrs=_shown(child), children={})
                waiting.append((below, child))
    return top


def _is_whiteout(inode: Inode) -> bool:
    return inode.mode & 0o170000 == stat.S_IFCHR and inode.rdev == (0, 0)


def _shown(folder: Inode) -> dict[bytes, bytes]:
    return {name: value for name, value in folder.xattrs.items() if name != _OPAQUE}
