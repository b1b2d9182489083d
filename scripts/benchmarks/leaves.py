"""Which average leaf: new bytes of an upgrade, blocks of an image, push speed, and a cold read over 200 Mbit/s without a profile. Needs root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from ipfs_store.cids import format_cid
from ipfs_store.dag.chunker import Chunker
from ipfs_store.images.push import PushOptions, push_image
from ipfs_store.nodes.embedded import EmbeddedNode
from scripts.benchmarks.material.debian import AFTER, BEFORE, CACHE, made
from scripts.benchmarks.material.image import OneLayer, converted
from scripts.benchmarks.material.stored import Blob, replaced
from scripts.benchmarks.rows import Row

_SIZES = (32, 64, 128, 256)
_ROUNDS = 3
_ROOT = Path(__file__).parents[2]


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        before, after = (Blob.of(made(tree), folder) for tree in (BEFORE, AFTER))
        changed = replaced(before, after)
        image = converted(made(BEFORE), folder)
        rows = []
        for size in _SIZES:
            rule, case = Chunker("member", size << 10), f"{size} KiB"
            old, new = before.blocks(rule), after.blocks(rule)
            rows += [
                Row(case, "blocks of the image", len(new.payload) + len(new.toc) + len(new.inner)),
                Row(case, "new bytes of the upgrade : replaced files", new.new_bytes(old), changed),
            ]
        with _link() as (server, client):
            seconds: dict[int, list[float]] = {}
            pushes: dict[int, list[float]] = {}
            fetched: dict[int, dict[str, int]] = {}
            for number in range(_ROUNDS):
                for size in _SIZES:
                    pushed, cid, store = _push(image, Chunker("member", size << 10), folder / f"store-{size}-{number}")
                    read = _cold_read(cid, store, folder / f"cold-{size}-{number}", server, client)
                    pushes.setdefault(size, []).append(pushed)
                    seconds.setdefault(size, []).append(read["seconds"])
                    fetched[size] = {key: int(read[key]) for key in ("bytes", "blocks", "files")}
        total = image.path.stat().st_size
        for size in _SIZES:
            case = f"{size} KiB"
            rows += [
                Row(case, "push, MB/s : that of 256 KiB", total / 1e6 / min(pushes[size]), total / 1e6 / min(pushes[256])),
                Row(case, f"cold read of {fetched[size]['files']} files, seconds : 256 KiB", min(seconds[size]), min(seconds[256])),
                Row(case, "its bytes : 256 KiB", fetched[size]["bytes"], fetched[256]["bytes"]),
                Row(case, "its blocks", fetched[size]["blocks"]),
            ]
        return sorted(rows, key=lambda row: int(row.case.split()[0]))


def _push(image: OneLayer, rule: Chunker, store: Path) -> tuple[float, str, Path]:
    async def push() -> tuple[float, str, Path]:
        node = EmbeddedNode(store)
        start = time.perf_counter()
        result = await push_image(node, image, PushOptions(chunker=rule))
        seconds = time.perf_counter() - start
        await node.aclose()
        return seconds, format_cid(result.layers[0].cid), store

    return trio.run(push)


def _cold_read(cid: str, store: Path, cold: Path, server: str, client: str) -> dict[str, float]:
    program = str(Path(sys.executable).with_name("ipfs-store"))
    environment = {**os.environ, "IPFS_STORE_PATH": str(store)}
    with subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{server}", program, "--node=embedded", "serve", "--listen=10.99.7.1:8421"],
        env=environment, stdout=subprocess.PIPE,
    ) as serving:  # fmt: skip
        try:
            assert serving.stdout is not None
            serving.stdout.readline()  # it listens
            done = subprocess.run(
                ["nsenter", f"--net=/run/netns/{client}", sys.executable, "-m", "scripts.benchmarks.material.coldread", cid, "http://10.99.7.1:8421", cold],
                cwd=_ROOT, stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
        finally:
            serving.kill()
    result: dict[str, float] = json.loads(done.stdout)
    return result


@contextmanager
def _link() -> Iterator[tuple[str, str]]:
    """Two network namespaces with 200 Mbit/s between them, each way."""
    names = (f"leaves-a-{os.getpid()}", f"leaves-b-{os.getpid()}")
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "leaf0", "netns", names[0], "type", "veth", "peer", "name", "leaf0", "netns", names[1])
        for number, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.99.7.{number}/24", "dev", "leaf0")
            _ip("-n", name, "link", "set", "leaf0", "up")
            subprocess.run(
                ["tc", "-n", name, "qdisc", "add", "dev", "leaf0", "root", "tbf", "rate", "200mbit", "burst", "256kb", "latency", "50ms"], check=True
            )  # fmt: skip
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
