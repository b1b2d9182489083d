"""Places of every kind; scratch folders have to be empty in the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_store.images.sources import session
from tests.requirements import require_root
from tests.targets.places import KINDS, Place, places


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    with places(tmp_path_factory.mktemp("places")) as made:
        yield made


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, everywhere: dict[str, Place]) -> Iterator[Place]:
    if request.param.startswith("containerd"):
        require_root()
    found = everywhere[request.param]
    yield found
    assert list(found.scratch.iterdir()) == []


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(session, "_FIRST_DELAY", 0.0)
