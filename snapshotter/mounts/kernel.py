"""The kernel's mount calls (fsopen(2), fsconfig(2), fsmount(2), move_mount(2), open_tree(2), mount_setattr(2), umount2(2)) by ctypes.

A mount is made detached, as a descriptor, and attached where it is wanted; with that interface the layers of an overlay are given one by
one, so that no page of options limits their number. Errors are `KernelRefused`, with what the kernel says about it where it does.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# The same on every architecture (numbers from 424 on are common).
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_EMPTY_PATH, _MOVE_EMPTY_PATH = 0x1000, 0x4
_CLONE, _TREE_CLOEXEC, _RECURSIVE = 1, os.O_CLOEXEC, 0x8000
_IDMAP = 0x00100000
_AT_FDCWD = -100
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_LONGEST_PARAMETER = 255  # fsconfig(2): a string has at most 256 bytes with its end

READ_ONLY, NO_DEV = 0x1, 0x4
"""Attributes of a mount (MOUNT_ATTR_*)."""


class KernelRefused(OSError):
    """A mount call failed; the text has what the kernel's log of that call says."""


class _Attributes(ctypes.Structure):
    _fields_ = (("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("userns", ctypes.c_uint64))


def _call(what: str, number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise KernelRefused(code, f"{what}: {os.strerror(code)}")
    return result


@contextlib.contextmanager
def new_mount(kind: str, parameters: Sequence[tuple[str, str | Path | None]], *, attributes: int = 0) -> Iterator[int]:
    """A detached mount of file system ``kind``, as a descriptor; ``parameters`` in order, those without a value are flags.

    A path that is too long for the call is given by descriptor. Raises KernelRefused.
    """
    with contextlib.ExitStack() as stack:
        context = _call(f"fsopen {kind}", _FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)
        stack.callback(os.close, context)
        try:
            for key, value in parameters:
                if value is None:
                    _call(key, _FSCONFIG, context, _SET_FLAG, key.encode(), None, 0)
                    continue
                text = os.fsencode(value)
                if len(text) > _LONGEST_PARAMETER:
                    descriptor = os.open(text, os.O_PATH | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
                    text = f"/proc/self/fd/{descriptor}".encode()
                _call(f"{key}={value}", _FSCONFIG, context, _SET_STRING, key.encode(), text, 0)
            _call(f"mount of {kind}", _FSCONFIG, context, _CREATE, None, None, 0)
            mount = _call(f"fsmount {kind}", _FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
        except KernelRefused as error:
            said = _said(context)
            raise KernelRefused(error.errno, f"{error.strerror} ({said})" if said else error.strerror) from None
        stack.callback(os.close, mount)
        yield mount


def attach(mount: int, target: Path) -> None:
    """Put a detached mount at the folder ``target``. Raises KernelRefused."""
    _call(f"mount at {target}", _MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(target), _MOVE_EMPTY_PATH)


@contextlib.contextmanager
def cloned(path: Path, *, idmap: int | None = None) -> Iterator[int]:
    """A detached bind mount of ``path``, with owners shifted as the user namespace with descriptor ``idmap`` says. Raises KernelRefused."""
    tree = _call(f"bind of {path}", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), _CLONE | _TREE_CLOEXEC)
    try:
        if idmap is not None:
            wanted = _Attributes(_IDMAP, 0, 0, idmap)
            _call(f"idmap of {path}", _MOUNT_SETATTR, tree, b"", _EMPTY_PATH, ctypes.byref(wanted), ctypes.sizeof(wanted))
        yield tree
    finally:
        os.close(tree)


def mount_options(kind: str, options: str, target: Path) -> None:
    """mount(2), for kernels that lack the newer calls' parameters. Raises KernelRefused."""
    if _libc.mount(kind.encode(), os.fsencode(target), kind.encode(), 0, os.fsencode(options)) != 0:
        code = ctypes.get_errno()
        raise KernelRefused(code, f"mount of {kind} at {target}: {os.strerror(code)}")


def unmount(path: Path, *, lazy: bool = False) -> bool:
    """Take away the uppermost mount at ``path``; False if there was none. ``lazy``: also where it is in use (its users keep it).

    Raises KernelRefused.
    """
    if _libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOENT):
        return False
    raise KernelRefused(code, f"unmount of {path}: {os.strerror(code)}")


def _said(context: int) -> str:
    """What the kernel logged about a file system context: one line a read, with a letter in front."""
    lines = []
    with contextlib.suppress(OSError):
        while line := os.read(context, 4096):
            lines.append(line.decode(errors="replace")[2:].strip())
    return "; ".join(lines)
