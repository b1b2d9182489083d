"""How fast an image whose layers are converted already goes into a node, beside `ipfs add` of the same bytes; and how fast it goes there again.

Each round has a store of its own and nothing is deleted before the end: ext4 gives no inode away that was freed within a minute (five, when
its block is dirty), and looks at each of them, so creating thousands of files after deleting as many is up to ten times as slow.
"""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from ipfs_store.dag.chunker import BY_MEMBER, Chunker
from ipfs_store.images.conversion import lazy_form
from ipfs_store.images.memory import LayerMemory
from ipfs_store.images.push import PushOptions, push_image
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Node
from ipfs_store.nodes.kubo import KuboNode
from scripts.benchmarks.material.debian import BEFORE, CACHE, made
from scripts.benchmarks.material.image import OneLayer, converted, write_layout
from scripts.benchmarks.rows import Row
from tests.kubo import KuboDaemon

_ROUNDS = 3
_PLAIN = Chunker("size", 262_144)


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        image = converted(made(BEFORE), folder)
        return [*_embedded(image, folder), *_kubo(image, folder), *_command(image, folder)]


def _embedded(image: OneLayer, folder: Path) -> list[Row]:
    first, second, plain = [], [], []
    for number in range(_ROUNDS):
        path = folder / f"store{number}"

        @asynccontextmanager
        async def node(path: Path = path) -> AsyncIterator[Node]:
            opened = EmbeddedNode(path)
            yield opened
            await opened.aclose()

        plain.append(_plain_copy(image.path, folder / "copy"))
        first.append(_pushed(node, image, folder / f"memory{number}"))
        second.append(_pushed(node, image, folder / f"memory{number}"))
    return [
        Row("embedded", "MB/s", _rate(image, first), None, 250, at_least=True),
        Row("embedded", "MB/s : hash and copy of the file, synced", _rate(image, first), _rate(image, plain)),
        Row("embedded", "seconds, second push : first", min(second), min(first), 0.1),
    ]


def _kubo(image: OneLayer, folder: Path) -> list[Row]:
    results: dict[str, list[float]] = {}

    def timed(key: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        results.setdefault(key, []).append(time.perf_counter() - start)

    for number in range(_ROUNDS):
        for key, chunker in (("add", "size-262144"), ("add32", "size-32768")):
            with KuboDaemon(folder / f"kubo-{key}{number}") as daemon:
                timed(key, lambda: daemon.run("add", "--quieter", "--cid-version=1", f"--chunker={chunker}", str(image.path)))  # noqa: B023
        for key, rule in (("ours", BY_MEMBER), ("plain", _PLAIN)):
            with KuboDaemon(folder / f"kubo-{key}{number}") as daemon:
                open_node = _opener(daemon)
                memory = folder / f"kubo-memory-{key}{number}"
                timed(key, lambda: _pushed(open_node, image, memory, rule))  # noqa: B023
                timed(f"{key} again", lambda: _pushed(open_node, image, memory, rule))  # noqa: B023
    rate = {key: _rate(image, seconds) for key, seconds in results.items()}
    return [
        Row("kubo", "MB/s : ipfs add", rate["ours"], rate["add"], 0.9, at_least=True),
        Row("kubo", "MB/s : ipfs add, leaves of 32 KiB as ours", rate["ours"], rate["add32"], 0.9, at_least=True),
        Row("kubo, --chunker size-262144", "MB/s : ipfs add", rate["plain"], rate["add"], 0.9, at_least=True),
        Row("kubo", "seconds, second push : first", min(results["ours again"]), min(results["ours"]), 0.1),
    ]


def _opener(daemon: KuboDaemon) -> Callable[[], AbstractAsyncContextManager[Node]]:
    @asynccontextmanager
    async def node() -> AsyncIterator[Node]:
        opened = KuboNode(daemon.api)
        yield opened
        await opened.aclose()

    return node


def _command(image: OneLayer, folder: Path) -> list[Row]:
    """The whole command, in a process of its own: its peak of memory."""
    layout = write_layout(image, folder / "layout")
    environment = {**os.environ, "IPFS_STORE_PATH": str(folder / "command-store"), "IPFS_STORE_MEMORY": str(folder / "command-memory")}
    program = [str(Path(sys.executable).with_name("ipfs-store")), "--node=embedded", "ipfs-push", "--quiet", f"oci:{layout}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run(program, env=environment, check=True, stdout=subprocess.DEVNULL)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return [Row("ipfs-push", "MB of memory at most" if peak > before else "MB of memory at most, less than", peak / 1000, None, 200)]


def _pushed(
    open_node: Callable[[], AbstractAsyncContextManager[Node]], image: OneLayer, memory: Path, chunker: Chunker = BY_MEMBER
) -> float:
    async def push() -> float:
        async with open_node() as node:
            start = time.perf_counter()
            await push_image(node, image, PushOptions(inspect=lazy_form, chunker=chunker, memory=LayerMemory(memory, str(chunker))))
            return time.perf_counter() - start

    return trio.run(push)


def _plain_copy(source: Path, target: Path) -> float:
    start = time.perf_counter()
    with source.open("rb") as read, target.open("wb") as write:
        hasher = hashlib.sha256()
        while piece := read.read(1 << 20):
            hasher.update(piece)
            write.write(piece)
        write.flush()
        os.fsync(write.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def _rate(image: OneLayer, seconds: list[float]) -> float:
    """MB/s of the best round: what the others add is the machine's other work."""
    return image.path.stat().st_size / 1e6 / min(seconds)
