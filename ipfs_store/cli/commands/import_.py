"""``ipfs-store import``."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from ipfs_store.cli.command import Command
from ipfs_store.cli.settings import Settings

if TYPE_CHECKING:
    from ipfs_store.images.carfile import Imported
    from ipfs_store.images.model import Progress
    from ipfs_store.nodes.interface import Node

_PIECE = 1 << 20


@click.command(
    "import",
    cls=Command,
    short_help="Read images from a CAR file, check them, and keep them.",
    examples="""
    ipfs-store import image.car               # prints the image's CID
    ipfs-store import - < image.car           # from standard input
    ipfs-store import --name app:2 image.car  # under a name of your own
    """,
)
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@click.option("--name", default="", help="Name of the image [the one it was pushed under].")
@click.option("--json", "as_json", is_flag=True, help="Print what was read as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.pass_obj
def command(settings: Settings, file: str, name: str, as_json: bool, quiet: bool) -> None:
    """Read what `ipfs-store export` or `ipfs dag export` wrote: every block is checked, and the image pinned when all of it is there.

    An import that was broken off may be repeated, and builds on what it stored before. Prints the CID of each image.
    """
    import os
    import stat
    import sys

    from ipfs_store.cids import format_cid
    from ipfs_store.cli.progress import shown_progress
    from ipfs_store.cli.sizes import size
    from ipfs_store.oci import Reference

    full_name = str(Reference.parse(name)) if name else ""
    # Opened before the node is: a file that is not there is told at once. Unbuffered: pieces of a MiB need no second copy.
    with open(sys.stdin.fileno() if file == "-" else file, "rb", buffering=0, closefd=file != "-") as source:
        status = os.fstat(source.fileno())
        length = status.st_size if stat.S_ISREG(status.st_mode) else 0
        with shown_progress(quiet=quiet) as progress:
            done = settings.run(lambda node: _import(node, source, full_name, length, progress))
    if as_json:
        import json

        value = {
            "images": [{"cid": format_cid(image.cid), "name": full_name or image.name} for image in done.images],
            "blocks": done.blocks, "bytes": done.bytes, "new_blocks": done.new_blocks, "new_bytes": done.new_bytes,
        }  # fmt: skip
        click.echo(json.dumps(value, indent=2))
        return
    if not quiet:
        new = f"{size(done.new_bytes)} new in {done.new_blocks} blocks"
        names = ", ".join(full_name or image.name or "a DAG without a name" for image in done.images)
        click.echo(f"imported {names}: {size(done.bytes)} in {done.blocks} blocks, {new}", err=True)
    for image in done.images:
        click.echo(format_cid(image.cid))


async def _import(node: Node, source: BinaryIO, name: str, size: int, progress: Progress) -> Imported:
    import trio

    from ipfs_store.images.carfile import import_car

    async def read() -> bytes:
        return await trio.to_thread.run_sync(source.read, _PIECE, abandon_on_cancel=True)  # type: ignore[call-arg, unused-ignore]

    return await import_car(node, read, name=name, size=size, progress=progress)
