"""``python -m scripts.benchmarks.material.stepped FILE ARGUMENTS``: the data plane; FILE gets a line for each step of its event loop that was the longest so far."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from snapshotter.dataplane.__main__ import parser, run
from snapshotter.dataplane.server import LayerSource
from snapshotter.dataplane.source import open_source


class Steps(trio.abc.Instrument):
    """Seconds, seconds of a processor, and the task: while it takes a step, the event loop does nothing else."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._longest = [0.0, 0.0]
        self._began: tuple[float, float] | None = None  # the step that we are made in has begun before

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        self._began = time.perf_counter(), time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        if self._began is None:
            return
        took = time.perf_counter() - self._began[0], time.thread_time() - self._began[1]
        if took[0] > self._longest[0] or took[1] > self._longest[1]:
            self._longest = [max(pair) for pair in zip(took, self._longest, strict=True)]
            with self._file.open("a") as file:
                file.write(f"{took[0]:.6f} {took[1]:.6f} {task.name}\n")


def main() -> int:
    """The data plane's exit status."""
    file, *arguments = sys.argv[1:]
    options = parser().parse_args(arguments)

    @asynccontextmanager
    async def source() -> AsyncIterator[LayerSource]:
        trio.lowlevel.add_instrument(Steps(Path(file)))
        async with open_source(options.node, path=options.node_path, peers=tuple(options.peer), timeout=options.node_timeout) as opened:
            yield opened

    return run(options, source)


if __name__ == "__main__":
    sys.exit(main())
