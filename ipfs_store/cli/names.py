"""Names of images, completed by the shell."""

from __future__ import annotations

import click

from ipfs_store.cli.settings import Settings


def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of pins that begin so; none where the node does not answer: a shell that completes has no place for errors."""
    from ipfs_store.cids import Cid
    from ipfs_store.errors import IpfsStoreError
    from ipfs_store.nodes.interface import Node

    async def pins(node: Node) -> dict[Cid, str]:
        return await node.pins()

    given = ctx.find_root().params
    try:
        found = Settings(given.get("node") or "auto", given.get("node_path")).run(pins)
    except IpfsStoreError:
        return []
    return sorted({name for name in found.values() if name.startswith(incomplete)})
