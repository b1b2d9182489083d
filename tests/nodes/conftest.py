"""A fresh node of each kind for the tests that all kinds have to pass."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_trio

from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Node
from ipfs_store.nodes.kubo import KuboNode
from tests.kubo import KuboDaemon


@pytest.fixture(scope="session")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboDaemon]:
    with KuboDaemon(tmp_path_factory.mktemp("kubo") / "repository") as daemon:
        yield daemon


@pytest_trio.trio_fixture
async def node(node_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    opened: Node
    if node_kind == "embedded":
        opened = EmbeddedNode(tmp_path / "node")
    else:
        opened = KuboNode(request.getfixturevalue("kubo").api)
        for root in list(await opened.pins()):
            await opened.unpin(root)
        await opened.gc()
    yield opened
    await opened.aclose()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "node_kind" in metafunc.fixturenames:
        metafunc.parametrize("node_kind", ["embedded", pytest.param("kubo", marks=pytest.mark.kubo)])
