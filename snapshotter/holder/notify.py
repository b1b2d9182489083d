"""What systemd is told (sd_notify(3)), and the descriptors that it keeps for us (sd_pid_notify_with_fds(3), sd_listen_fds(3))."""

from __future__ import annotations

import array
import os
import socket

_FIRST = 3  # SD_LISTEN_FDS_START


def notify(state: str, *descriptors: int) -> bool:
    """Send ``state``, and descriptors with it; False where nobody wants to know. Raises OSError."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.connect("\0" + address[1:] if address.startswith("@") else address)
        connection.sendmsg([state.encode()], rights)
    return True


def kept_descriptors() -> dict[str, int]:
    """Those that systemd kept for this process, by name; asked once, since the environment that says so is not to be inherited."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    found = {}
    for number in range(int(count)):
        os.set_inheritable(_FIRST + number, False)
        found[names[number] if number < len(names) else f"unnamed-{number}"] = _FIRST + number
    return found
