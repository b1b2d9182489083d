"""Images in CAR files: written, read back, cut, forged, and exchanged with Kubo."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfs_store.cids import RAW, Cid, cid_of, codec_of, format_cid, verify_block
from ipfs_store.dag.builder import FileBuilder
from ipfs_store.dag.car import CarReader, car_frame, car_header
from ipfs_store.errors import (
    BlobMismatch,
    BlockMismatch,
    BlockNotFound,
    InvalidDag,
    InvalidInput,
    IpfsStoreError,
    NodeUnavailable,
    VerificationFailed,
)
from ipfs_store.images import carfile
from ipfs_store.images.carfile import export_car, import_car
from ipfs_store.images.catalog import find
from ipfs_store.images.identity import identify
from ipfs_store.images.pull import copy_blob, resolve
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.interface import Node
from tests.images.conftest import FILES, NAME, NOISE, made, pushed
from tests.kubo import KuboDaemon
from tests.nodes.memory import MemoryNode


async def car_of(node: Node, *cids: Cid, have: Sequence[Cid] = ()) -> bytes:
    """The CAR of images."""
    pieces: list[bytes] = []

    async def write(piece: bytes) -> None:
        pieces.append(piece)

    roots = [root for cid in cids for root in (await identify(node, cid)).roots]
    older = [root for cid in have for root in (await identify(node, cid)).roots]
    done = await export_car(node, roots, write, have=older)
    assert done.bytes == sum(map(len, pieces))
    return b"".join(pieces)


def reading(car: bytes, step: int = 100_000) -> Callable[[], Awaitable[bytes]]:
    pieces = [car[at : at + step] for at in range(0, len(car), step)][::-1]

    async def read() -> bytes:
        return pieces.pop() if pieces else b""

    return read


def blocks_of(car: bytes) -> list[tuple[Cid, bytes]]:
    reader = CarReader()
    found = list(reader.feed(car))
    reader.close()
    return found


async def layer_bytes(node: Node, cid: Cid) -> list[bytes]:
    layers = []
    for layer in (await resolve(node, cid)).manifests[0].layers:
        parts: list[bytes] = []

        async def write(piece: bytes, parts: list[bytes] = parts) -> None:
            parts.append(piece)

        await copy_blob(node, layer, write)
        layers.append(b"".join(parts))
    return layers


async def stored(node: Node) -> set[bytes]:
    return {cid[2:] async for cid in node.blocks()}


async def test_an_image_goes_through_a_file(node: Node, other: EmbeddedNode, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path)
    car = await car_of(node, image.cid)
    done = await import_car(other, reading(car))
    assert [(found.cid, found.name) for found in done.images] == [(image.cid, NAME)]
    assert await other.pins() == {image.cid: NAME, image.root: NAME}
    assert (done.blocks, done.new_blocks) == (len(blocks_of(car)), len(blocks_of(car)))
    assert done.bytes == done.new_bytes == sum(len(block) for _, block in blocks_of(car))
    await other.gc()
    assert await layer_bytes(other, image.cid) == await layer_bytes(node, image.cid)
    assert await find(other, "thing:1") == image.cid
    again = await import_car(other, reading(car))
    assert (again.new_blocks, again.new_bytes) == (0, 0)


async def test_a_node_of_either_kind_imports(node: Node, tmp_path: Path) -> None:
    source = MemoryNode()
    image = await pushed(source, tmp_path)
    done = await import_car(node, reading(await car_of(source, image.cid)))
    assert [found.cid for found in done.images] == [image.cid]
    assert (await node.pins()).items() >= {image.cid: NAME, image.root: NAME}.items()
    await node.gc()
    assert await layer_bytes(node, image.root) == await layer_bytes(source, image.cid)


async def test_each_block_is_written_once_in_the_order_of_a_walk(tmp_path: Path) -> None:
    node = MemoryNode()
    image = await pushed(node, tmp_path, made([{"a": NOISE, "b": NOISE}, {"c": NOISE}]))
    cids = [cid for cid, _ in blocks_of(await car_of(node, image.cid))]
    assert len(cids) == len(set(cids)) == len(node.store)
    assert cids[:2] == [image.cid, image.root]


async def test_only_what_the_other_side_lacks(node: Node, other: EmbeddedNode, tmp_path: Path) -> None:
    old = await pushed(node, tmp_path)
    new = await pushed(node, tmp_path, made([FILES[0], {**FILES[1], "etc/new": b"new"}]), name="docker.io/library/thing:2")
    whole, update = await car_of(node, new.cid), await car_of(node, new.cid, have=[old.cid])
    assert len(update) < len(whole) / 3
    with pytest.raises(BlockNotFound, match=r"not complete, and nothing of it is pinned: \d+ blocks are not here: ") as refused:
        await import_car(other, reading(update))
    assert "--have" in str(refused.value.hint)
    assert await other.pins() == {}
    await import_car(other, reading(await car_of(node, old.cid)))
    await import_car(other, reading(update))
    assert await layer_bytes(other, new.cid) == await layer_bytes(node, new.cid)


@pytest.mark.kubo
async def test_kubo_takes_our_files_and_we_take_kubos(kubo: KuboDaemon, other: EmbeddedNode, tmp_path: Path) -> None:
    source = MemoryNode()
    image = await pushed(source, tmp_path)
    file = tmp_path / "image.car"
    file.write_bytes(await car_of(source, image.cid))
    out = kubo.run("dag", "import", "--stats", str(file)).decode()
    assert f"Pinned root\t{format_cid(image.root)}\tsuccess" in out
    kubo.run("repo", "gc")
    theirs = kubo.run("dag", "export", format_cid(image.root))
    done = await import_car(other, reading(theirs))
    assert [(found.cid, found.name) for found in done.images] == [(image.root, NAME)]
    assert await layer_bytes(other, image.root) == await layer_bytes(source, image.cid)


@pytest.mark.kubo
async def test_any_dag_of_kubo_can_be_moved(kubo: KuboDaemon, other: EmbeddedNode, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(NOISE)
    (folder / "empty").write_bytes(b"")
    cid = kubo.run("add", "-Qr", "--cid-version=1", str(folder)).decode().strip()
    done = await import_car(other, reading(kubo.run("dag", "export", cid)))
    assert [(format_cid(found.cid), found.is_image) for found in done.images] == [(cid, False)]
    back = tmp_path / "back.car"
    back.write_bytes(await car_of(other, done.images[0].cid))
    kubo.run("pin", "rm", cid)
    kubo.run("repo", "gc")
    kubo.run("dag", "import", str(back))
    assert kubo.run("cat", f"{cid}/file") == NOISE


async def test_a_file_cut_short_anywhere_pins_nothing_and_is_built_upon(node: Node, tmp_path: Path) -> None:
    source = MemoryNode()
    image = await pushed(source, tmp_path)
    car = await car_of(source, image.cid)
    ends = [0]
    for cid, block in blocks_of(car):
        ends.append((ends[-1] or len(car_header([image.cid, image.root]))) + len(car_frame(cid, block)))
    assert ends[-1] == len(car)
    before = await stored(node)
    for cut in (0, 1, 20, ends[1], ends[3] - 1, ends[len(ends) // 2] + 1, ends[-2], len(car) - 1):
        with pytest.raises(IpfsStoreError, match=r"ends inside of its header|cut short|not complete"):
            await import_car(node, reading(car[:cut]))
        assert await node.pins() == {}
        whole = sum(end <= cut for end in ends[1:])
        assert await stored(node) - before == {cid[2:] for cid, _ in blocks_of(car)[:whole]}
    done = await import_car(node, reading(car))
    assert (done.new_blocks, done.blocks) == (1, len(ends) - 1)
    assert (await node.pins()).keys() == {image.cid, image.root}


async def test_a_forged_block_is_not_stored(node: Node, tmp_path: Path) -> None:
    source = MemoryNode()
    image = await pushed(source, tmp_path)
    car = await car_of(source, image.cid)
    cid, block = next(item for item in blocks_of(car) if codec_of(item[0]) == RAW and len(item[1]) > 100_000)
    at = car.index(block)
    forged = car[:at] + b"forged" + car[at + 6 :]
    with pytest.raises(BlockMismatch, match=format_cid(cid)):
        await import_car(node, reading(forged))
    assert await node.pins() == {}
    assert not await node.has(cid)
    assert not await node.has(cid_of(RAW, b"forged" + block[6:]))


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (b"\x80\x80\x80\x80\x10", "a part of 4294967296 bytes"),
        (b"\xff" * 9 + b"\x01", "a length of more than 9 bytes"),
        (b"\x00", "a part of 0 bytes"),
        (b"\x04\x01\x55\x12\x20", "shorter than its CID"),
        (b"\x05hello", "CID"),
    ],
)
async def test_frames_that_are_none_are_told(frame: bytes, told: str) -> None:
    node = MemoryNode()
    block = (cid_of(RAW, b"block"), b"block")
    with pytest.raises(InvalidDag, match=told):
        await import_car(node, reading(car_header([block[0]]) + car_frame(*block) + frame + bytes(100)))
    assert list(node.store) == [block[0]]
    assert await node.pins() == {}


async def test_roots_that_are_not_there_are_told() -> None:
    node, block, nowhere = MemoryNode(), (cid_of(RAW, b"block"), b"block"), cid_of(RAW, b"nowhere")
    with pytest.raises(BlockNotFound, match=format_cid(nowhere)):
        await import_car(node, reading(car_header([block[0], nowhere]) + car_frame(*block)))
    with pytest.raises(InvalidDag, match="no roots"):
        await import_car(node, reading(car_header([]) + car_frame(*block)))
    with pytest.raises(InvalidDag, match="header says version 2"):
        await import_car(node, reading(bytes.fromhex("0aa16776657273696f6e02") + bytes(40)))
    assert await node.pins() == {}


async def test_a_descriptor_alone_is_no_image(tmp_path: Path) -> None:
    source, node = MemoryNode(), MemoryNode()
    image = await pushed(source, tmp_path)
    alone = car_header([image.cid]) + car_frame(image.cid, source.store[image.cid])
    with pytest.raises(BlockNotFound, match=format_cid(image.root)):
        await import_car(node, reading(alone))
    assert await node.pins() == {}


async def test_an_image_whose_documents_lie_is_not_pinned(tmp_path: Path) -> None:
    source, node = MemoryNode(), MemoryNode()
    image = await pushed(source, tmp_path)
    lie = source.store[image.cid].replace(image.descriptor.digest.hex.encode(), b"0" * 64)
    cid = cid_of(RAW, lie)
    car = await car_of(source, image.root)
    frames = car[len(car_header([image.root])) :]
    with pytest.raises((BlobMismatch, InvalidDag)):
        await import_car(node, reading(car_header([cid, image.root]) + car_frame(cid, lie) + frames))
    assert await node.pins() == {}


async def test_an_import_that_breaks_off_is_taken_up_again(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carfile, "_FLUSH", 500_000)
    source = MemoryNode()
    image = await pushed(source, tmp_path)
    car = await car_of(source, image.cid)
    whole = reading(car)
    left = [30]

    async def breaking() -> bytes:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt  # what a kill looks like: nothing is tidied up
        return await whole()

    with pytest.raises(KeyboardInterrupt):
        try:
            await import_car(node, breaking)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
    assert await node.pins() == {}
    done = await import_car(node, reading(car))
    assert 0 < done.new_bytes < len(car) / 2


async def test_images_that_other_tools_pushed_have_no_root(node: Node, other: EmbeddedNode, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path, own_annotations=False)
    car = await car_of(node, image.cid)
    assert image.root not in dict(blocks_of(car))
    await import_car(other, reading(car))
    await other.gc()
    assert await layer_bytes(other, image.cid) == await layer_bytes(node, image.cid)
    assert [cid for cid, name in (await other.pins()).items() if name == NAME] == [image.cid]


async def test_a_block_that_cannot_be_had_ends_an_export(node: Node, tmp_path: Path) -> None:
    image = await pushed(node, tmp_path)
    lost = [cid for cid, block in blocks_of(await car_of(node, image.cid)) if codec_of(cid) == RAW and len(block) > 100_000][1]
    for pin in (image.cid, image.root):
        await node.unpin(pin)
    await node.delete(lost)
    with pytest.raises(BlockNotFound, match=format_cid(lost)):
        await car_of(node, image.cid)


async def test_a_node_that_goes_away_is_told(tmp_path: Path) -> None:
    node = MemoryNode()
    image = await pushed(node, tmp_path)

    async def write(_: bytes) -> None:
        raise NodeUnavailable("gone")

    with pytest.raises(NodeUnavailable, match="gone"):
        await export_car(node, [image.root], write)


def small_car() -> tuple[bytes, Cid]:
    """A CAR of a DAG of three levels."""
    builder = FileBuilder(links=3)
    blocks = [block for number in range(11) for block in builder.add(b"leaf %d" % number)] + list(builder.finish())
    assert builder.root is not None
    return car_header([builder.root]) + b"".join(car_frame(cid, block) for cid, block in blocks), builder.root


@settings(deadline=None)
@given(st.data())
def test_however_a_car_is_damaged_nothing_wrong_is_stored_and_nothing_incomplete_is_pinned(data: st.DataObject) -> None:
    car, root = small_car()
    at = data.draw(st.integers(0, len(car)), label="at")
    removed = data.draw(st.integers(0, 60), label="removed")
    damaged = car[:at] + data.draw(st.binary(max_size=60), label="inserted") + car[at + removed :]
    step = data.draw(st.integers(1, 200), label="step")
    node = MemoryNode()

    async def bring() -> None:
        try:
            await import_car(node, reading(damaged, step))
        except (InvalidInput, VerificationFailed, BlockNotFound):
            assert await node.pins() == {}
        for cid, block in node.store.items():
            verify_block(cid, block)
        for pin in await node.pins():
            node.reach(pin)  # raises where something is missing

    trio.run(bring)
    if damaged == car:
        assert trio.run(node.pins) == {root: ""}
