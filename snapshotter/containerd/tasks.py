"""containerd's tasks: the running side of a container."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapshotter.containerd.connection import Connection
from snapshotter.containerd.protos import mount_pb2, tasks_pb2
from snapshotter.containerd.protos.tasks_pb2_grpc import TasksStub


@dataclass(frozen=True, slots=True)
class Streams:
    """FIFOs of a task; an empty one is not connected."""

    stdin: str = ""
    stdout: str = ""
    stderr: str = ""
    terminal: bool = False


class Task:
    """The task of the container ``name``; there may be none yet."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._stub = TasksStub(connection.channel)
        self._name = name

    def create(self, rootfs: Sequence[mount_pb2.Mount], streams: Streams) -> None:
        """Set everything up, short of running its program; when it returns, the FIFOs are open on the other side."""
        request = tasks_pb2.CreateTaskRequest(
            container_id=self._name,
            rootfs=rootfs,
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            terminal=streams.terminal,
        )
        self._connection.call(self._stub.Create, request, seconds=None)

    def start(self) -> None:
        """Run the program; raises ContainerdRefused if there is none of that name in the image."""
        self._connection.call(self._stub.Start, tasks_pb2.StartRequest(container_id=self._name), seconds=None)

    def wait(self) -> int:
        """The exit status, when the program has ended: 128 and more for a signal."""
        return self._connection.call(self._stub.Wait, tasks_pb2.WaitRequest(container_id=self._name), seconds=None).exit_status

    def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """Send a signal; raises ContainerdNotFound if it has ended."""
        self._connection.call(self._stub.Kill, tasks_pb2.KillRequest(container_id=self._name, signal=signal, all=all_processes))

    def resize(self, columns: int, rows: int) -> None:
        """Tell its terminal how large it is."""
        self._connection.call(self._stub.ResizePty, tasks_pb2.ResizePtyRequest(container_id=self._name, width=columns, height=rows))

    def close_stdin(self) -> None:
        """Tell the program that no more input comes."""
        self._connection.call(self._stub.CloseIO, tasks_pb2.CloseIORequest(container_id=self._name, stdin=True))

    def delete(self) -> None:
        """Remove what is left of it, after its end; raises ContainerdNotFound."""
        self._connection.call(self._stub.Delete, tasks_pb2.DeleteTaskRequest(container_id=self._name), seconds=None)
