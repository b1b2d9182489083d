"""Which system call a waiting thread is in (proc_pid_syscall(5))."""

from __future__ import annotations

import os

# rename, link, chmod, chown, utime, setxattr, removexattr and their kin: overlayfs looks a file's data up for them, and reads nothing of it.
# A call that is wrongly here or missing costs a fetch or a detour, and is answered rightly all the same; so other architectures and 32-bit
# programs, whose numbers differ, are no trouble.
_X86_64 = frozenset(
    {82, 86, 90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 264, 265, 268, 280, 316, 452, 463, 466}
)  # fmt: skip
_GENERIC = frozenset({5, 6, 7, 14, 15, 16, 37, 38, 52, 53, 54, 55, 88, 276, 452, 463, 466})
_METADATA_CALLS = {"x86_64": _X86_64, "aarch64": _GENERIC, "riscv64": _GENERIC, "loongarch64": _GENERIC}
_OURS = _METADATA_CALLS.get(os.uname().machine, frozenset())


def changes_metadata(thread: int) -> bool:
    """Whether the thread is in a call that changes metadata and wants no data; False where it cannot be known."""
    try:
        with open(f"/proc/{thread}/syscall", "rb") as file:  # noqa: PTH123 - once for every lookup
            number = file.read(8).split(b" ", 1)[0]
    except OSError:
        return False
    return number.isdigit() and int(number) in _OURS
