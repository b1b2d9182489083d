"""Our standard streams joined to those of a task, by FIFOs that the runtime's shim opens on the other side."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import tempfile
import termios
import threading
import tty
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from snapshotter.containerd.tasks import Streams

_PIECE = 1 << 16


class Stdio:
    """A context. Make the task with ``streams``, then call ``attach``; leaving the context waits for the last output.

    ``on_input_end`` is called when our input has ended, ``on_broken_output`` when nobody reads our output any more.
    """

    def __init__(
        self, *, interactive: bool, terminal: bool, on_input_end: Callable[[], None], on_broken_output: Callable[[], None]
    ) -> None:
        self._interactive = interactive
        self._terminal = terminal
        self._on_input_end = on_input_end
        self._on_broken_output = on_broken_output
        self._threads: list[threading.Thread] = []
        self._closing = contextlib.ExitStack()
        self._held: list[int] = []
        self._readers: list[tuple[int, int]] = []

    def __enter__(self) -> Stdio:
        with contextlib.ExitStack() as stack:
            runtime = "/run" if os.access("/run", os.W_OK) else None
            folder = Path(tempfile.mkdtemp(prefix="ipfs-store-run-", dir=runtime))
            stack.callback(shutil.rmtree, folder)
            paths = {name: str(folder / name) for name in ("stdin", "stdout", "stderr")}
            if not self._interactive:
                del paths["stdin"]
            if self._terminal:
                del paths["stderr"]
            for path in paths.values():
                os.mkfifo(path, 0o600)
            self.streams = Streams(terminal=self._terminal, **paths)
            for name, ours in (("stdout", 1), ("stderr", 2)):
                if name in paths:
                    reading = os.open(paths[name], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    stack.callback(os.close, reading)
                    os.set_blocking(reading, True)
                    # Without a writer there would be an end of file before the shim comes.
                    self._held.append(os.open(paths[name], os.O_WRONLY | os.O_CLOEXEC))
                    self._readers.append((reading, ours))
            self._closing = stack.pop_all()
        return self

    def attach(self) -> None:
        """Begin to copy; the task is made, so the shim has its ends open."""
        self._let_go()
        for reading, ours in self._readers:
            self._start(self._copy_output, reading, ours)
        if self._interactive:
            if self._terminal:
                before = termios.tcgetattr(0)
                self._closing.callback(termios.tcsetattr, 0, termios.TCSADRAIN, before)
                tty.setraw(0)
            wake_reading, wake_writing = os.pipe2(os.O_CLOEXEC)
            writing = os.open(self.streams.stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.set_blocking(writing, True)
            copying = threading.Thread(target=self._copy_input, args=(writing, wake_reading), daemon=True)
            copying.start()

            def stop() -> None:
                os.close(wake_writing)
                copying.join()
                os.close(wake_reading)

            self._closing.callback(stop)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._let_go()
        for thread in self._threads:
            thread.join()
        self._closing.close()

    def _let_go(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def _start(self, target: Callable[[int, int], None], *arguments: int) -> None:
        thread = threading.Thread(target=target, args=arguments)
        thread.start()
        self._threads.append(thread)

    def _copy_output(self, reading: int, ours: int) -> None:
        broken = False
        while data := os.read(reading, _PIECE):
            try:
                _write_all(ours, b"" if broken else data)
            except BrokenPipeError:
                broken = True  # the rest is read all the same, or the program would hang in its write
                self._on_broken_output()

    def _copy_input(self, writing: int, wake: int) -> None:
        try:
            while True:
                ready, _, _ = select.select([0, wake], [], [])
                if wake in ready or not (data := os.read(0, _PIECE)):
                    break
                _write_all(writing, data)
        except BrokenPipeError:
            return  # the program has ended
        finally:
            os.close(writing)
        if wake not in ready:
            self._on_input_end()


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
