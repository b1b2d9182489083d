"""Files that a command writes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def whole_file(name: str) -> Iterator[BinaryIO]:
    """A file that takes the place of ``name`` when the context ends well, and otherwise leaves nothing; raises OSError.

    What is no plain file (``/dev/null``, a FIFO) is written to as it is.
    """
    path = Path(name)
    if path.exists() and not path.is_file():
        with path.open("wb") as existing:
            yield existing
        return
    path = path.resolve()  # a symbolic link stays, what it leads to is replaced
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(handle, path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~mask)
            yield file
            file.flush()
            os.fsync(handle)  # it may lie on a stick that is pulled out as soon as the command has ended
        Path(temporary).rename(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
