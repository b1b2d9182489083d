"""What the next reads of a blob do, told through a folder: the data plane of a test is another process, and may be killed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import trio

_POLL = 0.01  # seconds
_looking = trio.Lock()
"""One of the reads that hold looks whether they still shall: a hundred that look would take the data plane's time from those who read."""


@dataclass(frozen=True)
class Faults:
    """FOLDER/faults: words, the last one for ever; FOLDER/hold: reads that hold go on when it is gone."""

    folder: Path

    def set(self, *words: str) -> None:
        """What the next reads do, a word each: ok, away, missing, wrong, hold. Reads that hold already go on holding."""
        if "hold" in words:
            (self.folder / "hold").touch()
        self._write(words)

    def let_go(self) -> None:
        """Reads that hold go on, and so does one that is about to."""
        (self.folder / "hold").unlink()

    def next(self) -> str:
        """What this read does."""
        path = self.folder / "faults"
        words = path.read_text().split() if path.exists() else ["ok"]
        if len(words) > 1:
            self._write(words[1:])
        return words[0]

    async def hold(self) -> None:
        """Until `let_go`."""
        async with _looking:
            while (self.folder / "hold").exists():  # noqa: ASYNC110 - it is another process that lets go
                await trio.sleep(_POLL)

    def _write(self, words: tuple[str, ...] | list[str]) -> None:
        new = self.folder / f"faults.{os.getpid()}"
        new.write_text("\n".join(words))
        new.replace(self.folder / "faults")  # a reader in another process sees the old words or the new ones
