"""EROFS images that hold metadata only: a tree of inodes in, the bytes of a mountable image out, and back. Sans-I/O and deterministic."""

from ipfs_store.erofs.merge import merge_trees
from ipfs_store.erofs.reader import read_image
from ipfs_store.erofs.tree import Inode, InvalidTree
from ipfs_store.erofs.writer import write_image

__all__ = ["Inode", "InvalidTree", "merge_trees", "read_image", "write_image"]
