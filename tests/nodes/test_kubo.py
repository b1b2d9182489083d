"""What is particular to a Kubo daemon: its connection, its collector, its pins."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest
import pytest_trio
import trio

from ipfs_store.cids import DAG_CBOR, RAW, Cid, cid_of
from ipfs_store.dag import dagcbor
from ipfs_store.errors import BlockNotFound, NodeUnavailable, StorageFailed
from ipfs_store.nodes.interface import Block
from ipfs_store.nodes.kubo import KuboNode
from ipfs_store.nodes.kubo.address import parse_api
from ipfs_store.nodes.kubo.imports import Import
from ipfs_store.nodes.kubo.presence import Presence
from ipfs_store.nodes.kubo.rpc import Rpc, RpcError
from tests.kubo import KuboDaemon
from tests.nodes.test_behaviour import file_blocks, put, raw
from tests.patience import PATIENCE


class Server:
    """Gives every request the next of ``answers``, byte by byte, and keeps what it was asked."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.asked: list[bytes] = []
        self.connections = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while self.answers:
                request = b""
                while not request.endswith(b"\r\n0\r\n\r\n" if b"Transfer-Encoding" in request else b"\r\n\r\n"):
                    received = await stream.receive_some()
                    if not received:
                        return
                    request += received
                self.asked.append(request)
                answer = self.answers.pop(0)
                for at in range(len(answer)):
                    await stream.send_all(answer[at : at + 1])


Serve = Callable[..., tuple[Server, Rpc]]


@pytest_trio.trio_fixture
async def serve(nursery: trio.Nursery) -> AsyncIterator[Serve]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    opened: list[Rpc] = []

    def start(*answers: bytes) -> tuple[Server, Rpc]:
        server = Server(list(answers))
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        opened.append(Rpc(parse_api(f"127.0.0.1:{listeners[0].socket.getsockname()[1]}")))
        return server, opened[-1]

    yield start
    for rpc in opened:
        await rpc.aclose()


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_an_answer_in_chunks_is_put_together_and_the_connection_kept(serve: Serve) -> None:
    server, rpc = serve(
        HEAD + b"4\r\nWiki\r\n6;a=b\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes"
    )
    assert await rpc.call("first", [("arg", "a b&c")]) == b"Wikipedia in \r\n\r\nchunks."
    assert await rpc.call("second") == b"yes"
    assert server.asked[0].startswith(b"POST /api/v0/first?arg=a+b%26c HTTP/1.1\r\n")
    assert server.connections == 1


async def test_an_error_behind_the_answer_is_an_error(serve: Serve) -> None:
    _, rpc = serve(HEAD + b'5\r\n{"a":\r\n3\r\n1}\n\r\n0\r\nX-Stream-Error: block went away\r\n\r\n')
    lines = []
    with pytest.raises(RpcError, match="block went away"):
        async for line in rpc.lines("ls"):
            lines.append(line)
    assert lines == [{"a": 1}]


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"5\r\nhel",
        HEAD + b"5\r\nhello\r\n",
        HEAD + b"5\r\nhello!!\r\n0\r\n\r\n",
        HEAD + b"-5\r\nhello\r\n0\r\n\r\n",
        HEAD + b"x" * 20_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"",
    ],
)
async def test_an_answer_that_is_cut_or_none_is_no_answer(serve: Serve, answer: bytes) -> None:
    _, rpc = serve(answer)
    with pytest.raises(NodeUnavailable):
        await rpc.call("block/get")


async def test_an_import_that_is_refused_says_why(serve: Serve) -> None:
    body = b'{"Message":"import failed: no space left on device","Code":0,"Type":"error"}'
    said = b"HTTP/1.1 500 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    _, rpc = serve(said)
    request = await Import.begin(rpc, pin_roots=False)
    await request.send([raw(b"a block")])
    with pytest.raises(StorageFailed, match="no space left"):
        await request.finish()


@pytest.mark.kubo
async def test_a_block_that_kubo_refuses_fails_the_push_in_its_words(kubo: KuboDaemon) -> None:
    node = KuboNode(kubo.api)
    with trio.fail_after(PATIENCE), pytest.raises(RpcError, match="mismatch"):
        async with node.push() as push:
            await push.put(Block(cid_of(RAW, b"this"), b"that"))
            for number in range(60):
                await push.put(raw(bytes([number]) * 1_000_000))
            await push.flush()
    await node.aclose()


@pytest.mark.kubo
@pytest.mark.parametrize("name", ["", "a name"])
async def test_a_pin_passes_a_collector_that_waits_for_the_push(kubo: KuboDaemon, name: str) -> None:
    node = KuboNode(kubo.api, timeout=PATIENCE)
    root, blocks = file_blocks(b"collector" + name.encode() * 4000)
    async with trio.open_nursery() as nursery:
        async with node.push() as push:
            await push.put_all(blocks)
            await push.flush()
            nursery.start_soon(partial(trio.run_process, [kubo.binary, "repo", "gc", "--quiet"], env=kubo.environment))
            while not await _waits_for_the_lock(node):
                pass
            await node.pin(root, name=name)
            assert (await node.pins())[root] == name
        nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
    assert not nursery.cancel_scope.cancelled_caught
    assert all([await node.has(block.cid) for block in blocks])
    await node.unpin(root)
    await node.aclose()


