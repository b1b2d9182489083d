"""The FUSE connection: made, told apart from a dead one, and lent to one data plane after the other."""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
from dataclasses import dataclass
from pathlib import Path

from snapshotter.holder.handshake import Handshake, NotInit
from snapshotter.holder.mounts import end_mount, mount_fuse
from snapshotter.holder.table import mounts_at

_CLONE = 0x8004E500  # FUSE_DEV_IOC_CLONE
_LONGEST_INIT = 1 << 20
# The kernel sends INIT from within mount(2); 10 s is for a machine that has no processor to spare.
_INIT_TIMEOUT = 10_000


class Lost(Exception):
    """The connection has ended, or is not the one that it should be."""


@dataclass(slots=True)
class Connection:
    """An open /dev/fuse that is mounted, and what was said on it first."""

    descriptor: int
    mountpoint: Path
    handshake: Handshake
    resend: bool
    """Whether the kernel can send again what a data plane has read and not answered (6.9)."""

    @property
    def alive(self) -> bool:
        """Whether the kernel still has it; asks nobody who could hang."""
        return _alive(self.descriptor)

    def answer(self, reply: bytes, record: Path) -> None:
        """Give the kernel the first reply to INIT, and note it in ``record`` for a holder that gets the descriptor and nothing else."""
        self.handshake = self.handshake.answered(reply)
        os.write(self.descriptor, self.handshake.reply)
        self.note(record)

    def note(self, record: Path) -> None:
        """Write `record`, whole or not at all."""
        lines = mounts_at(self.mountpoint)
        document = {"device": lines[-1].device if lines else "", "boot": _boot(), "handshake": self.handshake.encode()}
        aside = record.with_name(f".{record.name}")
        aside.write_text(json.dumps(document))
        aside.rename(record)

    def lend(self) -> int:
        """A descriptor for the next data plane, to be closed here once it has it.

        Where the kernel sends unanswered requests again, it is this one. Elsewhere it is a clone with a queue of its own: what its owner has
        read and not answered ends with an error when the owner dies, once, instead of waiting for ever.
        """
        if self.resend:
            return os.dup(self.descriptor)
        clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(clone, _CLONE, struct.pack("=I", self.descriptor))
        except OSError:
            os.close(clone)
            raise
        return clone

    def end(self) -> None:
        """Unmount; who waits for it gets an error."""
        for _ in mounts_at(self.mountpoint):
            end_mount(self.mountpoint)
        os.close(self.descriptor)


def establish(mountpoint: Path) -> Connection:
    """Mount a new connection, in place of what a dead one may have left; raises OSError, NotInit."""
    for _ in mounts_at(mountpoint):
        end_mount(mountpoint)
    mountpoint.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        mount_fuse(descriptor, mountpoint)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(_INIT_TIMEOUT):
                raise NotInit("the kernel says nothing on the FUSE connection")
            handshake = Handshake(os.read(descriptor, _LONGEST_INIT))
            return Connection(descriptor, mountpoint, handshake, handshake.resend)
        except BaseException:
            end_mount(mountpoint)
            raise
    except BaseException:
        os.close(descriptor)
        raise


def resume(descriptor: int, mountpoint: Path, record: Path) -> Connection:
    """The connection whose descriptor somebody kept for us, as ``record`` has it; raises Lost."""
    try:
        document = json.loads(record.read_text())
        handshake = Handshake.decode(document["handshake"])
        device, boot = document["device"], document["boot"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Lost(f"a FUSE descriptor was kept, but not what is needed to go on with it: {error}") from error
    lines = mounts_at(mountpoint)
    if boot != _boot() or not lines or lines[-1].device != device:
        raise Lost(f"a FUSE descriptor was kept, but what is mounted on {mountpoint} is not its connection")
    if not _alive(descriptor):
        raise Lost("a FUSE descriptor was kept, but its connection has ended")
    return Connection(descriptor, mountpoint, handshake, handshake.resend)


def _alive(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, 0)
    return not poll.poll(0)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
