"""EROFS images that hold metadata only: a tree of inodes in, the bytes of a mountable image out. Sans-I/O and deterministic."""

from ipfs_store.erofs.tree import Inode, InvalidTree
from ipfs_store.erofs.writer import write_image

__all__ = ["Inode", "InvalidTree", "write_image"]
