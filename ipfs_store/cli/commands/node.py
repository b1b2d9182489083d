"""``ipfs-store node``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Settings

if TYPE_CHECKING:
    from ipfs_store.nodes.interface import Node


@click.command(
    "node",
    cls=Command,
    short_help="Show the node that commands talk to.",
    examples="""
    ipfs-store node                          # which one --node auto finds, and what it holds
    ipfs-store --node kubo:HOST:5001 node    # whether that Kubo answers
    ipfs-store node --json                   # for programs
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """Show the node: its kind, where it is, how much it holds (`disk`: with what was deleted and not collected), how many pins it has, which peers it asks.

    Of Kubo, how many peers it is connected to, and the limit (Datastore.StorageMax) above which its collector runs.
    """
    found = settings.run(_describe)
    found["peers"] = list(settings.peers)
    if as_json:
        import json

        click.echo(json.dumps(found, indent=2))
        return
    from ipfs_store.cli.sizes import size

    for key in ("bytes", "disk", "limit"):
        if key in found:
            found[key] = size(found[key])
    found["peers"] = ", ".join(found["peers"]) or "none"
    for key, value in found.items():
        click.echo(f"{key:9} {value}")


async def _describe(node: Node) -> dict[str, Any]:
    from ipfs_store.nodes.embedded import EmbeddedNode

    found: dict[str, Any] = {"node": node.name}
    if isinstance(node, EmbeddedNode):
        stats = await node.stats()
        found |= {"path": str(node.store.path), "blocks": stats.blocks, "bytes": stats.bytes, "packs": stats.packs, "disk": stats.disk}
    else:
        from ipfs_store.nodes.kubo import KuboNode

        if isinstance(node, KuboNode):
            health = await node.health()
            found |= {
                "address": str(node.address), "version": health.version, "connected": health.connected, "bytes": health.bytes, "limit": health.limit,
            }  # fmt: skip
    return found | {"pins": len(await node.pins())}
