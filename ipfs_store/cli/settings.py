"""The options that stand before the command, and what they open."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from ipfs_store.nodes.interface import Node

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Settings:
    """Which node a command talks to, and how. In a command: ``@click.pass_obj``."""

    node: str = "auto"
    """``auto``, ``embedded``, ``kubo`` or ``kubo:ADDRESS``."""
    node_path: Path | None = None
    """Folder of the embedded node's blocks; None: the node's own default."""
    peers: tuple[str, ...] = ()
    """Trustless gateways to ask for blocks, ``http://host:port``."""
    timeout: float | None = None
    """Seconds after which a block counts as found nowhere; None: the node's own default."""

    def within(self, timeout: float | None) -> Settings:
        """The same with another timeout, if one is given."""
        return self if timeout is None else replace(self, timeout=timeout)

    def open(self) -> AbstractAsyncContextManager[Node]:
        """Open the node, under trio; closed at the end of the context."""
        from ipfs_store.nodes.open import open_node

        return open_node(self.node, path=self.node_path, peers=self.peers, timeout=self.timeout)

    def run(self, work: Callable[[Node], Awaitable[Result]]) -> Result:
        """Open the node, do ``work`` with it under trio, close it."""

        async def main() -> Result:
            async with self.open() as node:
                return await work(node)

        return run_async(main)


def run_async(main: Callable[[], Awaitable[Result]]) -> Result:
    """``main`` under trio."""
    import trio

    # Ctrl-C in the middle of a library's bookkeeping would leave a half-sent request that complains when it is collected.
    return trio.run(main, restrict_keyboard_interrupt_to_checkpoints=True)


class Duration(click.ParamType[float]):
    """Seconds, as ``30``, ``0.5``, ``90s``, ``2m`` or ``1h``."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; fails for what is no positive number with an optional unit."""
        text = str(value).strip().lower()
        units = {"s": 1, "m": 60, "h": 3600}
        try:
            seconds = float(text[:-1]) * units[text[-1]] if text[-1:] in units else float(text)
        except ValueError:
            seconds = -1
        if not 0 < seconds < math.inf:
            self.fail(f"{text!r} is not a time such as 30, 90s or 2m", param, ctx)
        return seconds


class Size(click.ParamType[int]):
    """Bytes, as ``262144``, ``256KiB``, ``256K`` or ``4MiB``."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes; fails for what is no whole number with an optional binary unit."""
        text = str(value).strip().lower().removesuffix("b").removesuffix("i")
        units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
        number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
        if not number.isascii() or not number.isdigit():
            self.fail(f"{value!r} is not a size such as 262144, 256KiB or 4MiB", param, ctx)
        return int(number) * unit


timeout_option = click.option("--timeout", type=Duration(), help="When a block counts as found nowhere (30, 90s, 2m).")
"""For commands that may have to ask others for blocks: ``--timeout``, also behind the command's name."""
