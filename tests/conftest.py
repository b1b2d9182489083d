"""Options of the test suite."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

# A machine that is busy makes no test wrong.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    # What the user of this machine pushed is no business of the tests, nor theirs of the user.
    os.environ["IPFS_STORE_MEMORY"] = tempfile.mkdtemp(prefix="ipfs-store-memory-")


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["IPFS_STORE_MEMORY"], ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kill-seconds", type=float, default=10, help="how long tests/kills kills (default %(default)s, for each mode of mounting)"
    )
    parser.addoption("--posix-suite", default="", metavar="DIR", help="a built checkout of pjdfstest, for tests/mounts (5 minutes)")
    parser.addoption("--kill-seed", type=int, default=None, help="repeat a run of tests/kills")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--posix-suite"):
        items[:] = [item for item in items if item.get_closest_marker("posix_suite") is None]
    # What is asked to take long has no limit of five minutes.
    lasting = float(config.getoption("--kill-seconds")) + 600
    for item in items:
        if item.get_closest_marker("posix_suite") is not None:
            item.add_marker(pytest.mark.timeout(3600))
        elif "kills" in item.path.parts:
            item.add_marker(pytest.mark.timeout(lasting))
