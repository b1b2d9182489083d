"""Processes that build metadata, so that several layers are built at a time and the event loop of the data plane never waits for one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import trio

from ipfs_store.errors import IpfsStoreError, StorageFailed
from snapshotter.metadata.kept import ChainJob, Job
from snapshotter.metadata.worker import LENGTH


class Workers:
    """At most ``limit`` processes, as many as there are processors. Those that are idle stay warm: a start costs 0.2 s."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = trio.CapacityLimiter(limit or os.cpu_count() or 1)
        self._idle: list[trio.Process] = []

    async def warm(self) -> None:
        """Start one, for the first layer."""
        if not self._idle:
            self._idle.append(await self._start())

    async def run(self, job: Job | ChainJob) -> None:
        """Have the job done; raises what `kept.build` raises, and StorageFailed where no process can be had. A job that is cancelled is killed."""
        async with self._limit:
            process = await self._take()
            try:
                failure = await self._exchange(process, job)
            except BaseException:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
                raise
            self._idle.append(process)
        if failure is not None:
            raise failure

    async def aclose(self) -> None:
        """End all; whoever waits for a job gets it first."""
        idle, self._idle = self._idle, []
        for process in idle:
            await self._end(process)

    async def _take(self) -> trio.Process:
        while self._idle:
            process = self._idle.pop()
            if process.returncode is None:
                return process
        return await self._start()

    async def _start(self) -> trio.Process:
        try:
            return await trio.lowlevel.open_process(
                [sys.executable, "-m", "snapshotter.metadata.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise StorageFailed(f"no process can be started to build a layer's metadata: {error}") from error

    async def _exchange(self, process: trio.Process, job: Job | ChainJob) -> IpfsStoreError | None:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker without pipes")
        # A TOC of 30,000 entries has 8 MB: no copy of it is made on the event loop.
        data = await trio.to_thread.run_sync(pickle.dumps, job)
        try:
            await process.stdin.send_all(LENGTH.pack(len(data)))
            await process.stdin.send_all(data)
            buffer = bytearray()
            async for piece in process.stdout:
                buffer += piece
                if len(buffer) >= LENGTH.size and len(buffer) == LENGTH.size + LENGTH.unpack_from(buffer)[0]:
                    if len(buffer) == LENGTH.size:
                        raise StorageFailed(f"the process that built the metadata of {job.layer} ended", hint="is memory short?")
                    answer = pickle.loads(bytes(memoryview(buffer)[LENGTH.size :]))
                    if answer is None or isinstance(answer, IpfsStoreError):
                        return answer
                    raise TypeError(f"a worker answered {answer!r}")
        except trio.BrokenResourceError:
            pass  # it ended, as below
        raise StorageFailed(f"the process that built the metadata of {job.layer} ended ({await process.wait()})", hint="is memory short?")

    async def _end(self, process: trio.Process) -> None:
        if process.stdin is not None:
            await process.stdin.aclose()
        with trio.CancelScope(shield=True):
            await process.wait()
