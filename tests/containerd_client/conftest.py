"""containerd of both versions, each started once for the folder's tests; every test has a namespace of its own."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.containerd.connection import Connection, connect
from tests.containerd import VERSIONS, PrivateContainerd

_numbers = itertools.count(1)


@pytest.fixture(scope="session", params=VERSIONS)
def containerd(request: pytest.FixtureRequest) -> Iterator[PrivateContainerd]:
    root = Path(tempfile.mkdtemp(prefix="ctrd-", dir="/tmp"))
    try:
        # One that is started by the tests that need it, and one that never is.
        plugins = {"lazy": root / "lazy.sock", "absent": root / "absent.sock"}
        with PrivateContainerd(root, request.param, plugins) as started:
            yield started
    finally:
        shutil.rmtree(root)


@pytest.fixture
def connection(containerd: PrivateContainerd) -> Iterator[Connection]:
    with connect(str(containerd.address), f"test{next(_numbers)}") as connected:
        yield connected
