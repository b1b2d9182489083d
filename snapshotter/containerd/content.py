"""containerd's content store: blobs by digest."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

import grpc
from google.protobuf import field_mask_pb2

from ipfs_store.errors import BlobMismatch
from ipfs_store.oci import Digest
from snapshotter.containerd.connection import Connection
from snapshotter.containerd.errors import AlreadyExists, ContainerdNotFound, ContainerdRefused, SnapshotterUnavailable
from snapshotter.containerd.protos import content_pb2
from snapshotter.containerd.protos.content_pb2_grpc import ContentStub

PIECE = 1 << 20
"""Bytes of one message; containerd takes up to 16 MiB."""
_LOCKED_SECONDS = 120.0


class ContentStore:
    """Reads and writes blobs. Synchronous, safe for several threads."""

    def __init__(self, connection: Connection, *, pause: Callable[[float], None] = time.sleep) -> None:
        """``pause``: called between tries while another client writes the same blob; may raise to give up."""
        self._connection = connection
        self._stub = ContentStub(connection.channel)
        self._pause = pause

    def info(self, digest: Digest) -> content_pb2.Info:
        """Size and labels; raises ContainerdNotFound."""
        return self._connection.call(self._stub.Info, content_pb2.InfoRequest(digest=str(digest))).info

    def has(self, digest: Digest) -> bool:
        """Whether the blob is there, whole."""
        try:
            self.info(digest)
        except ContainerdNotFound:
            return False
        return True

    def read(self, digest: Digest, *, size: int) -> bytes:
        """A small blob, checked: its size and digest; raises ContainerdNotFound, BlobMismatch."""
        data = b"".join(self.pieces(digest))
        if len(data) != size or Digest.of(data) != digest:
            raise BlobMismatch(f"containerd's blob {digest} has {len(data)} bytes of digest {Digest.of(data)}, expected {size} bytes")
        return data

    def pieces(self, digest: Digest) -> Iterator[bytes]:
        """The bytes of a blob in order, not checked; raises ContainerdNotFound."""
        with self._connection.errors():
            for response in self._stub.Read(content_pb2.ReadContentRequest(digest=str(digest)), metadata=self._connection.metadata):
                yield response.data

    def part(self, digest: Digest, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``, not checked; raises ContainerdNotFound."""
        request = content_pb2.ReadContentRequest(digest=str(digest), offset=offset, size=length)
        with self._connection.errors():
            return b"".join(response.data for response in self._stub.Read(request, metadata=self._connection.metadata))

    def label(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Set ``labels`` beside those it has; raises ContainerdNotFound."""
        info = content_pb2.Info(digest=str(digest), labels=labels)
        mask = field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in labels])
        self._connection.call(self._stub.Update, content_pb2.UpdateRequest(info=info, update_mask=mask))

    def put(self, digest: Digest, data: bytes, labels: Mapping[str, str] | None = None) -> bool:
        """Store a small blob with ``labels``; False if it was there (it then has the labels too, and the lease)."""
        with self.ingest(digest, len(data), labels) as ingest:
            if ingest is not None:
                for start in range(0, len(data), PIECE):
                    ingest.write(data[start : start + PIECE])
        return ingest is not None

    @contextmanager
    def ingest(self, digest: Digest, size: int, labels: Mapping[str, str] | None = None) -> Iterator[Ingest | None]:
        """Write a blob piece by piece; it is checked and visible at the end of the context. None if it is there already.

        An ingest that was broken off, by us or by a killed process, starts again. Another client's of the same blob is waited for.
        After an exception nothing of it is left. Raises BlobMismatch, StorageFailed, ContainerdUnavailable.
        """
        ingest = self._open(digest, size, labels or {})
        if ingest is None:
            if labels:
                self.label(digest, labels)
            yield None
            return
        try:
            yield ingest
            ingest.commit(labels or {})
        except AlreadyExists:
            ingest.close()
            self._abort(ingest)
            if labels:
                self.label(digest, labels)
        except BaseException:
            ingest.close()
            self._abort(ingest)
            raise
        ingest.close()

    def _open(self, digest: Digest, size: int, labels: Mapping[str, str]) -> Ingest | None:
        deadline, pause = time.monotonic() + _LOCKED_SECONDS, 0.02
        while True:
            ingest = Ingest(self._connection, self._stub, digest, size)
            try:
                if not ingest.begin():
                    return ingest
                # All bytes are there: another namespace has the blob, or someone was killed before the commit.
                ingest.commit(labels)
                ingest.close()
                return None
            except BlobMismatch:
                ingest.close()
                self._abort(ingest)
                continue
            except AlreadyExists:
                ingest.close()
                return None
            except SnapshotterUnavailable as error:  # not the snapshotter's doing here: somebody else holds the name of the ingest
                ingest.close()
                if "locked" not in error.message or time.monotonic() > deadline:
                    raise
            except BaseException:
                ingest.close()
                raise
            self._pause(pause)
            pause = min(pause * 2, 1.0)

    def _abort(self, ingest: Ingest) -> None:
        # Bytes already checked and committed are no ingest any more.
        with suppress(ContainerdNotFound):
            self._connection.call(self._stub.Abort, content_pb2.AbortRequest(ref=ingest.ref))


class Ingest:
    """A blob on its way in. Made by ``ContentStore.ingest``."""

    def __init__(self, connection: Connection, stub: ContentStub, digest: Digest, size: int) -> None:
        self.ref = f"ipfs-store-{digest}"
        self._connection = connection
        self._digest = digest
        self._size = size
        self._offset = 0
        self._requests: queue.SimpleQueue[content_pb2.WriteContentRequest | None] = queue.SimpleQueue()
        self._responses = iter(stub.Write(iter(self._requests.get, None), metadata=connection.metadata))

    def begin(self) -> bool:
        """Take the name of the ingest; whether all bytes are there already, and only the commit is missing.

        Raises AlreadyExists if the blob is there, SnapshotterUnavailable while somebody else writes it.
        """
        if self._ask(content_pb2.STAT).offset != self._size:
            return False
        self._offset = self._size
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``, and wait until containerd has it."""
        view = memoryview(data)
        for start in range(0, len(view), PIECE):
            piece = bytes(view[start : start + PIECE])
            self._ask(content_pb2.WRITE, piece)
            self._offset += len(piece)

    def commit(self, labels: Mapping[str, str]) -> None:
        """End it; containerd compares size and digest."""
        if self._offset != self._size:
            raise BlobMismatch(f"blob {self._digest} has {self._offset} bytes, its descriptor says {self._size}")
        try:
            self._ask(content_pb2.COMMIT, labels=labels)
        except ContainerdRefused as error:
            if "digest" in error.message or "size" in error.message:
                raise BlobMismatch(f"blob {self._digest} does not have its digest: {error.message}") from error
            raise

    def close(self) -> None:
        """End the stream; containerd keeps what it has under ``ref``, no longer locked."""
        self._requests.put(None)
        # Reading to the end is what makes sure that the lock is gone when this returns.
        with suppress(grpc.RpcError):  # whoever asked last has seen it
            for _ in self._responses:
                pass

    def _ask(
        self, action: content_pb2.WriteAction.ValueType, data: bytes = b"", labels: Mapping[str, str] | None = None
    ) -> content_pb2.WriteContentResponse:
        request = content_pb2.WriteContentRequest(
            action=action, ref=self.ref, total=self._size, expected=str(self._digest), offset=self._offset, data=data, labels=labels
        )
        self._requests.put(request)
        with self._connection.errors():
            try:
                return next(self._responses)
            except StopIteration:
                raise ContainerdRefused(f"containerd ended the transfer of blob {self._digest} before it was complete") from None
