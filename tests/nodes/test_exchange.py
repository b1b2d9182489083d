"""Blocks between two embedded nodes over HTTP, and what happens with peers that lie, stall or are away."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from ipfs_store.cids import RAW, Cid, cid_of, format_cid
from ipfs_store.dag.car import CarReader, car_frame, car_header
from ipfs_store.dag.file import UnixfsFile
from ipfs_store.errors import BlockNotFound, IpfsStoreError, NodeUnavailable
from ipfs_store.nodes.embedded import EmbeddedNode
from ipfs_store.nodes.exchange import peer as peer_module
from ipfs_store.nodes.exchange.peer import Answer, Peer
from ipfs_store.nodes.exchange.server import serve
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.kubo import KuboNode
from tests.kubo import KuboDaemon
from tests.nodes.test_behaviour import ABSENT, file_blocks, put, raw
from tests.patience import PATIENCE


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[EmbeddedNode, str]]:
    node = EmbeddedNode(path)
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(serve, node, "127.0.0.1:0")
        yield node, urls[0]
        nursery.cancel_scope.cancel()
    await node.aclose()


@asynccontextmanager
async def answering(answer: Callable[[bytes], Awaitable[bytes]]) -> AsyncIterator[str]:
    """A peer that reads a request and writes what ``answer`` makes of it."""

    async def talk(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = await stream.receive_some()
            if not piece:
                return
            request += piece
        with contextlib.suppress(trio.BrokenResourceError):  # who asked may hang up
            await stream.send_all(await answer(request))
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        opened = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, talk, opened)
        yield f"http://127.0.0.1:{opened[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def response(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.ipld.raw\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


async def test_a_block_comes_from_a_peer_and_stays(tmp_path: Path) -> None:
    block = raw(b"over the wire" * 5000)
    async with serving(tmp_path / "a") as (source, url):
        await put(source, block)
        node = EmbeddedNode(tmp_path / "b", peers=[url])
        assert await node.get(block.cid) == block.data
    assert await node.get(block.cid) == block.data, "the peer is gone, the block is ours"
    await node.aclose()


async def test_a_gateway_serves_raw_blocks_and_cars(tmp_path: Path) -> None:
    root, blocks = file_blocks(bytes(range(256)) * 100)
    async with serving(tmp_path / "a") as (source, url), httpx.AsyncClient(base_url=url) as client:
        await put(source, *blocks)
        answer = await client.get(f"/ipfs/{format_cid(root)}", params={"format": "raw"})
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/vnd.ipld.raw")
        assert answer.content == next(block.data for block in blocks if block.cid == root)
        car = await client.get(f"/ipfs/{format_cid(root)}", headers={"Accept": "application/vnd.ipld.car"})
        reader = CarReader()
        found = dict(reader.feed(car.content))
        assert (reader.roots, found) == ([root], {block.cid: block.data for block in blocks})
        assert (await client.get(f"/ipfs/{format_cid(ABSENT)}", params={"format": "raw"})).status_code == 404
        assert (await client.get("/ipfs/nonsense", params={"format": "raw"})).status_code == 400


async def test_a_server_never_fetches_for_others(tmp_path: Path) -> None:
    block = raw(b"only on the first")
    async with serving(tmp_path / "a") as (first, url):
        await put(first, block)
        second = EmbeddedNode(tmp_path / "b", peers=[url])
        async with trio.open_nursery() as nursery:
            urls = await nursery.start(serve, second, "127.0.0.1:0")
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"{urls[0]}/ipfs/{format_cid(block.cid)}", params={"format": "raw"})
            assert answer.status_code == 404
            nursery.cancel_scope.cancel()
        await second.aclose()


async def test_a_lying_peer_is_not_believed_and_the_next_one_asked(tmp_path: Path) -> None:
    block = raw(b"the truth")

    async def lie(request: bytes) -> bytes:
        return response(b"something else")

    async with serving(tmp_path / "a") as (source, url), answering(lie) as liar:
        await put(source, block)
        node = EmbeddedNode(tmp_path / "b", peers=[liar, url])
        assert await node.get(block.cid) == block.data
        alone = EmbeddedNode(tmp_path / "c", peers=[liar])
        with pytest.raises(IpfsStoreError):
            await alone.get(block.cid, timeout=2)
        assert not await alone.has(block.cid)
        await node.aclose()
        await alone.aclose()


async def test_a_silent_peer_delays_nobody_for_long(tmp_path: Path) -> None:
    block = raw(b"from the one that answers")

    async def silence(request: bytes) -> bytes:
        await trio.sleep_forever()
        return b""

    async with serving(tmp_path / "a") as (source, url), answering(silence) as silent:
        await put(source, block)
        node = EmbeddedNode(tmp_path / "b", peers=[silent, url])
        with trio.fail_after(PATIENCE):
            assert await node.get(block.cid) == block.data
        with trio.fail_after(PATIENCE), pytest.raises(BlockNotFound, match="within"):
            await node.get(ABSENT, timeout=1)
        await node.aclose()


async def test_an_answer_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    async def flood(request: bytes) -> bytes:
        return response(bytes(64 << 20))

    async with answering(flood) as peer:
        node = EmbeddedNode(tmp_path / "b", peers=[peer])
        with trio.fail_after(PATIENCE), pytest.raises(IpfsStoreError):
            await node.get(ABSENT, timeout=PATIENCE)
        await node.aclose()


async def test_peers_that_are_all_away_are_named(tmp_path: Path) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    await listener.aclose()
    node = EmbeddedNode(tmp_path / "b", peers=[url])
    with trio.fail_after(PATIENCE), pytest.raises(NodeUnavailable, match=url.removeprefix("http://")):
        await node.get(ABSENT, timeout=PATIENCE)
    await node.aclose()


@pytest.mark.kubo
async def test_kubo_and_embedded_nodes_are_peers(kubo: KuboDaemon, tmp_path: Path) -> None:
    root, blocks = file_blocks(b"from kubo" * 1000)
    theirs = KuboNode(kubo.api)
    await put(theirs, *blocks)
    node = EmbeddedNode(tmp_path / "b", peers=[kubo.gateway])
    await node.pin(root)
    assert all([await node.has(block.cid) for block in blocks])
    await node.aclose()
    await theirs.aclose()


async def test_a_block_over_2_mib_is_not_taken(tmp_path: Path) -> None:
    big = bytes(3 << 20)
    cid = cid_of(RAW, big)

    async def send(request: bytes) -> bytes:
        return response(big)

    async with answering(send) as peer:
        node = EmbeddedNode(tmp_path / "b", peers=[peer])
        with trio.fail_after(PATIENCE), pytest.raises(IpfsStoreError):
            await node.get(cid, timeout=PATIENCE)
        await node.aclose()


class Asked:
    """What nodes ask their peers for, from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks = 0
        self.runs: list[tuple[int, int]] = []
        ask, run = Peer.ask, Peer.run

        async def asking(peer: Peer, cid: Cid) -> Answer:
            self.blocks += 1
            return await ask(peer, cid)

        async def running(peer: Peer, root: Cid, start: int, end: int, take: Callable[[list[Block]], Awaitable[None]]) -> None:
            self.runs.append((start, end))
            await run(peer, root, start, end, take)

        monkeypatch.setattr(peer_module, "_RUN_STALL", PATIENCE)  # else a slow machine asks for blocks one by one
        monkeypatch.setattr(Peer, "ask", asking)
        monkeypatch.setattr(Peer, "run", running)


