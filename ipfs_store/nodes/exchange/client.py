"""Blocks from peers over HTTP: the fastest first, the next one too if it is slow, and nobody believed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from ipfs_store.cids import Cid, format_cid
from ipfs_store.errors import BlockNotFound, IpfsStoreError, NodeUnavailable
from ipfs_store.nodes.exchange.peer import Answer, Kind, Peer
from ipfs_store.nodes.interface import Block

_log = logging.getLogger(__name__)

# The next peer is asked when the one before took this many times its usual time: asking sooner doubles the traffic of a link that
# is merely full, and later makes one stalled peer felt. Between the two bounds, in seconds.
_HEDGE_FACTOR = 4.0
_HEDGE_MIN, _HEDGE_MAX = 0.03, 1.0


class PeerClient:
    """Fetches blocks from a fixed list of peers."""

    def __init__(self, urls: Sequence[str]) -> None:
        """``urls``: base URLs of trustless gateways; raises InvalidInput."""
        self.peers = [Peer(url) for url in dict.fromkeys(urls)]

    async def fetch(self, cid: Cid, *, timeout: float) -> bytes:
        """The block, verified. Raises BlockNotFound, or NodeUnavailable where no peer answered at all.

        Every peer is asked, those that failed lately only after all others said no. ``timeout`` in seconds.
        """
        answers: dict[Peer, Answer | None] = {}
        with trio.move_on_after(timeout):
            data = await self._race(cid, answers)
            if data is not None:
                return data
        raise _failure(cid, timeout, answers)

    async def run(self, root: Cid, start: int, end: int, take: Callable[[list[Block]], Awaitable[None]]) -> None:
        """See ``Peer.run``: of the one peer that answers fastest."""
        able = [peer for peer in self.peers if peer.sends_runs and not peer.resting]
        if able:
            await min(able, key=lambda peer: peer.latency).run(root, start, end, take)

    async def aclose(self) -> None:
        """Close all connections."""
        for peer in self.peers:
            await peer.aclose()

    async def _race(self, cid: Cid, answers: dict[Peer, Answer | None]) -> bytes | None:
        resting = sorted((peer for peer in self.peers if peer.resting), key=lambda peer: peer.retry_at)
        waiting = sorted((peer for peer in self.peers if not peer.resting), key=lambda peer: peer.latency)
        running = 0
        results, arrived = trio.open_memory_channel[tuple[Peer, Answer]](len(self.peers))

        async def ask(peer: Peer) -> None:
            answer = answers[peer] = await peer.ask(cid)
            results.send_nowait((peer, answer))

        async with trio.open_nursery() as nursery:
            while waiting or running or resting:
                if not waiting and not running:
                    waiting.append(resting.pop(0))
                patience = float("inf")
                if waiting:
                    peer = waiting.pop(0)
                    answers[peer] = None
                    running += 1
                    nursery.start_soon(ask, peer)
                    if waiting:
                        patience = min(max(peer.latency * _HEDGE_FACTOR, _HEDGE_MIN), _HEDGE_MAX)
                with trio.move_on_after(patience):
                    peer, answer = await arrived.receive()
                    running -= 1
                    if answer.kind is Kind.FOUND:
                        nursery.cancel_scope.cancel()
                        return answer.data
                    if answer.kind is Kind.WRONG:
                        _log.warning("peer %s %s: %s; it is not asked for a while", peer.url, answer.reason, format_cid(cid))
                    elif answer.kind is Kind.FAILED and peer.failures == 1:
                        _log.warning("peer %s %s; it is left alone for a while", peer.url, answer.reason)
        return None


def _failure(cid: Cid, timeout: float, answers: dict[Peer, Answer | None]) -> IpfsStoreError:
    asked = ", ".join(f"{peer.url} ({answer.reason if answer else 'no answer yet'})" for peer, answer in answers.items())
    if any(answer is None for answer in answers.values()):
        return BlockNotFound(
            f"{format_cid(cid)} was not found within {timeout:g} s; asked {asked}",
            hint="check the peers, or allow more time with --timeout",
        )
    if all(answer is not None and answer.kind is Kind.FAILED for answer in answers.values()):
        return NodeUnavailable(
            f"no peer answers, so {format_cid(cid)} cannot be fetched: {asked}", hint="start `ipfs-store serve` there, or name other peers"
        )
    return BlockNotFound(f"no peer has {format_cid(cid)}; asked {asked}", hint="check the CID, or name a peer that has it")
