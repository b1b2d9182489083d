"""Images that lie in a node of either kind."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_trio

from ipfs_store.formats.options import WriteOptions
from ipfs_store.images.conversion import layer_converter, lazy_form
from ipfs_store.images.push import PushOptions, PushResult, push_image
from ipfs_store.images.sources import open_image
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Node
from tests.nodes.conftest import kubo, node, pytest_generate_tests
from tests.sources.made import MadeImage, layout_files, named, tar, write_tar

__all__ = ["kubo", "node", "pytest_generate_tests"]
NAME = "docker.io/library/thing:1"
NOISE = random.Random(7).randbytes(3 << 20)
FILES = [
    {"etc/hello": b"hello", "usr/big": NOISE, "usr/small": b"small" * 1000},
    {"etc/second": b"second", "usr/more": NOISE[: 1 << 20][::-1]},
]


def made(files: list[dict[str, bytes]] | None = None) -> MadeImage:
    return MadeImage([tar(layer) for layer in files or FILES])


async def pushed(
    into: Node, folder: Path, image: MadeImage | None = None, *, name: str = NAME, convert: bool = True, **options: object
) -> PushResult:
    """Push ``image`` (a usual one) from an archive."""
    image = image or made()
    path = write_tar(folder / "image.tar", layout_files([image.descriptor(**named("1", name))], image.blobs))
    async with open_image(str(path)) as source:
        chosen = PushOptions(convert=layer_converter(WriteOptions()) if convert else None, inspect=lazy_form, **options)  # type: ignore[arg-type]
        return await push_image(into, source, chosen)


@pytest_trio.trio_fixture
async def other(tmp_path: Path) -> AsyncIterator[EmbeddedNode]:
    """A second, empty node."""
    opened = EmbeddedNode(tmp_path / "other", timeout=1)
    yield opened
    await opened.aclose()


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return lambda: list(folder.iterdir())
