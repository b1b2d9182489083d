"""Sources are opened with a scratch folder that has to be empty in the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ipfs_store.images.model import Image
from ipfs_store.images.sources import SourceOptions, open_image
from ipfs_store.oci import Manifest

Opener = Callable[..., AbstractAsyncContextManager[Image]]


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "scratch"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def opened(scratch: Path) -> Opener:
    """``open_image`` with the test's scratch folder."""

    @asynccontextmanager
    async def opening(source: object, **options: Any) -> AsyncIterator[Image]:
        async with open_image(str(source), options=SourceOptions(folder=scratch, **options)) as image:
            yield image

    return opening


async def contents(image: Image) -> tuple[Manifest, bytes, list[bytes]]:
    """Manifest, config and layers of an image of one platform."""
    manifest = Manifest.parse(await image.fetch(image.root), media_type=image.root.media_type)
    layers = []
    for layer in manifest.layers:
        async with image.open_blob(layer) as path:
            layers.append(path.read_bytes())
    return manifest, await image.fetch(manifest.config), layers
