"""A layer's contents gathered by a process beside the one that builds its tree: a fork, which has the decoded TOC already."""

from __future__ import annotations

import mmap
import multiprocessing
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

from ipfs_store.errors import IpfsStoreError, StorageFailed
from ipfs_store.formats.names import Kind
from ipfs_store.formats.toc import Entry
from snapshotter.metadata.contentid import ContentId, Scope
from snapshotter.metadata.gather import gather
from snapshotter.metadata.index import encode_index

_ID = 32


class Beside:
    """What the other process finds out."""

    def __init__(self, ids: mmap.mmap, channel: Connection, layer: str) -> None:
        """See `gathering`."""
        self._ids = ids
        self._channel = channel
        self._layer = layer

    def ids(self) -> list[ContentId]:
        """The contents of the regular files, as `gather` has them; raises what it does."""
        count = pickle.loads(self._receive())
        return [ContentId(self._ids[at : at + _ID]) for at in range(0, _ID * count, _ID)]

    def index(self) -> bytes:
        """The encoded index, without the image that belongs to it; to be asked for after the ids."""
        return self._receive()

    def _receive(self) -> bytes:
        try:
            data = self._channel.recv_bytes()
            if data:
                return data
            error = pickle.loads(self._channel.recv_bytes())
        except EOFError:
            raise StorageFailed(f"the process that gathered the contents of {self._layer} ended", hint="is memory short?") from None
        assert isinstance(error, IpfsStoreError)
        raise error


@contextmanager
def gathering(entries: Sequence[Entry], *, scope: Scope, layer: str, kind: Kind) -> Iterator[Beside]:
    """Have `gather` and `encode_index` done beside the block. For a process without threads; where it ends early, so does the other."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with mmap.mmap(-1, max(_ID * len(entries), 1)) as ids, ours:
        process = context.Process(target=_gather, args=(theirs, ids, entries, scope, layer, kind), daemon=True)
        process.start()
        theirs.close()
        try:
            yield Beside(ids, ours, layer)
        finally:
            process.kill()
            process.join()


def _gather(channel: Connection, ids: mmap.mmap, entries: Sequence[Entry], scope: Scope, layer: str, kind: Kind) -> None:
    try:
        found, contents = gather(entries, scope=scope, layer=layer)
        ids.write(b"".join(found))
        channel.send_bytes(pickle.dumps(len(found)))
        channel.send_bytes(encode_index(contents, kind=kind, entries=len(entries)))
    except IpfsStoreError as error:
        channel.send_bytes(b"")
        channel.send_bytes(pickle.dumps(error.with_traceback(None)))
