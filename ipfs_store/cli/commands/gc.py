"""``ipfs-store gc``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Settings

if TYPE_CHECKING:
    from ipfs_store.nodes.interface import GcResult, Node


@click.command(
    "gc",
    cls=Command,
    short_help="Delete every block that no pin keeps.",
    examples="""
    ipfs-store pin rm ROOT && ipfs-store gc    # an image that is no longer wanted
    ipfs-store gc --json                       # {"blocks": ..., "bytes": ...}
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print what was freed as JSON.")
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """Delete every block that no pin keeps and that no push under way has brought."""

    async def gc(node: Node) -> GcResult:
        return await node.gc()

    freed = settings.run(gc)
    if as_json:
        import json

        click.echo(json.dumps({"blocks": freed.blocks, "bytes": freed.bytes}))
    else:
        from ipfs_store.cli.sizes import size

        click.echo(f"freed {size(freed.bytes)} in {freed.blocks} blocks")
