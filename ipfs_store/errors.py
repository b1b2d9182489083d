"""The whole exception tree of ``ipfs_store``.

::

    IpfsStoreError                     a person sees its message, and its hint where there is one
    ├── InvalidInput                   what was given is wrong: not to be retried
    │   ├── InvalidCid
    │   ├── InvalidDigest
    │   ├── InvalidReference
    │   ├── InvalidDescriptor          JSON that is no descriptor, manifest, index or config
    │   ├── InvalidDag                 a block that is no UnixFS, DAG-CBOR, CAR ... as its specification has it
    │   └── InvalidLayer               a layer blob or TOC that breaks the rules of its format
    │       └── NotSeekable            a plain tar, tar.gz or tar.zst: right, but cannot be read lazily
    ├── VerificationFailed             bytes that do not have the digest they were asked by: never shown to anyone
    │   ├── BlockMismatch
    │   ├── BlobMismatch
    │   ├── TocMismatch
    │   └── ChunkMismatch
    ├── NotFound                       nobody has it (after the time allowed)
    │   ├── BlockNotFound
    │   └── ImageNotFound
    ├── Unavailable                    a node, peer, registry or daemon that does not answer: worth a retry
    │   ├── NodeUnavailable
    │   └── RegistryUnavailable
    └── StorageFailed                  our own disk: full, read-only, no permission
"""

from __future__ import annotations

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x2028: "\\u2028", 0x2029: "\\u2029",
}  # fmt: skip


class IpfsStoreError(Exception):
    """Base of all; ``message`` is one line that says what was wrong, ``hint`` (optional) what the reader can do."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        # Names out of images, peers' answers and parsers' words are in messages: none of them breaks the line or speaks to the terminal.
        self.message = message if message.isprintable() else _one_line(message)
        super().__init__(self.message)
        self.hint = hint


def _one_line(text: str) -> str:
    return text.translate(_CONTROLS).encode("utf-8", "backslashreplace").decode()


class InvalidInput(IpfsStoreError):
    """What was given is wrong; trying again will not help."""


class InvalidCid(InvalidInput):
    """Text or bytes that are no CID, or a CID of a kind that is not supported."""


class InvalidDigest(InvalidInput):
    """Text that is no OCI digest, or one of an algorithm other than SHA-256."""


class InvalidReference(InvalidInput):
    """Text that names no image."""


class InvalidDescriptor(InvalidInput):
    """JSON that is not the OCI document it should be."""


class InvalidDag(InvalidInput):
    """A block or CAR that breaks its specification."""


class InvalidLayer(InvalidInput):
    """A layer blob or TOC that breaks the rules of its format."""


class NotSeekable(InvalidLayer):
    """A sound layer without a table of contents: it can be read in order, but not lazily."""


class VerificationFailed(IpfsStoreError):
    """Bytes that do not have the digest or CID they were asked by."""


class BlockMismatch(VerificationFailed):
    """A block that does not hash to its CID."""


class BlobMismatch(VerificationFailed):
    """A manifest, config or layer blob that does not have its digest or size."""


class TocMismatch(VerificationFailed):
    """A table of contents that does not have the digest its descriptor promises."""


class ChunkMismatch(VerificationFailed):
    """A chunk of a file that does not have the digest its TOC entry promises."""


class NotFound(IpfsStoreError):
    """Nobody has it, or nobody answered within the time allowed."""


class BlockNotFound(NotFound):
    """A block that neither the store nor any of its sources has."""


class ImageNotFound(NotFound):
    """An image that its source does not have."""


class Unavailable(IpfsStoreError):
    """Somebody who does not answer; a later try may work."""


class NodeUnavailable(Unavailable):
    """The IPFS node does not answer."""


class RegistryUnavailable(Unavailable):
    """The registry does not answer, or refuses."""


class StorageFailed(IpfsStoreError):
    """The local disk is full, read-only or not permitted."""