async def test_leaves_side_by_side_are_asked_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = random.Random(1).randbytes(3_000_000)
    root, blocks = file_blocks(data, 10_000)
    asked = Asked(monkeypatch)
    async with serving(tmp_path / "a") as (source, url):
        await put(source, *blocks)
        node = EmbeddedNode(tmp_path / "b", peers=[url])
        await node.pin(root)
        assert asked.blocks <= 10 and len(asked.runs) <= 10, "300 leaves"
        assert await node.local_many([block.cid for block in blocks]) == [block.data for block in blocks]
        other = EmbeddedNode(tmp_path / "c", peers=[url])
        file = await UnixfsFile.open(other.get, root)
        asked.blocks = 0
        assert await file.read(500_000, 2_000_000) == data[500_000:2_500_000]
        assert asked.blocks <= 100 and asked.runs
        await node.aclose()
        await other.aclose()


async def test_a_pin_asks_for_nothing_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, blocks = file_blocks(random.Random(1).randbytes(1_000_000), 10_000)
    asked = Asked(monkeypatch)
    async with serving(tmp_path / "a") as (source, url):
        await put(source, *blocks)
        node = EmbeddedNode(tmp_path / "b", peers=[url])
        await put(node, *(block for number, block in enumerate(blocks) if not 20 <= number < 40 and number != 60))
        await node.pin(root)
        assert (asked.runs, asked.blocks) == ([(200_000, 400_000)], 1)
        assert all([await node.has(block.cid) for block in blocks])
        await node.aclose()


@pytest.mark.parametrize("kind", ["lies", "breaks off", "knows no ranges", "knows no CARs", "stalls"])
async def test_what_does_not_come_together_comes_by_itself(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "_RUN_STALL", 0.3 if kind == "stalls" else PATIENCE)
    root, blocks = file_blocks(random.Random(1).randbytes(200_000), 10_000)
    by_name = {format_cid(block.cid): block for block in blocks}
    whole = car_header([root]) + b"".join(car_frame(block.cid, block.data) for block in blocks)
    junk = raw(bytes(1_900_000))

    async def answer(request: bytes) -> bytes:
        if b"format=raw" in request:
            return response(by_name[request.split(b"/ipfs/")[1].split(b"?")[0].decode()].data)
        if kind == "stalls":
            await trio.sleep_forever()
        if kind == "knows no CARs":
            return b"HTTP/1.1 406 Not Acceptable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        body = {
            "lies": whole[:-100_000] + bytes(100_000),
            "breaks off": whole[:100_000],
            "knows no ranges": whole + car_frame(junk.cid, junk.data),
        }[kind]
        return response(body).replace(b"ipld.raw", b"ipld.car")

    async with answering(answer) as url:
        node = EmbeddedNode(tmp_path / "b", peers=[url])
        if kind == "lies":  # it is not asked for a while, then
            with contextlib.suppress(IpfsStoreError):
                await node.pin(root)
        await node.pin(root)
        assert await node.local_many([block.cid for block in blocks]) == [block.data for block in blocks]
        assert not await node.has(junk.cid)
        await node.aclose()


@pytest.mark.kubo
async def test_kubo_sends_runs(kubo: KuboDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, blocks = file_blocks(random.Random(2).randbytes(500_000), 10_000)
    asked = Asked(monkeypatch)
    theirs = KuboNode(kubo.api)
    await put(theirs, *blocks)
    node = EmbeddedNode(tmp_path / "b", peers=[kubo.gateway])
    await node.pin(root)
    assert asked.blocks <= 2 and asked.runs
    assert await node.local_many([block.cid for block in blocks]) == [block.data for block in blocks]
    await node.aclose()
    await theirs.aclose()
