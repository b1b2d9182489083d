"""The layer that the vectors were made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.formats.blobs import VECTORS


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tar."""
    path = tmp_path_factory.mktemp("vectors") / "input.tar"
    subprocess.run([sys.executable, VECTORS.parent / "make_input.py", path], check=True)
    return path
