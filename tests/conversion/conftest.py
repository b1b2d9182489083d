"""An image that runs, converted in every format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfs_store.formats.options import WriteOptions
from tests.containerd import PrivateContainerd
from tests.requirements import require_root
from tests.targets.places import Place, places

FORMATS = {
    "estargz": WriteOptions("estargz"),
    "estargz-min-chunk": WriteOptions("estargz", min_chunk_size=64 << 10),
    "external": WriteOptions("estargz", external_toc=True),
    "external-kept": WriteOptions("estargz", external_toc=True, keep_diff_id=True),
    "zstd-chunked": WriteOptions("zstd:chunked"),
    "zstd-chunked-podman": WriteOptions("zstd:chunked", audience="containers-storage"),
    "tar": WriteOptions("tar"),
}


@pytest.fixture(scope="session")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    with places(tmp_path_factory.mktemp("places")) as made:
        yield made


@pytest.fixture(params=["1.6", "2.4"])
def in_containerd(request: pytest.FixtureRequest, everywhere: dict[str, Place]) -> tuple[Place, PrivateContainerd]:
    """A namespace of a containerd, and the containerd."""
    require_root()
    kind = f"containerd-{request.param}"
    place = everywhere[kind]
    return place, everywhere.running(kind)  # type: ignore[attr-defined]


@pytest.fixture(params=FORMATS)
def written(request: pytest.FixtureRequest) -> WriteOptions:
    return FORMATS[request.param]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder
