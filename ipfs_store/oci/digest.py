"""OCI content digests (image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from ipfs_store.errors import InvalidDigest

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Digest:
    """An OCI content digest, such as ``sha256:9f86...``; only SHA-256 is accepted."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """The digest that ``text`` writes; raises InvalidDigest."""
        if not _SHA256.fullmatch(text):
            raise InvalidDigest(f"{text[:100]!r} is not a digest of the form sha256:<64 lower-case hex digits>")
        return cls(text[7:])

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        """The digest of ``data``."""
        return cls(hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def raw(self) -> bytes:
        """The 32 bytes."""
        return bytes.fromhex(self.hex)
