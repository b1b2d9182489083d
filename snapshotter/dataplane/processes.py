"""Whether somebody who waits for us is on the way out (proc(5))."""

from __future__ import annotations

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
