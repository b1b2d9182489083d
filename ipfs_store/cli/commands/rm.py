"""``ipfs-store rm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.names import complete
from ipfs_store.cli.settings import Settings

if TYPE_CHECKING:
    from ipfs_store.cids import Cid
    from ipfs_store.nodes.interface import GcResult, Node


@click.command(
    "rm",
    cls=Command,
    short_help="No longer keep images.",
    examples="""
    ipfs-store rm debian:12     # by name; its blocks go with the next gc
    ipfs-store rm --gc CID      # and at once
    """,
)
@click.argument("images", nargs=-1, required=True, metavar="CID|NAME...", shell_complete=complete)
@click.option("--gc", "collect", is_flag=True, help="Delete at once what nothing else keeps.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.pass_obj
def command(settings: Settings, images: tuple[str, ...], collect: bool, as_json: bool) -> None:
    """Unpin images with all that was pinned for them. Blocks that no other pin reaches go with the next `ipfs-store gc`. Prints their CIDs."""
    from ipfs_store.cids import format_cid

    async def work(node: Node) -> tuple[list[Cid], list[Cid], GcResult | None]:
        from ipfs_store.images.catalog import find, remove

        # All are found before any goes: a mistyped name changes nothing.
        found = list(dict.fromkeys([await find(node, text) for text in images]))
        unpinned = [pin for cid in found for pin in await remove(node, cid)]
        return found, unpinned, await node.gc() if collect else None

    found, unpinned, freed = settings.run(work)
    if as_json:
        import json

        value = {"removed": [format_cid(cid) for cid in found], "unpinned": [format_cid(cid) for cid in unpinned]}
        click.echo(json.dumps(value | ({} if freed is None else {"blocks": freed.blocks, "bytes": freed.bytes}), indent=2))
        return
    for cid in found:
        click.echo(format_cid(cid))
    if freed is not None:
        from ipfs_store.cli.sizes import size

        click.echo(f"freed {size(freed.bytes)} in {freed.blocks} blocks", err=True)
