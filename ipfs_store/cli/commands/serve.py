"""``ipfs-store serve``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Settings

if TYPE_CHECKING:
    from ipfs_store.nodes.interface import Node


@click.command(
    "serve",
    cls=Command,
    short_help="Serve this node's blocks to other machines over HTTP.",
    examples="""
    ipfs-store serve                              # to this machine only, on port 8421
    ipfs-store serve --listen :8421               # to everybody who can reach this machine
    ipfs-store --peer http://HOST:8421 cat CID    # on the other machine
    """,
)
@click.option("--listen", default="127.0.0.1:8421", show_default=True, metavar="HOST:PORT", help="Where; port 0 takes a free one.")
@click.pass_obj
def command(settings: Settings, listen: str) -> None:
    """Serve the blocks of this node, by the trustless gateway protocol of IPFS, until it is interrupted.

    Only what the node has is served: nothing is fetched for others. Once it listens, it prints a line with the address. Everybody who
    reaches the address can read every block whose CID they know.
    """
    settings.run(lambda node: _serve(node, listen))


async def _serve(node: Node, listen: str) -> None:
    from functools import partial
    from typing import cast

    import trio

    from ipfs_store.nodes.exchange.server import LocalBlocks, serve

    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(serve, cast(LocalBlocks, node), listen))
        for url in urls:
            click.echo(f"serving {node.name}/blocks on {url}")
    # It serves until it is cancelled: that it returned means that Ctrl-C came while hypercorn's own tasks ran, which keep it to themselves.
    raise KeyboardInterrupt
