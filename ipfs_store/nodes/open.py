"""``--node``: from what a person writes to a node."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfs_store.errors import InvalidInput, IpfsStoreError
from ipfs_store.nodes.interface import Node

_KUBO_ANSWERS_WITHIN = 2.0  # seconds; it is on this machine, and takes milliseconds


@asynccontextmanager
async def open_node(
    spec: str = "auto", *, path: Path | None = None, peers: Sequence[str] = (), timeout: float | None = None
) -> AsyncIterator[Node]:
    """The node that ``spec`` names, closed at the end.

    ``auto``: Kubo, if ``$IPFS_PATH/api`` names one that answers, else ``embedded``. ``embedded``: the store at ``path``
    (see ``embedded.default_path``), with ``peers`` and those of ``$IPFS_STORE_PEERS`` (commas between). ``kubo``, or ``kubo:ADDRESS``
    with a multiaddr, URL or HOST:PORT; its secret is taken from ``$IPFS_API_AUTH``. ``timeout``: seconds that a block is looked for.

    Raises InvalidInput (a spec that is none), NodeUnavailable (no Kubo there), StorageFailed.
    """
    node = await _open(spec.strip(), path, peers, timeout)
    try:
        yield node
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await node.aclose()


async def _open(spec: str, path: Path | None, peers: Sequence[str], timeout: float | None) -> Node:
    kind, separator, address = spec.partition(":")
    if spec == "auto":
        return await _running_kubo(timeout) or _embedded(path, peers, timeout)
    if spec == "embedded":
        return _embedded(path, peers, timeout)
    if kind == "kubo" and (address or not separator):
        # httpx takes 85 ms to import, which a command on the embedded store need not pay.
        from ipfs_store.nodes.kubo import KuboNode, node

        kubo = KuboNode(address or None, secret=_secret(), timeout=node.DEFAULT_TIMEOUT if timeout is None else timeout)
        try:
            await kubo.version()
        except BaseException:
            with trio.CancelScope(shield=True):
                await kubo.aclose()
            raise
        return kubo
    raise InvalidInput(f"{spec[:100]!r} is no node", hint="write auto, embedded, kubo, or kubo:ADDRESS (such as kubo:127.0.0.1:5001)")


def _embedded(path: Path | None, peers: Sequence[str], timeout: float | None) -> Node:
    from ipfs_store.nodes import embedded

    more = [peer for peer in os.environ.get("IPFS_STORE_PEERS", "").split(",") if peer.strip()]
    seconds = embedded.DEFAULT_TIMEOUT if timeout is None else timeout
    return embedded.EmbeddedNode(path, peers=[*peers, *more], timeout=seconds)


async def _running_kubo(timeout: float | None) -> Node | None:
    """The Kubo of ``$IPFS_PATH``, if it runs and lets us in."""
    from ipfs_store.nodes.kubo.address import find_api

    try:
        address = find_api()
    except InvalidInput:
        return None
    if address is None:
        return None
    from ipfs_store.nodes.kubo import KuboNode, node

    kubo = KuboNode(address, secret=_secret(), timeout=node.DEFAULT_TIMEOUT if timeout is None else timeout)
    with trio.move_on_after(_KUBO_ANSWERS_WITHIN):
        try:
            await kubo.version()
            return kubo
        except IpfsStoreError:
            pass  # a file that a killed daemon left behind, or a daemon that wants a secret: not the one for us
    await kubo.aclose()
    return None


def _secret() -> str:
    return os.environ.get("IPFS_API_AUTH", "")
