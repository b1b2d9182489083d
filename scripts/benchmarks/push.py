"""How fast an image whose layers are converted already goes into a node, beside `ipfs add` of the same bytes; and how fast it goes there again.

Each round has a store of its own and nothing is deleted before the end: ext4 gives no inode away that was freed within a minute (five, when
its block is dirty), and looks at each of them, so creating thousands of files after deleting as many is up to ten times as slow.

``IPFS_STORE_BENCH_IMAGE``: a Docker archive whose last layer is pushed, instead of a Debian root of 89 MB; ``IPFS_STORE_BENCH_CACHE``: where the
stores are, such as a folder of a tmpfs; ``IPFS_STORE_BENCH_PARTS``: embedded, kubo, sizes, pebble, command, with commas between (sizes and pebble
only if they are asked for).
"""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import trio

from ipfs_store.dag.car import car_frame, car_header
from ipfs_store.dag.chunker import BY_MEMBER, Chunker
from ipfs_store.images.conversion import lazy_form
from ipfs_store.images.memory import LayerMemory
from ipfs_store.images.push import PushOptions, push_image
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Node
from ipfs_store.nodes.kubo import KuboNode
from scripts.benchmarks.material.debian import BEFORE, CACHE, LARGE, made
from scripts.benchmarks.material.image import OneLayer, converted, kept, last_layer, made_blocks, write_layout
from scripts.benchmarks.rows import Row
from tests.kubo import KuboDaemon

_ROUNDS = int(os.environ.get("IPFS_STORE_BENCH_ROUNDS", "3"))
_SENT = 1 << 20
_PLAIN = Chunker("size", 262_144)


def run() -> list[Row]:
    parts = {"embedded": _embedded, "large": _large, "kubo": _kubo, "sizes": _sizes, "pebble": _pebble, "command": _command}
    wanted = os.environ.get("IPFS_STORE_BENCH_PARTS", "embedded,large,kubo,command").split(",")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        folder = Path(name)
        given = os.environ.get("IPFS_STORE_BENCH_IMAGE")
        tar = last_layer(Path(given), folder) if given else made(BEFORE)
        image = converted(tar, folder)
        return [row for part in wanted for row in parts[part](image, folder)]


def _large(image: OneLayer, folder: Path) -> list[Row]:
    """A layer in which fixed costs do not show; converted once."""
    return _embedded(kept(made(LARGE), CACHE), folder / "large", "embedded, large layer")


def _embedded(image: OneLayer, folder: Path, case: str = "embedded") -> list[Row]:
    folder.mkdir(exist_ok=True)
    first, second, plain, processor = [], [], [], []
    for number in range(_ROUNDS):
        path = folder / f"store{number}"

        @asynccontextmanager
        async def node(path: Path = path) -> AsyncIterator[Node]:
            opened = EmbeddedNode(path)
            yield opened
            await opened.aclose()

        plain.append(_plain_copy(image.path, folder / "copy"))
        before = _processor()
        first.append(_pushed(node, image, folder / f"memory{number}"))
        processor.append(_processor() - before)
        second.append(_pushed(node, image, folder / f"memory{number}"))
    return [
        Row(case, "MB/s", _rate(image, first), None, 250, at_least=True),
        Row(case, "MB/s : hash and copy of the file, synced", _rate(image, first), _rate(image, plain)),
        Row(case, "MB for each second of a processor", _rate(image, processor)),
        Row(case, "seconds, second push : first", min(second), min(first), 0.1),
    ]


@dataclass(frozen=True)
class _Took:
    """What a piece of work took: as long as it was, and of processors, ours (with commands that were started) and Kubo's."""

    seconds: float
    ours: float
    kubo: float

    @property
    def processor(self) -> float:
        return self.ours + self.kubo


