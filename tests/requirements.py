"""What the machine must have for a test. A missing piece is a skip that names it; under CI it is a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip the test, or fail it under CI."""
    if os.environ.get("CI"):
        pytest.fail(f"needs {what}, which CI must have", pytrace=False)
    pytest.skip(f"needs {what}")


def require_tool(name: str, *, go_build: bool = False) -> Path:
    """The program ``name``; ``go_build`` asks for the one that scripts/setup built (Kubo, containerd 2) instead of the one on PATH."""
    built = Path(os.environ.get("IPFS_STORE_TEST_BIN", "/var/cache/ipfs-store/go")) / name
    if go_build:
        if not built.exists():
            missing(f"{name} as scripts/setup builds it")
        return built
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        missing(f"{name} on PATH")
    return Path(found)


def require_root() -> None:
    """Root, for mounts and containers."""
    if os.geteuid() != 0:
        missing("root")


def require_fuse() -> None:
    """Root and /dev/fuse."""
    require_root()
    if not Path("/dev/fuse").exists():
        missing("/dev/fuse")
