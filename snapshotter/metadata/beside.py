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
from snapshotter.metadata.contentid import REDIRECT_SIZE, Scope, redirects
from snapshotter.metadata.gather import content_ids, gather
from snapshotter.metadata.index import encode_index


class Beside:
    """What the other process finds out."""

    def __init__(self, redirects: mmap.mmap, channel: Connection, layer: str) -> None:
        """See `gathering`."""
        self._redirects = redirects
        self._channel = channel
        self._layer = layer

    def redirects(self) -> list[bytes]:
        """Those of the regular files, in the order of `content_ids`; raises what it does."""
        count = pickle.loads(self._receive())
        return [self._redirects[at : at + REDIRECT_SIZE] for at in range(0, REDIRECT_SIZE * count, REDIRECT_SIZE)]

    def index(self) -> bytes:
        """The encoded index, without the image that belongs to it; to be asked for after the redirects. Raises what `gather` does."""
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
    """Have `content_ids`, `gather` and `encode_index` done beside the block. For a process without threads; where it ends early, so does the other."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    with mmap.mmap(-1, max(REDIRECT_SIZE * len(entries), 1)) as places, ours:
        process = context.Process(target=_gather, args=(theirs, places, entries, scope, layer, kind), daemon=True)
        process.start()
        theirs.close()
        try:
            yield Beside(places, ours, layer)
        finally:
            process.kill()
            process.join()


def _gather(channel: Connection, places: mmap.mmap, entries: Sequence[Entry], scope: Scope, layer: str, kind: Kind) -> None:
    try:
        ids, first = content_ids(entries, scope=scope, layer=layer)
        places.write(b"".join(redirects(ids)))
        channel.send_bytes(pickle.dumps(len(ids)))
        channel.send_bytes(encode_index(gather(first), kind=kind, entries=len(entries)))
    except IpfsStoreError as error:
        channel.send_bytes(b"")
        channel.send_bytes(pickle.dumps(error.with_traceback(None)))