class _Runs:
    """Rounds by what was done. Of each the best: what the others add is the machine's other work."""

    def __init__(self, folder: Path, profiles: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._profiles = profiles
        self._number = 0
        self.best: dict[str, _Took] = {}

    @contextmanager
    def daemon(self) -> Iterator[KuboDaemon]:
        self._number += 1
        with KuboDaemon(self._folder / f"kubo{self._number}", profiles=self._profiles) as daemon:
            yield daemon

    def timed(self, key: str, daemon: KuboDaemon, work: Callable[[], object]) -> None:
        before, kubo, start = _processor(), daemon.processor_seconds(), time.perf_counter()
        work()
        took = _Took(time.perf_counter() - start, _processor() - before, daemon.processor_seconds() - kubo)
        best = self.best.get(key, took)
        self.best[key] = _Took(min(best.seconds, took.seconds), min(best.ours, took.ours), min(best.kubo, took.kubo))

    def added(self, key: str, image: OneLayer, chunker: str = "size-262144") -> None:
        with self.daemon() as daemon:
            self.timed(key, daemon, lambda: daemon.run("add", "--quieter", "--cid-version=1", f"--chunker={chunker}", str(image.path)))

    def imported(self, key: str, image: OneLayer, rule: Chunker) -> None:
        """`dag/import` alone, of the blocks that we make, without a pin; the client does nothing but send."""
        blocks, _ = made_blocks(image.path, rule)
        header, body = car_header([]), b"".join(car_frame(cid, data) for cid, data in blocks)
        with self.daemon() as daemon:
            self.timed(key, daemon, lambda: _post_car(daemon, [header, *(body[at : at + _SENT] for at in range(0, len(body), _SENT))]))

    def pushed(self, key: str, image: OneLayer, rule: Chunker) -> None:
        with self.daemon() as daemon, tempfile.TemporaryDirectory(dir=self._folder) as memory:
            work = partial(_pushed, _opener(daemon), image, Path(memory), rule)
            self.timed(key, daemon, work)
            self.timed(f"{key} again", daemon, work)


def _kubo(image: OneLayer, folder: Path) -> list[Row]:
    runs = _Runs(folder)
    for _ in range(_ROUNDS):
        runs.added("add", image)
        runs.added("add32", image, "size-32768")
        runs.imported("import", image, BY_MEMBER)
        runs.pushed("ours", image, BY_MEMBER)
        runs.pushed("plain", image, _PLAIN)
    return [
        _compared(image, runs, "kubo", "ours", "add", "ipfs add", 0.9),
        _compared(image, runs, "kubo", "ours", "add32", "ipfs add, leaves of 32 KiB as ours", 0.9),
        _compared(image, runs, "kubo", "ours", "import", "dag/import of the same blocks alone", 0.95),
        _compared(image, runs, "kubo, --chunker size-262144", "plain", "add", "ipfs add", 0.9),
        *(_processors(runs, key, what) for key, what in _WHAT.items()),
        Row("kubo", "seconds, second push : first", runs.best["ours again"].seconds, runs.best["ours"].seconds, 0.1),
        Row("kubo", "seconds of a processor, second push : first", runs.best["ours again"].processor, runs.best["ours"].processor, 0.1),
    ]


_WHAT = {
    "add": "ipfs add",
    "add32": "ipfs add, leaves of 32 KiB",
    "import": "dag/import alone",
    "ours": "push",
    "plain": "push, size-262144",
}


def _sizes(image: OneLayer, folder: Path) -> list[Row]:
    """Which leaves a push as fast as `ipfs add` would need."""
    runs = _Runs(folder / "sizes")
    sizes = [size << 10 for size in (32, 64, 128, 256, 512, 1024)]
    for _ in range(_ROUNDS):
        runs.added("add", image)
        for size in sizes:
            runs.pushed(str(size), image, Chunker("member", size))
    return [_compared(image, runs, f"kubo, --chunker member-{size}", str(size), "add", "ipfs add") for size in sizes] + [
        Row(
            f"kubo, --chunker member-{size}",
            "seconds of a processor : ipfs add",
            runs.best[str(size)].processor,
            runs.best["add"].processor,
        )
        for size in sizes
    ]


def _pebble(image: OneLayer, folder: Path) -> list[Row]:
    """A Kubo that keeps blocks in a database, where a block is no file."""
    runs = _Runs(folder / "pebble", profiles="pebbleds")
    for _ in range(_ROUNDS):
        runs.added("add", image)
        runs.imported("import", image, BY_MEMBER)
        runs.pushed("ours", image, BY_MEMBER)
    return [
        _compared(image, runs, "kubo, pebbleds", "ours", "add", "ipfs add"),
        _compared(image, runs, "kubo, pebbleds", "ours", "import", "dag/import of the same blocks alone"),
        *(_processors(runs, key, f"{_WHAT[key]}, pebbleds") for key in ("add", "import", "ours")),
    ]


def _compared(image: OneLayer, runs: _Runs, case: str, key: str, reference: str, what: str, target: float | None = None) -> Row:
    megabytes = image.path.stat().st_size / 1e6
    return Row(case, f"MB/s : {what}", megabytes / runs.best[key].seconds, megabytes / runs.best[reference].seconds, target, at_least=True)


def _processors(runs: _Runs, key: str, what: str) -> Row:
    return Row(what, "seconds of a processor, ours : Kubo's", runs.best[key].ours, runs.best[key].kubo)


def _processor() -> float:
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _post_car(daemon: KuboDaemon, pieces: Sequence[bytes]) -> None:
    connection = HTTPConnection(daemon.api_url.removeprefix("http://"))
    boundary = "a-boundary-of-no-CAR"
    connection.putrequest("POST", "/api/v0/dag/import?pin-roots=false&stats=true&fast-provide-root=false&fast-provide-dag=false")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    start = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.car"\r\nContent-Type: application/octet-stream\r\n\r\n'
    )
    for piece in (start.encode(), *pieces, f"\r\n--{boundary}--\r\n".encode()):
        connection.send(b"%x\r\n" % len(piece))
        connection.send(piece)
        connection.send(b"\r\n")
    connection.send(b"0\r\n\r\n")
    answer = connection.getresponse().read()
    connection.close()
    if b'"Stats":{' not in answer:
        raise RuntimeError(answer.decode())


