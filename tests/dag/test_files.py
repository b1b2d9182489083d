"""UnixFS files: ours under Kubo, Kubo's under us, and leaves that know where members end."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipfs_store.cids import RAW, Cid, codec_of, format_cid, parse_cid
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.car import car_frame, car_header
from ipfs_store.dag.chunker import fixed_leaves
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.dag.unixfs import encode_file_node
from ipfs_store.errors import InvalidDag
from tests.nodes.memory import MemoryNode
from tests.requirements import require_tool

Ipfs = Callable[..., bytes]


@pytest.fixture(scope="module")
def ipfs(tmp_path_factory: pytest.TempPathFactory) -> Ipfs:
    """Kubo without a daemon, on a repository of its own."""
    program = require_tool("ipfs", go_build=True)
    environment = {**os.environ, "IPFS_PATH": str(tmp_path_factory.mktemp("ipfs"))}

    def run(*arguments: str, input: bytes = b"") -> bytes:
        return subprocess.run([program, *arguments], input=input, capture_output=True, check=True, env=environment).stdout

    run("init", "--profile", "server,test")
    return run


def build(leaves: list[bytes], *, inline: bool = False) -> tuple[Cid, MemoryNode]:
    node, builder = MemoryNode(), FileBuilder(inline=inline)
    for leaf in leaves:
        node.store.update(builder.add(leaf))
    node.store.update(builder.finish())
    assert builder.root is not None
    return builder.root, node


def pieces(data: bytes, size: int) -> list[bytes]:
    return [bytes(piece) for piece in fixed_leaves(memoryview(data), size)]


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 174 * 1024, 174 * 1024 + 1, 174 * 174 * 1024 + 1])
def test_a_file_has_the_cid_that_ipfs_add_gives_it(ipfs: Ipfs, size: int) -> None:
    data = random.Random(size).randbytes(size)
    root, _ = build(pieces(data, 1024))
    assert format_cid(root) == ipfs("add", "-Q", "--cid-version=1", "--chunker=size-1024", input=data).decode().strip()


def test_the_vector_of_other_tools_has_their_cid() -> None:
    blob = Path(__file__).parents[1].joinpath("vectors/estargz/chunk64k.blob").read_bytes()
    root, _ = build(pieces(blob, 262_144))
    assert format_cid(root) == "bafybeicic5q3jpzj7zmd4umu7at5e2vrbxewgq5uedy6nxkfiuivkwsmoa"


def test_ipfs_cat_gives_back_a_file_of_leaves_of_any_size(ipfs: Ipfs) -> None:
    numbers = random.Random(5)
    leaves = [numbers.randbytes(numbers.randrange(1, 5000)) for _ in range(600)]
    root, node = build(leaves)
    car = car_header([root]) + b"".join(car_frame(cid, block) for cid, block in node.store.items())
    ipfs("dag", "import", input=car)
    assert ipfs("cat", format_cid(root)) == b"".join(leaves)


async def test_leaves_inside_of_their_cids_are_no_blocks_and_read_by_kubo_and_by_us(ipfs: Ipfs) -> None:
    numbers = random.Random(6)
    leaves = [numbers.randbytes(size) for size in (7, *numbers.choices([1, 120, 127, 128, 129, 5000], k=600))]
    root, node = build(leaves, inline=True)
    blob = b"".join(leaves)
    assert {len(block) for cid, block in node.store.items() if codec_of(cid) == RAW} == {7, 129, 5000}
    ipfs("dag", "import", input=car_header([root]) + b"".join(car_frame(cid, block) for cid, block in node.store.items()))
    assert ipfs("cat", format_cid(root)) == blob
    file = await UnixfsFile.open(node.get, root)
    assert await file.read(0, file.size) == blob
    ipfs("pin", "add", format_cid(root))
    ipfs("repo", "gc")
    assert ipfs("cat", format_cid(root)) == blob


def test_a_file_with_leaves_in_cids_is_what_ipfs_add_makes_inline(ipfs: Ipfs) -> None:
    data = random.Random(7).randbytes(1000 * 120 + 50)
    root, node = build(pieces(data, 120), inline=True)
    ipfs("dag", "import", input=car_header([root]) + b"".join(car_frame(cid, block) for cid, block in node.store.items()))
    # Kubo puts the first leaf into its CID as well; ours is a block, since a file of one leaf has it as its root.
    options = ["--cid-version=1", "--chunker=size-120", "--inline", "--inline-limit=128"]
    kubo = ipfs("add", "-Q", *options, input=data).decode().strip()
    ours, theirs = (json.loads(ipfs("dag", "get", cid))["Links"] for cid in (_first(ipfs, format_cid(root)), _first(ipfs, kubo)))
    assert ours[1:] == theirs[1:]


def _first(ipfs: Ipfs, root: str) -> str:
    """The first inner node below ``root``."""
    links = json.loads(ipfs("dag", "get", root))["Links"]
    return str(links[0]["Hash"]["/"])


@pytest.mark.parametrize(
    "options",
    [
        ["--cid-version=0"],
        ["--cid-version=0", "--raw-leaves"],
        ["--cid-version=1"],
        ["--cid-version=1", "--raw-leaves=false"],
        ["--chunker=size-65536"],
        ["--chunker=rabin-4096-16384-65536"],
        ["--chunker=buzhash"],
        ["--trickle", "--chunker=size-1024"],
        ["--inline", "--inline-limit=64", "--chunker=size-50"],
        ["--cid-version=1", "--hash=blake2b-256", "--chunker=size-4096"],
    ],
)
async def test_a_file_that_kubo_added_is_read_by_range(ipfs: Ipfs, options: list[str]) -> None:
    data = random.Random(1).randbytes(400_001)
    root = parse_cid(ipfs("add", "-Q", *options, input=data).decode().strip())
    asked: list[Cid] = []

    async def get(cid: Cid) -> bytes:
        asked.append(cid)
        return blocks[cid]

    names = [format_cid(root), *ipfs("refs", "-r", "-u", format_cid(root)).decode().split()]
    blocks = {parse_cid(name): ipfs("block", "get", name) for name in names} if len(names) < 50 else _Lazy(ipfs)
    file = await UnixfsFile.open(get, root)
    assert file.size == len(data)
    for start, length in ((0, 1), (399_990, 11), (123_456, 100_000), (5, 0)):
        assert await file.read(start, length) == data[start : start + length]
    leaves = await file.leaves(200_000, 1)
    assert len(leaves) == 1
    before = len(asked)
    assert await file.read(200_000, 1) == data[200_000:200_001]
    assert len(asked) - before <= 3, "one leaf, and what it takes to find it"


class _Lazy(dict[Cid, bytes]):
    def __init__(self, ipfs: Ipfs) -> None:
        self._ipfs = ipfs

    def __missing__(self, cid: Cid) -> bytes:
        self[cid] = self._ipfs("block", "get", format_cid(cid))
        return self[cid]


async def test_only_the_leaves_of_the_range_are_fetched() -> None:
    root, node = build([bytes([number % 256]) * 100 + number.to_bytes(4, "big") for number in range(1000)])
    file = await UnixfsFile.open(node.get, root)
    node.asked.clear()
    await file.read(104 * 500 + 10, 104 * 3)
    leaves = [leaf.cid for leaf in await file.leaves(104 * 500 + 10, 104 * 3)]
    assert len(leaves) == 4
    assert set(leaves) < set(node.asked)
    assert len(node.asked) <= 4 + 2


async def test_blocks_that_lie_about_sizes_are_refused() -> None:
    root, node = build([b"a" * 100, b"b" * 100])
    leaves = [cid for cid in node.store if cid != root]
    for sizes in ((100, 50), (50, 200)):
        node.store[root] = encode_file_node([(cid, size, size) for cid, size in zip(leaves, sizes, strict=True)])
        file = await UnixfsFile.open(node.get, root)
        with pytest.raises(InvalidDag):
            await file.read(0, file.size)


async def test_a_directory_is_not_read_as_a_file(ipfs: Ipfs) -> None:
    # The empty directory, which every repository has.
    empty = parse_cid("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn")

    async def get(cid: Cid) -> bytes:
        return ipfs("block", "get", format_cid(cid))

    with pytest.raises(InvalidDag, match="a directory, not a file"):
        await UnixfsFile.open(get, empty)
