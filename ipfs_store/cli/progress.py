"""How far things have come, on stderr: bars on a terminal, a line for each step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from ipfs_store.cli.sizes import size
from ipfs_store.images.model import NoProgress, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_DOING = {
    "fetch": "fetching",
    "convert": "converting",
    "push": "pushing",
    "export": "exporting",
    "import": "importing",
    "verify": "verifying",
}
_DIGEST = len("sha256:") + 12


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Progress]:
    """What is told how far things are, as long as the context lasts; ``quiet``: nothing is shown."""
    if quiet:
        yield NoProgress()
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Bars(*columns, console=Console(stderr=True)) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Bars:
    """One bar for each step of each item. Rich's bars may be moved from any thread."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def begin(self, item: str, action: str, total: int) -> None:
        self._tasks[item] = self._bars.add_task(f"{_DOING.get(action, action):10} {item[:_DIGEST]}", total=total)

    def advance(self, item: str, count: int) -> None:
        if item in self._tasks:
            self._bars.advance(self._tasks[item], count)

    def done(self, item: str, note: str = "") -> None:
        task = self._tasks.pop(item, None)
        if task is not None:
            total = self._bars.tasks[self._bars.task_ids.index(task)].total
            self._bars.update(task, completed=total)


class _Lines:
    """A line when a step begins and one when it has ended, so that a log shows what takes its time."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[str, float, int]] = {}

    def begin(self, item: str, action: str, total: int) -> None:
        doing = _DOING.get(action, action)
        self._begun[item] = doing, time.monotonic(), total
        click.echo(f"{doing} {item[:_DIGEST]} ({size(total)})", err=True)

    def advance(self, item: str, count: int) -> None:
        pass

    def done(self, item: str, note: str = "") -> None:
        if item in self._begun:
            doing, start, total = self._begun.pop(item)
            seconds = time.monotonic() - start
            rate = f", {size(total / seconds)}/s" if seconds >= 0.1 else ""
            click.echo(f"{doing} {item[:_DIGEST]}: done in {seconds:.1f} s{rate}{f', {note}' if note else ''}", err=True)