def _opener(daemon: KuboDaemon) -> Callable[[], AbstractAsyncContextManager[Node]]:
    @asynccontextmanager
    async def node() -> AsyncIterator[Node]:
        opened = KuboNode(daemon.api)
        yield opened
        await opened.aclose()

    return node


def _command(image: OneLayer, folder: Path) -> list[Row]:
    """The whole command, in a process of its own, with the start of Python: most memory, and a second push beside the first."""
    source = f"oci:{write_layout(image, folder / 'layout')}"
    environment = {**os.environ, "IPFS_STORE_PATH": str(folder / "command-store")}
    rows = []
    with KuboDaemon(folder / "command-kubo") as daemon:
        for node, given in (("embedded", "embedded"), ("kubo", f"kubo:{daemon.api}")):
            environment["IPFS_STORE_MEMORY"] = str(folder / f"command-memory-{node}")
            first, *again = (_ran(environment, f"--node={given}", "ipfs-push", "--quiet", source) for _ in range(1 + _ROUNDS))
            rows += [
                Row(f"ipfs-push, {node}", "MB of memory at most", max(first.memory, *(took.memory for took in again)), None, 200),
                Row(f"ipfs-push, {node}", "seconds, second push : first", min(took.seconds for took in again), first.seconds),
                Row(
                    f"ipfs-push, {node}",
                    "seconds of a processor, second push : first",
                    min(took.processor for took in again),
                    first.processor,
                ),
            ]
    return rows


@dataclass(frozen=True)
class _Command:
    seconds: float
    processor: float
    memory: float
    """MB; VmHWM, for what getrusage says begins with the memory of whoever started the process."""


def _ran(environment: dict[str, str], *arguments: str) -> _Command:
    code = (
        "import re; from pathlib import Path; from ipfs_store.cli import main; main(); "
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Command(seconds, used, int(done.stdout.split()[-1]) / 1000)


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
