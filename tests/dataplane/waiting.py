"""Every way in which a process waits for bytes of ours, as code that runs with ``path``: a large file; ``path + '.small'`` is a small one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.patience import until

WAYS = {
    "read": "import os; os.read(os.open(path, os.O_RDONLY), 100_000)",
    "pread far inside": "import os; os.pread(os.open(path, os.O_RDONLY), 10, 2_000_000)",
    "direct read": "import os, mmap; os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 1 << 16)], 0)",
    "read without read-ahead": "import os; f = os.open(path, os.O_RDONLY); os.posix_fadvise(f, 0, 0, os.POSIX_FADV_RANDOM); os.read(f, 4096)",
    "page fault": "import os, mmap; mmap.mmap(os.open(path, os.O_RDONLY), 0, prot=mmap.PROT_READ)[1_000_000]",
    "exec": "import os; os.execv(path, [path])",
    "lookup of a small file": "open(path + '.small', 'rb').read()",
    "copy up": "open(path + '.small', 'ab')",
}


@contextlib.contextmanager
def waiting(way: str, path: Path, arrived: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits, once ``arrived`` says that what it asks for has come to the data plane. Killed at the end."""
    code = f"path = {str(path)!r}\nprint('begun', flush=True)\n{WAYS[way]}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            until(lambda: arrived() or process.poll() is not None, "nothing was asked for")
            assert process.poll() is None, "it did not wait"
            yield process
        finally:
            process.kill()