async def _waits_for_the_lock(node: KuboNode) -> bool:
    """Whether a pin gets no lock, as when a collector is before it."""
    block = raw(b"something small")
    request = await Import.begin(node._rpc, pin_roots=True)
    with trio.move_on_after(0.5) as waits:
        await request.finish(blocks=[block])
    request.close()
    return waits.cancelled_caught


@pytest.mark.kubo
async def test_what_is_pinned_is_pushed_without_sending_anything(kubo: KuboDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    node = KuboNode(kubo.api)
    root, blocks = file_blocks(b"pushed before" * 1000)
    async with node.push() as push:
        await push.put_all(blocks)
        await push.flush()
        await node.pin(root, name="before")

    async def none(*_: object) -> None:
        raise AssertionError("nothing is to be sent")

    monkeypatch.setattr(Rpc, "upload", none)
    async with node.push() as push:
        assert await push.holds(root)
        await node.pin(root, name="before")
        assert push.new_blocks == 0
    await node.unpin(root)
    await node.aclose()


@pytest.mark.kubo
async def test_what_was_pushed_whole_is_pinned_without_being_read_again(kubo: KuboDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    async def add(*_: object, **__: object) -> bool:
        raise AssertionError("Kubo would read all of it")

    monkeypatch.setattr("ipfs_store.nodes.kubo.node.add_pin", add)
    node = KuboNode(kubo.api)
    file, blocks = file_blocks(b"whole" * 2000)
    await put(node, *blocks[:3])  # what is there already counts as well
    data = dagcbor.encode({"file": dagcbor.CidLink(file), "inline": dagcbor.CidLink(Cid(b"\x01\x55\x00\x02hi"))})
    root = Block(cid_of(DAG_CBOR, data), data)
    async with node.push() as push:
        await push.put_all([*blocks, root])
        await push.flush()
        await node.pin(root.cid)
    assert (await node.pins())[root.cid] == ""
    await node.gc()
    assert all([await node.has(block.cid) for block in (*blocks, root)])
    await node.unpin(root.cid)
    await node.aclose()


@pytest.mark.kubo
async def test_what_was_not_pushed_whole_is_not_taken_to_be(kubo: KuboDaemon) -> None:
    node = KuboNode(kubo.api, timeout=1)
    root, blocks = file_blocks(bytes(range(255, -1, -1)) * 40)
    with pytest.raises(BlockNotFound):
        async with node.push() as push:
            await push.put_all(blocks[1:])
            await push.flush()
            await node.pin(root)
    assert root not in await node.pins()
    await node.aclose()


@pytest.mark.kubo
async def test_a_pin_gets_another_name_and_one_without_a_name_keeps_it(kubo: KuboDaemon) -> None:
    node = KuboNode(kubo.api)
    block = raw(b"to be named")
    for name, kept in (("one", "one"), ("two", "two"), ("", "two")):
        async with node.push() as push:
            await push.put(block)
            await push.flush()
            await node.pin(block.cid, name=name)
        assert (await node.pins())[block.cid] == kept
    await node.unpin(block.cid)
    await node.aclose()


@pytest.mark.kubo
async def test_blocks_are_found_present_however_much_of_the_repository_is_listed(kubo: KuboDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    node = KuboNode(kubo.api)
    blocks = [raw(b"present %d" % number) for number in range(60)]
    linked = dagcbor.encode({"codec": "another"})
    await put(node, *blocks, Block(cid_of(DAG_CBOR, linked), linked))
    here = [*(block.cid for block in blocks), cid_of(DAG_CBOR, linked)]
    absent = [cid_of(RAW, b"absent %d" % number) for number in range(60)]
    for limit in (0, 20, 1_000_000):
        monkeypatch.setattr("ipfs_store.nodes.kubo.presence._LISTING_LIMIT", limit)
        presence = Presence(node._rpc)
        for at in range(0, 60, 20):
            assert await presence.of([*here[at : at + 20], *absent[at : at + 20]]) == set(here[at : at + 20])
        assert await presence.of([here[-1]]) == {here[-1]}
        await presence.aclose()
    await node.aclose()


@pytest.mark.kubo
async def test_a_push_that_fails_leaves_nothing_open(kubo: KuboDaemon) -> None:
    node = KuboNode(kubo.api)
    with pytest.raises(BlockNotFound):
        async with node.push() as push:
            await push.put_all([raw(bytes([number]) * 100_000) for number in range(40)])
            raise BlockNotFound("the source has no more")
    with trio.fail_after(PATIENCE):
        await node.gc()  # it would wait for a guard
    await node.aclose()


@pytest.mark.kubo
async def test_how_a_daemon_is(kubo: KuboDaemon) -> None:
    node = KuboNode(kubo.api)
    health = await node.health()
    assert (health.version, health.connected) == (await node.version(), 0)
    assert 0 < health.bytes < health.limit
    await node.aclose()
    with pytest.raises(NodeUnavailable, match="does not say how it is"):
        await KuboNode("/ip4/127.0.0.1/tcp/1").health()


async def test_the_rpc_may_be_a_unix_socket() -> None:
    with tempfile.TemporaryDirectory() as name:  # a socket's path has 107 bytes at most
        socket = Path(name) / "api"
        with KuboDaemon(Path(name) / "repository", config={"Addresses.API": f"/unix{socket}"}) as daemon:
            assert daemon.api == f"/unix{socket}"
            node = KuboNode(daemon.api)
            root, blocks = file_blocks(b"over a socket" * 1000)
            await put(node, *blocks)
            assert await node.get(root) == blocks[-1].data
            assert (await node.health()).bytes > 0
            await node.aclose()
