"""The first two messages of a FUSE connection (linux/fuse.h: ``fuse_init_in``, ``fuse_init_out``), kept so that they can be said again.

The kernel says INIT once, to whoever reads first, and libfuse serves no connection that does not begin with it. So the first INIT and the
reply to it are kept for as long as the connection lives, and every data plane after the first is told them by us. Bytes in, bytes out.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

_IN = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, total_extlen, padding
_IN_BODY = struct.Struct("<IIIII")  # major, minor, max_readahead, flags, flags2
_OUT = struct.Struct("<IiQ")  # length, error, unique
_OUT_BODY = struct.Struct("<IIIIHHIIHHI")
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages, map_alignment, flags2
_OPCODE_INIT = 26
# Without it the kernel asks for one name of a folder at a time, and whoever waits for its turn does not heed SIGKILL. libfuse sets it or not.
_FLAG_PARALLEL_DIROPS = 1 << 18
_FLAG_EXTENDED = 1 << 30  # FUSE_INIT_EXT: flags2 counts
_FLAG2_RESEND = 1 << (39 - 32)  # FUSE_HAS_RESEND, kernel 6.9

RESEND = _OUT.pack(_OUT.size, 7, 0)
"""FUSE_NOTIFY_RESEND: the kernel sends again what was read and not answered."""

# As libfuse leaves it (12), twelve stalled reads stop every other one, and sequential reads take 2 to 4 times as long. 64 is as fast as it gets,
# and a hundred stalled readers of one image, each of whom reads ahead, then stop every other image: 512 is room for all of them. (At 1,000,
# reads of 1 MiB ahead are 10 % slower than at 64, and reads of 4 MiB ahead take 7 times as long: docs/benchmarks.md.)
MAX_BACKGROUND = 512
# What the kernel may read ahead; how much it does is set for the mount (read_ahead_kb), which this only bounds.
MAX_READAHEAD = 4 << 20


class NotInit(ValueError):
    """Bytes that are no INIT, or no reply to one."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What the kernel asked first, and what it was answered."""

    request: bytes
    reply: bytes = b""
    """As the kernel got it; empty as long as nobody has answered."""

    def __post_init__(self) -> None:
        if len(self.request) < _IN.size + _IN_BODY.size or _IN.unpack_from(self.request)[1] != _OPCODE_INIT:
            raise NotInit(f"the first message of the FUSE connection is no INIT: {self.request[:40].hex()}")
        if self.reply and (len(self.reply) < _OUT.size + _OUT_BODY.size or _OUT.unpack_from(self.reply)[1] != 0):
            raise NotInit(f"the reply to INIT is none: {self.reply[:40].hex()}")

    @property
    def resend(self) -> bool:
        """Whether the kernel can send again what a dead data plane had read."""
        _, _, _, flags, flags2 = _IN_BODY.unpack_from(self.request, _IN.size)
        return bool(flags & _FLAG_EXTENDED and flags2 & _FLAG2_RESEND)

    def answered(self, reply: bytes) -> Handshake:
        """With the reply that libfuse gave, changed where libfuse and pyfuse3 cannot be told; raises NotInit."""
        checked = Handshake(self.request, reply)
        fields = list(_OUT_BODY.unpack_from(reply, _OUT.size))
        fields[2] = max(fields[2], MAX_READAHEAD)
        fields[3] |= _IN_BODY.unpack_from(self.request, _IN.size)[3] & _FLAG_PARALLEL_DIROPS
        fields[4], fields[5] = MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4
        patched = bytearray(checked.reply)
        _OUT_BODY.pack_into(patched, _OUT.size, *fields)
        return Handshake(self.request, bytes(patched))

    def replayed(self) -> bytes:
        """INIT for another data plane: offering what was agreed upon and no more, since the kernel will not be told anything else."""
        if not self.reply:
            return self.request
        major, minor, readahead, flags, flags2 = _IN_BODY.unpack_from(self.request, _IN.size)
        agreed = _OUT_BODY.unpack_from(self.reply, _OUT.size)
        again = bytearray(self.request)
        _IN_BODY.pack_into(again, _IN.size, major, minor, readahead, flags & (agreed[3] | _FLAG_EXTENDED), flags2 & agreed[10])
        return bytes(again)

    def encode(self) -> str:
        """As text, for a file or a message."""
        return json.dumps({"request": self.request.hex(), "reply": self.reply.hex()})

    @classmethod
    def decode(cls, text: str) -> Handshake:
        """From `encode`; raises NotInit."""
        try:
            document = json.loads(text)
            return cls(bytes.fromhex(document["request"]), bytes.fromhex(document["reply"]))
        except (ValueError, KeyError, TypeError) as error:
            raise NotInit(f"what was kept of the FUSE handshake cannot be read: {error}") from error
