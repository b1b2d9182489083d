from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requirements import require_root
from tests.service.served import Client, FolderMounter, served


@pytest.fixture
def mounter(tmp_path: Path) -> FolderMounter:
    (tmp_path / "layers").mkdir()
    return FolderMounter(tmp_path / "layers")


@pytest.fixture
def client(tmp_path: Path, mounter: FolderMounter) -> Iterator[Client]:
    require_root()
    (tmp_path / "root").mkdir()
    with served(tmp_path / "root", mounter) as connected:
        yield connected
