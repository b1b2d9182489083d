"""What every IPFS node can do for us, whether it is a folder of ours or a Kubo daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ipfs_store.cids import Cid


@dataclass(frozen=True, slots=True)
class Block:
    """A block and its CID; whoever makes one has checked that they belong together."""

    cid: Cid
    data: bytes


@dataclass(frozen=True, slots=True)
class GcResult:
    """What a garbage collection freed."""

    blocks: int
    bytes: int


class Push(Protocol):
    """A set of blocks on its way into a node; what it brought is safe from garbage collection until it closes."""

    async def put(self, block: Block) -> None:
        """Queue a block (bounded: waits when the node is slower); one that is there already costs nothing more."""
        ...

    async def put_all(self, blocks: Sequence[Block]) -> None:
        """The same for several blocks at once, of a few megabytes together: less work for each."""
        ...

    async def holds(self, root: Cid) -> bool:
        """Whether ``root`` and all that it reaches is in the store already, and nobody has to be asked; if so, it is safe as if it had been put."""
        ...

    async def flush(self) -> None:
        """Return when everything put so far is stored, visible to readers and on the disk."""
        ...

    @property
    def new_blocks(self) -> int:
        """Blocks stored that were not there before (known after flush)."""
        ...

    @property
    def new_bytes(self) -> int:
        """Their bytes."""
        ...


class Blocks(Protocol):
    """Whoever gives blocks: a node, or a view of one."""

    async def get(self, cid: Cid, *, timeout: float | None = None) -> bytes:
        """See ``Node.get``."""
        ...


@runtime_checkable
class WholeDags(Protocol):
    """A node that hands out a whole DAG faster than block by block."""

    async def stream_dag(self, root: Cid, visit: Callable[[Cid, bytes], Awaitable[None]], *, timeout: float | None = None) -> None:
        """Give ``visit`` the blocks below ``root``, depth first, each once, verified, until one cannot be had: whether all came is not said.

        ``timeout``: seconds without a block. Raises NodeUnavailable, BlockMismatch, and what ``visit`` raises.
        """
        ...


class Node(Protocol):
    """A block store and its sources."""

    @property
    def name(self) -> str:
        """``embedded`` or ``kubo``."""
        ...

    async def get(self, cid: Cid, *, timeout: float | None = None) -> bytes:
        """The block, from the store or from whoever has it, verified. ``timeout`` in seconds (None: the node's own).

        Raises BlockNotFound (nobody has it within the time), NodeUnavailable (no answer at all).
        """
        ...

    async def has(self, cid: Cid) -> bool:
        """Whether the store itself holds the block."""
        ...

    async def delete(self, cid: Cid) -> None:
        """Forget one block of the local store; nothing happens if it is not there."""
        ...

    def blocks(self) -> AsyncIterator[Cid]:
        """The CID of every block in the store, each once, in no order."""
        ...

    def push(self) -> AbstractAsyncContextManager[Push]:
        """Open a push; leaving it without an exception flushes."""
        ...

    async def pin(self, root: Cid, *, name: str = "") -> None:
        """Keep ``root`` and all it links to, fetching what is missing; raises BlockNotFound."""
        ...

    async def unpin(self, root: Cid) -> None:
        """Stop keeping; raises NotFound where it is not pinned."""
        ...

    async def pins(self) -> dict[Cid, str]:
        """Pinned roots and their names."""
        ...

    async def gc(self) -> GcResult:
        """Delete every block that no pin reaches and no open push brought."""
        ...

    async def aclose(self) -> None:
        """Close connections and files."""
        ...
