"""Loop devices (loop(4)), for kernels that cannot mount an image file by itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_GET_FREE, _CONFIGURE = 0x4C82, 0x4C0A
_READ_ONLY, _AUTOCLEAR = 1, 4
# struct loop_config: fd, block_size, struct loop_info64 (its lo_flags and lo_file_name are all we set), 64 reserved bytes.
_CONFIG = struct.Struct("=II 5Q III I 64s 64s 32s 2Q 64x")
_TRIES = 32  # between asking for a free device and taking it, others take it


@contextlib.contextmanager
def loop_device(image: Path) -> Iterator[Path]:
    """A read-only loop device on ``image``; it goes away by itself when what mounted it does. Raises OSError."""
    with contextlib.ExitStack() as stack:
        file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, file)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, control)
        config = _CONFIG.pack(file, 0, 0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY | _AUTOCLEAR, os.fsencode(image)[-63:], b"", b"", 0, 0)
        for _ in range(_TRIES):
            path = Path(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}")
            device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
                continue
            stack.callback(os.close, device)  # the mount holds it from then on
            yield path
            return
        raise OSError(errno.EBUSY, f"no loop device can be had for {image}")
