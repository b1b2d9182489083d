"""``ipfs-store images``."""

from __future__ import annotations

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Settings


@click.command(
    "images",
    cls=Command,
    short_help="List the images that this node keeps.",
    examples="""
    ipfs-store images           # names, CIDs, and how much of each no other image has
    ipfs-store images --json    # for programs, with roots and blocks
    ipfs-store images -q        # CIDs only
    """,
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
@click.option("-q", "--quiet", is_flag=True, help="Print CIDs only.")
@click.pass_obj
def command(settings: Settings, as_json: bool, quiet: bool) -> None:
    """List the images that are pinned here, sorted by name. Nothing is fetched.

    SIZE is what all blocks of an image take, SHARED what of them other images here have too, UNIQUE what `ipfs-store rm` and `gc` would free.
    """
    from ipfs_store.cids import format_cid
    from ipfs_store.images.catalog import held_images
    from ipfs_store.images.usage import usages

    held = settings.run(held_images)
    usage = usages({item.image.cid: item.blocks for item in held})
    if as_json:
        import json

        value = [
            {
                "name": item.name,
                "cid": format_cid(item.image.cid),
                "root": format_cid(item.root),
                "blocks": usage[item.image.cid].blocks,
                "bytes": usage[item.image.cid].bytes,
                "shared": usage[item.image.cid].shared,
                "unique": usage[item.image.cid].unique,
                "lost": item.lost,
            }
            for item in held
        ]
        click.echo(json.dumps(value, indent=2))
    elif quiet:
        for item in held:
            click.echo(format_cid(item.image.cid))
    else:
        from ipfs_store.cli.sizes import size
        from ipfs_store.cli.table import show

        rows = [
            (
                item.name or "-", format_cid(item.image.cid),
                *(("incomplete", "-", "-") if item.lost else map(size, (used.bytes, used.shared, used.unique))),
            )
            for item in held
            for used in [usage[item.image.cid]]
        ]  # fmt: skip
        show(("NAME", "CID", "SIZE", "SHARED", "UNIQUE"), rows, right=(2, 3, 4))
        for item in held:
            if item.lost:
                click.echo(f"note: {item.name or format_cid(item.image.cid)} is not whole: {item.lost}", err=True)
