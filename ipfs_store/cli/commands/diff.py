"""``ipfs-store diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.names import complete
from ipfs_store.cli.settings import Settings, timeout_option

if TYPE_CHECKING:
    from ipfs_store.images.compare import Change, Transfer
    from ipfs_store.nodes.interface import Node

_LETTERS = {"added": "A", "removed": "D", "changed": "M", "attributes": "m"}


@click.command(
    "diff",
    cls=Command,
    short_help="Show what changes from one image to another.",
    examples="""
    ipfs-store diff OLD NEW              # files, and what a machine that has OLD fetches for NEW
    ipfs-store diff --stat app:1 app:2   # only how much
    ipfs-store diff --json OLD NEW       # for programs
    """,
)
@click.argument("before", metavar="CID|NAME", shell_complete=complete)
@click.argument("after", metavar="CID|NAME", shell_complete=complete)
@click.option("--stat", is_flag=True, help="Only how many files and bytes.")
@click.option("--platform", metavar="OS/ARCH", help="Of several [this machine's].")
@timeout_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(settings: Settings, before: str, after: str, stat: bool, platform: str | None, timeout: float | None, as_json: bool) -> None:
    """List files that are added (A), removed (D) or changed (M) from one image to another, or have other owners or modes (m; times do not count).

    The last line says how many bytes a machine fetches that has the first image and wants all of the second.
    """
    import os
    import sys

    from ipfs_store.oci.platform import parse_platform

    platforms = () if platform is None else (parse_platform(platform),)

    async def work(node: Node) -> tuple[list[Change], Transfer]:
        import trio

        from ipfs_store.images.catalog import find
        from ipfs_store.images.compare import compare, transfer
        from ipfs_store.images.layer_files import open_files

        one, other = await find(node, before), await find(node, after)
        async with open_files(node, one, platforms=platforms) as old, open_files(node, other, platforms=platforms) as new:
            changes = await trio.to_thread.run_sync(compare, old, new)
        return changes, await transfer(node, one, other)

    changes, moved = settings.within(timeout).run(work)
    if as_json:
        import json

        value = {
            "changes": [
                {"path": f"/{item.path}", "kind": item.kind, "before": _size(item.before), "after": _size(item.after)} for item in changes
            ],
            "transfer": {
                "blocks": moved.blocks,
                "bytes": moved.bytes,
                "total_blocks": moved.total_blocks,
                "total_bytes": moved.total_bytes,
            },
        }
        click.echo(json.dumps(value, indent=2))
        return
    from ipfs_store.cli.sizes import size

    if not stat:
        for item in changes:
            sys.stdout.buffer.write(os.fsencode(f"{_LETTERS[item.kind]} /{item.path}".replace("\n", "?")) + b"\n")
        sys.stdout.buffer.flush()
    counts = [(kind, sum(item.kind == kind for item in changes)) for kind in _LETTERS]
    said = ", ".join(f"{count} {kind}" if kind != "attributes" else f"{count} with other attributes" for kind, count in counts)
    click.echo(f"{said}; {size(sum(item.bytes for item in changes))} of contents are new")
    click.echo(f"to fetch: {size(moved.bytes)} of {size(moved.total_bytes)}, {moved.blocks} of {moved.total_blocks} blocks")


def _size(entry: object) -> int | None:
    return getattr(entry, "size", None)
