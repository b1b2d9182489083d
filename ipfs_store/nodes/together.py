"""Lookups of one moment, done in one go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

import trio

from ipfs_store.errors import IpfsStoreError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Batch(Generic[K, V]):
    def __init__(self) -> None:
        self.keys: list[K] = []
        self.done = trio.Event()
        self.results: dict[K, V] | None = None
        self.failure: IpfsStoreError | None = None


class Together(Generic[K, V]):
    """Whoever asks while others do is answered with them: a thread that looks for one block takes as long as one that looks for ten."""

    def __init__(self, look_up: Callable[[Sequence[K]], Awaitable[Sequence[V]]], most: int) -> None:
        """``look_up`` is given up to ``most`` keys at a time."""
        self._look_up = look_up
        self._most = most
        self._gathering: _Batch[K, V] | None = None

    async def get(self, key: K) -> V:
        """What ``look_up`` says of ``key``; raises the IpfsStoreError that it raises."""
        while True:
            batch = self._gathering
            if batch is None:
                batch = await self._lead(key)
            else:
                batch.keys.append(key)
                if len(batch.keys) >= self._most:
                    self._gathering = None
                await batch.done.wait()
            if batch.failure is not None:
                raise batch.failure
            if batch.results is not None:
                return batch.results[key]
            # Who led was cancelled, which says nothing about us.

    async def _lead(self, key: K) -> _Batch[K, V]:
        batch = self._gathering = _Batch[K, V]()
        batch.keys.append(key)
        try:
            await trio.lowlevel.checkpoint()  # all that can run now may join
            if self._gathering is batch:
                self._gathering = None
            keys = list(dict.fromkeys(batch.keys))
            batch.results = dict(zip(keys, await self._look_up(keys), strict=True))
        except IpfsStoreError as error:
            batch.failure = error
        finally:
            if self._gathering is batch:
                self._gathering = None
            batch.done.set()
        return batch
