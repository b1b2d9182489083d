"""Mounting images of metadata, and stacks of them over data-only layers (kernel: filesystems/overlayfs.rst, "Data-only lower layers").

A regular file of an image has a size and no data: ``trusted.overlay.metacopy`` says so, and ``trusted.overlay.redirect`` names the file in
a data-only layer whose bytes it has. The first data layer that has that name gives them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from snapshotter.mounts import kernel
from snapshotter.mounts.loops import loop_device

_log = logging.getLogger(__name__)

Backing = Literal["file", "loop"]
"""How an image file is mounted: by itself (Linux 6.12 and later), or through a loop device."""

# redirect_dir: a folder can be renamed without its files being copied up; metacopy: chown and chmod copy no data (and data-only layers need
# it). index: would tie an upper directory to one set of lower ones, which has to be mountable again on another FUSE mount.
_OPTIONS = (("metacopy", "on"), ("redirect_dir", "on"), ("index", "off"))
Xino = Literal["on", "off"]
"""On: files and folders have one st_dev, as on an overlay of one file system; without it `du -x` counts no file. The price is inode numbers of
64 bits, which a 32-bit program that was built without large files cannot be told (EOVERFLOW). overlayfs has no third way: it tells the layers
apart in the highest bits, or by st_dev."""


@dataclass(frozen=True, slots=True)
class Lower:
    """One lower directory."""

    path: Path
    idmap: int | None = None
    """Descriptor of the user namespace that shifts its owners."""


@dataclass(frozen=True, slots=True)
class Stack:
    """An overlay as it is to be mounted."""

    lowers: Sequence[Lower]
    """The uppermost first; at least one."""
    data: Sequence[Path] = field(default_factory=tuple)
    """Data-only layers; the first that has a file gives it."""
    upper: Path | None = None
    """None: read-only."""
    work: Path | None = None
    xino: Xino = "on"


def mount_image(image: Path, target: Path, backing: Backing) -> None:
    """Mount the EROFS image read-only at ``target``. Raises OSError."""
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(loop_device(image)) if backing == "loop" else image
        # Device files and set-id bits are taken away where the overlay is mounted, not here: it opens files as they are.
        made = stack.enter_context(kernel.new_mount("erofs", [("source", source), ("ro", None)], attributes=kernel.READ_ONLY))
        kernel.attach(made, target)


def mount_stack(wanted: Stack, target: Path, *, scratch: Path) -> None:
    """Mount the overlay at ``target``. ``scratch`` is a folder for mounts that exist for this call only. Raises OSError."""
    with contextlib.ExitStack() as stack:
        lowers = [_shifted(lower, scratch, number, stack) for number, lower in enumerate(wanted.lowers)]
        above = [("upperdir", wanted.upper), ("workdir", wanted.work)] if wanted.upper is not None else []
        parameters: list[tuple[str, str | Path | None]] = [
            ("source", "overlay"),
            *(("lowerdir+", lower) for lower in lowers),
            *(("datadir+", path) for path in wanted.data),
            *above,
            *_OPTIONS,
            ("xino", wanted.xino),
        ]
        attributes = 0 if wanted.upper is not None else kernel.READ_ONLY
        try:
            with kernel.new_mount("overlay", parameters, attributes=attributes) as made:
                kernel.attach(made, target)
        except kernel.KernelRefused as error:
            if error.errno != errno.EINVAL or "lowerdir+" not in str(error):
                raise
            _mount_by_options(lowers, wanted, target, stack)


def _shifted(lower: Lower, scratch: Path, number: int, stack: contextlib.ExitStack) -> Path:
    """The lower directory with its owners shifted, mounted until ``stack`` ends: the overlay keeps what it was given."""
    if lower.idmap is None:
        return lower.path
    point = scratch / f"{os.getpid()}-{number}-{os.urandom(4).hex()}"
    with kernel.cloned(lower.path, idmap=lower.idmap) as tree:
        point.mkdir(mode=0o700)
        stack.callback(point.rmdir)
        kernel.attach(tree, point)
        stack.callback(kernel.unmount, point, lazy=True)
    return point


def _mount_by_options(lowers: Sequence[Path], wanted: Stack, target: Path, stack: contextlib.ExitStack) -> None:
    """As Linux before 6.8 wants it: one text of at most a page. Layers are named by descriptor: 120 of them take 2 KiB then."""

    def named(path: Path) -> str:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        return f"/proc/self/fd/{descriptor}"

    layers = ":".join(map(named, lowers)) + "".join(f"::{named(path)}" for path in wanted.data)
    options = [f"lowerdir={layers}", *(f"{key}={value}" for key, value in _OPTIONS), f"xino={wanted.xino}"]
    if wanted.upper is not None and wanted.work is not None:
        options += [f"upperdir={named(wanted.upper)}", f"workdir={named(wanted.work)}"]
    kernel.mount_options("overlay", ",".join(options), target)
