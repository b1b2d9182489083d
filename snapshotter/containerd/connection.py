"""A connection to containerd: one unix socket, one namespace, and the lease that calls are made under."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import grpc
from google.protobuf import empty_pb2

from ipfs_store.errors import IpfsStoreError
from snapshotter.containerd.errors import ContainerdNotFound, ContainerdUnavailable, from_grpc, snapshotter_missing
from snapshotter.containerd.protos import introspection_pb2, leases_pb2, version_pb2
from snapshotter.containerd.protos.introspection_pb2_grpc import IntrospectionStub
from snapshotter.containerd.protos.leases_pb2_grpc import LeasesStub
from snapshotter.containerd.protos.version_pb2_grpc import VersionStub

_log = logging.getLogger(__name__)

DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
DEFAULT_NAMESPACE = "default"
# containerd limits what it takes to 16 MiB, and asks its clients to do so too.
_OPTIONS = [("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20)]
_CALL_SECONDS = 60.0  # for calls that only look something up or write a record

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where calls go, and the headers they carry. All wrappers of containerd's services are made from one."""

    channel: grpc.Channel
    address: str
    namespace: str
    lease: str = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers of a call."""
        leased = (("containerd-lease", self.lease),) if self.lease else ()
        return (("containerd-namespace", self.namespace), *leased)

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, *, seconds: float | None = _CALL_SECONDS
    ) -> Response:
        """Make a call; raises what ``errors.from_grpc`` makes of a refusal. ``seconds`` None: however long it takes."""
        with self.errors():
            return method(request, timeout=seconds, metadata=self.metadata)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turns grpc's exceptions into ours."""
        try:
            yield
        except grpc.RpcError as error:
            raise from_grpc(error, self.address) from error


@contextmanager
def connect(address: str | None = None, namespace: str | None = None) -> Iterator[Connection]:
    """Connect to containerd; by default as its other clients do: $CONTAINERD_ADDRESS and $CONTAINERD_NAMESPACE, or what it is built with.

    Raises ContainerdUnavailable, which says why: no socket there, nobody behind it, or no permission.
    """
    path = (address or os.environ.get("CONTAINERD_ADDRESS") or DEFAULT_ADDRESS).removeprefix("unix://")
    _probe(path)
    channel = grpc.insecure_channel(f"unix://{os.path.abspath(path)}", options=_OPTIONS)  # noqa: PTH100 resolve() would follow links
    try:
        yield Connection(channel, path, namespace or os.environ.get("CONTAINERD_NAMESPACE") or DEFAULT_NAMESPACE)
    finally:
        channel.close()


@contextmanager
def leased(connection: Connection, *, seconds: float = 24 * 3600) -> Iterator[Connection]:
    """A connection whose calls keep what they make from garbage collection, until the end; or for ``seconds`` if we are killed.

    After an exception containerd collects at once whatever nothing else holds.
    """
    under_lease = unfinished_lease(connection, seconds=seconds)
    delete = LeasesStub(connection.channel).Delete
    failed = True
    try:
        yield under_lease
        failed = False
    finally:
        wanted = leases_pb2.DeleteRequest(id=under_lease.lease, sync=failed)
        end(connection, lambda: connection.call(delete, wanted), quietly=failed)


def unfinished_lease(connection: Connection, *, seconds: float) -> Connection:
    """A connection whose calls keep what they make for ``seconds``; nobody ends the lease before."""
    expires = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    wanted = leases_pb2.CreateRequest(id=f"ipfs-store-{secrets.token_hex(8)}", labels={"containerd.io/gc.expire": expires})
    return replace(connection, lease=connection.call(LeasesStub(connection.channel).Create, wanted).lease.id)


def end(connection: Connection, action: Callable[[], object], *, quietly: bool) -> None:
    """Do an ``action`` of clean-up; ``quietly``: what went wrong before matters more than what goes wrong now, which is logged."""
    try:
        action()
    except ContainerdNotFound:
        pass  # it expired, or someone was faster
    except IpfsStoreError as error:
        if not quietly:
            raise
        _log.warning("clean-up: %s", error.message)


def add_to_lease(connection: Connection, *, kind: str, name: str) -> None:
    """Keep something that exists already under the connection's lease (``kind``: content, snapshots/NAME); raises ContainerdNotFound."""
    request = leases_pb2.AddResourceRequest(id=connection.lease, resource=leases_pb2.Resource(id=name, type=kind))
    connection.call(LeasesStub(connection.channel).AddResource, request)


def server_version(connection: Connection) -> str:
    """containerd's version, as it prints it."""
    response: version_pb2.VersionResponse = connection.call(VersionStub(connection.channel).Version, empty_pb2.Empty())
    return response.version


def require_snapshotter(connection: Connection, name: str) -> None:
    """Raises SnapshotterMissing unless containerd has loaded a snapshotter ``name``; its hint shows the configuration to add."""
    stub = IntrospectionStub(connection.channel)
    request = introspection_pb2.PluginsRequest(filters=["type==io.containerd.snapshotter.v1"])
    plugins = connection.call(stub.Plugins, request).plugins
    for plugin in plugins:
        if plugin.id == name:
            if plugin.init_err.message:
                raise snapshotter_missing(name, [], plugin.init_err.message)
            return
    raise snapshotter_missing(name, sorted(plugin.id for plugin in plugins if not plugin.init_err.message))


def _probe(path: str) -> None:
    # grpc says "failed to connect to all addresses" to everything, after trying for a while.
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except PermissionError as error:
            raise ContainerdUnavailable(f"no permission to connect to containerd at {path}", hint="run it as root (sudo)") from error
        except FileNotFoundError as error:
            raise ContainerdUnavailable(
                f"no containerd at {path}", hint="start containerd, or name its socket with --address or $CONTAINERD_ADDRESS"
            ) from error
        except OSError as error:
            raise ContainerdUnavailable(
                f"containerd at {path} does not answer: {error.strerror or error}", hint="is it running? (systemctl status containerd)"
            ) from error
