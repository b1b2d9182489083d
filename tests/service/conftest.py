from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements import require_root
from tests.service.served import Client, FolderMounter, reboot, served


@pytest.fixture(params=["portable", "native"])
def mounter(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FolderMounter]:
    require_root()
    (tmp_path / "layers").mkdir()
    yield FolderMounter(tmp_path / "layers", native=request.param == "native")
    reboot(tmp_path)


@pytest.fixture
def client(tmp_path: Path, mounter: FolderMounter) -> Iterator[Client]:
    require_root()
    (tmp_path / "root").mkdir()
    with served(tmp_path / "root", mounter) as connected:
        yield connected
