"""Whether somebody who waits for us is on the way out (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Container

_SIGKILL = 1 << 8
_PF_EXITING = 0x4


def is_dying(thread: int) -> bool:
    """Whether the thread has SIGKILL pending or is exiting. One that is not there is not dying: its open files may be in other hands."""
    if thread <= 0:
        return False
    try:
        with open(f"/proc/{thread}/stat", "rb") as file:  # noqa: PTH123
            # After the command in parentheses, which may hold anything: state, ppid, pgrp, session, tty, tpgid, flags.
            flags = int(file.read().rpartition(b")")[2].split()[6])
        if flags & _PF_EXITING:
            return True
        with open(f"/proc/{thread}/status", "rb") as file:  # noqa: PTH123
            return any(int(line.split()[1], 16) & _SIGKILL for line in file if line.startswith((b"SigPnd:", b"ShdPnd:")))
    except (FileNotFoundError, ProcessLookupError):
        return False


def somebody_is_stuck(but: Container[int]) -> bool:
    """Whether any thread of the machine got SIGKILL and waits without heeding it; ``but``: threads that do not count. 10 µs a process."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and _waits(name) and any(int(thread) not in but and is_dying(int(thread)) for thread in _threads(name)):
            return True
    return False


def _waits(process: str) -> bool:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] == b"D" or int(fields[17]) > 1  # of one with several threads, any may


def _threads(process: str) -> list[str]:
    try:
        return [thread for thread in os.listdir(f"/proc/{process}/task") if _uninterruptible(thread)]  # noqa: PTH208
    except (FileNotFoundError, ProcessLookupError):
        return []


def _uninterruptible(thread: str) -> bool:
    try:
        with open(f"/proc/{thread}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0] == b"D"
    except (FileNotFoundError, ProcessLookupError):
        return False
