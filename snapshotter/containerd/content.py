"""containerd's content store: blobs by digest."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from google.protobuf import field_mask_pb2

from ipfs_store.errors import BlobMismatch
from ipfs_store.oci import Digest
from snapshotter.containerd.connection import Connection
from snapshotter.containerd.errors import AlreadyExists, ContainerdNotFound, SnapshotterUnavailable
from snapshotter.containerd.ingest import Ingest
from snapshotter.containerd.protos import content_pb2, introspection_pb2
from snapshotter.containerd.protos.content_pb2_grpc import ContentStub
from snapshotter.containerd.protos.introspection_pb2_grpc import IntrospectionStub

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

    def open_file(self, digest: Digest, size: int) -> int | None:
        """A descriptor of the blob's file in containerd's own folder, not checked but for its size; None where we have no such folder.

        It holds the bytes even if containerd collects them. Whether this namespace has the blob, `info` says.
        """
        folder = self._folder
        if folder is None:
            return None
        try:
            handle = os.open(folder / "blobs" / "sha256" / digest.hex, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # not our machine's folder, or not our folder: the socket reaches further
            return None
        found = os.fstat(handle)
        if stat.S_ISREG(found.st_mode) and found.st_size == size:
            return handle
        os.close(handle)
        return None

    @cached_property
    def _folder(self) -> Path | None:
        request = introspection_pb2.PluginsRequest(filters=["type==io.containerd.content.v1"])
        plugins = self._connection.call(IntrospectionStub(self._connection.channel).Plugins, request).plugins
        roots = [plugin.exports["root"] for plugin in plugins if plugin.id == "content" and "root" in plugin.exports]
        return Path(roots[0]) if len(roots) == 1 else None

    def label(self, digest: Digest, labels: Mapping[str, str]) -> None:
        """Set ``labels`` beside those it has; raises ContainerdNotFound."""
        info = content_pb2.Info(digest=str(digest), labels=labels)
        mask = field_mask_pb2.FieldMask(paths=[f"labels.{key}" for key in labels])
        self._connection.call(self._stub.Update, content_pb2.UpdateRequest(info=info, update_mask=mask))

    def put(self, digest: Digest, data: bytes, labels: Mapping[str, str] | None = None) -> bool:
        """Store a small blob with ``labels``; False if it was there (it then has the labels too, and the lease)."""
        with self.ingest(digest, len(data), labels) as ingest:
            if ingest is not None:
                ingest.write(data)
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
            ingest.abort()
            if labels:
                self.label(digest, labels)
        except BaseException:
            ingest.close()
            ingest.abort()
            raise
        ingest.close()

    def unnamed(self) -> Ingest:
        """Write a blob whose digest is given at its commit. Whoever asks closes and, if it was not committed, aborts it."""
        return Ingest(self._connection, f"ipfs-store-{secrets.token_hex(16)}")

    def _open(self, digest: Digest, size: int, labels: Mapping[str, str]) -> Ingest | None:
        deadline, pause = time.monotonic() + _LOCKED_SECONDS, 0.02
        while True:
            ingest = Ingest(self._connection, f"ipfs-store-{digest}", digest, size)
            try:
                if not ingest.begin():
                    return ingest
                # All bytes are there: another namespace has the blob, or someone was killed before the commit.
                ingest.commit(labels)
                ingest.close()
                return None
            except BlobMismatch:
                ingest.close()
                ingest.abort()
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
